//! Talks to the daemon: by the socket in the data directory, or over TCP where the command says so.

use crate::cli::args::Cli;
use crate::cli::exit;
use crate::cli::log_line::printable;
use crate::config::{self, HostPort};
use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// A daemon that does not answer for this long is as good as dead.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked how far it is with what takes long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Far more than any answer; a stranger on that port must not fill our memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why there is no answer, as an exit code and a sentence.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    pub(crate) code: u8,
    pub(crate) why: String,
}

/// The daemon may well be there: its socket or token, or a directory above it, is closed to us.
#[derive(Debug)]
struct NotPermitted(PathBuf);

impl std::error::Error for NotPermitted {}

impl std::fmt::Display for NotPermitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not permitted to open {}: run it as the daemon's user or root", self.0.display())
    }
}

fn unreachable(why: String) -> NoAnswer {
    NoAnswer { code: exit::UNREACHABLE, why }
}

fn runtime() -> Result<tokio::runtime::Runtime, NoAnswer> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| unreachable(error.to_string()))
}

/// Where the daemon is.
pub(crate) struct Client {
    data: PathBuf,
    admin: Option<HostPort>,
}

impl Client {
    /// The daemon of the data directory, or the one at `admin`.
    pub(crate) fn new(cli: &Cli, admin: Option<&HostPort>) -> Result<Self, NoAnswer> {
        let data = match (config::data_dir(&cli.flags()), admin) {
            (Ok(data), _) => data,
            (Err(_), Some(_)) => PathBuf::from("restante-data"),
            (Err(invalid), None) => {
                return Err(NoAnswer { code: invalid.exit_code(), why: invalid.render(false).trim_end().to_owned() });
            }
        };
        Ok(Self { data, admin: admin.cloned() })
    }

    /// GET for questions, POST for changes.
    pub(crate) fn ask(&self, method: Method, path: &str) -> Result<Value, NoAnswer> {
        self.ask_for(method, path, TIMEOUT)
    }

    /// As [`Self::ask`], for what takes its time.
    pub(crate) fn ask_for(&self, method: Method, path: &str, patience: Duration) -> Result<Value, NoAnswer> {
        let asked = runtime()?.block_on(async { timeout(patience, self.send(method, path, Bytes::new())).await });
        self.understood(asked, patience)
    }

    /// Hands over what is more than a question.
    pub(crate) fn give(&self, path: &str, body: Bytes, patience: Duration) -> Result<Value, NoAnswer> {
        let asked = runtime()?.block_on(async { timeout(patience, self.send(Method::POST, path, body)).await });
        self.understood(asked, patience)
    }

    /// As [`Self::ask`], with a list, for what may take as long as it takes: waits as long as the daemon says how far it is.
    pub(crate) fn order(
        &self,
        path: &str,
        list: String,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Value, NoAnswer> {
        let number = |answer: &Value, key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or(0);
        let asked = runtime()?.block_on(async {
            let mut answer = std::pin::pin!(self.send(Method::POST, path, list.into()));
            loop {
                if let Ok(answered) = timeout(LOOK_EVERY, &mut answer).await {
                    return Ok(answered);
                }
                let how_far = self.send(Method::GET, "/api/v1/operation", Bytes::new());
                match timeout(TIMEOUT, how_far).await {
                    Ok(Ok((_, at))) => progress(number(&at, "done"), number(&at, "of")),
                    dead => return dead,
                }
            }
        });
        self.understood(asked, TIMEOUT)
    }

    fn understood(
        &self,
        asked: Result<anyhow::Result<(hyper::StatusCode, Value)>, tokio::time::error::Elapsed>,
        patience: Duration,
    ) -> Result<Value, NoAnswer> {
        match asked {
            Ok(Ok((status, answer))) if status.is_success() => Ok(answer),
            Ok(Ok((status, answer))) => {
                let why = answer.get("why").and_then(Value::as_str).unwrap_or("no reason given");
                let why = why.lines().map(printable).collect::<Vec<_>>().join("\n");
                let code = match status.as_u16() {
                    403 => exit::NOT_PERMITTED,
                    400 => exit::USAGE,
                    409 => exit::CHANGED,
                    422 => exit::CONFIG_INVALID,
                    423 => exit::LOCKED,
                    503 => exit::UNREACHABLE,
                    _ => exit::FAILED,
                };
                Err(NoAnswer { code, why })
            }
            Ok(Err(error)) if error.is::<NotPermitted>() => {
                Err(NoAnswer { code: exit::NOT_PERMITTED, why: error.to_string() })
            }
            Ok(Err(error)) => Err(unreachable(format!("no daemon answers at {}: {error:#}", self.place()))),
            Err(_late) => {
                Err(unreachable(format!("the daemon at {} did not answer in {} s", self.place(), patience.as_secs())))
            }
        }
    }

    fn place(&self) -> String {
        match &self.admin {
            Some(address) => address.to_string(),
            None => self.data.join("admin.sock").display().to_string(),
        }
    }

    async fn send(&self, method: Method, path: &str, list: Bytes) -> anyhow::Result<(hyper::StatusCode, Value)> {
        let request = Request::builder().method(method).uri(path).header("host", "restante");
        match &self.admin {
            Some(address) => {
                let path = self.data.join("admin.token");
                // A daemon without a token may not ask for one; where there is one, its answer would be no.
                let token = match std::fs::read_to_string(&path) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        return Err(NotPermitted(path).into());
                    }
                    read => read.unwrap_or_default(),
                };
                let request = request.header("authorization", format!("Bearer {}", token.trim()));
                let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
                exchange(stream, request.body(Full::new(list))?).await
            }
            None => {
                let path = self.data.join("admin.sock");
                let stream = match UnixStream::connect(&path).await {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        return Err(NotPermitted(path).into());
                    }
                    connected => connected?,
                };
                exchange(stream, request.body(Full::new(list))?).await
            }
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<(hyper::StatusCode, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok((status, serde_json::from_slice(&body).context("that is no restante daemon")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_closed_directory_is_no_permission_and_not_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Root may open anything, so it sees a directory without a socket.
        let closed = std::fs::read_dir(&data).is_err();
        let no = Client { data: data.clone(), admin: None }.ask(Method::GET, "/api/v1/status").unwrap_err();
        let expected = if closed { exit::NOT_PERMITTED } else { exit::UNREACHABLE };
        assert_eq!(no.code, expected, "{}", no.why);
        assert_eq!(closed, no.why.contains("run it as the daemon's user or root"), "{}", no.why);
        let token = Client { data, admin: Some("127.0.0.1:1".parse().unwrap()) };
        assert_eq!(token.ask(Method::GET, "/api/v1/status").unwrap_err().code, expected);
    }
}
