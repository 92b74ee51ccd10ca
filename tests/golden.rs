//! The golden journals in `journal/fixtures`, read by `restante verify` and by a reader that shares no code with it, in
//! another language (`reader.py`): both must say the same of each, good or damaged. Refuses to know what that is: the
//! journal's own tests do.

use crate::harness::client::Random;
use crate::harness::{restante, run, scratch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each takes what a process and a scan of a small journal take; all of them some five seconds.
const SPOILINGS: u64 = 150;
/// Reads many journals in one process: starting Python takes longer than reading one.
const READ_EACH: &str = "import json, reader, sys
for directory in sys.argv[1:]:
    try:
        reader.main(directory)
    except reader.Refused as why:
        print(json.dumps({'refused': str(why)}))";

/// What of `account` a reader that knows FORMAT.md alone can know; order in lists is no part of the account.
fn comparable(account: &Value, orphans: Vec<&str>) -> Vec<(&'static str, String)> {
    let places = |list: &str| {
        let mut places: Vec<_> = account[list].as_array().unwrap().iter().map(in_order).collect();
        places.sort();
        places.concat()
    };
    let mut parts: Vec<_> = [
        "state",
        "transactions",
        "accepted",
        "pending",
        "sent",
        "bounced",
        "expired",
        "removed",
        "quarantined",
        "segments",
        "bytes",
        "blobs",
        "blob_bytes",
    ]
    .map(|key| (key, account[key].to_string()))
    .into();
    parts.extend([("damage", places("damage")), ("torn", places("torn")), ("orphans", orphans.join(" "))]);
    parts
}

fn orphans(ours: &Value) -> Vec<&str> {
    ours["orphans"].as_array().unwrap().iter().map(|orphan| orphan["file"].as_str().unwrap()).collect()
}

fn in_order(place: &Value) -> String {
    let keys = ["segment", "offset", "bytes", "kind", "ids", "file"];
    keys.iter().map(|key| format!("{key} {} ", place[key])).collect()
}

#[test]
fn a_second_reader_says_the_same_as_verify_of_every_golden_journal() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut fixtures: Vec<PathBuf> =
        std::fs::read_dir(root.join("journal/fixtures")).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.sort();
    assert_eq!(
        fixtures.len(),
        24,
        "one for each letter from A to Q, a good one, three of format 2, replayed, requests, and carried"
    );
    for fixture in fixtures {
        let verified = run(restante().args(["verify", "--json", "--data"]).arg(&fixture));
        let ours = verified.account();
        let code = if ours["state"] == "damaged" { 9 } else { 0 };
        verified.expect_code(code);
        let theirs =
            run(Command::new("python3").arg("-B").arg(root.join("tests/reader.py")).arg(&fixture)).expect_code(0);
        let theirs: Value = serde_json::from_str(&theirs.out).unwrap();
        let their_orphans = theirs["orphans"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
        assert_eq!(comparable(&ours, orphans(&ours)), comparable(&theirs, their_orphans), "{}", fixture.display());
    }
}

fn files(root: &Path) -> Vec<PathBuf> {
    let list =
        |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        list(root.to_owned()).chain(list(root.join("blob"))).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("blob")).unwrap();
    for file in files(from).into_iter().filter(|file| !file.ends_with("expected.json")) {
        std::fs::copy(&file, to.join(file.strip_prefix(from).unwrap())).unwrap();
    }
}

fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let bit = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
    (!bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), bit))).to_le_bytes()
}

/// Bytes wrong in a record whose checksums are right, so that its meaning decides.
fn forge(bytes: &mut [u8], random: &mut Random) -> String {
    let places: Vec<usize> = (4096..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"RJF1")).collect();
    if places.is_empty() {
        return "no record to forge".to_owned();
    }
    let at = places[random.below(places.len())];
    let Some(meta_bytes) = bytes.get(at + 48..at + 52).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as usize)
    else {
        return "no whole record to forge".to_owned();
    };
    let meta = at + 64..at + 64 + meta_bytes;
    if random.below(4) > 0 && meta_bytes > 0 && meta.end <= bytes.len() {
        let place = meta.start + random.below(meta_bytes);
        bytes[place] ^= 1 << random.below(8);
        let crc = crc32c(&bytes[meta]);
        bytes[at + 52..at + 56].copy_from_slice(&crc);
    } else {
        bytes[at + 8 + random.below(56).min(bytes.len() - at - 9)] ^= 1 << random.below(8);
    }
    let header = (at + 64).min(bytes.len());
    let crc = crc32c(&bytes[at + 8..header]);
    bytes[at + 4..at + 8].copy_from_slice(&crc);
    format!("record at {at} forged")
}

/// Does one wrong thing to a journal and says what.
fn spoil(root: &Path, random: &mut Random) -> String {
    let files = files(root);
    let Some(file) = files.get(random.below(files.len().max(1))) else { return "nothing left".to_owned() };
    let mut bytes = std::fs::read(file).unwrap();
    let (length, at) = (bytes.len(), random.below(bytes.len().max(1)));
    let page = if random.below(2) == 0 { 512 } else { 4096 };
    let (here, there) = (at / page * page, random.below(length.max(1)) / page * page);
    let what = match random.below(9) {
        _ if bytes.is_empty() => "already empty".to_owned(),
        0 | 1 => {
            (0..=random.below(8)).for_each(|_| bytes[random.below(length)] ^= 1 << random.below(8));
            "bits flipped".to_owned()
        }
        2 => {
            bytes.truncate(at);
            format!("cut to {at}")
        }
        3 => {
            bytes[here..length.min(here + page)].fill(0);
            format!("{page} zeros at {here}")
        }
        4 if here.abs_diff(there) >= page && here.max(there) + page <= length => {
            (0..page).for_each(|byte| bytes.swap(here + byte, there + byte));
            format!("{page} bytes at {here} and {there} changed places")
        }
        4 | 5 => {
            bytes.extend((0..=random.below(6000)).map(|byte| [0, byte as u8][here / page % 2]));
            format!("{} bytes added", bytes.len() - length)
        }
        6 if files.len() > 1 => {
            std::fs::remove_file(file).unwrap();
            return format!("{} removed", file.file_name().unwrap().display());
        }
        7 if length > 4096 => {
            let record = bytes[4096..length.min(4096 + random.below(900))].to_vec();
            let at = at / 8 * 8;
            bytes.splice(at..length.min(at + record.len()), record);
            format!("first records repeated at {at}")
        }
        _ => forge(&mut bytes, random),
    };
    std::fs::write(file, bytes).unwrap();
    format!("{}: {what}", file.file_name().unwrap().display())
}

#[test]
fn a_second_reader_says_the_same_as_verify_of_journals_spoilt_at_random() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = scratch();
    let spoilings: Vec<(String, PathBuf)> = (1..=SPOILINGS)
        .map(|seed| {
            // Three in twenty are the journal of two hundred messages.
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let letter = usize::try_from(seed % 20).unwrap();
            let fixture = "ABCDEFGHIJKLMNOPQ".get(letter..=letter).unwrap_or("good");
            let directory = scratch.path().join(seed.to_string());
            copy(&root.join("journal/fixtures").join(fixture), &directory);
            let what: Vec<String> = (0..=random.below(2)).map(|_| spoil(&directory, &mut random)).collect();
            (format!("seed {seed}, fixture {fixture}, {}", what.join(", ")), directory)
        })
        .collect();
    let mut python = Command::new("python3");
    python.args(["-B", "-c", READ_EACH]).args(spoilings.iter().map(|(_, directory)| directory));
    let theirs = run(python.env("PYTHONPATH", root.join("tests"))).expect_code(0);
    let theirs: Vec<Value> = theirs.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(theirs.len(), spoilings.len());
    for ((what, directory), theirs) in spoilings.iter().zip(theirs) {
        let verified = run(restante().args(["verify", "--json", "--data"]).arg(directory));
        assert_eq!(verified.code == Some(1), theirs["refused"].is_string(), "{what}: {theirs} {verified:?}");
        if verified.code != Some(1) {
            let ours = verified.account();
            let their_orphans = theirs["orphans"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
            assert_eq!(comparable(&ours, orphans(&ours)), comparable(&theirs, their_orphans), "{what}");
        }
    }
}
