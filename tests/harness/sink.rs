//! The primary: an SMTP server that records exactly the bytes it gets, and answers each recipient as told. Its port is reserved
//! for its whole life and can be opened and closed. It refuses to repair: a bare CR or LF is recorded as a violation.

use super::client::sha256;
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// One message that got its 250 from us.
#[derive(Debug, Clone)]
pub struct Received {
    pub from: String,
    /// The recipients we accepted, in order.
    pub to: Vec<String>,
    /// The parameters of MAIL, and of RCPT for each of them.
    pub parameters: (Vec<String>, Vec<Vec<String>>),
    /// What stands in front of the content: the trace headers.
    pub trace: String,
    /// With its angle brackets; the content is taken to begin with this header. The transaction's ID instead, for a sink that
    /// was told so.
    pub message_id: String,
    /// Of the content, trace headers excluded.
    pub sha256: String,
    /// Empty when the sink was told to keep digests only.
    pub content: Vec<u8>,
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    violations: Vec<String>,
    connections: usize,
    /// The most that were open at once.
    open_max: usize,
    /// Closes where a command stands behind the final dot before its reply, without one.
    hates_ahead: bool,
    spoken_to_ahead: usize,
    /// Closes behind the reply to each message.
    one_each: bool,
    offers_dsn: bool,
    /// Whoever's messages get no reply to their end for now.
    kept_waiting: Option<String>,
    waiting: usize,
    /// Reply to RCPT, by address.
    rcpt: HashMap<String, String>,
    /// RCPT commands seen, whatever the reply.
    attempts: HashMap<String, usize>,
    /// Reply to the end of data, in place of 250; empty closes the connection without one.
    data: Option<String>,
    digests_only: bool,
    by_transaction: bool,
    open: BTreeMap<usize, TcpStream>,
}

/// A recording SMTP server on a reserved port; closed until [`Sink::open`].
pub struct Sink {
    pub port: u16,
    socket: Arc<Socket>,
    state: Arc<Mutex<State>>,
    goes_on: Arc<Condvar>,
    acceptor: Option<JoinHandle<()>>,
}

impl Sink {
    /// Reserves a port. Until it is opened, connections to it are refused and nobody else can take it.
    pub fn closed() -> Self {
        loop {
            // A port asked for by number stays bound when listening ends; one given by the kernel does not. Hence twice.
            let probe = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            probe.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            let address = probe.local_addr().unwrap().as_socket().unwrap();
            drop(probe);
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if socket.bind(&address.into()).is_ok() {
                let (socket, state, goes_on) = (Arc::new(socket), Arc::default(), Arc::default());
                return Self { port: address.port(), socket, state, goes_on, acceptor: None };
            }
        }
    }

    /// Reserves port 25 of an address, where MX records lead. Needs root; the address is one that no other test has.
    pub fn closed_at(ip: &str) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = SocketAddr::new(ip.parse().unwrap(), 25);
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap_or_else(|e| panic!("cannot have {address}: {e}"));
        let (socket, state, goes_on) = (Arc::new(socket), Arc::default(), Arc::default());
        Self { port: address.port(), socket, state, goes_on, acceptor: None }
    }

    /// Reserved and open.
    pub fn opened() -> Self {
        let mut sink = Self::closed();
        sink.open();
        sink
    }

    /// Keeps a SHA-256 in place of each content: for loads that would not fit in memory.
    pub fn digests_only(self) -> Self {
        self.state().digests_only = true;
        self
    }

    /// Takes contents of any kind: each begins behind the relay's Received header, and is known by the ID in it.
    pub fn by_transaction(self) -> Self {
        self.state().by_transaction = true;
        self
    }

    /// Hangs up, without a reply, on whoever sends a command behind the final dot before its reply.
    pub fn hating_commands_ahead(self) -> Self {
        self.state().hates_ahead = true;
        self
    }

    /// Hangs up behind the reply to each message, and offers no PIPELINING.
    pub fn taking_one_message_a_connection(self) -> Self {
        self.state().one_each = true;
        self
    }

    /// Offers DSN (RFC 3461).
    pub fn offering_dsn(self) -> Self {
        self.state().offers_dsn = true;
        self
    }

    /// From now on messages for this address get no reply to their end, until another is named, or none.
    pub fn keep_waiting(&self, address: Option<&str>) {
        self.state().kept_waiting = address.map(str::to_owned);
        self.goes_on.notify_all();
    }

    /// How many messages wait for the reply to their end.
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// How often a command stood behind the final dot before its reply.
    pub fn spoken_to_ahead(&self) -> usize {
        self.state().spoken_to_ahead
    }

    /// The most connections that were open at once.
    pub fn connections_at_once(&self) -> usize {
        self.state().open_max
    }

    /// Listens. The primary is back.
    pub fn open(&mut self) {
        // A connection of somebody's may have been given our port while we did not listen; it ends.
        super::eventually("the port", || self.socket.listen(128).ok());
        let (socket, state, goes_on) = (Arc::clone(&self.socket), Arc::clone(&self.state), Arc::clone(&self.goes_on));
        self.acceptor = Some(std::thread::spawn(move || {
            while let Ok((stream, _)) = socket.accept() {
                let (stream, state, goes_on) = (TcpStream::from(stream), Arc::clone(&state), Arc::clone(&goes_on));
                // Known before its thread starts, so that no connection escapes a close.
                let number = register(&stream, &state);
                std::thread::spawn(move || serve(stream, number, &state, &goes_on));
            }
        }));
    }

    /// Refuses new connections and cuts those there are. The port stays ours.
    pub fn close(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.socket.shutdown(Shutdown::Both).unwrap();
        acceptor.join().unwrap();
        for stream in self.state().open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers RCPT for this address with `reply` from now on; `250 2.1.5 Ok` accepts again.
    pub fn answer(&self, address: &str, reply: &str) {
        self.state().rcpt.insert(address.to_owned(), reply.to_owned());
    }

    /// Answers the end of data with `reply`; None is the 250 again, an empty text closes without a reply.
    pub fn answer_data(&self, reply: Option<&str>) {
        self.state().data = reply.map(str::to_owned);
    }

    /// All messages so far. A message whose reply was not 250 is not among them.
    pub fn received(&self) -> Vec<Received> {
        self.state().received.clone()
    }

    /// How many messages came, without a copy of them.
    pub fn count(&self) -> usize {
        self.state().received.len()
    }

    /// How often RCPT named this address.
    pub fn attempts(&self, address: &str) -> usize {
        self.state().attempts.get(address).copied().unwrap_or(0)
    }

    /// How many accepted messages were for this address.
    pub fn deliveries_to(&self, address: &str) -> usize {
        self.state().received.iter().filter(|r| r.to.iter().any(|to| to == address)).count()
    }

    /// Waits until `count` messages came and returns them.
    pub fn wait_for(&self, count: usize) -> Vec<Received> {
        super::eventually(&format!("{count} messages at the primary"), || {
            (self.count() >= count).then(|| self.received())
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close();
        let state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !std::thread::panicking() {
            assert!(state.violations.is_empty(), "the primary saw protocol violations: {:?}", state.violations);
        }
    }
}

fn register(stream: &TcpStream, state: &Mutex<State>) -> usize {
    let mut state = state.lock().unwrap();
    state.connections += 1;
    let number = state.connections;
    state.open.insert(number, stream.try_clone().unwrap());
    state.open_max = state.open_max.max(state.open.len());
    number
}

fn serve(stream: TcpStream, number: usize, state: &Mutex<State>, goes_on: &Condvar) {
    if let Err(Broken::Violation(what)) = converse(stream, state, goes_on) {
        state.lock().unwrap().violations.push(what);
    }
    state.lock().unwrap().open.remove(&number);
}

enum Broken {
    /// The peer went away, or we closed.
    Gone,
    /// The peer broke the protocol.
    Violation(String),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn converse(stream: TcpStream, state: &Mutex<State>, goes_on: &Condvar) -> Result<(), Broken> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    let mut from = None;
    let mut to: Vec<(String, Vec<String>)> = Vec::new();
    let mut say = |line: &str| output.write_all(format!("{line}\r\n").as_bytes());
    say("220 primary.example.test ESMTP")?;
    loop {
        let line = String::from_utf8_lossy(&crlf_line(&mut input)?).into_owned();
        let upper = line.to_ascii_uppercase();
        if upper.starts_with("EHLO ") {
            let pipelining = if state.lock().unwrap().one_each { "" } else { "250-PIPELINING\r\n" };
            let dsn = if state.lock().unwrap().offers_dsn { "250-DSN\r\n" } else { "" };
            say(&format!(
                "250-primary.example.test\r\n{pipelining}{dsn}250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE 0\r\n250 ENHANCEDSTATUSCODES"
            ))?;
        } else if upper.starts_with("HELO ") {
            say("250 primary.example.test")?;
        } else if upper.starts_with("MAIL FROM:") {
            (from, to) = (Some((path_of(&line)?, parameters_of(&line))), Vec::new());
            say("250 2.1.0 Ok")?;
        } else if upper.starts_with("RCPT TO:") {
            let address = path_of(&line)?;
            let reply = {
                let mut state = state.lock().unwrap();
                *state.attempts.entry(address.clone()).or_default() += 1;
                state.rcpt.get(&address).cloned().unwrap_or_else(|| "250 2.1.5 Ok".to_owned())
            };
            if reply.starts_with('2') {
                to.push((address, parameters_of(&line)));
            }
            say(&reply)?;
        } else if upper == "DATA" {
            if to.is_empty() {
                say("554 5.5.1 No valid recipients")?;
                continue;
            }
            say("354 Go ahead")?;
            let data = read_data(&mut input)?;
            if !input.buffer().is_empty() {
                let mut state = state.lock().unwrap();
                state.spoken_to_ahead += 1;
                if state.hates_ahead {
                    return Ok(());
                }
            }
            wait(&to, state, goes_on);
            let from = from.take().ok_or_else(|| Broken::Violation("DATA without MAIL".to_owned()))?;
            let reply = record(data, from, std::mem::take(&mut to), state)?;
            if reply.is_empty() {
                return Ok(());
            }
            say(&reply)?;
            if state.lock().unwrap().one_each {
                return Ok(());
            }
        } else if upper == "RSET" {
            (from, to) = (None, Vec::new());
            say("250 2.0.0 Ok")?;
        } else if upper == "NOOP" {
            say("250 2.0.0 Ok")?;
        } else if upper == "QUIT" {
            return Ok(say("221 2.0.0 Bye")?);
        } else {
            say("502 5.5.1 Not implemented")?;
        }
    }
}

fn wait(to: &[(String, Vec<String>)], state: &Mutex<State>, goes_on: &Condvar) {
    let mut state = state.lock().unwrap();
    state.waiting += 1;
    let is_kept =
        |state: &mut State| state.kept_waiting.as_ref().is_some_and(|address| to.iter().any(|(to, _)| to == address));
    goes_on.wait_while(state, is_kept).unwrap().waiting -= 1;
}

/// Stores the message, unless told to refuse it, and returns the reply.
fn record(
    data: Vec<u8>,
    (from, asked): (String, Vec<String>),
    to: Vec<(String, Vec<String>)>,
    state: &Mutex<State>,
) -> Result<String, Broken> {
    let by_transaction = state.lock().unwrap().by_transaction;
    let split = if by_transaction { split_behind_received(data) } else { split(&data) };
    let mut received = split.ok_or_else(|| Broken::Violation("no Message-ID or Received line".to_owned()))?;
    let (to, asked_of) = to.into_iter().unzip();
    (received.from, received.to, received.parameters) = (from, to, (asked, asked_of));
    let mut state = state.lock().unwrap();
    if let Some(reply) = &state.data
        && !reply.starts_with('2')
    {
        return Ok(reply.clone());
    }
    if state.digests_only {
        received.content = Vec::new();
    }
    state.received.push(received);
    Ok(format!("250 2.0.0 Ok: queued as SINK{}", state.received.len()))
}

/// Content begins at its Message-ID header, by the harness's own convention; everything in front is trace.
pub fn split(data: &[u8]) -> Option<Received> {
    let mut start = 0;
    for line in data.split_inclusive(|b| *b == b'\n') {
        if line.len() >= 11 && line[..11].eq_ignore_ascii_case(b"Message-ID:") {
            let content = &data[start..];
            let message_id = String::from_utf8_lossy(&line[11..]).trim().to_owned();
            let trace = String::from_utf8_lossy(&data[..start]).into_owned();
            let (from, to, parameters) = (String::new(), Vec::new(), Default::default());
            return Some(Received {
                from,
                to,
                parameters,
                trace,
                message_id,
                sha256: sha256(content),
                content: content.to_vec(),
            });
        }
        if line == b"\r\n" || line == b"\n" {
            return None;
        }
        start += line.len();
    }
    None
}

/// Content begins behind the first header field, which must be the relay's own.
fn split_behind_received(mut data: Vec<u8>) -> Option<Received> {
    let lines = data.split_inclusive(|b| *b == b'\n');
    let folded = |line: &&[u8]| line.starts_with(b"\t");
    let trace_bytes: usize = lines.clone().take(1).chain(lines.skip(1).take_while(folded)).map(<[u8]>::len).sum();
    let content = data.split_off(trace_bytes);
    let trace = String::from_utf8(data).ok().filter(|trace| trace.starts_with("Received: from "))?;
    let id = trace.split_once(" id ")?.1.get(..26)?.to_owned();
    let (from, to, parameters) = (String::new(), Vec::new(), Default::default());
    Some(Received { from, to, parameters, trace, message_id: id, sha256: sha256(&content), content })
}

/// What stands in the angle brackets, and behind them. A local part in quotes may hold one, and so may a parameter.
fn path_and_rest(line: &str) -> Option<(&str, &str)> {
    let (_, inner) = line.split_once('<')?;
    let (mut is_quoted, mut is_escaped) = (false, false);
    let end = inner.bytes().position(|b| {
        let ends = b == b'>' && !is_quoted;
        is_quoted ^= b == b'"' && !is_escaped;
        is_escaped = b == b'\\' && !is_escaped;
        ends
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

fn path_of(line: &str) -> Result<String, Broken> {
    let path = path_and_rest(line).map(|(path, _)| path.to_owned());
    path.ok_or_else(|| Broken::Violation(format!("no path in {line:?}")))
}

fn parameters_of(line: &str) -> Vec<String> {
    let rest = path_and_rest(line).map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

/// One line without its CRLF. A CR or LF that is not part of a CRLF is a violation.
fn crlf_line(input: &mut impl BufRead) -> Result<Vec<u8>, Broken> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        return Err(Broken::Gone);
    }
    if !line.ends_with(b"\r\n") || line[..line.len() - 2].contains(&b'\r') {
        return Err(Broken::Violation(format!("a bare CR or LF: {:?}", String::from_utf8_lossy(&line))));
    }
    line.truncate(line.len() - 2);
    Ok(line)
}

fn read_data(input: &mut impl BufRead) -> Result<Vec<u8>, Broken> {
    let mut data = Vec::new();
    loop {
        let line = crlf_line(input)?;
        if line == b"." {
            return Ok(data);
        }
        data.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        data.extend_from_slice(b"\r\n");
    }
}
