//! A session without its connection: the dialogue in front of a content, and the content. The host admits everybody and drops
//! what it gets, so copying the content into memory or to disk is not in here.

use crate::facts::{self, ROUTE};
use crate::mail;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use restante_envelope::{Envelope, ForwardPath, RouteName, Trace};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Session, Settings, Trouble};
use std::hint::black_box;
use std::sync::Arc;

/// As much as the daemon reads at once.
const READ_BYTES: usize = 16 << 10;

const HELLO: &[&str] = &["EHLO mail.example.net\r\n"];
const MESSAGE: &[&str] =
    &["MAIL FROM:<sender@example.net> SIZE=4096 BODY=8BITMIME\r\n", "RCPT TO:<box@example.test>\r\n", "DATA\r\n"];

pub(crate) fn bench(criterion: &mut Criterion) {
    dialogue(criterion);
    content(criterion);
}

/// Admits all.
struct Open {
    route: RouteName,
}

impl Host for Open {
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        black_box(path);
        Admission::Accept(self.route.clone())
    }
    fn begin(&mut self, envelope: &Envelope, trace: &Trace, _: u64) -> Result<(), Trouble> {
        black_box((envelope, trace));
        Ok(())
    }
    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        black_box(content);
        Ok(())
    }
    fn end(&mut self, end: EndOfData) {
        black_box(end);
    }
    fn abort(&mut self) {
        panic!("a bench sends nothing that is refused");
    }
    fn refused(&mut self, refusal: &RefusedCommand) {
        panic!("a bench sends nothing that is refused: {refusal:?}");
    }
}

/// A session and what is around it.
struct Door {
    settings: Arc<Settings>,
    host: Open,
}

impl Door {
    fn new() -> Self {
        let settings = Settings::new("mx2.example.test".into(), 50 << 20);
        Self { settings: Arc::new(settings), host: Open { route: RouteName::new(ROUTE) } }
    }

    fn open(&self) -> Session {
        Session::new(Arc::clone(&self.settings), "192.0.2.1:41234".parse().unwrap(), 4_711, facts::at(0))
    }

    /// One read each, and what is answered is taken out as if it were written. A session that refused, or closed, would be
    /// quick and measure nothing.
    fn say(&mut self, session: &mut Session, reads: &[&str]) {
        for read in reads {
            assert_eq!(session.receive(black_box(read.as_bytes()), facts::at(1), &mut self.host), read.len());
            answered(session);
        }
    }

    /// An empty content and its 250, after the 354.
    fn finish(&mut self, session: &mut Session) {
        assert_eq!(session.receive(black_box(b".\r\n"), facts::at(1), &mut self.host), 3);
        assert!(session.awaits_commit(), "no content was expected");
        session.resolve(Resolution::Stored(black_box(facts::id(1))), facts::at(2));
        answered(session);
    }

    /// A session after its 354.
    fn at_content(&mut self) -> Session {
        let mut session = self.open();
        self.say(&mut session, HELLO);
        self.say(&mut session, MESSAGE);
        session
    }
}

/// Takes the replies out; they must begin with a positive one, and the session go on.
fn answered(session: &mut Session) {
    assert!(matches!(session.output().first(), Some(b'2' | b'3')) && !session.wants_close(), "refused");
    black_box(session.output().as_slice());
    session.output().clear();
}

/// Throughput counts commands.
fn dialogue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("smtp: dialogue");
    let mut door = Door::new();
    group.throughput(Throughput::Elements(4));
    group.bench_function("connect to 354", |bencher| bencher.iter(|| door.at_content()));
    group.throughput(Throughput::Elements(3));
    let mut session = door.open();
    door.say(&mut session, HELLO);
    group.bench_function("next message, empty, to 250", |bencher| {
        bencher.iter(|| {
            door.say(&mut session, MESSAGE);
            door.finish(&mut session);
        });
    });
    let recipients: String = (0..100).map(|n| format!("RCPT TO:<recipient-{n}@example.test>\r\n")).collect();
    let crowd = ["MAIL FROM:<sender@example.net>\r\n", &recipients, "DATA\r\n"].concat();
    for (name, commands, said) in [
        ("next message, empty, pipelined, to 250", 3, MESSAGE.concat()),
        ("next message, empty, 100 recipients, pipelined, to 250", 102, crowd),
    ] {
        group.throughput(Throughput::Elements(commands));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                door.say(&mut session, &[said.as_str()]);
                door.finish(&mut session);
            });
        });
    }
    assert_eq!(session.counts().refused, 0);
    group.finish();
}

/// The search for CRLF, the end and stuffed dots, and the reading of headers that goes with it. Bytes are those on the wire.
fn content(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("smtp: content");
    let mut door = Door::new();
    let inputs = [
        ("text, 4 KiB", mail::text(4 << 10)),
        ("text, 64 KiB", mail::text(64 << 10)),
        ("lines of one letter, 64 KiB", mail::short_lines(64 << 10)),
        ("lines of one dot, 64 KiB", mail::dots(64 << 10)),
    ];
    for (name, content) in inputs {
        let wire = mail::wire(&content);
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut receiver = Door::new();
            bencher.iter_batched_ref(
                || door.at_content(),
                |session| {
                    for read in wire.chunks(READ_BYTES) {
                        session.receive(black_box(read), facts::at(2), &mut receiver.host);
                    }
                    assert!(session.awaits_commit(), "the content ended and is acceptable");
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
