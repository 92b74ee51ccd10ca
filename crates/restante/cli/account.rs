//! The account that `verify` and `recover` give: how every recipient ever accepted stands, and every place in the journal
//! that is not as written. In words, and in the JSON shape that scripts rely on. Prints nothing.

use restante_journal::{Damage, DamageKind, Orphan, Replay, Report, State};
use restante_ledger::Balance;
use serde_json::{Map, Value, json};

/// Places shown to a person; more is a rotten disk, and `--json` lists them.
const PLACES_SHOWN_MAX: usize = 50;
/// Messages named for one place; `--json` names all.
const IDS_SHOWN_MAX: usize = 20;

/// What was found in the journal, and how the recipients stand now.
pub(crate) struct Account<'a> {
    pub(crate) replay: &'a Replay,
    pub(crate) balance: Balance,
}

impl Account<'_> {
    fn report(&self) -> &Report {
        &self.replay.report
    }

    pub(crate) fn state(&self) -> State {
        self.report().state()
    }

    /// The last line of `verify --json` and `recover --json`; `kind` is its `type`.
    pub(crate) fn object(&self, kind: &str) -> Map<String, Value> {
        let Balance { transactions, accepted, pending, sent, bounced, expired, removed, quarantined, generated } =
            self.balance;
        let report = self.report();
        let mut object = Map::new();
        object.insert("type".into(), kind.into());
        object.insert("state".into(), self.state().as_str().into());
        for (key, count) in [
            ("transactions", transactions),
            ("accepted", accepted),
            ("pending", pending),
            ("sent", sent),
            ("bounced", bounced),
            ("expired", expired),
            ("removed", removed),
            ("quarantined", quarantined),
            ("generated", generated),
            ("segments", self.replay.segments),
            ("bytes", self.replay.bytes),
            ("blobs", self.replay.blobs),
            ("blob_bytes", self.replay.blob_bytes),
            ("unlisted", report.unlisted),
        ] {
            object.insert(key.into(), count.into());
        }
        object.insert("damage".into(), report.damage.iter().map(place_object).collect());
        object.insert("torn".into(), report.torn.iter().map(place_object).collect());
        let orphans = self.replay.orphans.iter();
        let orphans = orphans.map(|orphan| json!({"file": orphan.file, "bytes": orphan.bytes}));
        object.insert("orphans".into(), orphans.collect());
        object
    }

    /// The table, one column of the balance a line, and every place that is not as written.
    pub(crate) fn lines(&self) -> Vec<String> {
        let (b, replay) = (&self.balance, self.replay);
        let mut lines =
            vec![format!("journal checked: {}, {}", count(replay.segments, "segment"), count(replay.bytes, "byte"))];
        if replay.blobs > 0 {
            let (blobs, bytes) = (count(replay.blobs, "large message"), count(replay.blob_bytes, "byte"));
            lines.push(format!("blobs checked:   {blobs} in blob/, {bytes}"));
        }
        for (name, number, what) in [
            ("messages", b.transactions, "ever accepted"),
            ("recipients", b.accepted, "of them; each is in exactly one of these:"),
            ("  pending", b.pending, "still ours to deliver"),
            ("  sent", b.sent, "taken by the primary"),
            ("  bounced", b.bounced, "reported back to the sender"),
            ("  expired", b.expired, "given up for age"),
            ("  removed", b.removed, "by an operator"),
            ("  quarantined", b.quarantined, "bytes damaged"),
        ] {
            lines.push(format!("{name:<13} {number:>10}  {what}"));
        }
        if b.generated > 0 {
            lines.push(format!("{:<13} {:>10}  messages of our own, counted apart", "generated", b.generated));
        }
        let report = self.report();
        let damaged = report.damage.iter().map(|place| in_words("damaged", place));
        let torn = report.torn.iter().map(|place| in_words("torn", place));
        lines.extend(damaged.chain(torn).take(PLACES_SHOWN_MAX));
        if let Some(first) = report.torn.iter().min_by_key(|place| (place.segment, place.offset)) {
            lines.push(format!(
                "the daemon did not stop cleanly: {} cannot be proven beyond byte {}",
                segment_name(first.segment),
                first.offset
            ));
        }
        let places = (report.damage.len() + report.torn.len()) as u64 + report.unlisted;
        if let Some(more) = places.checked_sub(PLACES_SHOWN_MAX as u64).filter(|more| *more > 0) {
            lines.push(format!("and {}; --json lists the first 10000", count(more, "more place")));
        }
        lines.extend(self.orphan_lines());
        lines
    }

    /// What belongs to no message. Nobody had a 250 for it, unless the record was what is damaged.
    fn orphan_lines(&self) -> Vec<String> {
        let orphans = &self.replay.orphans;
        let shown = orphans.iter().take(PLACES_SHOWN_MAX);
        let in_words = |orphan: &Orphan| {
            let what = if orphan.whole { "no record names it" } else { "it was never finished" };
            format!("orphan: {}, {}: {what}", orphan.file, count(orphan.bytes, "byte"))
        };
        let mut lines: Vec<String> = shown.map(in_words).collect();
        if let Some(more) = orphans.len().checked_sub(PLACES_SHOWN_MAX).filter(|more| *more > 0) {
            lines.push(format!("and {}; --json lists all", count(more as u64, "more orphan")));
        }
        lines
    }

    /// One line that says it all.
    pub(crate) fn verdict(&self) -> String {
        let report = self.report();
        if !self.balance.is_even() {
            return "The account does not add up. That is a mistake in this program: please report it.".to_owned();
        }
        match self.state() {
            State::Clean => "clean: every byte is as written, every accepted recipient is accounted for".to_owned(),
            State::Torn => format!(
                "torn: {} behind the last proof. After a mere crash nobody had a 250 for them; if the disk itself is \
                 damaged, they may have been acknowledged mail",
                count(report.torn.iter().map(|place| place.bytes).sum(), "byte")
            ),
            State::Damaged => format!(
                "damaged: {} not as written; whatever is intact is accounted for",
                count(report.damage.len() as u64 + report.unlisted, "place")
            ),
        }
    }
}

/// `1 byte`, `2 bytes`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A segment's file name (FORMAT.md section 1).
fn segment_name(number: u64) -> String {
    format!("seg-{number:020}.rj")
}

fn place_object(place: &Damage) -> Value {
    let ids: Vec<_> = place.ids.iter().map(ToString::to_string).collect();
    let mut object = json!({
        "segment": segment_name(place.segment),
        "offset": place.offset,
        "bytes": place.bytes,
        "kind": place.kind.as_str(),
        "ids": ids,
    });
    if let (Some(blob), Some(object)) = (place.blob, object.as_object_mut()) {
        object.insert("file".into(), blob.file().into());
    }
    object
}

/// A place that is not as written, for a person.
pub(crate) fn in_words(state: &str, place: &Damage) -> String {
    let segment = segment_name(place.segment);
    let what = match place.kind {
        DamageKind::Frame => "no valid record stands there",
        DamageKind::Meta => "a record's envelope part is not as written",
        DamageKind::Content => "a message's content is not as written",
        DamageKind::BlobMissing => "the blob with a message's content is missing",
        DamageKind::Blob => "the blob with a message's content is not as written",
        DamageKind::Padding => "bytes that must be zero are not; nothing is lost by it",
        DamageKind::HeaderPage => "the header page of the segment is not as written",
        DamageKind::MissingSegment => return format!("{state}: {segment}: the whole segment is missing"),
        DamageKind::Unnamed => {
            return format!("{state}: {segment}: messages are missing that nothing names; they count as quarantined");
        }
    };
    let bytes = count(place.bytes, "byte");
    let mut text = match place.blob {
        Some(blob) => {
            format!("{state}: {}, {bytes}: {what}; its record: {segment}, offset {}", blob.file(), place.offset)
        }
        None => format!("{state}: {segment}, offset {}, {bytes}: {what}", place.offset),
    };
    for (nth, id) in place.ids.iter().take(IDS_SHOWN_MAX).enumerate() {
        text.push_str(if nth == 0 { "; message " } else { ", " });
        text.push_str(&id.to_string());
    }
    if let Some(more) = place.ids.len().checked_sub(IDS_SHOWN_MAX).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_envelope::{Timestamp, TransactionId};
    use restante_journal::BlobName;

    fn damage(kind: DamageKind, ids: usize) -> Damage {
        let ids = (1..=ids).map(|n| TransactionId::from_bits(n as u128)).collect();
        Damage::new(3, 8192, 2096, kind, ids)
    }

    fn orphan(name: u128, whole: bool) -> Orphan {
        Orphan { file: BlobName::from_bits(name).file(), bytes: 7, modified: Timestamp::default(), whole }
    }

    fn with(damage: Vec<Damage>, torn: Vec<Damage>) -> Replay {
        let mut replay = Replay::default();
        replay.report = Report { damage, torn, unlisted: 0 };
        (replay.segments, replay.bytes) = (2, 10_000);
        replay
    }

    #[test]
    fn the_json_shape_is_the_contract() {
        let replay = with(vec![damage(DamageKind::Content, 1)], vec![damage(DamageKind::Frame, 0)]);
        let balance =
            Balance { transactions: 2, accepted: 3, pending: 1, sent: 1, quarantined: 1, ..Balance::default() };
        let object = Account { replay: &replay, balance }.object("verify");
        let place = |kind: &str, ids: Value| json!({"segment": "seg-00000000000000000003.rj", "offset": 8192, "bytes": 2096, "kind": kind, "ids": ids});
        let expected = json!({
            "type": "verify", "state": "damaged", "transactions": 2, "accepted": 3, "pending": 1, "sent": 1, "bounced": 0,
            "expired": 0, "removed": 0, "quarantined": 1,
            "damage": [place("content", json!(["00000000000000000000000001"]))],
            "torn": [place("frame", json!([]))],
            "generated": 0, "segments": 2, "bytes": 10_000, "unlisted": 0, "blobs": 0, "blob_bytes": 0,
            "orphans": [],
        });
        assert_eq!(Value::Object(object), expected);
    }

    #[test]
    fn blobs_that_are_wrong_and_those_of_nobody_are_named_by_their_file() {
        let name = BlobName::from_bits(0xab);
        let file = "blob/000000000000000000000000000000ab";
        let mut replay = with(vec![Damage { blob: Some(name), ..damage(DamageKind::BlobMissing, 1) }], Vec::new());
        (replay.blobs, replay.blob_bytes) = (1, 2096);
        replay.orphans = (1..=60).map(|n| orphan(n, n % 2 == 0)).collect();
        let account = Account { replay: &replay, balance: Balance::default() };
        let object = Value::Object(account.object("verify"));
        assert_eq!(
            (&object["damage"][0]["kind"], &object["damage"][0]["file"]),
            (&json!("blob-missing"), &json!(file))
        );
        assert_eq!(object["orphans"][59], json!({"file": "blob/0000000000000000000000000000003c", "bytes": 7}));
        let text = account.lines().join("\n");
        for part in [
            "blobs checked:   1 large message in blob/, 2096 bytes",
            &format!("damaged: {file}, 2096 bytes: the blob with a message's content is missing; its record: seg-000"),
            "orphan: blob/00000000000000000000000000000001, 7 bytes: it was never finished\n",
            "orphan: blob/00000000000000000000000000000002, 7 bytes: no record names it\n",
            "and 10 more orphans; --json lists all",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn every_place_is_said_in_words_and_a_rotten_disk_does_not_bury_the_verdict() {
        let replay = with(vec![damage(DamageKind::Frame, 30)], vec![damage(DamageKind::Content, 1)]);
        let account = Account { replay: &replay, balance: Balance::default() };
        let text = account.lines().join("\n");
        for part in [
            "damaged: seg-00000000000000000003.rj, offset 8192, 2096 bytes: no valid record stands there; message 0000",
            " and 10 more",
            "torn: seg-00000000000000000003.rj, offset 8192, 2096 bytes: a message's content",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(account.verdict(), "damaged: 1 place not as written; whatever is intact is accounted for");
        let kinds = [DamageKind::MissingSegment, DamageKind::Unnamed, DamageKind::HeaderPage, DamageKind::Padding];
        let replay = with(kinds.into_iter().cycle().take(200).map(|kind| damage(kind, 0)).collect(), Vec::new());
        let lines = Account { replay: &replay, balance: Balance::default() }.lines();
        assert_eq!(lines.last().unwrap(), "and 150 more places; --json lists the first 10000");
        assert!(lines.len() < 80);
    }

    #[test]
    fn an_account_that_does_not_add_up_is_never_called_clean() {
        let balance = Balance { accepted: 1, ..Balance::default() };
        let verdict = Account { replay: &Replay::default(), balance }.verdict();
        assert!(!verdict.contains("clean") && verdict.contains("add up"), "{verdict}");
    }
}
