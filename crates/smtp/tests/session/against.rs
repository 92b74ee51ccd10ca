//! The whole session against the model: what it says, what it hands over, and whether it closes.

use crate::model::{Outcome, Rules, talk};
use crate::played::play;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::BTreeSet;

/// `RESTANTE_CASES=200000 cargo test -p restante-smtp against` looks longer.
fn cases() -> u32 {
    std::env::var("RESTANTE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(4_096)
}

/// As many octets behind BDAT as it says, or, rarely, not.
fn chunk() -> impl Strategy<Value = Vec<u8>> {
    let off = prop_oneof![12 => Just(0), 1 => -2_i64..3, 1 => Just(99_999_999)];
    let tail = prop_oneof![8 => select(vec!["", "", " LAST", " LAST", " last "]), 1 => Just(" LAST x")];
    (content(), off, tail).prop_map(|(content, off, tail)| {
        let size = (content.len() as i64 + off).max(0);
        [format!("BDAT {size}{tail}\r\n").as_bytes(), &content].concat()
    })
}

/// Lines, dots and odd line ends.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let part = select(vec![
        &b"\r\n"[..],
        b"\r\n",
        b"\n",
        b"\r",
        b".",
        b"a",
        b"text\r\n",
        b"\r\n\r\n",
        b"Received: x\r\n",
        b"Received:\r\n\ty\r\n",
        b" ",
        b"\xff\0",
        b"..\r\n",
        b"QUIT\r\n",
    ]);
    let many = prop_oneof![25 => Just(0_usize), 1 => 49_usize..53];
    (vec(part, 0..12), many).prop_map(|(parts, many)| [b"Received:\r\n".repeat(many), parts.concat()].concat())
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let known = select(vec![
        "<a@b.test>",
        "<>",
        " <u@ours.test>",
        "<u@ours.test>",
        "<u@ours.test>",
        "<u@second.test>",
        "<nobody@ours.test>",
        "<POSTMASTER>",
        "<u@foreign.test>",
        "<u%x@ours.test>",
        "<\"u>\"@ours.test>",
        "<@x.test:u@ours.test>",
        "<\u{fc}@ours.test>",
        "<u@[192.0.2.1]>",
        "<u>",
        "u@ours.test",
        "<u@ours.test",
        "<u@-.test>",
        "<\"NoBody\"@OURS.test>",
    ]);
    prop_oneof![
        20 => known.prop_map(|path| path.as_bytes().to_vec()),
        1 => Just(format!("<{}@ours.test>", "x".repeat(70)).into_bytes()),
        1 => Just(b"<\xff@ours.test>".to_vec()),
    ]
}

fn mail() -> impl Strategy<Value = Vec<u8>> {
    let asked = select(vec![
        "",
        "",
        "",
        " SIZE=10",
        " SIZE=5000",
        " SIZE=",
        " BODY=8BITMIME SIZE=3",
        " BODY=x",
        " smtputf8",
        " SMTPUTF8=",
        " RET=HDRS ENVID=a+2B",
        " RET=FULL RET=FULL",
        " ENVID=+2b",
        " X",
        " SIZE=1 SIZE=2",
        "x",
    ]);
    let keyword = select(vec!["MAIL FROM:", "MAIL FROM:", "mail from:", "MAIL FROM", "MAILFROM:"]);
    (keyword, path(), asked)
        .prop_map(|(keyword, path, asked)| [keyword.as_bytes(), &path, asked.as_bytes(), b"\r\n"].concat())
}

fn rcpt() -> impl Strategy<Value = Vec<u8>> {
    let asked = select(vec![
        "",
        "",
        "",
        " NOTIFY=NEVER",
        " NOTIFY=NEVER,DELAY",
        " ORCPT=rfc822;x",
        " ORCPT=utf-8;\u{fc}@x",
        " ORCPT=x",
        " NOTIFY=DELAY NOTIFY=DELAY",
        " Y=1",
    ]);
    (path(), asked).prop_map(|(path, asked)| [b"RCPT TO:", &*path, asked.as_bytes(), b"\r\n"].concat())
}

fn other() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "EHLO c.test",
        "EHLO c.test",
        "HELO c.test",
        "EHLO",
        "helo (c)",
        "DATA",
        "DATA",
        "data ",
        "DATA x",
        "DATAX",
        "RSET",
        "RSET x",
        "NOOP x",
        "VRFY u",
        "VRFY",
        "VRFY \u{fc}",
        "HELP",
        "ETRN ours.test",
        "ETRN @second.test",
        "ETRN x",
        "ETRN -",
        "ETRN busy.ours.test",
        "ETRN",
        "EXPN l",
        "STARTTLS",
        "STARTTLS x",
        "XCLIENT ADDR=203.0.113.7 PORT=5",
        "XCLIENT ADDR=IPV6:2001:db8::7",
        "XCLIENT PROTO=ESMTP HELO=p.test",
        "XCLIENT HELO=a+2Eb NAME=[UNAVAILABLE] ADDR=[TEMPUNAVAIL]",
        "XCLIENT PORT=99999",
        "XCLIENT HELO=a+2e",
        "XCLIENT",
        "",
        "XYZZY",
        "N\u{f6}\u{f6}p",
    ]);
    let odd = select(vec![
        &b"QUIT\r\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"NOOP\n",
        b"NO\rOP\r\n",
        b"NOOP\0\r\n",
        b"BDAT\t3\r\n",
        b"BDAT x\r\n",
        b"BDAT\r\n",
        b"\xff\r\n",
    ]);
    let long = select(vec!["NOOP", "BDAT 3", "DATA", "EHLO c.test"]);
    prop_oneof![
        60 => line.prop_map(|line| format!("{line}\r\n").into_bytes()),
        1 => odd.prop_map(<[u8]>::to_vec),
        2 => (long, 2_035_usize..2_050).prop_map(|(line, spaces)| format!("{line}{}\r\n", " ".repeat(spaces)).into_bytes()),
        1 => vec(any::<u8>(), 0..8),
    ]
}

/// As much as is borne, or one more or less.
fn patience() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![("XYZZY", 20), ("NOOP", 100), ("ETRN x.test", 100), ("RCPT TO:<x@foreign.test>", 100)]);
    (line, 0_usize..4, any::<bool>()).prop_map(|((line, n), less, has_sender)| {
        let start = if has_sender { "EHLO c.test\r\nMAIL FROM:<>\r\n" } else { "EHLO c.test\r\n" };
        format!("{start}{}", format!("{line}\r\n").repeat(n + 1 - less)).into_bytes()
    })
}

/// A message as it should be, up to where its content is due.
fn transaction() -> impl Strategy<Value = Vec<u8>> {
    let end = prop_oneof![
        3 => content().prop_map(|content| [b"DATA\r\n", &*content, b"\r\n.\r\n"].concat()),
        2 => vec(chunk(), 1..4).prop_map(|chunks| chunks.concat()),
        1 => Just(Vec::new()),
    ];
    let from = select(vec!["<>", "<a@b.test>", "<\u{fc}@b.test> SMTPUTF8", "<> SIZE=30"]);
    (from, vec(rcpt(), 0..3), end).prop_map(|(from, to, end)| {
        [format!("MAIL FROM:{from}\r\n").as_bytes(), b"RCPT TO:<u@ours.test>\r\n", &to.concat(), &end].concat()
    })
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        60 => other(),
        20 => mail(),
        20 => rcpt(),
        12 => chunk(),
        2 => content(),
        80 => transaction(),
        8 => select(vec!["EHLO", "EHLO", "HELO"])
            .prop_map(|hello| format!("{hello} c.test\r\nSTARTTLS\r\nEHLO c.test\r\n").into_bytes()),
        4 => patience(),
    ];
    (prop_oneof![5 => Just(&b"EHLO c.test\r\n"[..]), 1 => Just(&b""[..])], vec(part, 0..14))
        .prop_map(|(hello, parts)| [hello, &parts.concat()].concat())
}

fn rules() -> impl Strategy<Value = Rules> {
    let bytes = || prop_oneof![1 => 1_u64..40, 2 => Just(2_000)];
    let limits = (bytes(), 1_usize..4, prop_oneof![1 => 1_u32..6, 3 => Just(100)], bytes());
    let choices = (any::<bool>(), any::<bool>(), any::<bool>());
    let outcomes = || vec(prop_oneof![3 => Just(true), 1 => Just(false)], 0..4);
    (limits, choices, outcomes(), outcomes()).prop_map(|(limits, (is_strict, starttls, xclient), begins, commits)| {
        Rules {
            max_message_bytes: limits.0,
            max_recipients: limits.1,
            max_messages: limits.2,
            max_header_bytes: limits.3,
            is_strict,
            starttls,
            xclient,
            begins,
            commits,
        }
    })
}

/// Random ones, and in most cases one behind each line after which a client waits.
fn ends(input: &[u8], cuts: &[Index], is_patient: bool) -> BTreeSet<usize> {
    let mut ends: BTreeSet<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    let mut at = 0;
    for line in input.split_inclusive(|b| *b == b'\n') {
        at += line.len();
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        if is_patient && [&b"EHLO"[..], b"HELO", b"STAR", b"DATA"].contains(&verb.as_slice()) {
            ends.insert(at);
        }
    }
    ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn the_session_says_what_the_model_says(
        rules in rules(),
        input in input(),
        cuts in vec(any::<Index>(), 0..6),
        is_patient in prop_oneof![9 => Just(true), 1 => Just(false)],
    ) {
        let ends = ends(&input, &cuts, is_patient);
        let real = play(&rules, &input, &ends);
        let model = talk(&rules, &input, ends);
        prop_assert_eq!(real, model, "{}", input.escape_ascii());
    }
}

/// Most inputs must get somewhere, or nothing is compared.
#[test]
fn the_model_is_given_sessions_that_get_somewhere() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut taken, mut closed, mut over_tls) = (0, 0, 0);
    for _ in 0..200 {
        let (rules, input) = (rules(), input()).new_tree(&mut runner).unwrap().current();
        let Outcome { replies, events } = talk(&rules, &input, ends(&input, &[], true));
        taken += u32::from(events.iter().any(|event| event.starts_with("end ")));
        closed += u32::from(replies.ends_with(&["closed".to_owned()]));
        over_tls += u32::from(replies.iter().any(|reply| reply == "220 2.0.0"));
    }
    assert!(taken > 40 && (20..160).contains(&closed) && over_tls > 5, "{taken} {closed} {over_tls}");
}
