//! The dialogues of `tests/dialogue` against the real listener, in clear and inside TLS: that what the session says is what a client
//! hears. What only a host or a clock that one can command can do, the session's own tests play alone.

use crate::harness::tls::{Wire, encrypted, trusting};
use crate::harness::{Serve, Sink, scratch};
use crate::script::{Said, Script, Step, What, expect};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any reply takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// What this daemon cannot be made to do, and why.
const NOT_HERE: [(&str, &str); 2] = [
    ("etrn_is_for_our_own_domains", "what waits is left over from the dialogues before"),
    ("commands_beside_mail", "STARTTLS is always offered"),
];
/// In the files, of one that takes 1,000 octets and no TLS.
const PLAIN_LINE: &str = "250-SIZE 1000";

fn config(directory: &Path, primary: u16) -> std::path::PathBuf {
    let file = directory.join("restante.toml");
    let route = |name: &str, recipients: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\ndomains = [\"{name}.test\"]\nprimary = [\"127.0.0.1:{primary}\"]\n{recipients}\n"
        )
    };
    // Everybody but nobody.
    let known: Vec<String> = ["b", "c", "d", "\u{7528}"].iter().map(|local| format!("\"{local}@ours.test\"")).collect();
    let routes = route("ours", &format!("recipients = [{}]", known.join(", "))) + &route("second", "");
    let data = directory.join("data");
    let text = format!(
        "hostname = \"mx2.test\"\n[journal]\ndir = {data:?}\n[smtp]\nlisten = [\"127.0.0.1:0\"]\nmax_message_size = \"1KiB\"\n{routes}"
    );
    fs::write(&file, text).unwrap();
    file
}

/// Whether all that happens can be made to happen from outside.
fn is_playable(name: &str, script: &Script) -> bool {
    let is_plain = script.settings.iter().all(|setting| setting == "log");
    let is_ours = |step: &Step| match &step.what {
        What::Event(event) => matches!(event.as_str(), "stored" | "awaiting" | "closed"),
        _ => true,
    };
    is_plain && script.steps.iter().all(is_ours) && NOT_HERE.iter().all(|(not, _)| *not != name)
}

/// The next line of the server; none when it has closed.
fn next_line(wire: &mut BufReader<Box<dyn Wire>>) -> Option<String> {
    let mut line = Vec::new();
    match wire.read_until(b'\n', &mut line) {
        Ok(0) => None,
        // TLS: closed without a farewell, after what was to be said.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
        Err(error) => panic!("{error}"),
        Ok(_) => Some(String::from_utf8(line).unwrap().strip_suffix("\r\n").expect("a line of the server").to_owned()),
    }
}

fn play(name: &str, script: &Script, wire: Box<dyn Wire>, is_tls: bool) {
    let mut wire = BufReader::new(wire);
    let mut pending: Vec<u8> = Vec::new();
    let mut steps = script.steps.iter().peekable();
    if is_tls {
        // RFC 3207 section 4.2: there is no second greeting.
        steps.next_if(|step| matches!(step.what, What::Server(..))).expect("a greeting");
    }
    let mut is_closed = false;
    for step in steps {
        let at = || format!("{name}:{} (TLS: {is_tls}): {}", step.number, step.line);
        if !matches!(step.what, What::Client(_)) && !pending.is_empty() {
            wire.get_mut().write_all(&std::mem::take(&mut pending)).unwrap_or_else(|error| panic!("{}: {error}", at()));
            wire.get_mut().flush().unwrap();
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match &step.what {
            What::Client(bytes) => pending.extend_from_slice(bytes),
            What::Server(times, said) => (0..*times).for_each(|_| heard(said, &mut wire, is_tls)),
            What::Event(event) if event == "closed" => {
                is_closed = true;
                assert_eq!(next_line(&mut wire), None);
            }
            What::Event(_) => {}
            // Nobody here can look at those.
            What::Host(told) | What::Log(told) => assert!(!told.is_empty(), "an empty line"),
        }));
        assert!(outcome.is_ok(), "{}", at());
    }
    assert!(is_closed, "{name}: the end is left open");
}

/// As in the file, but for what differs between the two servers.
fn heard(said: &Said, wire: &mut BufReader<Box<dyn Wire>>, is_tls: bool) {
    let in_words = |line: &str| Said::Line(line.to_owned());
    let told = match said {
        Said::Line(line) if line == PLAIN_LINE => &in_words("250-SIZE 1024"),
        Said::Line(line) if line.contains("queued as ") => &Said::Begins(line[..line.len() - 26].to_owned()),
        said => said,
    };
    let offered = !is_tls && matches!(told, Said::Line(line) if line == "250-ENHANCEDSTATUSCODES");
    if offered {
        expect(&in_words("250-STARTTLS"), || next_line(wire));
    }
    expect(told, || next_line(wire));
}

#[test]
fn a_client_hears_what_the_session_says_in_clear_and_inside_tls() {
    let directory = scratch();
    let primary = Sink::closed();
    let daemon = Serve::by_file(&directory.path().join("data"), &config(directory.path(), primary.port)).start();
    let tls = trusting(&daemon);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogue");
    let mut played = 0;
    for file in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        let Some(name) = file.file_name().unwrap().to_str().unwrap().strip_suffix(".smtp").map(str::to_owned) else {
            continue;
        };
        let script = Script::parse(&fs::read_to_string(&file).unwrap());
        if !is_playable(&name, &script) {
            continue;
        }
        let clear = TcpStream::connect(daemon.smtp).unwrap();
        clear.set_read_timeout(Some(PATIENCE)).unwrap();
        play(&name, &script, Box::new(clear), false);
        play(&name, &script, Box::new(encrypted(&daemon, "mx2.test", &tls)), true);
        played += 1;
    }
    assert!(played >= 32, "{played} of the dialogues can be played");
    println!("{played} dialogues, each in clear and inside TLS");
}
