//! Facts as metas and back (FORMAT.md section 4). Every decoder takes any bytes and never panics.

use crate::blob::{Blob, BlobName, BlobRef};
use crate::carry::{self, Cargo};
use crate::codec::{Malformed, Put, Take};
use crate::frame::{FLAG_BLOB, FLAG_IGNORABLE, FLAG_REQUESTS, FrameHeader, Kind};
use crate::structure::{Mark, Seal, Succession};
use crate::{replayed, requests, watched};
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
    /// The meta ends with what the sender asked for.
    pub(crate) has_requests: bool,
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
        let prepared = Self::new(Kind::Accepted, None, recipients, encode_accepted(envelope, trace, hold), content);
        Self { has_requests: requests::are_in(envelope), ..prepared }
    }

    /// A message to be accepted whose content is in `blob`, which is on stable storage: that is what a [`Blob`] proves.
    pub fn accepted_in_blob(envelope: &Envelope, trace: &Trace, blob: &Blob, hold: Option<&str>) -> Self {
        let recipients = u16::try_from(envelope.recipients.len()).unwrap_or(u16::MAX);
        let mut meta = encode_accepted(envelope, trace, hold);
        blob.reference().encode(&mut meta);
        let prepared = Self::new(Kind::Accepted, None, recipients, meta, blob.table().to_vec());
        Self { blob: Some(blob.name()), has_requests: requests::are_in(envelope), ..prepared }
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
            Fact::Watched(w) => Self::new(Kind::Watched, None, 0, watched::encode(w), Vec::new()),
            Fact::Carried(c) => {
                let cargo = Cargo { accepted: c.accepted.clone(), content, blob: None };
                Self::carried(cargo, c.recipients.clone()).0
            }
        }
    }

    pub(crate) fn new(kind: Kind, id: Option<TransactionId>, recipients: u16, meta: Vec<u8>, content: Vec<u8>) -> Self {
        let (meta_crc, content_crc) = (crc32c::crc32c(&meta), crc32c::crc32c(&content));
        Self { kind, id, blob: None, has_requests: false, recipients, meta, meta_crc, content, content_crc }
    }

    /// The blob that holds the content, if one does. If the record was surely never written, see
    /// [`crate::remove_blob`].
    pub fn blob(&self) -> Option<BlobName> {
        self.blob
    }

    pub(crate) fn flags(&self) -> u8 {
        match self.kind {
            // They change nothing that a reader of before would have to know.
            Kind::Replayed | Kind::Watched => FLAG_IGNORABLE,
            _ => {
                let of = |is_so, flag| if is_so { flag } else { 0 };
                of(self.blob.is_some(), FLAG_BLOB) | of(self.has_requests, FLAG_REQUESTS)
            }
        }
    }
}

/// The fact in a frame, and the blob that holds its content if one does; no fact for kinds that are none.
pub(crate) fn decode_frame(header: &FrameHeader, meta: &[u8]) -> Result<(Option<Fact>, Option<BlobRef>), Malformed> {
    if !header.has_blob() {
        return Ok((decode(header, u64::from(header.content_len), meta)?, None));
    }
    let (meta, blob) = BlobRef::split(meta)?;
    if u64::from(header.content_len) != blob.table_bytes() {
        return Err(Malformed);
    }
    Ok((decode(header, blob.bytes, meta)?, Some(blob)))
}

/// The fact in a frame; none for kinds that are no facts.
fn decode(header: &FrameHeader, content_len: u64, meta: &[u8]) -> Result<Option<Fact>, Malformed> {
    let (mut take, id, has_requests) = (Take(meta), header.id, header.has_requests());
    Ok(Some(match header.kind {
        Kind::Accepted => Fact::Accepted(decode_accepted(&mut take, id, content_len, has_requests)?),
        Kind::Attempted => Fact::Attempted(decode_attempted(&mut take, id)?),
        Kind::Operated => Fact::Operated(decode_operated(&mut take, id)?),
        Kind::Served => Fact::Served(decode_served(&mut take)?),
        Kind::Carried => Fact::Carried(carry::decode(&mut take, id, content_len, has_requests)?),
        Kind::Replayed => Fact::Replayed(replayed::decode(&mut take, id)?),
        Kind::Watched => Fact::Watched(watched::decode(&mut take)?),
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
        Protocol::Utf8Smtp => 3,
        Protocol::Utf8Smtps => 4,
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
    if requests::are_in(envelope) {
        requests::encode(envelope, &mut put);
    }
    put.0
}

pub(crate) fn decode_accepted(
    take: &mut Take<'_>,
    id: TransactionId,
    content_len: u64,
    has_requests: bool,
) -> Result<Accepted, Malformed> {
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
        3 => Protocol::Utf8Smtp,
        4 => Protocol::Utf8Smtps,
        _ => return Err(Malformed),
    };
    let client = SocketAddr::new(take.ip()?, take.u16()?);
    let session = take.u64()?;
    let helo = take.text16()?.to_owned();
    let reverse_path = ReversePath::parse_utf8(take.text16()?).map_err(|_| Malformed)?;
    let (tls, hold) = (take.optional16()?, take.optional16()?);
    let routes = take.list16(|t| Ok(RouteName::new(t.text16()?)))?;
    let recipients = take.list16(|t| {
        let route = routes.get(usize::from(t.u16()?)).ok_or(Malformed)?.clone();
        Ok(Recipient::new(ForwardPath::parse_utf8(t.text16()?).map_err(|_| Malformed)?, route))
    })?;
    let mut envelope = Envelope::new(reverse_path, recipients, body);
    if has_requests {
        requests::decode(take, &mut envelope)?;
    }
    if !envelope.smtputf8 && !requests::is_ascii(&envelope) {
        return Err(Malformed);
    }
    Ok(Accepted { id, envelope, trace: Trace { client, helo, protocol, tls, session, received_at }, content_len, hold })
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
        Cause::Content(reply) => {
            put.u8(4);
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
        4 => Cause::Content(take_reply(take)?),
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
        Action::Expire => 6,
        Action::Settle => 7,
    });
}

pub(crate) fn take_action(take: &mut Take<'_>) -> Result<Action, Malformed> {
    Ok(match take.u8()? {
        1 => Action::Hold,
        2 => Action::Release,
        3 => Action::Bounce,
        4 => Action::Remove,
        5 => Action::Undo,
        6 => Action::Expire,
        7 => Action::Settle,
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
mod tests;
