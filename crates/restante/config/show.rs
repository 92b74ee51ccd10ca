//! The effective configuration, value by value, and where each comes from: a line of the file, a flag, or the default.
//!
//! Decides nothing: what a value is, `resolve` has said; here it is only looked up who said it.

use super::diagnostic::Source;
use super::{Config, Flags, Invalid, Listed, Route, file, units};
use std::fmt::Write as _;
use std::path::Path;
use toml::de::DeTable;

/// What a key is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A string.
    Text(String),
    /// A table in a line.
    Inline(String),
    /// A number.
    Number(u64),
    /// A list of strings.
    List(Vec<String>),
    /// Not set; what that means, in words.
    Unset(&'static str),
}

/// A key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// `smtp`, `route`; empty at the top.
    pub(crate) section: &'static str,
    /// The route's name in a `[[route]]`.
    pub(crate) route: Option<String>,
    /// Its name.
    pub(crate) key: &'static str,
    pub(crate) value: Value,
    /// `FILE:LINE`, a flag, or `default`.
    pub(crate) origin: String,
}

/// A TOML string: what stands between its quotes can end neither it nor the line.
pub(crate) fn toml_string(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _infallible = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// The configuration that `flags` ask for, key by key.
///
/// # Errors
/// As [`resolve`](super::resolve).
pub(crate) fn settings(flags: &Flags) -> Result<(Config, Vec<Setting>), Invalid> {
    let config = super::resolve(flags)?;
    let (path, text) = match &config.file {
        Some(path) => file::find(Some(path), &[])?,
        None => Default::default(),
    };
    let (document, _) = DeTable::parse_recoverable(&text);
    let mut list =
        Lister { root: document.get_ref(), source: Source::new(&path, &text), path: &path, list: Vec::new() };
    list.all(flags, &config);
    let list = list.list;
    Ok((config, list))
}

struct Lister<'t> {
    root: &'t DeTable<'t>,
    source: Source,
    path: &'t Path,
    list: Vec<Setting>,
}

/// As the file would have it.
fn drain(route: &Route) -> String {
    let most = route.per_minute.map_or(String::new(), |most| format!(", per_minute = {most}"));
    format!("{{ connections = {}{most} }}", route.connections)
}

impl Lister<'_> {
    fn all(&mut self, flags: &Flags, config: &Config) {
        let given = |flag: &'static str, is: bool| is.then_some(flag);
        let texts = |list: Vec<String>| Value::List(list);
        self.add("", "hostname", Value::Text(config.hostname.clone()), given("--hostname", flags.hostname.is_some()));
        let dir = Value::Text(absolute(&config.data_dir));
        self.add("journal", "dir", dir, given("--data", flags.data.is_some()));
        self.add("journal", "retain", Value::Text(units::duration_text(config.retain)), None);
        let listen = config.listen.iter().map(ToString::to_string).collect();
        self.add("smtp", "listen", texts(listen), given("--listen", !flags.listen.is_empty()));
        self.add("smtp", "max_message_size", Value::Text(units::size_text(config.max_message_bytes)), None);
        self.add("smtp", "bare_line_ends", Value::Text(config.bare_line_ends.as_str().to_owned()), None);
        for (key, networks) in [("proxy", &config.trusted.proxy), ("xclient", &config.trusted.xclient)] {
            self.add("smtp", key, texts(networks.iter().map(ToString::to_string).collect()), None);
        }
        let (chain, key) = match &config.certificate {
            Some(files) => (Value::Text(absolute(&files.chain)), Value::Text(absolute(&files.key))),
            None => (Value::Unset("a self-signed certificate is made"), Value::Unset("as `certificate`")),
        };
        self.add("tls", "certificate", chain, None);
        self.add("tls", "key", key, None);
        let http = config.admin_http.map_or(Value::Unset("no HTTP"), |address| Value::Text(address.to_string()));
        self.add("admin", "http", http, given("--admin", flags.admin.is_some()));
        let limits = &config.limits;
        self.add("limits", "max_connections", Value::Number(limits.max_connections.into()), None);
        self.add("limits", "per_client_connections", Value::Number(limits.per_client_connections.into()), None);
        for (key, number) in [
            ("per_network_connections", limits.per_network_connections),
            ("connections_per_minute", limits.connections_per_minute),
            ("messages_per_minute", limits.messages_per_minute),
        ] {
            self.add("limits", key, Value::Number(number.into()), None);
        }
        self.add("limits", "exempt", texts(limits.exempt.iter().map(ToString::to_string).collect()), None);
        let floor = limits.floor;
        let unset = Value::Unset("a fiftieth, 256MiB to 4GiB; of a small disk an eighth");
        let bytes = floor.bytes.map_or(unset, |bytes| Value::Text(units::size_text(bytes)));
        self.add("limits", "min_free", bytes, None);
        let percent = floor.percent.map_or(Value::Unset("as `min_free`"), |percent| Value::Number(percent.into()));
        self.add("limits", "min_free_percent", percent, None);
        self.add("log", "max_size", Value::Text(units::size_text(config.log.max_bytes)), None);
        self.add("log", "keep", Value::Text(units::duration_text(config.log.keep)), None);
        let servers = match config.dns_servers.as_slice() {
            [] => Value::Unset("those of /etc/resolv.conf are asked"),
            servers => texts(servers.iter().map(ToString::to_string).collect()),
        };
        self.add("dns", "servers", servers, None);
        let flag = given("--route", !flags.routes.is_empty());
        config.routes.iter().enumerate().for_each(|(index, route)| self.route(index, route, flag));
    }

    fn add(&mut self, section: &'static str, key: &'static str, value: Value, flag: Option<&'static str>) {
        let table = match section {
            "" => Some(self.root),
            section => self.root.get(section).and_then(|value| value.get_ref().as_table()),
        };
        let origin = self.origin(table, key, flag);
        self.list.push(Setting { section, route: None, key, value, origin });
    }

    fn route(&mut self, index: usize, route: &Route, flag: Option<&'static str>) {
        let table = self.root.get("route").and_then(|routes| routes.get_ref().as_array());
        let table = table.and_then(|routes| routes.get(index)).and_then(|route| route.get_ref().as_table());
        let listed = |listed: &Listed| match listed {
            Listed::Address(address) => address.clone(),
            Listed::File(path, _) => format!("file:{}", absolute(path)),
        };
        let recipients = match &route.recipients {
            Some(_) => Value::List(route.listed.iter().map(listed).collect()),
            None => Value::Unset("any address of the domains is taken"),
        };
        let primary = match route.primary.as_slice() {
            [] => Value::Unset("the MX of the domains are followed, to every host preferred over us"),
            primary => Value::List(primary.iter().map(ToString::to_string).collect()),
        };
        let unset = Value::Unset("of several routes each may hold half of the room");
        let quota = route.quota.map_or(unset, |quota| Value::Text(units::quota_text(quota)));
        for (key, value) in [
            ("name", Value::Text(route.name.clone())),
            ("domains", Value::List(route.domains.iter().map(ToString::to_string).collect())),
            ("primary", primary),
            ("recipients", recipients),
            ("quota", quota),
            ("expire", Value::Text(units::duration_text(route.expire))),
            ("expire_cap", Value::Text(units::duration_text(route.expire_cap))),
            ("drain", Value::Inline(drain(route))),
        ] {
            let origin = self.origin(table, key, flag);
            self.list.push(Setting { section: "route", route: Some(route.name.clone()), key, value, origin });
        }
    }

    fn origin(&self, table: Option<&DeTable<'_>>, key: &str, flag: Option<&'static str>) -> String {
        if let Some(flag) = flag {
            return flag.to_owned();
        }
        match table.and_then(|table| table.get_key_value(key)) {
            Some((key, _)) => format!("{}:{}", self.path.display(), self.source.line_number(key.span().start)),
            None => "default".to_owned(),
        }
    }
}

/// A path means another place where it is seen from another.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
