//! `restante.toml`: found, parsed and checked as a whole, so that one run shows every error in it.
//!
//! Takes no value on trust and none in silence: an unknown key is an error, a number without a unit is an error.

use super::address::{self, Network};
use super::diagnostic::{Invalid, Source};
use super::flags::{self, Given};
use super::routes::{self, Ourselves};
use super::walk::{Keys, Walk};
use super::{
    CertificateFiles, Config, DATA_DIR_DEFAULT, LISTEN_WITH_FILE, Limits, LogSettings, MESSAGE_BYTES_DEFAULT,
    RETAIN_DEFAULT, Surroundings, Trusted, units,
};
use restante_smtp::BareLineEnds;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// A hundred times the longest configuration that makes sense; bounds what a wrong path can make us read.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// RFC 5321 section 4.5.3.1.7 asks for 64K octets at least; who wants to take less may, down to a size that still holds a
/// bounce. Above 1 GiB no peer would take the message either.
const MESSAGE_BYTES: RangeInclusive<u64> = (1 << 10)..=(1 << 30);
/// A chain of many certificates has a few dozen KiB.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// The log's current file and one before it; less could not hold the lines of one bad hour.
const LOG_BYTES_MIN: u64 = 128 << 20;
/// More would leave too little for mail.
const PERCENT: RangeInclusive<u32> = 0..=90;
/// Each connection is a file descriptor and a buffer or two.
const CONNECTIONS: RangeInclusive<u32> = 1..=100_000;
/// 0 is no limit.
const A_MINUTE: RangeInclusive<u32> = 0..=10_000_000;

pub(super) const ROOT: Keys = Keys {
    title: "",
    known: &["hostname", "journal", "smtp", "tls", "admin", "limits", "log", "dns", "route"],
    reserved: &["metrics", "status", "notify", "cluster"],
};
const JOURNAL: Keys = Keys { title: "[journal]", known: &["dir", "retain"], reserved: &[] };
const SMTP: Keys = Keys {
    title: "[smtp]",
    known: &["listen", "max_message_size", "bare_line_ends", "proxy", "xclient"],
    reserved: &[],
};
const ADMIN: Keys = Keys { title: "[admin]", known: &["http"], reserved: &[] };
const TLS: Keys = Keys { title: "[tls]", known: &["certificate", "key"], reserved: &[] };
const LOG: Keys = Keys { title: "[log]", known: &["max_size", "keep"], reserved: &[] };
const DNS: Keys = Keys { title: "[dns]", known: &["servers"], reserved: &[] };
const LIMITS: Keys = Keys {
    title: "[limits]",
    known: &[
        "max_connections",
        "per_client_connections",
        "per_network_connections",
        "connections_per_minute",
        "messages_per_minute",
        "exempt",
        "min_free",
        "min_free_percent",
    ],
    reserved: &[],
};

/// The file that `--config` names, else the first that exists at the usual places: its path and its text.
pub(super) fn find(named: Option<&Path>, usual_places: &[PathBuf]) -> Result<(PathBuf, String), Invalid> {
    let unreadable = |path: &Path, why: &io::Error| Invalid::Unreadable { path: path.into(), why: why.to_string() };
    if let Some(path) = named {
        return read_bounded(path, CONFIG_BYTES_MAX)
            .map(|text| (path.into(), text))
            .map_err(|why| unreadable(path, &why));
    }
    for path in usual_places {
        match read_bounded(path, CONFIG_BYTES_MAX) {
            Ok(text) => return Ok((path.clone(), text)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(unreadable(path, &why)),
        }
    }
    Err(Invalid::NoFile { tried: usual_places.to_vec() })
}

/// A text file of at most `bytes_max` bytes.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max {
        return Err(io::Error::other(format!("larger than {bytes_max} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + good.filter(|byte| **byte == b'\n').count();
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is not UTF-8 text"))
    })
}

/// Checks the whole file and puts the flags over it.
pub(super) fn check(path: &Path, text: &str, given: &Given, around: &Surroundings) -> Result<Config, Invalid> {
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    let mut walk = Walk::new(Source::new(path, text));
    let config = root(&mut walk, document.get_ref(), path.parent().unwrap_or(Path::new("")), given, around)
        .map(|config| Config { file: Some(path.into()), ..config });
    add_syntax_errors(&mut walk, syntax_errors);
    let errors = walk.into_errors();
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(Invalid::File(errors)),
    }
}

/// A table that was parsed in spite of syntax errors lacks keys and holds junk: keeps what is surely wrong besides.
fn add_syntax_errors(walk: &mut Walk, mut errors: Vec<toml::de::Error>) {
    if errors.is_empty() {
        return;
    }
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    // Behind a bracket that never closes, the rest of the file is read as one list: what is said of it is no help.
    let unclosed = errors.iter().any(|error| error.message().starts_with("unclosed"));
    let first_in_list = errors.iter().position(|error| error.message().contains("array")).filter(|_| unclosed);
    errors.truncate(first_in_list.map_or(errors.len(), |index| index + 1));
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let noise_from = errors.last().filter(|_| unclosed).map_or(usize::MAX, start);
    // One a line: the first is the cause.
    errors.dedup_by_key(|error| walk.line_number(start(error)));
    let lines: Vec<_> = errors.iter().map(|error| walk.line_number(start(error))).collect();
    walk.retain(|found| {
        let line = found.source.line_number(found.span.start);
        !found.message.starts_with("missing") && found.span.start < noise_from && !lines.contains(&line)
    });
    for (index, error) in errors.iter().enumerate() {
        let help = if first_in_list == Some(index) { "a `]` is missing before this" } else { error.message() };
        walk.error(error.span().unwrap_or_default(), "this is not TOML", help);
    }
}

fn root(walk: &mut Walk, root: &DeTable<'_>, base: &Path, given: &Given, around: &Surroundings) -> Option<Config> {
    walk.check_keys(root, &ROOT);
    let hostname = hostname(walk, root, given, around);
    let (dir, retain) = journal(walk, root, base);
    let (listen, max_message_bytes, bare_line_ends, trusted) = smtp(walk, root);
    let admin_http = admin(walk, root, &listen);
    let limits = limits(walk, root);
    let certificate = tls(walk, root, base);
    let log = log(walk, root);
    let dns_servers = dns(walk, root);

    let listen = if given.listen.is_empty() { listen } else { given.listen.clone() };
    let replaced = !given.routes.is_empty();
    // Routes that the flags replace may lead anywhere: nobody will follow them.
    let ourselves = Ourselves {
        hostname: hostname.as_deref().unwrap_or_default(),
        listen: if replaced { &[] } else { &listen },
        routes_may_be_missing: replaced,
    };
    let routes = routes::check(walk, root, base, &ourselves);
    Some(Config {
        hostname: hostname?,
        data_dir: given.data.clone().unwrap_or(dir),
        retain,
        listen,
        max_message_bytes,
        bare_line_ends,
        admin_http: given.admin.or(admin_http),
        routes: if replaced { given.routes.clone() } else { routes },
        limits,
        trusted,
        certificate,
        log,
        dns_servers,
        file: None,
    })
}

fn hostname(walk: &mut Walk, root: &DeTable<'_>, given: &Given, around: &Surroundings) -> Option<String> {
    let example = "mx2.example.net";
    let in_file = walk.parsed(root, "hostname", example, flags::hostname);
    if given.hostname.is_some() {
        return given.hostname.clone();
    }
    if root.contains_key("hostname") {
        return in_file;
    }
    // A name without a dot is nobody's name on the Internet; strict servers refuse to talk to it.
    let of_the_machine = around.hostname.clone().filter(|name| name.contains('.'));
    if of_the_machine.is_none() {
        let help = format!("write hostname = \"{example}\" at the top: this machine's own name has no domain");
        walk.missing(root, &ROOT, "hostname", 0..0, &help);
    }
    of_the_machine
}

fn journal(walk: &mut Walk, root: &DeTable<'_>, base: &Path) -> (PathBuf, std::time::Duration) {
    let default = || PathBuf::from(DATA_DIR_DEFAULT);
    let Some(section) = walk.section(root, "journal") else { return (default(), RETAIN_DEFAULT) };
    walk.check_keys(section, &JOURNAL);
    let not_empty = |text: &str| {
        if text.is_empty() {
            Err("name a directory, such as \"/var/lib/restante\"".into())
        } else {
            Ok(base.join(text))
        }
    };
    let dir = walk.parsed(section, "dir", "/var/lib/restante", not_empty);
    let retain = walk.parsed(section, "retain", "7d", units::duration);
    (dir.unwrap_or_else(default), retain.unwrap_or(RETAIN_DEFAULT))
}

fn smtp(walk: &mut Walk, root: &DeTable<'_>) -> (Vec<SocketAddr>, u64, BareLineEnds, Trusted) {
    let (mut listen, mut bytes) = (vec![LISTEN_WITH_FILE], MESSAGE_BYTES_DEFAULT);
    let Some(section) = walk.section(root, "smtp") else {
        return (listen, bytes, BareLineEnds::default(), Trusted::default());
    };
    walk.check_keys(section, &SMTP);
    if let Some(texts) = walk.strings(section, "listen", "[::]:25") {
        walk.check_not_empty(section, "listen", "nobody could reach us: name an address, such as \"[::]:25\"");
        listen.clear();
        for (text, span) in texts {
            match address::listen_address(text) {
                Ok(address) if address.port() != 0 && listen.contains(&address) => {
                    walk.error(span, format!("{address} is there twice"), "remove one");
                }
                Ok(address) => listen.push(address),
                Err(help) => walk.error(span, "bad address in `listen`", help),
            }
        }
    }
    let in_bounds = |text: &str| match units::size(text)? {
        size if MESSAGE_BYTES.contains(&size) => Ok(size),
        _ => Err("from \"1KiB\" to \"1GiB\"".to_owned()),
    };
    if let Some(size) = walk.parsed(section, "max_message_size", "100MiB", in_bounds) {
        bytes = size;
    }
    let policy = |text: &str| {
        let known = [BareLineEnds::Normalize, BareLineEnds::Reject];
        known.into_iter().find(|known| known.as_str() == text).ok_or_else(|| "\"normalize\" or \"reject\"".to_owned())
    };
    let bare_line_ends = walk.parsed(section, "bare_line_ends", "normalize", policy).unwrap_or_default();
    let mut of = |key| networks(walk, section, key).unwrap_or_default();
    let trusted = Trusted { proxy: of("proxy"), xclient: of("xclient") };
    (listen, bytes, bare_line_ends, trusted)
}

fn admin(walk: &mut Walk, root: &DeTable<'_>, listen: &[SocketAddr]) -> Option<SocketAddr> {
    let section = walk.section(root, "admin")?;
    walk.check_keys(section, &ADMIN);
    let free = |text: &str| match address::listen_address(text)? {
        http if http.port() != 0 && listen.contains(&http) => Err("SMTP listens there already".to_owned()),
        http => Ok(http),
    };
    walk.parsed(section, "http", "127.0.0.1:8025", free)
}

/// Both files or neither. Whether they belong together is seen where they are used; here, that they can be.
fn tls(walk: &mut Walk, root: &DeTable<'_>, base: &Path) -> Option<CertificateFiles> {
    let section = walk.section(root, "tls")?;
    walk.check_keys(section, &TLS);
    if section.is_empty() {
        return None;
    }
    let header = root.get_key_value("tls").map_or(0..0, |(key, _)| key.span());
    for key in TLS.known.iter().filter(|key| !section.contains_key(**key)) {
        walk.missing(
            section,
            &TLS,
            key,
            header.clone(),
            "both are needed: the certificate's chain and its key, in PEM",
        );
    }
    let pem = |label: &'static str| {
        move |text: &str| {
            let path = base.join(text);
            let pem =
                read_bounded(&path, PEM_BYTES_MAX).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
            let found = pem.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(label));
            if found { Ok(path) } else { Err(format!("{} has no line `-----BEGIN ... {label}-----`", path.display())) }
        }
    };
    let chain = walk.parsed(section, "certificate", "/etc/restante/tls/fullchain.pem", pem("CERTIFICATE"));
    let key = walk.parsed(section, "key", "/etc/restante/tls/key.pem", pem("PRIVATE KEY"));
    Some(CertificateFiles { chain: chain?, key: key? })
}

fn log(walk: &mut Walk, root: &DeTable<'_>) -> LogSettings {
    let mut settings = LogSettings::default();
    let Some(section) = walk.section(root, "log") else { return settings };
    walk.check_keys(section, &LOG);
    let enough = |text: &str| match units::size(text)? {
        size if size >= LOG_BYTES_MIN => Ok(size),
        _ => Err("at least \"128MiB\"".to_owned()),
    };
    if let Some(size) = walk.parsed(section, "max_size", "2GiB", enough) {
        settings.max_bytes = size;
    }
    let a_day = |text: &str| match units::duration(text)? {
        keep if keep >= std::time::Duration::from_secs(86_400) => Ok(keep),
        _ => Err("at least \"1d\": a file of the log is a day's".to_owned()),
    };
    if let Some(keep) = walk.parsed(section, "keep", "90d", a_day) {
        settings.keep = keep;
    }
    settings
}

fn dns(walk: &mut Walk, root: &DeTable<'_>) -> Vec<SocketAddr> {
    let Some(section) = walk.section(root, "dns") else { return Vec::new() };
    walk.check_keys(section, &DNS);
    walk.check_not_empty(section, "servers", "leave it out to ask those of the system");
    let mut servers = Vec::new();
    for (text, span) in walk.strings(section, "servers", "127.0.0.1").unwrap_or_default() {
        match address::dns_server(text) {
            Ok(server) => servers.push(server),
            Err(help) => walk.error(span, "bad address in `servers`", help),
        }
    }
    servers
}

fn limits(walk: &mut Walk, root: &DeTable<'_>) -> Limits {
    let mut limits = Limits::default();
    let Some(section) = walk.section(root, "limits") else { return limits };
    walk.check_keys(section, &LIMITS);
    if let Some(number) = walk.whole_number(section, "max_connections", CONNECTIONS) {
        limits.max_connections = number;
    }
    if let Some(number) = walk.whole_number(section, "per_client_connections", CONNECTIONS) {
        limits.per_client_connections = number;
    }
    if let Some(number) = walk.whole_number(section, "per_network_connections", CONNECTIONS) {
        limits.per_network_connections = number;
    }
    if let Some(number) = walk.whole_number(section, "connections_per_minute", A_MINUTE) {
        limits.connections_per_minute = number;
    }
    if let Some(number) = walk.whole_number(section, "messages_per_minute", A_MINUTE) {
        limits.messages_per_minute = number;
    }
    limits.floor.bytes = walk.parsed(section, "min_free", "1GiB", units::size);
    let percent = walk.whole_number(section, "min_free_percent", PERCENT);
    limits.floor.percent = percent.and_then(|percent| u8::try_from(percent).ok());
    if let Some(exempt) = networks(walk, section, "exempt") {
        limits.exempt = exempt;
    }
    limits
}

fn networks(walk: &mut Walk, section: &DeTable<'_>, key: &'static str) -> Option<Vec<Network>> {
    let mut networks = Vec::new();
    for (text, span) in walk.strings(section, key, "192.0.2.0/24")? {
        match text.parse::<Network>() {
            Ok(network) => networks.push(network),
            Err(help) => walk.error(span, format!("bad address in `{key}`"), help),
        }
    }
    Some(networks)
}
