//! Reads what strace saw of the real binary and judges the order of writes, syncs and replies. It refuses to trust the daemon's
//! own account: only system calls that returned count.

use std::collections::HashMap;
use std::path::Path;

/// The calls to trace: all that make, name, fill or sync a file, and all that send.
pub const CALLS: &str = "trace=open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,\
                         rename,renameat,renameat2,link,linkat,sendto,sendmsg,sendmmsg,bind,listen";

/// One system call: where in the trace it began and where it returned. The two differ when another thread's call came between.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
    begun: usize,
    /// None: it did not return before the end.
    returned: Option<usize>,
}

impl Call {
    fn ok(&self) -> bool {
        // `= 0`, `= 17`, `= 3</path>`; an error is `= -1 EIO (..)`; what strace injected says so, and is an error too.
        self.returned.is_some()
            && self.text.rsplit_once(" = ").is_some_and(|(_, value)| value.starts_with(|c: char| c.is_ascii_digit()))
    }

    fn before(&self, line: usize) -> bool {
        self.ok() && self.returned.is_some_and(|r| r < line)
    }

    fn after(&self, other: &Self) -> bool {
        other.returned.is_some_and(|r| r < self.begun)
    }

    /// The file or socket behind the first argument, as `-yy` shows it.
    fn target(&self) -> &str {
        let inner = self.text.split_once('<').map_or("", |(_, rest)| rest);
        match inner.strip_prefix("TCP") {
            Some(_) => inner.split_once("]>").map_or(inner, |(socket, _)| socket),
            None => inner.split_once('>').map_or("", |(path, _)| path),
        }
    }

    fn writes_file(&self, path: &str) -> bool {
        self.name.contains("write") && self.target() == path
    }

    fn syncs(&self, path: &str) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync") && self.target() == path
    }

    fn sends(&self) -> bool {
        (self.name.contains("write") || self.name.starts_with("send")) && self.target().starts_with("TCP")
    }

    /// The absolute paths among its quoted arguments; a relative one is completed from the directory in front of it.
    fn paths(&self) -> Vec<String> {
        let mut directory = "";
        let mut paths = Vec::new();
        for (n, part) in self.text.split('"').enumerate() {
            if n % 2 == 0 {
                directory = part.rsplit_once('<').and_then(|(_, d)| d.split_once('>')).map_or("", |(d, _)| d);
            } else if part.starts_with('/') {
                paths.push(part.to_owned());
            } else {
                paths.push(format!("{directory}/{part}"));
            }
        }
        paths
    }

    /// Whether this call gave `path` its place in a directory.
    fn names(&self, path: &str) -> bool {
        let created = matches!(self.name.as_str(), "open" | "openat" | "creat") && self.text.contains("O_CREAT");
        let moved = self.name.starts_with("rename") || self.name.starts_with("link");
        (created || moved) && self.paths().last().is_some_and(|last| last == path)
    }
}

/// A whole trace, in the order the kernel reported it.
pub struct Trace {
    calls: Vec<Call>,
}

impl Trace {
    /// Parses the output of `strace -f -yy`.
    pub fn parse(text: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut unfinished: HashMap<&str, usize> = HashMap::new();
        for (line, text) in text.lines().enumerate() {
            let Some((pid, rest)) = text.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some((_, tail)) = rest.strip_prefix("<... ").and_then(|r| r.split_once(" resumed>")) {
                if let Some(call) = unfinished.remove(pid).and_then(|n| calls.get_mut(n)) {
                    call.text.push_str(tail);
                    call.returned = Some(line);
                }
                continue;
            }
            let Some((name, _)) = rest.split_once('(') else { continue };
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                continue;
            }
            let begun = rest.strip_suffix(" <unfinished ...>");
            if begun.is_some() {
                unfinished.insert(pid, calls.len());
            }
            let returned = begun.is_none().then_some(line);
            calls.push(Call { name: name.to_owned(), text: begun.unwrap_or(rest).to_owned(), begun: line, returned });
        }
        Self { calls }
    }

    /// Whether any call was a bind or a listen on a network socket.
    pub fn opened_a_port(&self) -> bool {
        let port = |c: &&Call| c.name == "listen" || (c.name == "bind" && c.text.contains("AF_INET"));
        self.calls.iter().find(port).is_some()
    }

    /// How many syncs of this kind of path returned well.
    pub fn syncs_of(&self, part: &str) -> usize {
        self.calls.iter().filter(|c| c.ok() && c.name.ends_with("sync") && c.target().contains(part)).count()
    }

    /// Proves that before the 250 with this id left: each marker of its content was written to a file of the journal, that file
    /// was synced after it, and the directory of that file was synced after the file got its name.
    pub fn prove(&self, journal: &Path, id: &str, markers: &[&str]) -> Result<(), String> {
        let journal = journal.to_str().ok_or("a path in UTF-8")?;
        let queued = format!("queued as {id}");
        let ack = self
            .calls
            .iter()
            .find(|c| c.sends() && c.text.contains(&queued))
            .ok_or(format!("{id}: no 250 in the trace"))?;
        for marker in markers {
            let holds = |c: &&Call| {
                c.name.contains("write")
                    && c.text.contains(marker)
                    && (c.target().starts_with(&format!("{journal}/seg-"))
                        || c.target().starts_with(&format!("{journal}/blob/")))
            };
            let write = self.calls.iter().filter(|c| c.before(ack.begun)).rfind(holds);
            let write = write.ok_or(format!("{id}: {marker} was not in the journal when the 250 left"))?;
            if write.target().contains("/blob/") {
                self.blob(journal, id, write.target(), ack)?;
            } else {
                self.synced(id, write, ack)?;
                self.named(id, write.target(), ack)?;
            }
        }
        Ok(())
    }

    /// A sync of the written file that began after the write and returned before the reply.
    fn synced(&self, id: &str, write: &Call, ack: &Call) -> Result<&Call, String> {
        let sync = self.calls.iter().find(|c| c.syncs(write.target()) && c.after(write) && c.before(ack.begun));
        sync.ok_or(format!("{id}: the 250 left before a sync of {} returned", write.target()))
    }

    /// A sync of the file's directory after the file was named and before the reply. Returns the file's last name.
    fn named(&self, id: &str, path: &str, ack: &Call) -> Result<String, String> {
        let moved = self.calls.iter().find(|c| {
            c.before(ack.begun) && c.name.starts_with("rename") && c.paths().first().is_some_and(|from| from == path)
        });
        let path = moved.and_then(|c| c.paths().pop()).unwrap_or_else(|| path.to_owned());
        let named = self.calls.iter().filter(|c| c.before(ack.begun)).rfind(|c| c.names(&path));
        let named = named.ok_or(format!("{id}: {path} was never made"))?;
        let directory = path.rsplit_once('/').map_or("", |(d, _)| d);
        let sync = self.calls.iter().find(|c| c.syncs(directory) && c.after(named) && c.before(ack.begun));
        sync.ok_or(format!("{id}: the 250 left before {directory} was synced for {path}"))?;
        Ok(path)
    }

    /// A blob, in this order: all of it synced, renamed, its directory synced, a record of it in a segment, that synced.
    fn blob(&self, journal: &str, id: &str, path: &str, ack: &Call) -> Result<(), String> {
        let last = self.calls.iter().filter(|c| c.before(ack.begun)).rfind(|c| c.writes_file(path));
        let synced = self.synced(id, last.ok_or(format!("{id}: nothing in {path}"))?, ack)?;
        let moves = |c: &&Call| c.name.starts_with("rename") && c.paths().first().is_some_and(|from| from == path);
        let moved = self.calls.iter().filter(|c| c.before(ack.begun) && c.after(synced)).find(moves);
        let moved = moved.ok_or(format!("{id}: the 250 left before {path} was renamed behind its sync"))?;
        let directory = path.rsplit_once('/').map_or("", |(d, _)| d);
        let entry = self.calls.iter().find(|c| c.syncs(directory) && c.after(moved) && c.before(ack.begun));
        let entry = entry.ok_or(format!("{id}: the 250 left before {directory} was synced for {path}"))?;
        let segment = format!("{journal}/seg-");
        let record = self.calls.iter().find(|c| {
            c.name.contains("write")
                && c.target().starts_with(&segment)
                && c.after(entry)
                && self.synced(id, c, ack).is_ok()
        });
        record.map(|_| ()).ok_or(format!("{id}: the 250 left before a record of the blob was synced"))
    }
}
