//! A message written again (FORMAT.md section 4.9), so that the segment with its first record may leave. Its content is
//! repeated byte by byte, or its blob named again; nothing is decided here.

use crate::blob::{Blob, BlobRef};
use crate::codec::{Malformed, Put, Take};
use crate::frame::Kind;
use crate::record::{DEFERRED, HOLD, Prepared, QUARANTINED, SENT, decode_accepted, encode_accepted};
use crate::requests;
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{Accepted, Carried, Past, RecipientState, ReplayMark, Standing};

/// Beside the codes of an attempt's outcomes, which are states as well.
const DUE: u8 = 0;
const BOUNCED: u8 = 5;
const EXPIRED: u8 = 6;
const REMOVED: u8 = 7;
const REFUSED: u8 = 8;

/// A message to be written again: from this journal, see [`crate::Reader::to_carry`], or from another one.
#[derive(Debug)]
pub struct Cargo {
    pub(crate) accepted: Accepted,
    /// The message, or the table of its blob.
    pub(crate) content: Vec<u8>,
    pub(crate) blob: Option<BlobRef>,
}

impl Cargo {
    /// A message of another journal, with its content.
    pub fn in_record(accepted: Accepted, content: Vec<u8>) -> Self {
        Self { accepted, content, blob: None }
    }

    /// A message of another journal whose content is in this one's `blob`, on stable storage.
    pub fn in_blob(accepted: Accepted, blob: &Blob) -> Self {
        Self { accepted, content: blob.table().to_vec(), blob: Some(blob.reference()) }
    }

    /// Whose it is.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }
}

impl Prepared {
    /// The message again, with how its recipients stand: one for each, in the envelope's order.
    pub fn carried(cargo: Cargo, recipients: Vec<Standing>) -> (Self, Carried) {
        let Cargo { accepted, content, blob } = cargo;
        let carried = Carried { accepted, recipients };
        let mut meta = encode(&carried);
        if let Some(blob) = blob {
            blob.encode(&mut meta);
        }
        let count = u16::try_from(carried.recipients.len()).unwrap_or(u16::MAX);
        let prepared = Self::new(Kind::Carried, Some(carried.accepted.id), count, meta, content);
        let has_requests = requests::are_in(&carried.accepted.envelope);
        (Self { blob: blob.map(|blob| blob.name), has_requests, ..prepared }, carried)
    }
}

pub(crate) fn encode(carried: &Carried) -> Vec<u8> {
    let mut put = Put::default();
    put.count(carried.recipients.len());
    for standing in &carried.recipients {
        put.u16(standing.attempts);
        put_state(&mut put, standing.state);
        put.text16(&standing.why);
    }
    let accepted = &carried.accepted;
    put.0.extend(encode_accepted(&accepted.envelope, &accepted.trace, accepted.hold.as_deref()));
    put_pasts(&mut put, &carried.recipients);
    put.0
}

/// Of the few that have one (FORMAT.md section 4.12).
fn put_pasts(put: &mut Put, recipients: &[Standing]) {
    let has_past =
        |(_, standing): &(u16, &Standing)| standing.state == RecipientState::Sent && !standing.past.is_empty();
    let told: Vec<(u16, &Standing)> = (0..).zip(recipients).filter(has_past).collect();
    if told.is_empty() {
        return;
    }
    put.count(told.len());
    for (index, Standing { past, .. }) in told {
        put.u16(index);
        put.u64(past.sent_at.map_or(0, Timestamp::unix_ms));
        put.count(past.replays.len());
        for mark in &past.replays {
            put.u64(mark.job);
            put.u8(mark.taken.into());
        }
    }
}

fn take_pasts(take: &mut Take<'_>, recipients: &mut [Standing]) -> Result<(), Malformed> {
    if take.0.is_empty() {
        return Ok(());
    }
    let told = take.list16(|t| {
        let (index, sent_at) = (t.u16()?, t.u64()?);
        let replays = t.list16(|t| {
            let (job, taken) = (t.u64()?, t.u8()?);
            if taken > 1 { Err(Malformed) } else { Ok(ReplayMark { job, taken: taken == 1 }) }
        })?;
        let sent_at = Some(Timestamp::from_unix_ms(sent_at)).filter(|at| *at != Timestamp::default());
        Ok((index, Past { sent_at, replays }))
    })?;
    for (index, past) in told {
        let standing = recipients.get_mut(usize::from(index)).filter(|s| s.state == RecipientState::Sent);
        standing.ok_or(Malformed)?.past = past;
    }
    Ok(())
}

/// How a recipient stands: a code, and of a deferred one when it is tried again.
pub(crate) fn put_state(put: &mut Put, state: RecipientState) {
    put.u8(match state {
        RecipientState::Due => DUE,
        RecipientState::Deferred(_) => DEFERRED,
        RecipientState::Hold => HOLD,
        RecipientState::Refused => REFUSED,
        RecipientState::Sent => SENT,
        RecipientState::Bounced => BOUNCED,
        RecipientState::Expired => EXPIRED,
        RecipientState::Removed => REMOVED,
        RecipientState::Quarantined => QUARANTINED,
    });
    if let RecipientState::Deferred(next_at) = state {
        put.u64(next_at.unix_ms());
    }
}

pub(crate) fn take_state(take: &mut Take<'_>) -> Result<RecipientState, Malformed> {
    Ok(match take.u8()? {
        DUE => RecipientState::Due,
        DEFERRED => RecipientState::Deferred(Timestamp::from_unix_ms(take.u64()?)),
        HOLD => RecipientState::Hold,
        REFUSED => RecipientState::Refused,
        SENT => RecipientState::Sent,
        BOUNCED => RecipientState::Bounced,
        EXPIRED => RecipientState::Expired,
        REMOVED => RecipientState::Removed,
        QUARANTINED => RecipientState::Quarantined,
        _ => return Err(Malformed),
    })
}

pub(crate) fn decode(
    take: &mut Take<'_>,
    id: TransactionId,
    content_len: u64,
    has_requests: bool,
) -> Result<Carried, Malformed> {
    let mut recipients = take.list16(|t| {
        let (attempts, state) = (t.u16()?, take_state(t)?);
        Ok(Standing { attempts, state, why: t.text16()?.to_owned(), past: Past::default() })
    })?;
    let accepted = decode_accepted(take, id, content_len, has_requests)?;
    if accepted.envelope.recipients.len() != recipients.len() {
        return Err(Malformed);
    }
    take_pasts(take, &mut recipients)?;
    Ok(Carried { accepted, recipients })
}
