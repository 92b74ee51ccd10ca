//! Reads a dialogue file (format: `tests/dialogue/README.md`). Plays none: the session's tests do, and those of the real daemon.

/// One line of a file.
pub(crate) struct Step {
    /// From 1.
    pub(crate) number: usize,
    pub(crate) line: String,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// Sent as they are.
    Client(Vec<u8>),
    /// So many times.
    Server(usize, Said),
    Host(String),
    Log(String),
    Event(String),
}

pub(crate) enum Said {
    /// Exactly this line.
    Line(String),
    /// A line that begins so.
    Begins(String),
    /// A reply of several lines with this code.
    Lines(String),
}

/// A file: its settings, and what happens.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) settings: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

impl Script {
    pub(crate) fn parse(text: &str) -> Self {
        let mut script = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            match line.strip_prefix("! ") {
                _ if line.is_empty() || line.starts_with('#') => {}
                Some(setting) => script.settings.push(setting.to_owned()),
                None => {
                    let what = step(line).unwrap_or_else(|| panic!("line {number} is none of a dialogue: {line}"));
                    script.steps.push(Step { number, line: line.to_owned(), what });
                }
            }
        }
        script
    }
}

fn step(line: &str) -> Option<What> {
    let (who, rest) = line.split_once(' ').unwrap_or((line, ""));
    let text = rest.to_owned();
    match who {
        "h:" => return Some(What::Host(text)),
        "l:" => return Some(What::Log(text)),
        "e:" => return Some(What::Event(text)),
        "c" | "s" => {}
        _ => return None,
    }
    // `3x -> text`, or `-> text`.
    let (times, rest) = match rest.split_once("x ") {
        Some((times, rest)) if times.bytes().all(|b| b.is_ascii_digit()) => (times.parse().ok()?, rest),
        _ => (1, rest),
    };
    let (arrow, text) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(match (who, arrow) {
        ("c", "->") => What::Client(format!("{text}\r\n").repeat(times).into_bytes()),
        ("c", "=>") => What::Client(unescaped(text).repeat(times)),
        ("s", "<-") => What::Server(
            times,
            match (text.strip_suffix("-.."), text.strip_suffix(" ..")) {
                (Some(code), _) => Said::Lines(code.to_owned()),
                (None, Some(beginning)) => Said::Begins(beginning.to_owned()),
                (None, None) => Said::Line(text.to_owned()),
            },
        ),
        _ => return None,
    })
}

/// Undoes `\r \n \0 \\ \xNN`.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(b) = rest.next() {
        bytes.push(match (b, if b == b'\\' { rest.next() } else { None }) {
            (b, None) => b,
            (_, Some(b'r')) => b'\r',
            (_, Some(b'n')) => b'\n',
            (_, Some(b'0')) => 0,
            (_, Some(b'x')) => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            (_, Some(other)) => other,
        });
    }
    bytes
}

/// What a server said and nobody has expected yet, line by line.
pub(crate) fn expect(said: &Said, mut next: impl FnMut() -> Option<String>) {
    let mut line = || next().expect("the server says nothing");
    match said {
        Said::Line(expected) => assert_eq!(line(), *expected),
        Said::Begins(expected) => {
            let line = line();
            assert!(line.starts_with(expected), "expected {expected}, got {line}");
        }
        Said::Lines(code) => loop {
            let line = line();
            let rest = line.strip_prefix(code.as_str());
            let rest = rest.unwrap_or_else(|| panic!("expected lines of {code}, got {line}"));
            if rest.starts_with(' ') {
                return;
            }
            assert!(rest.starts_with('-'), "{line}");
        },
    }
}
