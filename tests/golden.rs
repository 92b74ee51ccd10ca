//! The golden journals in `journal/fixtures`, read by `restante verify` and by a reader that shares no code with it, in
//! another language (`reader.py`): both must say the same of each, good or damaged. Refuses to know what that is: the
//! journal's own tests do.

use crate::harness::{restante, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    assert_eq!(fixtures.len(), 18, "one for each letter from A to Q, and a good one");
    for fixture in fixtures {
        let verified = run(restante().args(["verify", "--json", "--data"]).arg(&fixture));
        let ours = verified.account();
        let code = if ours["state"] == "damaged" { 9 } else { 0 };
        verified.expect_code(code);
        let theirs =
            run(Command::new("python3").arg("-B").arg(root.join("tests/reader.py")).arg(&fixture)).expect_code(0);
        let theirs: Value = serde_json::from_str(&theirs.out).unwrap();
        let our_orphans = ours["orphans"].as_array().unwrap().iter().map(|o| o["file"].as_str().unwrap()).collect();
        let their_orphans = theirs["orphans"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
        assert_eq!(comparable(&ours, our_orphans), comparable(&theirs, their_orphans), "{}", fixture.display());
    }
}
