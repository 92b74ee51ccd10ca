//! Each message as two files, the content exactly as it was accepted and what belongs to it: `recover --export` for what is
//! pending, `journal export` for what selectors choose.
//!
//! Overwrites nothing: if one of the files exists, none is written. Holds a piece of a large message in memory, never all.

mod mbox;
pub(crate) mod selected;

use super::asked;
use anyhow::{Context as _, bail};
use restante_envelope::{BodyType, Recipient, Timestamp, TransactionId};
use restante_journal::{Content, DirStorage, ReadError, Reader, Storage};
use restante_ledger::{Accepted, Fact, Ledger, Position, RecipientEntry, RecipientState, Transaction};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The messages with a recipient that is not settled, in order of acceptance.
pub(crate) fn pending(ledger: &Ledger) -> impl Iterator<Item = (TransactionId, &Transaction)> {
    ledger.iter().filter(|(_, transaction)| !transaction.is_settled())
}

/// What an export came to.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// Messages that are there now.
    pub(crate) messages: u64,
    /// Those that could not be read, and why.
    pub(crate) unreadable: Vec<String>,
}

/// Writes `ID.eml` and `ID.json` of each pending message to `dir`, makes it if it is missing, and returns when all is on
/// stable storage. A message that cannot be read costs itself alone.
pub(crate) fn export(storage: &DirStorage, ledger: &Ledger, dir: &Path) -> anyhow::Result<Exported> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut reader = Reader::new(storage.clone());
    for (id, _) in pending(ledger) {
        if let Some(path) = paths(dir, id).iter().find(|path| path.symlink_metadata().is_ok()) {
            bail!("{} exists; nothing was exported: name an empty directory", path.display());
        }
    }
    let mut exported = Exported::default();
    for (id, transaction) in pending(ledger) {
        let how: Vec<How> = transaction.recipients.iter().map(How::from).collect();
        match write(&mut reader, dir, (id, transaction.position), &how) {
            Ok(()) => exported.messages += 1,
            Err(Failed::Read(why)) => exported.unreadable.push(format!("cannot export {id}: {why}")),
            Err(Failed::Write(path, error)) => {
                return Err(error).with_context(|| format!("cannot write {}", path.display()));
            }
        }
    }
    sync(dir)?;
    Ok(exported)
}

fn sync(dir: &Path) -> anyhow::Result<()> {
    let synced = File::open(dir).and_then(|directory| directory.sync_all());
    synced.with_context(|| format!("cannot sync {}", dir.display()))
}

fn paths(dir: &Path, id: TransactionId) -> [PathBuf; 2] {
    ["eml", "json"].map(|ending| dir.join(format!("{id}.{ending}")))
}

/// Why a message was not exported.
enum Failed {
    /// It is not to be had: that costs it alone.
    Read(ReadError),
    /// The export has no room, or no right: that would cost every message.
    Write(PathBuf, io::Error),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// How a recipient stands.
struct How {
    /// The word of the contract; without a daemon, what is due waits.
    state: &'static str,
    attempts: u16,
    next_at: Option<Timestamp>,
}

impl From<&RecipientEntry> for How {
    fn from(entry: &RecipientEntry) -> Self {
        let next_at = match entry.state {
            RecipientState::Deferred(next_at) => Some(next_at),
            _ => None,
        };
        Self { state: super::stats::word(entry.state), attempts: entry.attempts, next_at }
    }
}

/// A message, and its content to be read.
fn accepted(
    reader: &mut Reader<DirStorage>,
    id: TransactionId,
    position: Position,
) -> Result<(Accepted, Content<<DirStorage as Storage>::File>), ReadError> {
    let stored = reader.message(position)?;
    match stored.fact {
        Fact::Accepted(accepted) if accepted.id == id => Ok((accepted, stored.content)),
        _ => Err(ReadError::Damaged { position, what: "another record stands there" }),
    }
}

/// The two files of a message, the content piece by piece as it is read and checked.
fn write(
    reader: &mut Reader<DirStorage>,
    dir: &Path,
    (id, position): (TransactionId, Position),
    how: &[How],
) -> Result<(), Failed> {
    let (accepted, mut content) = accepted(reader, id, position)?;
    let [eml, json] = paths(dir, id);
    write_new(&eml, || Ok(content.next_chunk()?))?;
    let mut description = Some(format!("{:#}\n", describe(&accepted, how)).into_bytes());
    write_new(&json, || Ok(description.take()))
}

/// Writes what `pieces` gives until it gives no more. Under another name until it is whole: what a full disk or a crash cut
/// short must not pass for a message.
fn write_new(path: &Path, mut pieces: impl FnMut() -> Result<Option<Vec<u8>>, Failed>) -> Result<(), Failed> {
    let unwritten = |error| Failed::Write(path.to_owned(), error);
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    remove_if_there(Path::new(&part)).map_err(unwritten)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&part).map_err(unwritten)?;
    loop {
        match pieces() {
            Ok(Some(piece)) => file.write_all(&piece).map_err(unwritten)?,
            Ok(None) => break,
            Err(error) => {
                // Half a message is of no use; what stays of it has a name that says so.
                let _stays_a_part = remove_if_there(Path::new(&part));
                return Err(error);
            }
        }
    }
    file.sync_all().and_then(|()| std::fs::rename(&part, path)).map_err(unwritten)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn describe(accepted: &Accepted, how: &[How]) -> Value {
    let (envelope, trace) = (&accepted.envelope, &accepted.trace);
    let recipients = envelope.recipients.iter().zip(how);
    let describe = |(recipient, how): (&Recipient, &How)| {
        let mut to = json!({
            "addr": recipient.forward_path.as_str(),
            "route": recipient.route.as_str(),
            "state": how.state,
            "attempts": how.attempts,
            "next_at": how.next_at.map(|at| at.to_string()),
        });
        to.as_object_mut().into_iter().for_each(|to| asked::of_recipient(&recipient.dsn, to));
        to
    };
    let to: Vec<_> = recipients.map(describe).collect();
    let mut object = json!({
        "type": "transaction",
        "id": accepted.id.to_string(),
        "from": envelope.reverse_path.as_str(),
        "to": to,
        "body": match envelope.body {
            BodyType::SevenBit => "7BIT",
            BodyType::EightBitMime => "8BITMIME",
        },
        "size": accepted.content_len,
        "accepted_at": trace.received_at.to_string(),
        "hold_reason": accepted.hold,
        "trace": {
            "client_ip": trace.client.ip().to_string(),
            "client_port": trace.client.port(),
            "helo": trace.helo,
            "protocol": trace.protocol.as_str(),
            "session": format!("{:x}", trace.session),
        },
    });
    object.as_object_mut().into_iter().for_each(|object| asked::of_message(envelope, object));
    object
}

#[cfg(test)]
mod tests {
    use super::super::journal::testing::{contents, large, message, rot, sent, write, writer};
    use super::*;
    use restante_journal::{BlobName, PIECE_BYTES};

    #[test]
    fn an_export_is_what_was_accepted_and_only_what_is_pending() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let body = b"Subject: x\r\n\r\n..\xff\x00 dots and bytes\r\n";
        let ids = write(
            &mut writer,
            &[
                message(body, &["a@example.test", "b@example.test"], None),
                message(b"gone\r\n", &["c@example.test"], None),
                message(b"frozen\r\n", &["d@example.test"], Some("mail loop")),
            ],
        );
        write(&mut writer, &[sent(ids[0], 0), sent(ids[1], 0)]);
        writer.close().unwrap();
        let contents = contents(directory.path());
        let storage = DirStorage::open(directory.path()).unwrap();
        let out = directory.path().join("made/if/missing");
        assert_eq!(export(&storage, &contents.ledger, &out).unwrap().messages, 2);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 4);
        assert_eq!(std::fs::read(out.join(format!("{}.eml", ids[0]))).unwrap(), body);
        let text = std::fs::read_to_string(out.join(format!("{}.json", ids[0]))).unwrap();
        assert!(text.lines().count() > 10, "for people too: {text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["from"], &object["trace"]["helo"]), (&json!("a@b.test"), &json!("c.test")));
        assert_eq!((&object["to"][0]["state"], &object["to"][1]["state"]), (&json!("sent"), &json!("waiting")));
        let frozen = std::fs::read_to_string(out.join(format!("{}.json", ids[2]))).unwrap();
        assert!(frozen.contains("mail loop") && frozen.contains("\"hold\""), "{frozen}");
    }

    #[test]
    fn an_export_never_overwrites_and_leaves_no_half() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let records = [message(b"1\r\n", &["a@example.test"], None), message(b"2\r\n", &["a@example.test"], None)];
        let ids = write(&mut writer, &records);
        writer.close().unwrap();
        let contents = contents(directory.path());
        let storage = DirStorage::open(directory.path()).unwrap();
        let out = directory.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let mine = out.join(format!("{}.json", ids[1]));
        std::fs::write(&mine, "mine").unwrap();
        let error = export(&storage, &contents.ledger, &out).unwrap_err().to_string();
        assert!(error.starts_with(mine.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn one_unreadable_message_and_a_half_written_file_stop_no_export() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let mut records = [b'1', b'2', b'3'].map(|b| message(&[b; 500], &["a@example.test"], None)).to_vec();
        // Of the second large one, the last piece is rotten: the first was good, and must not stay.
        let body = [b'4'; PIECE_BYTES + 500];
        records.extend([1, 2].map(|name| large(directory.path(), name, &body, &["a@example.test"])));
        let ids = write(&mut writer, &records);
        writer.close().unwrap();
        let contents = contents(directory.path());
        rot(directory.path(), &[b'2'; 500]);
        let rotten = directory.path().join(BlobName::from_bits(2).file());
        std::fs::write(rotten, [&body[1..], b"5"].concat()).unwrap();
        let storage = DirStorage::open(directory.path()).unwrap();
        let out = directory.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join(format!("{}.eml.part", ids[0])), "cut sho").unwrap();
        let exported = export(&storage, &contents.ledger, &out).unwrap();
        assert_eq!((exported.messages, exported.unreadable.len()), (3, 2));
        for (why, id) in exported.unreadable.iter().zip([ids[1], ids[4]]) {
            assert!(why.contains(&id.to_string()), "{exported:?}");
        }
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 6);
        assert!(std::fs::read(out.join(format!("{}.eml", ids[3]))).unwrap() == body);
        assert_eq!(std::fs::read(out.join(format!("{}.eml", ids[2]))).unwrap(), [b'3'; 500]);
    }
}
