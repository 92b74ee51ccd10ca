//! `restante init`: a minimal configuration, and what else is needed before mail can come: DNS lines, what the primary must
//! allow, the next commands.
//!
//! Never writes over a file, asks no DNS, and writes nothing that `config check` would refuse.

mod advice;

use super::args;
use super::exit;
use super::output::Output;
use crate::config::{self, HostPort, HostPortError, Invalid, toml_string};
use anyhow::{Context as _, bail};
use restante_relay::DomainPattern;
use serde_json::json;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Behind the errors.
const NOT_WRITTEN: &str = "nothing was written";
/// What a route without a list does, in the file and in the question.
const UNLISTED: &str = "Without a list every address is taken, and what the primary refuses later is bounced";
/// Longer than any answer that means something.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// There is nothing secret in it, and the daemon's own user must be able to read it.
const FILE_MODE: u32 = 0o644;

/// What the file is made of.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    hostname: String,
    domains: Vec<DomainPattern>,
    primary: HostPort,
    /// As it will stand in the file.
    recipients: Option<PathBuf>,
}

pub(crate) fn run(given: &args::Init, data: Option<&Path>, output: Output) -> anyhow::Result<u8> {
    let path = &given.output;
    if path.symlink_metadata().is_ok() {
        bail!(
            "{} is there already, and init never writes over a configuration: edit it, or name another --output",
            path.display()
        );
    }
    let person = (!output.json && io::stdin().is_terminal() && io::stderr().is_terminal()).then(|| Person {
        input: Box::new(io::stdin().lock()),
        say: Box::new(|text| {
            let _closed = write!(io::stderr().lock(), "{text}");
        }),
    });
    let answers = match gather(given, person)? {
        Ok(answers) => answers,
        Err(errors) => {
            output.note(Invalid::Flags(errors).render_with(output.color, NOT_WRITTEN).trim_end());
            return Ok(exit::USAGE);
        }
    };
    let text = toml(&answers, path, data)?;
    if let Err(invalid) = config::check_text(path, &text) {
        output.note(invalid.render_with(output.color, NOT_WRITTEN).trim_end());
        return Ok(exit::CONFIG_INVALID);
    }
    write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    tell(&answers, path, output);
    Ok(exit::DONE)
}

/// Somebody at a terminal.
struct Person<'a> {
    input: Box<dyn BufRead + 'a>,
    say: Box<dyn FnMut(&str) + 'a>,
}

impl Person<'_> {
    /// Asks until the answer is one.
    fn ask<T>(
        &mut self,
        question: &str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        loop {
            let default_shown = default.map(|default| format!(" [{default}]")).unwrap_or_default();
            (self.say)(&format!("{question}{default_shown}: "));
            let mut answer = String::new();
            if self.input.by_ref().take(ANSWER_BYTES_MAX).read_line(&mut answer)? == 0 {
                bail!("no answer; {NOT_WRITTEN}");
            }
            let answer = Some(answer.trim()).filter(|answer| !answer.is_empty()).or(default).unwrap_or_default();
            match parse(answer) {
                Ok(value) => return Ok(value),
                Err(why) => (self.say)(&format!("  {why}\n")),
            }
        }
    }
}

/// The values given, and those asked for; or everything that is wrong or missing.
fn gather(given: &args::Init, person: Option<Person<'_>>) -> anyhow::Result<Result<Answers, Vec<String>>> {
    let mut errors = Vec::new();
    let hostname = given.hostname.as_deref().and_then(|text| noted(&mut errors, "HOSTNAME", text, own_name));
    let domains: Vec<_> =
        given.domains.iter().filter_map(|text| noted(&mut errors, "--domain", text.trim(), config::domain)).collect();
    let primary = given.primary.as_deref().and_then(|text| noted(&mut errors, "--primary", text, next_hop));
    if !errors.is_empty() {
        return Ok(Err(errors));
    }
    let complete = hostname.is_some() && !domains.is_empty() && primary.is_some();
    let recipients = given.recipients.clone();
    let mut person = match person {
        Some(person) if !complete => person,
        _ => {
            let domains = Some(domains).filter(|domains| !domains.is_empty());
            for (missing, what) in [
                (hostname.is_none(), "HOSTNAME, our own name, such as mx2.example.net"),
                (domains.is_none(), "--domain D[,D...], whose mail is taken"),
                (primary.is_none(), "--primary HOST[:PORT], where it goes"),
            ] {
                errors.extend(missing.then(|| format!("missing: {what}")));
            }
            return Ok(match (hostname, domains, primary) {
                (Some(hostname), Some(domains), Some(primary)) => {
                    Ok(Answers { hostname, domains, primary, recipients })
                }
                _ => Err(errors),
            });
        }
    };
    let ours = config::hostname_of_this_machine();
    let hostname = match hostname {
        Some(hostname) => hostname,
        None => person.ask("Our own name, as the PTR record of our address says it", ours.as_deref(), own_name)?,
    };
    let list = |text: &str| text.split(',').map(|domain| config::domain(domain.trim())).collect();
    let domains =
        if domains.is_empty() { person.ask("Domains to take mail for (with commas)", None, list)? } else { domains };
    let primary = match primary {
        Some(primary) => primary,
        None => person.ask("Their mail server, HOST or HOST:PORT", None, next_hop)?,
    };
    let recipients = match recipients {
        Some(recipients) => Some(recipients),
        None => {
            (person.say)(&format!("{UNLISTED}.\n"));
            person.ask("A file with the addresses that exist, one a line (Enter: no list)", None, existing_file)?
        }
    };
    Ok(Ok(Answers { hostname, domains, primary, recipients }))
}

fn noted<T>(errors: &mut Vec<String>, flag: &str, text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    parse(text).map_err(|why| errors.push(format!("{flag} `{text}`: {why}"))).ok()
}

/// Without a dot it is nobody's name on the Internet: strict servers refuse to talk to it.
fn own_name(text: &str) -> Result<String, String> {
    match config::hostname(text)? {
        name if name.contains('.') => Ok(name),
        name => Err(format!(
            "a name without a domain is known to nobody else: write it in full, such as {name}.example.net"
        )),
    }
}

fn next_hop(text: &str) -> Result<HostPort, String> {
    text.parse().map_err(|why: HostPortError| why.to_string())
}

fn existing_file(text: &str) -> Result<Option<PathBuf>, String> {
    match Path::new(text) {
        _ if text.is_empty() => Ok(None),
        path if path.is_file() => Ok(Some(path.into())),
        _ => Err(format!("there is no file {text}")),
    }
}

/// The file: what differs from one backup MX to the next, and nothing else.
fn toml(answers: &Answers, path: &Path, data: Option<&Path>) -> anyhow::Result<String> {
    let strings = |list: Vec<String>| list.iter().map(|text| toml_string(text)).collect::<Vec<_>>().join(", ");
    // The service keeps its journal where services do; somebody who tries it out, beside the file.
    let of_the_system = std::path::absolute(path).is_ok_and(|path| path.starts_with("/etc"));
    let dir = match data {
        // As the file will be seen from wherever it is: `--data` is seen from here.
        Some(dir) => std::path::absolute(dir).with_context(|| format!("no way to {}", dir.display()))?,
        None if of_the_system => "/var/lib/restante".into(),
        None => "restante-data".into(),
    };
    let dir = dir.to_str().with_context(|| format!("{} is not UTF-8", dir.display()))?;
    let recipients = match &answers.recipients {
        Some(file) => {
            let file = std::path::absolute(file).with_context(|| format!("no way to {}", file.display()))?;
            let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
            let list = toml_string(&format!("file:{file}"));
            format!(
                "# The addresses that exist; others are refused at the door. A changed file is read within seconds.\nrecipients = [{list}]\n"
            )
        }
        None => format!("# {UNLISTED}.\n#recipients = [\"info@{}\", \"file:recipients\"]\n", first(&answers.domains)),
    };
    Ok(format!(
        "# Restante's configuration. `restante config show` prints every key with its value, those that are not here too.\n\
         \n# Our own name; the PTR record of our address should say the same.\n\
         hostname = {}\n\
         \n[journal]\n# The data directory, on a local disk whose sync can be trusted. A relative path is seen from this file.\n\
         dir = {}\n\
         \n[[route]]\n# Whose mail we take, and where it goes.\n\
         domains = [{}]\nprimary = [{}]\n{recipients}",
        toml_string(&answers.hostname),
        toml_string(dir),
        strings(answers.domains.iter().map(ToString::to_string).collect()),
        toml_string(&answers.primary.to_string()),
    ))
}

/// A domain that the route takes mail for.
fn first(domains: &[DomainPattern]) -> String {
    match domains.first() {
        Some(DomainPattern::Exact(domain)) => domain.to_string(),
        Some(DomainPattern::Below(domain)) => format!("office.{domain}"),
        None => "example.com".to_owned(),
    }
}

/// A new file, whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let fill = |file: &mut File| {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    fill(&mut file).inspect_err(|_| {
        // It is ours, made a moment ago.
        let _kept = std::fs::remove_file(path);
    })
}

fn tell(answers: &Answers, path: &Path, output: Output) {
    let file = path.display().to_string();
    let next = [
        format!("restante config check --config {file}"),
        format!(
            "restante serve --config {file}        # port 25 needs root or the service; to try it: --listen 127.0.0.1:2525"
        ),
        format!("restante log -f --config {file}"),
    ];
    let domains: Vec<String> = answers.domains.iter().map(ToString::to_string).collect();
    let dns = advice::dns(&answers.hostname, &domains);
    let primary = advice::primary(&answers.hostname);
    if output.json {
        let snippets: serde_json::Map<_, _> =
            primary.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        return output.object(&json!({
            "type": "init", "file": file, "hostname": answers.hostname, "domains": domains,
            "primary": answers.primary.to_string(), "recipients": answers.recipients, "dns": dns,
            "allow_on_primary": snippets, "next": next,
        }));
    }
    output.line(&format!("wrote {file}"));
    if answers.recipients.is_none() {
        output.line(&format!("{UNLISTED}: name a file with --recipients, or add it to the file later."));
    }
    output.line(
        "\nDNS. Replace IPV4 and IPV6 by this machine's public addresses; a line it has no address for is left out.\n",
    );
    dns.iter().for_each(|line| output.line(&format!("    {line}")));
    output.line("");
    advice::remarks(&answers.hostname).iter().for_each(|remark| output.line(remark));
    let host = &answers.primary.host;
    output.line(&format!(
        "\nOn {host}: mail from us was sent by others, so sender checks and rate limits must not apply to our address."
    ));
    for (name, text) in primary {
        output.line(&format!("\n# ---- {name} ----\n{}", text.trim_end()));
    }
    output.line("\nNext:\n");
    next.iter().for_each(|command| output.line(&format!("    {command}")));
}

#[cfg(test)]
mod tests;
