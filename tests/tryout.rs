//! `restante try`, the first thing anyone runs: it tells the whole story off a terminal and on one, and whatever happens to it, it
//! leaves no process and no file. These tests refuse to read its prose.

use crate::harness::{PATIENCE, eventually, gone, restante, run, scratch, tool};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A home, a temporary and a working directory of its own, so that anything it leaves behind is seen.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(scratch());
        for name in ["home", "tmp", "cwd"] {
            fs::create_dir(place.0.path().join(name)).unwrap();
        }
        place
    }

    fn put(&self, command: &mut Command) {
        let home = self.0.path().join("home");
        command.current_dir(self.0.path().join("cwd")).env("HOME", &home).env("TMPDIR", self.0.path().join("tmp"));
        for key in ["XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
            command.env(key, &home);
        }
    }

    fn entries(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.path().join(name)).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[track_caller]
    fn assert_clean(&self, names: &[&str]) {
        for name in names {
            assert!(self.entries(name).is_empty(), "left behind in {name}: {:?}", self.entries(name));
        }
    }

    /// Processes that run in this place: they inherited its TMPDIR. Whoever their parent is now.
    fn processes(&self) -> Vec<u32> {
        let mark = format!("TMPDIR={}", self.0.path().join("tmp").display());
        let ours = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes()) && !gone(*pid)
        };
        let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(ours).collect()
    }

    #[track_caller]
    fn assert_quiet(&self) {
        eventually("the last process of `try` to end", || self.processes().is_empty().then_some(()));
    }
}

fn try_in(place: &Place) -> Command {
    let mut command = restante();
    command.arg("try");
    place.put(&mut command);
    command
}

#[test]
fn try_tells_the_whole_story_off_a_terminal() {
    let place = Place::new();
    let finished = run(&mut try_in(&place)).expect_code(0);
    assert!(!finished.out.is_empty() || !finished.err.is_empty(), "it says nothing");
    place.assert_quiet();
    place.assert_clean(&["home", "tmp", "cwd"]);
}

#[test]
fn try_needs_no_stdin() {
    let place = Place::new();
    let mut closed = tool("sh");
    place.put(&mut closed);
    run(closed.args(["-c", "exec \"$0\" try <&-", env!("CARGO_BIN_EXE_restante")])).expect_code(0);
    place.assert_quiet();
    place.assert_clean(&["home", "tmp", "cwd"]);
}

#[test]
fn try_tells_the_whole_story_on_a_terminal() {
    // Answers whatever is asked with Enter, whenever it has gone quiet.
    const SCRIPT: &str = r#"
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], "try"])
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    ready, _, _ = select.select([terminal], [], [], 0.5)
    try:
        if ready:
            said = os.read(terminal, 65536)
            if not said:
                break
            sys.stdout.buffer.write(said)
        else:
            os.write(terminal, b"\r")
    except OSError:
        break
else:
    os.kill(pid, 9)
    sys.exit("try did not end")
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
    let place = Place::new();
    let mut python = tool("python3");
    place.put(&mut python);
    let limit = (PATIENCE.as_secs() - 10).to_string();
    run(python.args(["-c", SCRIPT, env!("CARGO_BIN_EXE_restante"), &limit]).env("TERM", "xterm")).expect_code(0);
    place.assert_quiet();
    place.assert_clean(&["home", "tmp", "cwd"]);
}

fn children(pid: u32) -> usize {
    let lists = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    lists
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace().count())
        .sum()
}

/// Starts `try`, kills it with -9 when `halfway` says so, and looks at what is left.
#[track_caller]
fn killed_when(what: &str, halfway: impl Fn(&Place, &Child) -> bool) {
    let place = Place::new();
    let mut child = try_in(&place).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually(what, || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "try ended before {what}: {ended:?}");
        halfway(&place, &child).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    place.assert_quiet();
    place.assert_clean(&["home", "cwd"]);
    let left = place.entries("tmp");
    assert!(left.len() <= 1, "a killed `try` may leave its one temporary directory, not {left:?}");
}

#[test]
fn a_killed_try_leaves_no_process() {
    killed_when("its first child", |_, child| children(child.id()) > 0);
}

#[test]
fn a_try_killed_with_mail_in_the_journal_leaves_no_process() {
    fn has_segment(directory: &Path) -> bool {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|e| e.path()).any(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name.starts_with("seg-") && name.ends_with(".rj")) || (path.is_dir() && has_segment(&path))
        })
    }
    killed_when("its journal", |place, _| has_segment(&place.0.path().join("tmp")));
}
