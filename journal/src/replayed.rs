//! A message that was sent, offered once more (FORMAT.md section 4.10). Says nothing about how its recipients stand.

use crate::codec::{Malformed, Put, Take};
use crate::record::{put_next_hop, put_reply, take_next_hop, take_reply};
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{Position, Replayed};

pub(crate) fn encode(replayed: &Replayed) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(replayed.at.unix_ms());
    put.u64(replayed.job);
    put.u64(replayed.position.segment);
    put.u64(replayed.position.offset);
    put.text16(&replayed.actor);
    put.text16(&replayed.reason);
    put_next_hop(&mut put, replayed.next_hop.as_ref());
    put.count(replayed.results.len());
    for (recipient, reply) in &replayed.results {
        put.u16(*recipient);
        put_reply(&mut put, reply);
    }
    put.0
}

pub(crate) fn decode(take: &mut Take<'_>, id: TransactionId) -> Result<Replayed, Malformed> {
    let (at, job) = (Timestamp::from_unix_ms(take.u64()?), take.u64()?);
    let position = Position { segment: take.u64()?, offset: take.u64()? };
    let (actor, reason) = (take.text16()?.to_owned(), take.text16()?.to_owned());
    let next_hop = take_next_hop(take)?;
    let results = take.list16(|t| Ok((t.u16()?, take_reply(t)?)))?;
    Ok(Replayed { id, at, position, job, actor, reason, next_hop, results })
}
