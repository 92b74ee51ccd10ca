//! What the sender of a message asked for: SMTPUTF8 and notifications (FORMAT.md section 4.11). Most ask for nothing, and their
//! records have none of it.

use crate::codec::{Malformed, Put, Take};
use restante_envelope::{DsnRequest, Envelope, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};

const RET_FULL: u8 = 1;
const RET_HEADERS: u8 = 2;

/// Whether anything is asked for.
pub(crate) fn are_in(envelope: &Envelope) -> bool {
    let of_some = |recipient: &RecipientDsn| *recipient != RecipientDsn::default();
    envelope.smtputf8
        || envelope.dsn != DsnRequest::default()
        || envelope.recipients.iter().any(|recipient| of_some(&recipient.dsn))
}

pub(crate) fn is_ascii(envelope: &Envelope) -> bool {
    envelope.reverse_path.as_str().is_ascii()
        && envelope.recipients.iter().all(|recipient| recipient.forward_path.as_str().is_ascii())
}

pub(crate) fn encode(envelope: &Envelope, put: &mut Put) {
    put.u8(envelope.smtputf8.into());
    put.u8(match envelope.dsn.ret {
        None => 0,
        Some(Ret::Full) => RET_FULL,
        Some(Ret::Headers) => RET_HEADERS,
    });
    put.text16(envelope.dsn.envid.as_ref().map_or("", EnvelopeId::as_str));
    for RecipientDsn { notify, original } in envelope.recipients.iter().map(|recipient| &recipient.dsn) {
        put.u8(notify.map_or(0, Notify::bits));
        put.text16(original.as_ref().map_or("", OriginalRecipient::as_str));
    }
}

/// Into an envelope whose recipients are known.
pub(crate) fn decode(take: &mut Take<'_>, envelope: &mut Envelope) -> Result<(), Malformed> {
    envelope.smtputf8 = match take.u8()? {
        0 => false,
        1 => true,
        _ => return Err(Malformed),
    };
    envelope.dsn.ret = match take.u8()? {
        0 => None,
        RET_FULL => Some(Ret::Full),
        RET_HEADERS => Some(Ret::Headers),
        _ => return Err(Malformed),
    };
    let given = |take: &mut Take<'_>| take.optional16();
    envelope.dsn.envid = given(take)?.map(|id| EnvelopeId::parse(&id)).transpose().map_err(|_| Malformed)?;
    for recipient in &mut envelope.recipients {
        recipient.dsn.notify = match take.u8()? {
            0 => None,
            bits => Some(Notify::from_bits(bits).ok_or(Malformed)?),
        };
        let original = given(take)?.map(|to| OriginalRecipient::parse(&to)).transpose();
        recipient.dsn.original = original.map_err(|_| Malformed)?;
    }
    Ok(())
}
