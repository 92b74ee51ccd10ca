//! What a sender asked for beside delivery (SMTPUTF8, RFC 6531; RET, ENVID, NOTIFY and ORCPT, RFC 3461), as JSON and in words.
//! Says nothing where nothing was asked.

use restante_envelope::{Envelope, RecipientDsn, Ret};
use restante_journal::{DirStorage, Reader};
use restante_ledger::{Fact, Position};
use serde_json::{Map, Value};

/// The envelope that stands there; none if it cannot be read, of which other commands tell.
pub(super) fn envelope(reader: &mut Reader<DirStorage>, position: Position) -> Option<Envelope> {
    match reader.message(position).ok()?.fact {
        Fact::Accepted(accepted) => Some(accepted.envelope),
        Fact::Carried(carried) => Some(carried.accepted.envelope),
        _ => None,
    }
}

/// `smtputf8`, `ret` and `envid`, in the object of a message.
pub(super) fn of_message(envelope: &Envelope, object: &mut Map<String, Value>) {
    if envelope.smtputf8 {
        object.insert("smtputf8".into(), true.into());
    }
    let (ret, envid) = (envelope.dsn.ret.map(Ret::as_str), envelope.dsn.envid.as_ref().map(|id| id.as_str()));
    for (key, value) in [("ret", ret), ("envid", envid)] {
        value.iter().for_each(|value| drop(object.insert(key.into(), (*value).into())));
    }
}

/// `notify` and `orcpt`, in the object of a recipient.
pub(super) fn of_recipient(dsn: &RecipientDsn, object: &mut Map<String, Value>) {
    let original = dsn.original.as_ref().map(|original| original.as_str().to_owned());
    for (key, value) in [("notify", dsn.notify.map(|notify| notify.to_string())), ("orcpt", original)] {
        value.into_iter().for_each(|value| drop(object.insert(key.into(), value.into())));
    }
}

/// As the commands had it; none if nothing was asked.
pub(super) fn in_words(asked: impl FnOnce(&mut Map<String, Value>)) -> Option<String> {
    let mut object = Map::new();
    asked(&mut object);
    let word = |(key, value): (&String, &Value)| match value.as_str() {
        Some(value) => format!("{}={value}", key.to_ascii_uppercase()),
        None => key.to_ascii_uppercase(),
    };
    (!object.is_empty()).then(|| object.iter().map(word).collect::<Vec<_>>().join(" "))
}
