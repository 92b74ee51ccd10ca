//! Facts as metas and back (FORMAT.md section 4). Every decoder takes any bytes and never panics.

use crate::blob::{Blob, BlobName, BlobRef};
use crate::carry::{self, Cargo};
use crate::codec::{Malformed, Put, Take};
use crate::frame::{FLAG_BLOB, FLAG_IGNORABLE, FrameHeader, Kind};
use crate::replayed;
use crate::structure::{Mark, Seal, Succession};
use restante_envelope::{
    BodyType, EnhancedStatus, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp,
    Trace, TransactionId,
};
use restante_ledger::{
    Accepted, Action, Attempted, Cause, Fact, NextHop, Operated, Outcome, RouteRecord, Served, Timings,
};
use std::net::SocketAddr;

/// A record made ready outside the journal's thread: encoded, and its checksums computed. What is left to do under the
/// writer is to give it a place and, for a message, an identifier.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) kind: Kind,
    /// None for a new message: the writer gives it the next one.
    pub(crate) id: Option<TransactionId>,
    /// Where its content is, if not in the record.
    pub(crate) blob: Option<BlobName>,
    pub(crate) recipients: u16,
    pub(crate) meta: Vec<u8>,
    pub(crate) meta_crc: u32,
    pub(crate) content: Vec<u8>,
    pub(crate) content_crc: u32,
}

impl Prepared {
    /// A message to be accepted. `hold` is the reason when a safety rule freezes it at the door.
    pub fn accepted(envelope: &Envelope, trace: &Trace, content: Vec<u8>, hold: Option<&str>) -> Self {
        let recipients = u16::try_from(envelope.recipients.len()).unwrap_or(u16::MAX);
        Self::new(Kind::Accepted, None, recipients, encode_accepted(envelope, trace, hold), content)
    }

    /// A message to be accepted whose content is in `blob`, which is on stable storage: that is what a [`Blob`] proves.
    pub fn accepted_in_blob(envelope: &Envelope, trace: &Trace, blob: &Blob, hold: Option<&str>) -> Self {
        let recipients = u16::try_from(envelope.recipients.len()).unwrap_or(u16::MAX);
        let mut meta = encode_accepted(envelope, trace, hold);
        blob.reference().encode(&mut meta);
        let prepared = Self::new(Kind::Accepted, None, recipients, meta, blob.table().to_vec());
        Self { blob: Some(blob.name()), ..prepared }
    }

    /// Any other fact. An `Accepted` fact keeps its identifier (a merge of journals) and gets `content`.
    pub fn fact(fact: &Fact, content: Vec<u8>) -> Self {
        match fact {
            Fact::Accepted(a) => {
                let mut prepared = Self::accepted(&a.envelope, &a.trace, content, a.hold.as_deref());
                prepared.id = Some(a.id);
                prepared
            }
            Fact::Attempted(a) => Self::new(Kind::Attempted, Some(a.id), 0, encode_attempted(a), Vec::new()),
            Fact::Operated(o) => Self::new(Kind::Operated, Some(o.id), 0, encode_operated(o), Vec::new()),
            Fact::Served(s) => Self::new(Kind::Served, None, 0, encode_served(s), Vec::new()),
            Fact::Replayed(r) => Self::new(Kind::Replayed, Some(r.id), 0, replayed::encode(r), Vec::new()),
            Fact::Carried(c) => {
                let cargo = Cargo { accepted: c.accepted.clone(), content, blob: None };
                Self::carried(cargo, c.recipients.clone()).0
            }
        }
    }

    pub(crate) fn new(kind: Kind, id: Option<TransactionId>, recipients: u16, meta: Vec<u8>, content: Vec<u8>) -> Self {
        let (meta_crc, content_crc) = (crc32c::crc32c(&meta), crc32c::crc32c(&content));
        Self { kind, id, blob: None, recipients, meta, meta_crc, content, content_crc }
    }

    /// The blob that holds the content, if one does. If the record was surely never written, see
    /// [`crate::remove_blob`].
    pub fn blob(&self) -> Option<BlobName> {
        self.blob
    }

    pub(crate) fn flags(&self) -> u8 {
        match self.kind {
            // It changes nothing that a reader of before would have to know.
            Kind::Replayed => FLAG_IGNORABLE,
            _ if self.blob.is_some() => FLAG_BLOB,
            _ => 0,
        }
    }
}

/// The fact in a frame, and the blob that holds its content if one does; no fact for kinds that are none.
pub(crate) fn decode_frame(header: &FrameHeader, meta: &[u8]) -> Result<(Option<Fact>, Option<BlobRef>), Malformed> {
    if !header.has_blob() {
        return Ok((decode(header.kind, header.id, u64::from(header.content_len), meta)?, None));
    }
    let (meta, blob) = BlobRef::split(meta)?;
    if u64::from(header.content_len) != blob.table_bytes() {
        return Err(Malformed);
    }
    Ok((decode(header.kind, header.id, blob.bytes, meta)?, Some(blob)))
}

/// The fact in a frame of `kind`; none for kinds that are no facts.
fn decode(kind: Kind, id: TransactionId, content_len: u64, meta: &[u8]) -> Result<Option<Fact>, Malformed> {
    let mut take = Take(meta);
    Ok(Some(match kind {
        Kind::Accepted => Fact::Accepted(decode_accepted(&mut take, id, content_len)?),
        Kind::Attempted => Fact::Attempted(decode_attempted(&mut take, id)?),
        Kind::Operated => Fact::Operated(decode_operated(&mut take, id)?),
        Kind::Served => Fact::Served(decode_served(&mut take)?),
        Kind::Carried => Fact::Carried(carry::decode(&mut take, id, content_len)?),
        Kind::Replayed => Fact::Replayed(replayed::decode(&mut take, id)?),
        // No facts, but a meta that does not decode is as wrong in these.
        Kind::Succession => return Succession::decode(meta).map(|_| None),
        Kind::Mark => return Mark::decode(meta).map(|_| None),
        Kind::Seal => return Seal::decode(meta).map(|_| None),
        Kind::Unknown(_) => return Ok(None),
    }))
}

pub(crate) fn encode_accepted(envelope: &Envelope, trace: &Trace, hold: Option<&str>) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(trace.received_at.unix_ms());
    put.u8(match envelope.body {
        BodyType::SevenBit => 0,
        BodyType::EightBitMime => 1,
    });
    put.u8(match trace.protocol {
        Protocol::Smtp => 0,
        Protocol::Esmtp => 1,
        Protocol::Esmtps => 2,
    });
    put.ip(trace.client.ip());
    put.u16(trace.client.port());
    put.u64(trace.session);
    put.text16(&trace.helo);
    put.text16(envelope.reverse_path.as_str());
    put.text16(trace.tls.as_deref().unwrap_or_default());
    put.text16(hold.unwrap_or_default());
    let mut routes: Vec<&RouteName> = envelope.recipients.iter().map(|r| &r.route).collect();
    routes.sort();
    routes.dedup();
    put.count(routes.len());
    for route in &routes {
        put.text16(route.as_str());
    }
    put.count(envelope.recipients.len());
    for recipient in &envelope.recipients {
        put.count(routes.binary_search(&&recipient.route).unwrap_or_default());
        put.text16(recipient.forward_path.as_str());
    }
    put.0
}

pub(crate) fn decode_accepted(take: &mut Take<'_>, id: TransactionId, content_len: u64) -> Result<Accepted, Malformed> {
    let received_at = Timestamp::from_unix_ms(take.u64()?);
    let body = match take.u8()? {
        0 => BodyType::SevenBit,
        1 => BodyType::EightBitMime,
        _ => return Err(Malformed),
    };
    let protocol = match take.u8()? {
        0 => Protocol::Smtp,
        1 => Protocol::Esmtp,
        2 => Protocol::Esmtps,
        _ => return Err(Malformed),
    };
    let client = SocketAddr::new(take.ip()?, take.u16()?);
    let session = take.u64()?;
    let helo = take.text16()?.to_owned();
    let reverse_path = ReversePath::parse(take.text16()?).map_err(|_| Malformed)?;
    let (tls, hold) = (take.optional16()?, take.optional16()?);
    let routes = take.list16(|t| Ok(RouteName::new(t.text16()?)))?;
    let recipients = take.list16(|t| {
        let route = routes.get(usize::from(t.u16()?)).ok_or(Malformed)?.clone();
        Ok(Recipient { forward_path: ForwardPath::parse(t.text16()?).map_err(|_| Malformed)?, route })
    })?;
    Ok(Accepted {
        id,
        envelope: Envelope { reverse_path, recipients, body },
        trace: Trace { client, helo, protocol, tls, session, received_at },
        content_len,
        hold,
    })
}

pub(crate) const SENT: u8 = 1;
pub(crate) const DEFERRED: u8 = 2;
pub(crate) const HOLD: u8 = 3;
pub(crate) const QUARANTINED: u8 = 4;

fn encode_attempted(attempted: &Attempted) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(attempted.at.unix_ms());
    put.u32(attempted.timings.before_queue_ms);
    put.u64(attempted.timings.in_queue_ms);
    put.u32(attempted.timings.connect_ms);
    put.u32(attempted.timings.transfer_ms);
    put_next_hop(&mut put, attempted.next_hop.as_ref());
    put.count(attempted.results.len());
    for (recipient, outcome) in &attempted.results {
        put.u16(*recipient);
        match outcome {
            Outcome::Sent(reply) => {
                put.u8(SENT);
                put_cause(&mut put, &Cause::Reply(reply.clone()));
            }
            Outcome::Deferred { cause, next_at } => {
                put.u8(DEFERRED);
                put.u64(next_at.unix_ms());
                put_cause(&mut put, cause);
            }
            Outcome::Held(cause) => {
                put.u8(HOLD);
                put_cause(&mut put, cause);
            }
            Outcome::Quarantined(cause) => {
                put.u8(QUARANTINED);
                put_cause(&mut put, cause);
            }
        }
    }
    put.0
}

fn decode_attempted(take: &mut Take<'_>, id: TransactionId) -> Result<Attempted, Malformed> {
    let at = Timestamp::from_unix_ms(take.u64()?);
    let timings = Timings {
        before_queue_ms: take.u32()?,
        in_queue_ms: take.u64()?,
        connect_ms: take.u32()?,
        transfer_ms: take.u32()?,
    };
    let next_hop = take_next_hop(take)?;
    let results = take.list16(|t| {
        let recipient = t.u16()?;
        let outcome = match t.u8()? {
            SENT => match take_cause(t)? {
                Cause::Reply(reply) => Outcome::Sent(reply),
                _ => return Err(Malformed),
            },
            DEFERRED => {
                let next_at = Timestamp::from_unix_ms(t.u64()?);
                Outcome::Deferred { next_at, cause: take_cause(t)? }
            }
            HOLD => Outcome::Held(take_cause(t)?),
            QUARANTINED => Outcome::Quarantined(take_cause(t)?),
            _ => return Err(Malformed),
        };
        Ok((recipient, outcome))
    })?;
    Ok(Attempted { id, at, next_hop, timings, results })
}

pub(crate) fn put_next_hop(put: &mut Put, next_hop: Option<&NextHop>) {
    put.u8(u8::from(next_hop.is_some()));
    if let Some(hop) = next_hop {
        put.text16(&hop.host);
        put.ip(hop.ip);
        put.u16(hop.port);
        put.text16(hop.tls.as_deref().unwrap_or_default());
    }
}

pub(crate) fn take_next_hop(take: &mut Take<'_>) -> Result<Option<NextHop>, Malformed> {
    match take.u8()? {
        0 => Ok(None),
        1 => Ok(Some(NextHop {
            host: take.text16()?.to_owned(),
            ip: take.ip()?,
            port: take.u16()?,
            tls: take.optional16()?,
        })),
        _ => Err(Malformed),
    }
}

pub(crate) fn put_reply(put: &mut Put, reply: &Reply) {
    put.u16(reply.code());
    let enhanced = reply.enhanced().unwrap_or(EnhancedStatus::new(0, 0, 0));
    put.u8(enhanced.class);
    put.u16(enhanced.subject);
    put.u16(enhanced.detail);
    put.text16(reply.text());
}

pub(crate) fn take_reply(take: &mut Take<'_>) -> Result<Reply, Malformed> {
    let code = take.u16()?;
    let enhanced = EnhancedStatus::new(take.u8()?, take.u16()?, take.u16()?);
    Ok(Reply::new(code, Some(enhanced).filter(|e| e.class != 0), take.text16()?))
}

fn put_cause(put: &mut Put, cause: &Cause) {
    match cause {
        Cause::Reply(reply) => {
            put.u8(0);
            put_reply(put, reply);
        }
        Cause::Connection(text) => {
            put.u8(1);
            put.text16(text);
        }
        Cause::InDoubt(text) => {
            put.u8(2);
            put.text16(text);
        }
        Cause::Local(text) => {
            put.u8(3);
            put.text16(text);
        }
    }
}

fn take_cause(take: &mut Take<'_>) -> Result<Cause, Malformed> {
    Ok(match take.u8()? {
        0 => Cause::Reply(take_reply(take)?),
        1 => Cause::Connection(take.text16()?.to_owned()),
        2 => Cause::InDoubt(take.text16()?.to_owned()),
        3 => Cause::Local(take.text16()?.to_owned()),
        _ => return Err(Malformed),
    })
}

fn encode_operated(operated: &Operated) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(operated.at.unix_ms());
    put_action(&mut put, operated.action);
    put.text16(&operated.actor);
    put.text16(&operated.reason);
    put.count(operated.recipients.len());
    for recipient in &operated.recipients {
        put.u16(*recipient);
    }
    put.0
}

fn decode_operated(take: &mut Take<'_>, id: TransactionId) -> Result<Operated, Malformed> {
    let at = Timestamp::from_unix_ms(take.u64()?);
    let action = take_action(take)?;
    let (actor, reason) = (take.text16()?.to_owned(), take.text16()?.to_owned());
    Ok(Operated { id, at, action, actor, reason, recipients: take.list16(Take::u16)? })
}

pub(crate) fn put_action(put: &mut Put, action: Action) {
    put.u8(match action {
        Action::Hold => 1,
        Action::Release => 2,
        Action::Bounce => 3,
        Action::Remove => 4,
        Action::Undo => 5,
    });
}

pub(crate) fn take_action(take: &mut Take<'_>) -> Result<Action, Malformed> {
    Ok(match take.u8()? {
        1 => Action::Hold,
        2 => Action::Release,
        3 => Action::Bounce,
        4 => Action::Remove,
        5 => Action::Undo,
        _ => return Err(Malformed),
    })
}

pub(crate) fn encode_served(served: &Served) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(served.at.unix_ms());
    put.text16(&served.hostname);
    put.count(served.routes.len());
    for route in &served.routes {
        put.text16(&route.name);
        for list in [&route.domains, &route.primary] {
            put.count(list.len());
            for text in list {
                put.text16(text);
            }
        }
    }
    put.0
}

pub(crate) fn decode_served(take: &mut Take<'_>) -> Result<Served, Malformed> {
    let (at, hostname) = (Timestamp::from_unix_ms(take.u64()?), take.text16()?.to_owned());
    let text = |t: &mut Take<'_>| Ok(t.text16()?.to_owned());
    let routes =
        take.list16(|t| Ok(RouteRecord { name: text(t)?, domains: t.list16(text)?, primary: t.list16(text)? }))?;
    Ok(Served { at, hostname, routes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use restante_ledger::{Position, Replayed};

    fn id() -> TransactionId {
        TransactionId::from_bits(0x0123_4567_89ab_cdef_0011_2233_4455_6677)
    }

    fn facts() -> Vec<Fact> {
        let recipient = |path: &str, route: &str| Recipient {
            forward_path: ForwardPath::parse(path).unwrap(),
            route: RouteName::new(route),
        };
        let at = Timestamp::from_unix_ms(1_795_359_200_118);
        let reply = Reply::new(250, Some(EnhancedStatus::new(2, 0, 0)), "Ok: queued as 4XyZ\nthanks");
        let next_at = at;
        vec![
            Fact::Accepted(Accepted {
                id: id(),
                envelope: Envelope {
                    reverse_path: ReversePath::parse("a@b.test").unwrap(),
                    recipients: vec![
                        recipient("x@one.test", "one"),
                        recipient("\"q \\\" \"@two.test", "two"),
                        recipient("postmaster", "one"),
                    ],
                    body: BodyType::EightBitMime,
                },
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
        for fact in facts {
            let prepared = Prepared::fact(&fact, Vec::new());
            let kept_id = prepared.id.unwrap_or(id());
            assert_eq!(decode(prepared.kind, kept_id, 77, &prepared.meta).unwrap().unwrap(), fact);
        }
        let torn = Succession { number: 3, bytes: 4, torn: vec![(5, 6), (7, 8)] };
        assert_eq!(Succession::decode(&torn.encode()), Ok(torn));
    }

    #[test]
    fn a_meta_cut_anywhere_is_malformed_and_not_half_a_fact() {
        for fact in facts() {
            let prepared = Prepared::fact(&fact, Vec::new());
            for end in 0..prepared.meta.len() {
                assert_eq!(
                    decode(prepared.kind, id(), 0, &prepared.meta[..end]),
                    Err(Malformed),
                    "{:?} {end}",
                    prepared.kind
                );
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
            (&accepted, 9, 3),
            (&accepted, 10, 5),
            (&attempted, 28, 2),
            (&attempted, 33, 5),
            (&attempted, 33, SENT),
            (&attempted, 34, 4),
            (&operated, 8, 6),
        ] {
            let mut meta = record.meta.clone();
            assert!(decode(record.kind, id(), 0, &meta).is_ok());
            meta[place] = value;
            assert_eq!(decode(record.kind, id(), 0, &meta), Err(Malformed), "{:?} {place}: {value}", record.kind);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic_or_large_allocation(kind in 0u8..20, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(Kind::from_code(kind), id(), 0, &bytes);
            let _ = Mark::decode(&bytes);
            let _ = Seal::decode(&bytes);
            let _ = Succession::decode(&bytes);
        }
    }
}
