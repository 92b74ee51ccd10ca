//! What the daemon was told to do: flags, then the file, then defaults, each value checked before anything starts.
//!
//! Reads the configuration and the recipients files it names, and nothing else: opens no port, asks no DNS, writes
//! nothing. Whatever is wrong is reported at once, see [`Invalid`].

mod address;
mod diagnostic;
mod file;
mod fingerprint;
mod flags;
mod recipients;
mod routes;
mod show;
#[cfg(test)]
mod tests;
mod units;
mod walk;

pub(crate) use address::{HostPort, HostPortError, Network};
pub(crate) use diagnostic::Invalid;
pub(crate) use fingerprint::Fingerprint;
pub(crate) use flags::hostname;
pub(crate) use recipients::{Listed, read as read_recipients};
pub(crate) use routes::domain;
pub(crate) use show::{Setting, Value, settings, toml_string};
pub(crate) use units::{duration, duration_text, quota_text, size, size_text};

use flags::Given;
use restante_envelope::DomainName;
use restante_relay::{DomainPattern, Floor, Quota};
use restante_smtp::BareLineEnds;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a configuration is looked for when `--config` names none, in this order.
const USUAL_PLACES: [&str; 2] = ["restante.toml", "/etc/restante/restante.toml"];
/// Without `--data` and `[journal] dir`: relative to where the command was started.
const DATA_DIR_DEFAULT: &str = "./restante-data";
/// A week is enough to notice that a primary lost its disk.
const RETAIN_DEFAULT: Duration = Duration::from_secs(7 * 86_400);
/// 100 MiB: more than the large mail providers take, so the primary's own limit decides.
const MESSAGE_BYTES_DEFAULT: u64 = 100 << 20;
/// Above the 2,000 that are promised without configuration, with room for sessions that are just closing.
const CONNECTIONS_DEFAULT: u32 = 2_500;
/// Far above what one honest sender opens; 25 such clients still leave room for others.
const PER_CLIENT_CONNECTIONS_DEFAULT: u32 = 100;
/// A large sender's /24 has several machines at work; ten such networks do not fill the house.
const PER_NETWORK_CONNECTIONS_DEFAULT: u32 = 250;
/// 20 a second, a minute's worth at once: more than any sender needs who has mail for a few domains.
const CONNECTIONS_PER_MINUTE_DEFAULT: u32 = 1_200;
/// 100 a second, a minute's worth at once: a list that writes to all mailboxes of a large domain is through in a minute.
const MESSAGES_PER_MINUTE_DEFAULT: u32 = 6_000;
/// Two years of a small server's mail, or a bad week of a large one's.
const LOG_BYTES_DEFAULT: u64 = 2 << 30;
/// Who asks where a mail went asks within three months.
const LOG_KEEP_DEFAULT: Duration = Duration::from_secs(90 * 86_400);
/// Flags alone are for trying things out: no privileges, nobody outside.
const LISTEN_FLAGS_ONLY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2525);
/// A file is for real use: SMTP's port on every address of both families.
const LISTEN_WITH_FILE: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 25);

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// What we call ourselves in greetings and Received headers.
    pub(crate) hostname: String,
    /// The journal's directory.
    pub(crate) data_dir: PathBuf,
    /// How long settled mail is kept; zero: not at all.
    pub(crate) retain: Duration,
    /// Where SMTP is spoken; never empty.
    pub(crate) listen: Vec<SocketAddr>,
    /// The largest content taken, in bytes.
    pub(crate) max_message_bytes: u64,
    /// What becomes of content whose lines end otherwise than in CRLF.
    pub(crate) bare_line_ends: BareLineEnds,
    /// Where HTTP is spoken, if at all.
    pub(crate) admin_http: Option<SocketAddr>,
    /// Whom we take mail for; never empty, and no domain is in two of them.
    pub(crate) routes: Vec<Route>,
    /// How much of us one client, or all together, may use.
    pub(crate) limits: Limits,
    pub(crate) trusted: Trusted,
    /// The certificate for STARTTLS; without one a self-signed one is made.
    pub(crate) certificate: Option<CertificateFiles>,
    /// How much of the delivery log is kept.
    pub(crate) log: LogSettings,
    /// The DNS servers to ask for MX; none: those of the system.
    pub(crate) dns_servers: Vec<SocketAddr>,
    /// The file that was read, if one was.
    pub(crate) file: Option<PathBuf>,
}

/// How much of the delivery log is kept: whichever is reached first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// Of all its files together.
    pub(crate) max_bytes: u64,
    /// Since a line was written.
    pub(crate) keep: Duration,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { max_bytes: LOG_BYTES_DEFAULT, keep: LOG_KEEP_DEFAULT }
    }
}

/// Where our certificate is, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    /// The certificate and those between it and the root.
    pub(crate) chain: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
}

/// A set of domains that share one primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// Letters, digits, `.`, `-` and `_`; no other route has it.
    pub(crate) name: String,
    /// Never empty.
    pub(crate) domains: Vec<DomainPattern>,
    /// The next hops, in order; none: follow the MX of the domains.
    pub(crate) primary: Vec<HostPort>,
    /// The addresses taken, as they were written, files already read; none: any address of the domains.
    pub(crate) recipients: Option<Vec<String>>,
    /// Where they come from, in the order of the list; empty without a list.
    pub(crate) listed: Vec<Listed>,
    /// How much it may hold, if it was said.
    pub(crate) quota: Option<Quota>,
    /// How long mail may wait while the primary can be reached, and how long at all.
    pub(crate) expire: Duration,
    pub(crate) expire_cap: Duration,
    /// Connections to the primary at once.
    pub(crate) connections: usize,
    /// Messages a minute that it is given at most.
    pub(crate) per_minute: Option<u32>,
}

impl Route {
    /// With nothing said about how its mail is handled.
    pub(crate) fn new(
        name: String,
        domains: Vec<DomainPattern>,
        primary: Vec<HostPort>,
        recipients: Option<Vec<String>>,
        listed: Vec<Listed>,
    ) -> Self {
        Self {
            name,
            domains,
            primary,
            recipients,
            listed,
            quota: None,
            expire: restante_relay::EXPIRE_DEFAULT,
            expire_cap: restante_relay::EXPIRE_CAP_DEFAULT,
            connections: restante_relay::MAX_CONNECTIONS_DEFAULT,
            per_minute: None,
        }
    }
}

/// Who is believed what it says of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Trusted {
    /// Load balancers: their connections begin with a PROXY header.
    pub(crate) proxy: Vec<Network>,
    /// Clients that may use XCLIENT.
    pub(crate) xclient: Vec<Network>,
}

/// Connections, and room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// At once, of all clients.
    pub(crate) max_connections: u32,
    /// At once, of one client.
    pub(crate) per_client_connections: u32,
    /// At once, of one network: a /24 of IPv4, a /64 of IPv6.
    pub(crate) per_network_connections: u32,
    /// Of one network, new ones; 0 is no limit.
    pub(crate) connections_per_minute: u32,
    /// Of one network; 0 is no limit.
    pub(crate) messages_per_minute: u32,
    /// Clients to which the limits per client and network do not apply.
    pub(crate) exempt: Vec<Network>,
    /// What mail leaves free on the journal's file system.
    pub(crate) floor: Floor,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: CONNECTIONS_DEFAULT,
            per_client_connections: PER_CLIENT_CONNECTIONS_DEFAULT,
            per_network_connections: PER_NETWORK_CONNECTIONS_DEFAULT,
            connections_per_minute: CONNECTIONS_PER_MINUTE_DEFAULT,
            messages_per_minute: MESSAGES_PER_MINUTE_DEFAULT,
            exempt: Network::LOOPBACK.to_vec(),
            floor: Floor::default(),
        }
    }
}

/// The flags as they were typed: checked here, so that all errors are shown together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `--config FILE`
    pub(crate) config: Option<PathBuf>,
    /// `--route D[,D...]=HOST[:PORT][,HOST[:PORT]...]`
    pub(crate) routes: Vec<String>,
    /// `--listen IP:PORT`
    pub(crate) listen: Vec<String>,
    /// `--data DIR`
    pub(crate) data: Option<PathBuf>,
    /// `--admin IP:PORT`
    pub(crate) admin: Option<String>,
    /// `--hostname NAME`
    pub(crate) hostname: Option<String>,
}

/// The configuration that `flags` ask for.
///
/// `--route` without `--config` reads no file. With a file, `--route`s replace all its routes and every other flag
/// overrides its key. A file is checked as a whole, also where flags replace what it says.
///
/// # Errors
/// Whatever is wrong with the flags; if nothing is, whatever is wrong with the file.
pub(crate) fn resolve(flags: &Flags) -> Result<Config, Invalid> {
    resolve_in(flags, &Surroundings::of_this_machine())
}

/// The configuration that `serve` would start with if `text` were the file at `path`.
///
/// # Errors
/// Whatever is wrong with the text.
pub(crate) fn check_text(path: &Path, text: &str) -> Result<Config, Invalid> {
    let given = flags::check(&Flags::default()).map_err(Invalid::Flags)?;
    file::check(path, text, &given, &Surroundings::of_this_machine())
}

/// This machine's own name, if it could be one on the Internet.
pub(crate) fn hostname_of_this_machine() -> Option<String> {
    Surroundings::of_this_machine().hostname.filter(|name| name.contains('.'))
}

/// The data directory alone, for commands that work without a daemon: `--data`, else the file's, else the default.
///
/// # Errors
/// Without `--data`, a file that exists and is wrong: guessing another directory would show the wrong mail.
pub(crate) fn data_dir(flags: &Flags) -> Result<PathBuf, Invalid> {
    match &flags.data {
        Some(dir) => Ok(dir.clone()),
        None => match resolve(flags) {
            Ok(config) => Ok(config.data_dir),
            Err(Invalid::NoFile { .. }) => Ok(DATA_DIR_DEFAULT.into()),
            Err(invalid) => Err(invalid),
        },
    }
}

/// What the machine contributes; a test brings its own.
struct Surroundings {
    usual_places: Vec<PathBuf>,
    hostname: Option<String>,
}

impl Surroundings {
    fn of_this_machine() -> Self {
        let hostname = rustix::system::uname().nodename().to_str().ok().and_then(|name| DomainName::parse(name).ok());
        Self {
            usual_places: USUAL_PLACES.iter().map(PathBuf::from).collect(),
            hostname: hostname.map(|name| name.as_str().to_owned()),
        }
    }
}

fn resolve_in(flags: &Flags, around: &Surroundings) -> Result<Config, Invalid> {
    let given = flags::check(flags).map_err(Invalid::Flags)?;
    let from_flags_alone = flags.config.is_none() && !given.routes.is_empty();
    let config = if from_flags_alone {
        without_file(&given, around)
    } else {
        let (path, text) = file::find(flags.config.as_deref(), &around.usual_places)?;
        file::check(&path, &text, &given, around)?
    };
    // The file's own primaries were checked in the file, where the error can point at them.
    flags::check_against(&given, &config).map_err(Invalid::Flags)?;
    Ok(config)
}

fn without_file(given: &Given, around: &Surroundings) -> Config {
    let hostname = given.hostname.as_ref().or(around.hostname.as_ref());
    Config {
        hostname: hostname.map_or("localhost", String::as_str).to_owned(),
        data_dir: given.data.clone().unwrap_or_else(|| DATA_DIR_DEFAULT.into()),
        retain: RETAIN_DEFAULT,
        listen: if given.listen.is_empty() { vec![LISTEN_FLAGS_ONLY] } else { given.listen.clone() },
        max_message_bytes: MESSAGE_BYTES_DEFAULT,
        bare_line_ends: BareLineEnds::default(),
        admin_http: given.admin,
        routes: given.routes.clone(),
        limits: Limits::default(),
        trusted: Trusted::default(),
        certificate: None,
        log: LogSettings::default(),
        dns_servers: Vec::new(),
        file: None,
    }
}
