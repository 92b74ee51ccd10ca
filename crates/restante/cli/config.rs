//! `restante config check` and `config show`: what `serve` would read, and what it would do. Starts nothing.

use super::args::{Cli, Config as Command};
use super::exit;
use super::output::Output;
use crate::config::{self, Config, Invalid, Setting, Value, toml_string};
use crate::routing;
use crate::serve::tls;
use serde_json::json;

/// Behind the errors: nothing was started, and nothing was meant to be.
const WOULD_NOT_START: &str = "`restante serve` would not start";
/// Routes that are described one by one in the sentence; of more, the number says more.
const ROUTES_NAMED_MAX: usize = 3;

pub(crate) fn run(cli: &Cli, command: &Command, output: Output) -> u8 {
    match command {
        Command::Check => match config::resolve(&cli.flags()).and_then(with_certificate) {
            Ok(config) => {
                say_valid(&config, output);
                exit::DONE
            }
            Err(invalid) => refuse(&invalid, output),
        },
        Command::Show => match config::settings(&cli.flags()) {
            Ok((_, settings)) if output.json => {
                settings.iter().for_each(|setting| output.object(&object(setting)));
                exit::DONE
            }
            Ok((_, settings)) => {
                output.line(as_toml(&settings).trim_end());
                exit::DONE
            }
            Err(invalid) => refuse(&invalid, output),
        },
    }
}

/// A file may look like a certificate and not be one: `serve` would only find out at its start.
fn with_certificate(config: Config) -> Result<Config, Invalid> {
    match config.certificate.as_ref().map(tls::check) {
        Some(Err(why)) => Err(Invalid::Flags(vec![format!("the certificate for STARTTLS: {why:#}")])),
        _ => Ok(config),
    }
}

fn refuse(invalid: &Invalid, output: Output) -> u8 {
    if output.json {
        output.object(&json!({"type": "config", "ok": false, "errors": invalid.json()}));
    }
    output.note(invalid.render_with(output.color, WOULD_NOT_START).trim_end());
    exit::CONFIG_INVALID
}

fn say_valid(config: &Config, output: Output) {
    let warnings = warnings(config);
    if output.json {
        let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        let route = |route: &config::Route| {
            json!({
                "name": route.name, "domains": route.domains.len(),
                "primary": routing::shown(&routing::targets(route)),
                "recipients": route.recipients.as_ref().map(Vec::len),
            })
        };
        output.object(&json!({
            "type": "config", "ok": true, "file": config.file, "hostname": config.hostname, "listen": listen,
            "routes": config.routes.iter().map(route).collect::<Vec<_>>(), "warnings": warnings,
        }));
    } else {
        output.line(&sentence(config));
        warnings.iter().for_each(|warning| output.note(&format!("warning: {warning}")));
    }
}

/// One sentence: as whom, where, for whom, and whereto.
fn sentence(config: &Config) -> String {
    let file = config.file.as_ref().map_or_else(|| "the command line".to_owned(), |file| file.display().to_string());
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    let domains: usize = config.routes.iter().map(|route| route.domains.len()).sum();
    let routes: Vec<String> = config.routes.iter().take(ROUTES_NAMED_MAX).map(route_in_words).collect();
    let more = match config.routes.len().saturating_sub(ROUTES_NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "{file} is valid: {} would listen on {} and take mail for {} on {}: {}{more}",
        config.hostname,
        listen.join(", "),
        counted(domains, "domain"),
        counted(config.routes.len(), "route"),
        routes.join("; ")
    )
}

fn route_in_words(route: &config::Route) -> String {
    let primary: Vec<String> = routing::targets(route).iter().map(ToString::to_string).collect();
    let recipients = match &route.recipients {
        Some(list) => counted(list.len(), "recipient"),
        None => "any recipient".to_owned(),
    };
    format!("{} to {} ({recipients})", route.name, primary.join(", then "))
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn warnings(config: &Config) -> Vec<String> {
    let unlisted = config.routes.iter().filter(|route| route.recipients.is_none());
    let mut warnings: Vec<String> = unlisted
        .map(|route| {
            format!(
                "route {} has no recipients list: every address is taken, and what the primary refuses is bounced",
                route.name
            )
        })
        .collect();
    if let Some(http) = config.admin_http.filter(|http| !http.ip().is_loopback()) {
        warnings
            .push(format!("[admin] http {http} can be reached from elsewhere: who reads it sees routes and backlog"));
    }
    warnings
}

fn object(setting: &Setting) -> serde_json::Value {
    let key = match (setting.section, &setting.route) {
        ("", _) => setting.key.to_owned(),
        (section, Some(route)) => format!("{section}.{route}.{}", setting.key),
        (section, None) => format!("{section}.{}", setting.key),
    };
    let value = match &setting.value {
        Value::Text(text) | Value::Inline(text) => json!(text),
        Value::Number(number) => json!(number),
        Value::List(list) => json!(list),
        Value::Unset(_) => json!(null),
    };
    json!({"type": "setting", "key": key, "value": value, "origin": setting.origin})
}

/// A configuration that means the same, each value with its origin behind it.
fn as_toml(settings: &[Setting]) -> String {
    let mut out = String::new();
    let mut before = ("", None);
    for setting in settings {
        let place = (setting.section, setting.route.as_ref());
        if place != before {
            let header =
                if setting.route.is_some() { "[[route]]".to_owned() } else { format!("[{}]", setting.section) };
            out += &format!("\n{header}\n");
            before = place;
        }
        let (key, origin) = (setting.key, super::log_line::printable(&setting.origin));
        let value = match &setting.value {
            Value::Text(text) => toml_string(text),
            Value::Inline(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::List(list) => {
                format!("[{}]", list.iter().map(|text| toml_string(text)).collect::<Vec<_>>().join(", "))
            }
            Value::Unset(meaning) => {
                out += &format!("# {key} is not set: {meaning}  # {origin}\n");
                continue;
            }
        };
        out += &format!("{key} = {value}  # {origin}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;
    use std::fs;
    use std::path::Path;

    const TOML: &str = "hostname = \"mx2.example.net\"\n\n[smtp]\nmax_message_size = \"50MB\"\n[[route]]\n\
                        name = \"office\"\ndomains = [\"a.test\"]\nprimary = [\"h.test\", \"i.test:26\"]\n\
                        recipients = [\"boss@a.test\", \"\\\"odd\\\\\\\"one\\\"@a.test\", \"file:list\"]\n[[route]]\n\
                        domains = [\"b.test\"]\nprimary = [\"h.test\"]\n";

    fn place() -> (tempfile::TempDir, Flags) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("restante.toml"), TOML).unwrap();
        fs::write(dir.path().join("list"), "x@a.test\n").unwrap();
        let config = Some(dir.path().join("restante.toml"));
        (dir, Flags { config, listen: vec!["127.0.0.1:2525".into()], ..Flags::default() })
    }

    #[test]
    fn what_is_shown_means_the_same_when_it_is_read_again() {
        let (dir, flags) = place();
        let (config, settings) = config::settings(&flags).unwrap();
        let shown = as_toml(&settings);
        let again = config::check_text(Path::new("/elsewhere/shown.toml"), &shown).unwrap();
        let file = config.file.clone();
        let data_dir = std::path::absolute(&config.data_dir).unwrap();
        assert_eq!(Config { file, ..again }, Config { data_dir, ..config }, "{shown}");
        let at = |line: u32| format!("{}:{line}", dir.path().join("restante.toml").display());
        for (key, origin) in [
            ("hostname = \"mx2.example.net\"", at(1)),
            ("listen = [\"127.0.0.1:2525\"]", "--listen".to_owned()),
            ("max_message_size = \"50MB\"", at(4)),
            ("retain = \"7d\"", "default".to_owned()),
            ("max_connections = 2500", "default".to_owned()),
            ("name = \"office\"", at(6)),
            ("name = \"b.test\"", "default".to_owned()),
            ("domains = [\"b.test\"]", at(11)),
        ] {
            assert!(shown.lines().any(|line| line == format!("{key}  # {origin}")), "{key} # {origin}\n{shown}");
        }
    }

    #[test]
    fn a_certificate_that_serve_would_refuse_is_not_called_valid() {
        let (dir, flags) = place();
        let of = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (a, b) = (of("a.test"), of("b.test"));
        fs::write(dir.path().join("chain"), a.cert.pem()).unwrap();
        let tls = "[tls]\ncertificate = \"chain\"\nkey = \"key\"\n";
        fs::write(dir.path().join("restante.toml"), TOML.replace("[smtp]", &format!("{tls}[smtp]"))).unwrap();
        fs::write(dir.path().join("key"), b.signing_key.serialize_pem()).unwrap();
        let refused = config::resolve(&flags).and_then(with_certificate).unwrap_err().render(false);
        assert!(refused.contains("key: not the key of the first certificate in"), "{refused}");
        fs::write(dir.path().join("key"), a.signing_key.serialize_pem()).unwrap();
        config::resolve(&flags).and_then(with_certificate).unwrap();
    }

    #[test]
    fn the_sentence_says_whose_mail_goes_where() {
        let (dir, flags) = place();
        let config = config::resolve(&flags).unwrap();
        let said = sentence(&config).replace(&format!("{}/", dir.path().display()), "");
        assert_eq!(
            said,
            "restante.toml is valid: mx2.example.net would listen on 127.0.0.1:2525 and take mail for 2 domains on 2 routes: \
             office to h.test:25, then i.test:26 (3 recipients); b.test to h.test:25 (any recipient)"
        );
        assert_eq!(warnings(&config).len(), 1, "the route without a list, and no other");
    }
}
