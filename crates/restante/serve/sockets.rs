//! The sockets we listen on: for SMTP those that the service manager holds for us (sd_listen_fds(3)), else our own; for
//! commands and HTTP always our own.
//!
//! Refuses to guess: an inherited socket that is not named `smtp`, or is no listening TCP socket, ends the start.

use super::listener;
use crate::config::Config;
use anyhow::{Context as _, bail, ensure};
use listenfd::ListenFd;
use std::net::SocketAddr;
use std::path::Path;
use tokio::net::{TcpListener, UnixListener};

/// What a socket for SMTP is called in its unit.
const SMTP: &str = "smtp";
/// A machine has a few addresses to listen on; a count beyond this is no count.
const INHERITED_MAX: usize = 64;
/// The service manager passes sockets from this descriptor on (`SD_LISTEN_FDS_START`).
const FIRST_DESCRIPTOR: usize = 3;

/// The SMTP sockets that were open before us; none if we are to open our own.
pub(super) struct Inherited(Vec<std::net::TcpListener>);

impl Inherited {
    /// Takes them, and the variables that tell of them out of the environment, so that no child takes them for its own.
    /// To be called before any thread is started: the environment belongs to all of them.
    pub(super) fn take() -> anyhow::Result<Self> {
        const FROM: &str = "sockets from the service manager";
        if let Ok(count) = std::env::var("LISTEN_FDS") {
            let sane = count.parse().is_ok_and(|count: usize| count <= INHERITED_MAX);
            ensure!(sane, "{FROM}: LISTEN_FDS is {count:?}, it must be a number up to {INHERITED_MAX}");
        }
        let names = std::env::var("LISTEN_FDNAMES").ok();
        let mut passed = ListenFd::from_env();
        check_names(names.as_deref(), passed.len()).context(FROM)?;
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let Some(socket) = passed.take_tcp_listener(index).context(FROM)? else { continue };
            let listens = socket2::SockRef::from(&socket).is_listener().context(FROM)?;
            ensure!(listens, "{FROM}: descriptor {} does not listen", FIRST_DESCRIPTOR + index);
            // The runtime waits for readiness; a blocking accept would stop everything else.
            socket.set_nonblocking(true).context(FROM)?;
            sockets.push(socket);
        }
        Ok(Self(sockets))
    }
}

/// Every passed socket must be named, and named as one we know: to take mail on a socket meant for something else, or to
/// leave one unserved, would be found out by senders first.
fn check_names(names: Option<&str>, count: usize) -> anyhow::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let Some(names) = names else {
        bail!("LISTEN_FDNAMES is not set; they must be named {SMTP:?}");
    };
    let names: Vec<&str> = names.split(':').collect();
    ensure!(names.len() == count, "LISTEN_FDNAMES has {} names for {count} sockets", names.len());
    match names.iter().position(|name| *name != SMTP) {
        None => Ok(()),
        Some(index) => bail!(
            "descriptor {} is named {:?}; only {SMTP:?} is known: set `FileDescriptorName={SMTP}` in its socket unit",
            FIRST_DESCRIPTOR + index,
            names.get(index).unwrap_or(&"")
        ),
    }
}

/// Listening sockets; taken before the journal is read, so that a port in use ends the start at once.
pub(super) struct Sockets {
    pub(super) smtp: Vec<TcpListener>,
    pub(super) admin_tcp: Option<TcpListener>,
    pub(super) admin_socket: Option<UnixListener>,
}

impl Sockets {
    pub(super) fn open(config: &Config, inherited: Inherited) -> anyhow::Result<Self> {
        let bind = |address: SocketAddr| listener::bind(address).with_context(|| format!("cannot listen on {address}"));
        let smtp: Vec<TcpListener> = if inherited.0.is_empty() {
            config.listen.iter().map(|address| bind(*address)).collect::<Result<_, _>>()?
        } else {
            tracing::info!("SMTP is spoken on the sockets of the service manager, not where `listen` says");
            inherited.0.into_iter().map(TcpListener::from_std).collect::<Result<_, _>>()?
        };
        let admin_tcp = config.admin_http.map(bind).transpose()?;
        let admin_socket = open_admin_socket(&config.data_dir.join("admin.sock"))?;
        Ok(Self { smtp, admin_tcp, admin_socket })
    }
}

fn open_admin_socket(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    // Left over from a crash: nobody else can listen there while we hold the lock.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", path.display()));
    }
    match UnixListener::bind(path) {
        Ok(socket) => {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(Some(socket))
        }
        // A socket's path may have 107 bytes.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            tracing::warn!("{}: {error}; the commands reach this daemon by --admin alone", path.display());
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_ours_by_name_is_refused() {
        for (names, count, why) in [
            (None, 1, "not set"),
            (Some("smtp"), 2, "1 names for 2 sockets"),
            (Some("smtp:restante.socket"), 2, "descriptor 4 is named \"restante.socket\""),
            (Some(""), 1, "FileDescriptorName=smtp"),
            (Some("SMTP"), 1, "descriptor 3"),
        ] {
            let error = check_names(names, count).unwrap_err().to_string();
            assert!(error.contains(why), "{names:?}, {count}: {error}");
        }
        for (names, count) in [(None, 0), (Some("left over"), 0), (Some("smtp"), 1), (Some("smtp:smtp"), 2)] {
            check_names(names, count).unwrap();
        }
    }
}
