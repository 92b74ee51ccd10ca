//! `restante reload`: has the daemon read its configuration again, and says what became other.

use super::args::{Cli, Daemon};
use super::client::Client;
use super::exit;
use super::log_line::printable;
use super::output::Output;
use crate::config::{self, Invalid};
use serde_json::Value;

/// Behind the errors of a file that we could read ourselves.
const NOT_ASKED: &str = "the daemon was not asked, and goes on with what it has";

pub(crate) fn run(cli: &Cli, daemon: &Daemon, output: Output) -> u8 {
    // Without `--data` the file says where the daemon is: then its errors are told here.
    if daemon.admin.is_none()
        && let Err(invalid @ (Invalid::File(_) | Invalid::Unreadable { .. })) = config::data_dir(&cli.flags())
    {
        output.note(invalid.render_with(output.color, NOT_ASKED).trim_end());
        return exit::CONFIG_INVALID;
    }
    let asked = Client::new(cli, daemon.admin.as_ref()).and_then(|c| c.ask(hyper::Method::POST, "/api/v1/reload"));
    match asked {
        Ok(answer) => {
            if output.json {
                output.object(&answer);
            } else {
                in_words(&answer).iter().for_each(|line| output.line(&printable(line)));
            }
            exit::DONE
        }
        Err(no) => {
            output.note(&format!("restante: {}", no.why));
            no.code
        }
    }
}

fn in_words(answer: &Value) -> Vec<String> {
    let list = |key: &str| {
        let list = answer.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut lines = list("changes");
    lines.extend(list("after_restart").iter().map(|key| format!("at the next start: {key}")));
    if lines.is_empty() {
        lines.push("nothing has changed".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_waits_for_a_restart_is_told_apart() {
        let answer = json!({"changes": ["route a: primary h:25 -> i:25"], "after_restart": ["hostname (a -> b)"]});
        assert_eq!(in_words(&answer), ["route a: primary h:25 -> i:25", "at the next start: hostname (a -> b)"]);
        assert_eq!(in_words(&json!({"changes": [], "after_restart": []})), ["nothing has changed"]);
    }
}
