//! Facts as metas: what comes back, and what does not decode.

use super::*;
use proptest::prelude::*;
use restante_envelope::{EnvelopeId, Notify, OriginalRecipient, Ret};
use restante_ledger::{Position, Replayed};

fn id() -> TransactionId {
    TransactionId::from_bits(0x0123_4567_89ab_cdef_0011_2233_4455_6677)
}

/// With all flags that say what is in it.
fn read(record: &Prepared, content_len: u64, meta: &[u8]) -> Result<Option<Fact>, Malformed> {
    decode(&FrameHeader { id: record.id.unwrap_or(id()), ..header(record.kind, record.flags()) }, content_len, meta)
}

fn header(kind: Kind, flags: u8) -> FrameHeader {
    let (recipients, tag, sequence, offset) = (0, 0, 0, 0);
    let (meta_len, meta_crc, content_len, content_crc) = (0, 0, 0, 0);
    let id = id();
    FrameHeader { kind, flags, recipients, tag, sequence, offset, id, meta_len, meta_crc, content_len, content_crc }
}

/// A message of whose sender much is known.
fn requested() -> Accepted {
    let Some(Fact::Accepted(mut accepted)) = facts().into_iter().next() else { panic!("the first is a message") };
    let envelope = &mut accepted.envelope;
    envelope.smtputf8 = true;
    envelope.reverse_path = ReversePath::parse_utf8("j\u{f6}rg@b\u{fc}cher.test").unwrap();
    envelope.dsn.ret = Some(Ret::Headers);
    envelope.dsn.envid = Some(EnvelopeId::parse("QQ+2B1").unwrap());
    envelope.recipients[0].forward_path = ForwardPath::parse_utf8("\u{7528}@one.test").unwrap();
    envelope.recipients[1].dsn.notify = Some(Notify::Never);
    envelope.recipients[2].dsn.notify = Some(Notify::On { success: true, failure: false, delay: true });
    envelope.recipients[2].dsn.original = Some(OriginalRecipient::parse("rfc822;x@y").unwrap());
    accepted.trace.protocol = Protocol::Utf8Smtps;
    accepted
}

fn facts() -> Vec<Fact> {
    let recipient = |path: &str, route: &str| Recipient::new(ForwardPath::parse(path).unwrap(), RouteName::new(route));
    let at = Timestamp::from_unix_ms(1_795_359_200_118);
    let reply = Reply::new(250, Some(EnhancedStatus::new(2, 0, 0)), "Ok: queued as 4XyZ\nthanks");
    let next_at = at;
    vec![
        Fact::Accepted(Accepted {
            id: id(),
            envelope: Envelope::new(
                ReversePath::parse("a@b.test").unwrap(),
                vec![
                    recipient("x@one.test", "one"),
                    recipient("\"q \\\" \"@two.test", "two"),
                    recipient("postmaster", "one"),
                ],
                BodyType::EightBitMime,
            ),
            trace: Trace {
                client: "[2001:db8::1]:4000".parse().unwrap(),
                helo: "c.test".into(),
                protocol: Protocol::Esmtps,
                tls: Some("TLSv1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into()),
                session: 9,
                received_at: at,
            },
            content_len: 77,
            hold: Some("loop".into()),
        }),
        Fact::Attempted(Attempted {
            id: id(),
            at,
            next_hop: Some(NextHop {
                host: "mail.one.test".into(),
                ip: "192.0.2.1".parse().unwrap(),
                port: 25,
                tls: Some("TLSv1.3 TLS_AES_256_GCM_SHA384".into()),
            }),
            timings: Timings { before_queue_ms: 1, in_queue_ms: 2, connect_ms: 3, transfer_ms: 4 },
            results: vec![
                (0, Outcome::Sent(reply.clone())),
                (1, Outcome::Deferred { cause: Cause::InDoubt("gone".into()), next_at }),
                (2, Outcome::Held(Cause::Reply(Reply::new(550, None, "no")))),
                (3, Outcome::Quarantined(Cause::Local("rot".into()))),
                (4, Outcome::Deferred { cause: Cause::Connection("reset".into()), next_at }),
            ],
        }),
        Fact::Operated(Operated {
            id: id(),
            at,
            action: Action::Release,
            recipients: vec![0, 9],
            actor: "root".into(),
            reason: "fixed".into(),
        }),
        Fact::Replayed(Replayed {
            id: id(),
            at,
            position: Position { segment: 1, offset: 4096 },
            job: u64::MAX - 7,
            actor: "root".into(),
            reason: "the disk died".into(),
            next_hop: None,
            results: vec![(0, reply), (7, Reply::new(550, None, "no"))],
        }),
        Fact::Served(Served {
            at,
            hostname: "mx2.test".into(),
            routes: vec![RouteRecord {
                name: "one".into(),
                domains: vec!["one.test".into()],
                primary: vec!["[::1]:25".into(), "b:26".into()],
            }],
        }),
    ]
}

#[test]
fn every_fact_is_read_back_as_it_was_written() {
    let mut facts = facts();
    if let Fact::Accepted(mut plain) = facts[0].clone() {
        (plain.trace.protocol, plain.trace.tls, plain.hold) = (Protocol::Smtp, None, None);
        facts.push(Fact::Accepted(plain));
    }
    let one = |change: fn(&mut Envelope)| {
        let mut accepted = requested();
        let envelope = &mut accepted.envelope;
        *envelope = Envelope::new(ReversePath::null(), vec![envelope.recipients[1].clone()], BodyType::SevenBit);
        envelope.recipients[0].dsn.notify = None;
        change(envelope);
        Fact::Accepted(accepted)
    };
    facts.push(Fact::Accepted(requested()));
    facts.push(one(|envelope| envelope.smtputf8 = true));
    facts.push(one(|envelope| envelope.dsn.ret = Some(Ret::Full)));
    facts.push(one(|envelope| envelope.recipients[0].dsn.notify = Notify::from_bits(6)));
    for fact in facts {
        let prepared = Prepared::fact(&fact, Vec::new());
        assert_eq!(read(&prepared, 77, &prepared.meta).unwrap().unwrap(), fact);
    }
    let torn = Succession { number: 3, bytes: 4, torn: vec![(5, 6), (7, 8)] };
    assert_eq!(Succession::decode(&torn.encode()), Ok(torn));
}

#[test]
fn a_meta_cut_anywhere_is_malformed_and_not_half_a_fact() {
    for fact in facts().into_iter().chain([Fact::Accepted(requested())]) {
        let prepared = Prepared::fact(&fact, Vec::new());
        for end in 0..prepared.meta.len() {
            assert_eq!(read(&prepared, 0, &prepared.meta[..end]), Err(Malformed), "{:?} {end}", prepared.kind);
        }
    }
}

#[test]
fn a_choice_that_the_format_does_not_know_is_malformed_and_not_guessed() {
    let at = Timestamp::from_unix_ms(1);
    let results = vec![(0, Outcome::Held(Cause::Local("loop".into())))];
    let held = Fact::Attempted(Attempted { id: id(), at, next_hop: None, timings: Timings::default(), results });
    let of = |fact: &Fact| Prepared::fact(fact, Vec::new());
    let (accepted, attempted, operated) = (of(&facts()[0]), of(&held), of(&facts()[2]));
    // Body, protocol, address; a server or none; outcome; sent for another reason than a reply; cause; action.
    for (record, place, value) in [
        (&accepted, 8, 2),
        (&accepted, 9, 5),
        (&accepted, 10, 5),
        (&attempted, 28, 2),
        (&attempted, 33, 5),
        (&attempted, 33, SENT),
        (&attempted, 34, 5),
        (&operated, 8, 8),
    ] {
        let mut meta = record.meta.clone();
        assert!(read(record, 0, &meta).is_ok());
        meta[place] = value;
        assert_eq!(read(record, 0, &meta), Err(Malformed), "{:?} {place}: {value}", record.kind);
    }
}

#[test]
fn requests_are_read_only_where_a_flag_says_so_and_other_scripts_only_where_they_were_asked_for() {
    let requested = requested();
    let record = Prepared::fact(&Fact::Accepted(requested.clone()), Vec::new());
    assert_eq!(record.flags(), FLAG_REQUESTS);
    let without = decode(&header(record.kind, 0), 0, &record.meta);
    assert_eq!(without, Err(Malformed), "a path that nobody asked for");
    // Behind the recipients: SMTPUTF8, RET, the length of ENVID; then of each recipient NOTIFY and ORCPT.
    let mut plain = requested;
    (plain.envelope.smtputf8, plain.envelope.dsn) = (false, Default::default());
    plain.envelope.recipients.iter_mut().for_each(|recipient| recipient.dsn = Default::default());
    let at = Prepared::fact(&Fact::Accepted(plain), Vec::new()).meta.len();
    assert_eq!(record.meta[at..at + 6], [1, 2, 6, 0, b'Q', b'Q']);
    for (place, value) in [(at, 0), (at, 2), (at + 1, 3), (at + 4, b' '), (at + 10, 3), (at + 13, 16)] {
        let mut meta = record.meta.clone();
        meta[place] = value;
        assert_eq!(read(&record, 0, &meta), Err(Malformed), "{place}: {value}");
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic_or_large_allocation(kind in 0u8..20, flags in 0u8..8, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&header(Kind::from_code(kind), flags), 0, &bytes);
        let _ = Mark::decode(&bytes);
        let _ = Seal::decode(&bytes);
        let _ = Succession::decode(&bytes);
    }
}
