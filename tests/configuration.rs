//! A wrong file or flag: all errors at once, each with its place and the nearest key, and no port opened. These tests refuse to
//! pin the wording.

use crate::harness::trace::{CALLS, Trace};
use crate::harness::{Client, Finished, Message, Serve, Sink, queued_id, restante, run, scratch, tool};
use std::fs;
use std::path::Path;

/// `serve` with these arguments under strace: how it ended, and whether it opened a port.
fn serve_traced(directory: &Path, args: &[&str]) -> (Finished, bool) {
    let output = directory.join("trace");
    let mut strace = tool("strace");
    strace
        .args(["-f", "-yy", "-e", CALLS, "-o"])
        .arg(&output)
        .arg(restante().get_program())
        .args(args)
        .current_dir(directory);
    let finished = run(&mut strace);
    let trace = Trace::parse(&String::from_utf8_lossy(&fs::read(&output).unwrap()));
    (finished, trace.opened_a_port())
}

/// Some line of `text` has all `parts`.
#[track_caller]
fn assert_said(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "not all of {parts:?} in:\n{text}");
}

#[test]
fn a_wrong_file_shows_all_errors_with_their_place_and_opens_no_port() {
    let directory = scratch();
    let file = directory.path().join("wrong.toml");
    let text = "hostnam = \"mx2.example.net\"\n\
                \n\
                [journal]\n\
                dir = \"/nowhere/restante\"\n\
                retain = \"7 fortnights\"\n\
                \n\
                [smtp]\n\
                listne = [\"127.0.0.1:0\"]\n\
                max_message_size = 17\n\
                \n\
                [[route]]\n\
                name = \"office\"\n\
                domain = [\"example.com\"]\n\
                \n\
                [[route]]\n\
                name = \"other\"\n\
                domains = [\"example.org\"]\n\
                primry = [\"mail.example.com:25\"]\n";
    fs::write(&file, text).unwrap();
    let (finished, opened) = serve_traced(directory.path(), &["serve", "--config", file.to_str().unwrap()]);
    let said = finished.expect_code(6).err;
    assert!(!opened, "a port was opened:\n{said}");
    assert!(!said.contains("ready:"), "{said}");
    for (wrong, nearest, line) in
        [("hostnam", "hostname", 1), ("listne", "listen", 8), ("domain", "domains", 13), ("primry", "primary", 18)]
    {
        // Line and column, in the form that editors open: every key stands at column 1.
        let place = format!("wrong.toml:{line}:1");
        assert_said(&said, &[&place, wrong, nearest]);
    }
    // A value that is wrong is pointed at, at the key's line.
    assert_said(&said, &["wrong.toml:5:", "retain"]);
    assert_said(&said, &["wrong.toml:9:", "max_message_size"]);
}

#[test]
fn a_file_that_is_not_toml_is_pointed_at() {
    let directory = scratch();
    fs::write(directory.path().join("broken.toml"), "hostname = \"mx2.example.net\"\n[smtp\n").unwrap();
    let (finished, opened) = serve_traced(directory.path(), &["serve", "--config", "broken.toml"]);
    assert_said(&finished.expect_code(6).err, &["broken.toml:2:"]);
    assert!(!opened);
}

#[test]
fn wrong_flags_are_2_and_open_no_port() {
    let directory = scratch();
    let cases: &[(&[&str], &[&str])] = &[
        (&["serve", "--lisen", "127.0.0.1:0", "--route", "example.test=127.0.0.1:25"], &["--lisen", "--listen"]),
        (&["serve", "--route", "*=127.0.0.1:25"], &["*"]),
        (&["serve", "--route", "example.test"], &["example.test"]),
        (&["serve", "--route", "example.test="], &["example.test"]),
        (&["serve", "--route", "=127.0.0.1:25"], &["--route"]),
        (&["serve", "--route", "example.test=127.0.0.1:99999"], &["99999"]),
        (&["serve", "--route", "example.test=127.0.0.1:25", "--route", "example.test=127.0.0.1:26"], &["example.test"]),
        (&["serve", "--route", "example.test,EXAMPLE.test=127.0.0.1:25"], &["example.test"]),
        (&["serve", "--route", "example.test=127.0.0.1:25", "--listen", "nonsense"], &["nonsense"]),
        (&["serve", "--route", "example.test=127.0.0.1:25", "--hostname", "not a name"], &["not a name"]),
    ];
    for (args, said) in cases {
        let (finished, opened) = serve_traced(directory.path(), args);
        assert_said(&finished.expect_code(2).err, said);
        assert!(!opened, "{args:?} opened a port");
    }
}

#[test]
fn no_configuration_is_6_with_a_hint_to_init() {
    let directory = scratch();
    assert!(!Path::new("/etc/restante/restante.toml").exists(), "this machine has a restante of its own");
    let (finished, opened) = serve_traced(directory.path(), &["serve"]);
    assert_said(&finished.expect_code(6).err, &["restante init"]);
    assert!(!opened);
}

#[test]
fn a_file_and_flags_serve_together() {
    let directory = scratch();
    let primary = Sink::opened();
    let file = directory.path().join("restante.toml");
    // The route of the file is replaced by the one of the flags.
    let text = "hostname = \"mx9.example.net\"\n[smtp]\nmax_message_size = \"10KiB\"\n[[route]]\nname = \"office\"\n\
                domains = [\"file.test\"]\nprimary = [\"127.0.0.1:1\"]\n";
    fs::write(&file, text).unwrap();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).config(&file).start();
    let mut client = Client::ehlo(daemon.smtp);
    let message = Message::new("both", 1, 500);
    queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap());
    assert_eq!(client.send("a@example.net", &["box@file.test"], &message.content).unwrap().code, 550);
    let large = Message::new("both", 2, 20_000);
    assert_eq!(
        Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &large.content).unwrap().code,
        552
    );
    primary.wait_for(1);
}
