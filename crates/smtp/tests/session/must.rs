//! That `tests/dialogue/MUST.md` names proofs that exist, and that no dialogue is named nowhere. Refuses to judge whether a proof proves.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rows at the least: less, and somebody has cut the table.
const ROWS_MIN: usize = 120;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn dialogues() -> BTreeSet<String> {
    let files = fs::read_dir(root().join("tests/dialogue")).unwrap().map(|file| file.unwrap().path());
    let scripts = files.filter(|file| file.extension().is_some_and(|e| e == "smtp"));
    scripts.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// All Rust text of a file, or below a directory.
fn source(path: &Path) -> String {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().map(|entry| source(&entry.unwrap().path())).collect();
    }
    if path.extension().is_some_and(|e| e == "rs") { fs::read_to_string(path).unwrap() } else { String::new() }
}

/// Whether `place::name` is a test.
fn is_test(place: &str, name: &str) -> bool {
    let places =
        [root().join("crates").join(place), root().join(place), root().join("tests").join(format!("{place}.rs"))];
    let texts = places.iter().filter(|place| place.exists()).map(|place| match place.is_dir() {
        true => {
            source(&place.join("src"))
                + &if place.join("tests").exists() { source(&place.join("tests")) } else { String::new() }
        }
        false => source(place),
    });
    texts.into_iter().any(|text| {
        text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
            let before: Vec<&str> = text[..at].lines().rev().take(4).collect();
            before
                .iter()
                .any(|line| line.contains("#[test]") || line.contains("#[tokio::test") || line.contains("test]"))
        })
    })
}

#[test]
fn each_must_is_shown_by_something_that_exists() {
    let table = fs::read_to_string(root().join("tests/dialogue/MUST.md")).unwrap();
    let (dialogues, mut rows) = (dialogues(), 0);
    for line in table.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [section, demand, shown] = cells[..] else { panic!("not three cells: {line}") };
        if section == "section" {
            continue;
        }
        rows += 1;
        assert!(!section.is_empty() && !demand.is_empty() && !shown.is_empty(), "an empty cell: {line}");
        assert!(quoted(shown).next().is_some(), "shown by nothing: {line}");
        for proof in quoted(shown) {
            match proof.split_once("::") {
                _ if matches!(proof, "deviates:" | "utf-8" | "for") => {}
                Some((place, name)) => assert!(is_test(place, name), "no such test: {proof}"),
                None => assert!(dialogues.contains(proof), "no such dialogue: {proof}"),
            }
        }
    }
    assert!(rows >= ROWS_MIN, "{rows} rows");
}

#[test]
fn each_dialogue_is_named_in_the_table_or_beyond_it() {
    let read = |name: &str| fs::read_to_string(root().join("tests/dialogue").join(name)).unwrap();
    let (table, readme) = (read("MUST.md"), read("README.md"));
    let (_, beyond) = readme.split_once("## Beyond what must be").expect("the list");
    let named = |text: &str| quoted(text).map(str::to_owned).collect::<BTreeSet<_>>();
    let (table, beyond, dialogues) = (named(&table), named(beyond), dialogues());
    for name in &dialogues {
        assert!(table.contains(name) || beyond.contains(name), "{name} is named nowhere");
    }
    for name in &beyond {
        assert!(dialogues.contains(name), "{name} is not there");
    }
}
