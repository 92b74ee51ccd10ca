//! `recover --from` beside a running daemon: the daemon takes over, we ask it to and print its account.

use super::super::args::{Cli, Recover};
use super::super::client::Client;
use super::super::exit;
use super::super::log_line::printable;
use super::super::output::Output;
use hyper::Method;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Every byte of the other journal is read first: a terabyte takes hours.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether a daemon can do all that is asked for.
pub(super) fn is_meant(args: &Recover) -> bool {
    !args.from.is_empty() && !args.deliver && args.export.is_none() && !args.dry_run
}

pub(super) fn run(cli: &Cli, args: &Recover, output: Output) -> u8 {
    let client = match Client::new(cli, None) {
        Ok(client) => client,
        Err(no) => {
            output.note(&no.why);
            return no.code;
        }
    };
    let mut code = exit::DONE;
    for dir in &args.from {
        let dir = match dir.canonicalize() {
            Ok(dir) => dir,
            Err(error) => {
                output.note(&format!("restante: cannot open {}: {error}", dir.display()));
                return exit::FAILED;
            }
        };
        output.note(&format!("the daemon reads {}, and takes over what it does not know", dir.display()));
        match client.ask_for(Method::POST, &format!("/api/v1/recover?from={}", encoded(&dir)), PATIENCE) {
            Ok(answer) => {
                tell(&answer, output);
                let state = answer.get("state").and_then(Value::as_str);
                code = if state == Some("damaged") { exit::DAMAGED } else { code };
            }
            Err(no) => {
                output.note(&format!("restante: {}", no.why));
                return no.code;
            }
        }
    }
    code
}

fn tell(answer: &Value, output: Output) {
    if output.json {
        output.object(answer);
        return;
    }
    for from in answer.get("from").and_then(Value::as_array).into_iter().flatten() {
        let number = |key: &str| from.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |key: &str| from.get(key).and_then(Value::as_str).map(printable).unwrap_or_default();
        output.line(&format!(
            "from {}, which is {}: added {} message(s), mended {}, settled {}, known already {}",
            text("dir"),
            text("state"),
            number("added"),
            number("mended"),
            number("settled"),
            number("known")
        ));
        for id in from.get("quarantined").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            output.line(&format!("from {}: {} is damaged there, and not taken over", text("dir"), printable(id)));
        }
    }
}

/// As a value in a query (RFC 3986 section 2.1).
fn encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_means_something_in_a_query_arrives_as_it_is() {
        assert_eq!(encoded(Path::new("/mnt/old disk/a&b=c%d+e")), "/mnt/old%20disk/a%26b%3Dc%25d%2Be");
    }
}
