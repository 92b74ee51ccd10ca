//! `restante serve` as a child process: started by its flags, known by its `ready:` lines, killed with the value.
//! It refuses to guess a port or to wait for a fixed time: the daemon says when a 250 is possible.

use super::{OURS, PATIENCE, cli, restante};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How to start the daemon.
pub struct Serve {
    data: PathBuf,
    routes: Vec<String>,
    wrapper: Vec<String>,
    config: Option<PathBuf>,
}

impl Serve {
    /// Over the journal in `data`, with the route `example.test` to 127.0.0.1:`primary`.
    pub fn new(data: &Path, primary: u16) -> Self {
        let routes = vec![format!("{OURS}=127.0.0.1:{primary}")];
        Self { data: data.to_owned(), routes, wrapper: Vec::new(), config: None }
    }

    /// Over the journal in `data`, by the configuration in `file`: routes and host name are the file's.
    pub fn by_file(data: &Path, file: &Path) -> Self {
        Self { data: data.to_owned(), routes: Vec::new(), wrapper: Vec::new(), config: Some(file.to_owned()) }
    }

    /// Under another program, such as strace.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// One more `--route`.
    pub fn route(mut self, domain: &str, primary: u16) -> Self {
        self.routes.push(format!("{domain}=127.0.0.1:{primary}"));
        self
    }

    /// With a configuration file; `--route`, `--listen`, `--data` and `--admin` are still given.
    pub fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_owned());
        self
    }

    /// The command line, not yet started.
    pub fn command(&self) -> Command {
        let ours = restante();
        let mut command = match self.wrapper.split_first() {
            None => ours,
            Some((program, args)) => {
                let mut wrapped = Command::new(program);
                wrapped.args(args).arg(ours.get_program());
                wrapped.envs(ours.get_envs().filter_map(|(key, value)| Some((key, value?))));
                wrapped
            }
        };
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        if !self.routes.is_empty() {
            command.args(["--hostname", "mx2.example.test"]);
        }
        command.arg("--data").arg(&self.data);
        for route in &self.routes {
            command.arg("--route").arg(route);
        }
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        command
    }

    /// Starts it and waits for both `ready:` lines; fails with what it said if it ends before.
    pub fn start(&self) -> Daemon {
        self.try_start().unwrap_or_else(|said| panic!("the daemon ended before it was ready:\n{said}"))
    }

    /// As [`Serve::start`]; what it said, if it ended before it was ready.
    pub fn try_start(&self) -> Result<Daemon, String> {
        let mut command = self.command();
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let said = Arc::new(Mutex::new(String::new()));
        let (tell, ready) = channel();
        let (stderr, keep) = (child.stderr.take().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || listen_to(stderr, &keep, &tell));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Daemon { child, data: self.data.clone(), smtp: nowhere, admin: nowhere, said };
        if !daemon.is_ready(&ready) {
            daemon.wait();
            return Err(daemon.stderr());
        }
        Ok(daemon)
    }
}

fn listen_to(stderr: impl Read, keep: &Mutex<String>, tell: &Sender<(String, SocketAddr)>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut words = line.strip_prefix("ready: ").unwrap_or_default().split_whitespace();
        if let (Some(what), Some(Ok(address))) = (words.next(), words.next().map(str::parse)) {
            let _ = tell.send((what.to_owned(), address));
        }
        let mut said = keep.lock().unwrap();
        said.push_str(&line);
        said.push('\n');
    }
}

/// A running daemon; killed with the value.
pub struct Daemon {
    child: Child,
    pub data: PathBuf,
    pub smtp: SocketAddr,
    pub admin: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Daemon {
    /// Waits; false if it ended.
    fn is_ready(&mut self, ready: &Receiver<(String, SocketAddr)>) -> bool {
        let start = Instant::now();
        while self.smtp.port() == 0 || self.admin.port() == 0 {
            match ready.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok((what, address)) if what == "smtp" => self.smtp = address,
                Ok((_, address)) => self.admin = address,
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("no `ready:` line:\n{}", self.stderr()),
            }
        }
        true
    }

    /// Its process id (the daemon's own: wrappers run it in their place, as `strace -D` does).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it said so far.
    pub fn stderr(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The crash: `kill -9`, and its end awaited.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end and returns the exit code; None when a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        super::eventually("the daemon's end", || self.child.try_wait().unwrap()).code()
    }

    /// Whether it ended already.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// A clean stop: SIGTERM, exit 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), Some(0), "exit code after SIGTERM:\n{}", self.stderr());
    }

    /// `restante ARGS --json --data DATA`: its lines; exit 0 expected.
    #[track_caller]
    pub fn ask(&self, args: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        cli(&self.data, &args).expect_code(0).json()
    }

    /// GET of a path of the admin port: status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).unwrap_or("0").parse().unwrap(), body.to_owned())
    }

    /// The sum of a metric's series whose labels contain `labels`; None when there is no such series.
    pub fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics");
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with('{')).then_some(())?;
            rest.contains(labels).then(|| value.parse::<f64>().unwrap())
        });
        series.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Waits until nothing is left to deliver.
    pub fn wait_until_empty(&self) {
        super::eventually("an empty queue", || self.ask(&["queue", "ls"]).is_empty().then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon said:\n{}---", self.stderr());
        }
    }
}
