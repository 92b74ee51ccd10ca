//! Rotation, compression and damage under a reader's hands: no line lost, none shown twice.

use super::super::scan::scan;
use super::*;
use std::io::Write as _;
use std::ops::ControlFlow;

fn append(directory: &Path, name: &str, text: &str) {
    let file = File::options().create(true).append(true).open(directory.join(name)).unwrap();
    { file }.write_all(text.as_bytes()).unwrap();
}

fn lines(piece: Piece, into: &mut Vec<String>) -> Option<String> {
    let (text, damage) = piece.text();
    into.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    damage
}

/// What the tail gives until there is no more.
fn drain(tail: &mut Tail) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(piece) = tail.next().unwrap() {
        assert_eq!(lines(piece, &mut found), None);
    }
    found
}

fn all(directory: &Path) -> Tail {
    Tail::all(directory, Days::default())
}

/// `delivery.jsonl` becomes this one.
fn put_aside(directory: &Path, day: &str, number: u32) {
    let name = format!("delivery-{day}-{number:03}.jsonl");
    std::fs::rename(directory.join(CURRENT), directory.join(name)).unwrap();
}

fn compressed(text: &str) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
    compressor.compress(text.as_bytes()).unwrap()
}

/// As the daemon does it in the end.
fn compress(directory: &Path, day: &str, number: u32) {
    let plain = directory.join(format!("delivery-{day}-{number:03}.jsonl"));
    let text = std::fs::read_to_string(&plain).unwrap();
    std::fs::write(plain.with_extension("jsonl.zst"), compressed(&text)).unwrap();
    std::fs::remove_file(plain).unwrap();
}

#[test]
fn the_oldest_file_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    append(dir, CURRENT, "5\n6");
    append(dir, "delivery-2026-11-22-999.jsonl", "2\n");
    append(dir, "delivery-2026-11-22-1000.jsonl", "3\n");
    append(dir, "delivery-2026-11-22-1001.jsonl", "4\n");
    append(dir, "delivery-2026-11-21-001.jsonl", "1\n");
    append(dir, "other.txt", "x\n");
    compress(dir, "2026-11-21", 1);
    compress(dir, "2026-11-22", 1000);
    let mut tail = all(dir);
    assert_eq!(drain(&mut tail), ["1", "2", "3", "4", "5"]);
    let mut last = Vec::new();
    lines(tail.finish().unwrap(), &mut last);
    assert_eq!(last, ["6"]);
    assert_eq!(drain(&mut Tail::current(dir).unwrap()), ["5"]);
    assert_eq!(drain(&mut all(&dir.join("nowhere"))), [""; 0]);
}

#[test]
fn a_file_that_is_there_twice_is_shown_once() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    append(dir, "delivery-2026-11-22-001.jsonl", "1\n2\n");
    std::fs::write(dir.join("delivery-2026-11-22-001.jsonl.zst"), compressed("1\n2\n")).unwrap();
    append(dir, "delivery-2026-11-22-001.part", "1\n");
    append(dir, CURRENT, "3\n");
    assert_eq!(drain(&mut all(dir)), ["1", "2", "3"]);
}

#[test]
fn a_rotation_loses_no_line_and_shows_none_twice() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let mut tail = Tail::current(dir).unwrap();
    assert_eq!(drain(&mut tail), [""; 0]);
    append(dir, CURRENT, "1\n2\nha");
    assert_eq!(drain(&mut tail), ["1", "2"]);
    append(dir, CURRENT, "lf\n");
    // Two rotations between two looks, and a last line in the old file.
    append(dir, CURRENT, "last\n");
    put_aside(dir, "2026-11-21", 1);
    append(dir, CURRENT, "3\n");
    put_aside(dir, "2026-11-22", 1);
    append(dir, CURRENT, "4\n");
    assert_eq!(drain(&mut tail), ["half", "last", "3", "4"]);
    append(dir, CURRENT, "5\n");
    assert_eq!(drain(&mut tail), ["5"]);
}

#[test]
fn ten_rotations_in_a_row_lose_no_line_and_show_none_twice() {
    for (looks_often, compresses) in [(false, false), (false, true), (true, false), (true, true)] {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        append(dir, CURRENT, "0\n");
        let mut tail = Tail::current(dir).unwrap();
        let mut found = drain(&mut tail);
        for n in 1..=10 {
            append(dir, CURRENT, &format!("{n}\n"));
            if looks_often && n % 3 == 0 {
                found.extend(drain(&mut tail));
            }
            // A line that comes when the reader has looked, and the file is put aside under it.
            append(dir, CURRENT, &format!("{n} late\n"));
            let (day, number) = if n <= 6 { ("2026-11-22", n) } else { ("2026-11-23", n - 6) };
            put_aside(dir, day, number);
            if looks_often && n % 4 == 0 {
                // There is no current file at this moment.
                found.extend(drain(&mut tail));
            }
            if compresses {
                compress(dir, day, number);
            }
        }
        append(dir, CURRENT, "end\n");
        found.extend(drain(&mut tail));
        let late = (1..=10).flat_map(|n| [format!("{n}"), format!("{n} late")]);
        let expected: Vec<_> = ["0".to_owned()].into_iter().chain(late).chain(["end".to_owned()]).collect();
        assert_eq!(found, expected, "{looks_often} {compresses}");
        assert_eq!(drain(&mut all(dir)), expected);
    }
}

#[test]
fn a_file_that_was_removed_meanwhile_costs_its_own_lines_alone() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    append(dir, CURRENT, "1\n");
    let mut tail = Tail::current(dir).unwrap();
    assert_eq!(drain(&mut tail), ["1"]);
    append(dir, CURRENT, "2\n");
    put_aside(dir, "2026-11-22", 1);
    append(dir, CURRENT, "3\n");
    put_aside(dir, "2026-11-22", 2);
    std::fs::remove_file(dir.join("delivery-2026-11-22-001.jsonl")).unwrap();
    append(dir, CURRENT, "4\n");
    // Even the one that is gone is read to its end: it was open.
    assert_eq!(drain(&mut tail), ["2", "3", "4"]);
}

#[test]
fn a_truncated_file_is_read_up_to_the_damage() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (one, two, three) = (compressed("1\n"), compressed(&"2\n".repeat(300_000)), compressed("3\n"));
    let read = |bytes: &[u8]| {
        std::fs::write(dir.join("delivery-2026-11-22-001.jsonl.zst"), bytes).unwrap();
        std::fs::write(dir.join(CURRENT), "4\n").unwrap();
        let (mut damages, mut found) = (Vec::new(), Vec::new());
        let each = |text: Vec<u8>| {
            found.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
            Ok(ControlFlow::Continue(()))
        };
        scan(&mut all(dir), <[u8]>::to_vec, each, |what| damages.push(what.to_owned())).unwrap();
        (found, damages)
    };
    let whole = [one.as_slice(), &two, &three].concat();
    assert_eq!(read(&whole).0.len(), 300_003);
    for cut in 1..whole.len() {
        let (found, damages) = read(&whole[..cut]);
        let is_between = cut == one.len() || cut == one.len() + two.len();
        assert_eq!((damages.len(), found.last().unwrap().as_str()), (usize::from(!is_between), "4"), "{cut}");
        assert!(cut < one.len() || found[0] == "1", "{cut}");
    }
    // Rot in the middle: what stands behind it is there.
    let mut rotten = whole.clone();
    rotten[one.len() + two.len() / 2] ^= 0x55;
    let (found, damages) = read(&rotten);
    assert_eq!((damages.len(), found[0].as_str(), found[found.len() - 2].as_str()), (1, "1", "3"));
    assert!(damages[0].contains("delivery-2026-11-22-001.jsonl.zst is damaged"), "{damages:?}");
}

#[test]
fn a_file_of_another_compressor_is_read_too() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    // A stream does not say how long its text is.
    let bytes = zstd::stream::encode_all(text.as_bytes(), 1).unwrap();
    std::fs::write(dir.join("delivery-2026-11-22-001.jsonl.zst"), &bytes).unwrap();
    assert_eq!(drain(&mut all(dir)).len(), 200_000);
    std::fs::write(dir.join("delivery-2026-11-22-001.jsonl.zst"), &bytes[..bytes.len() - 5]).unwrap();
    let (mut tail, mut found) = (all(dir), Vec::new());
    let mut damages = 0;
    while let Some(piece) = tail.next().unwrap() {
        damages += usize::from(lines(piece, &mut found).is_some() || tail.damage().is_some());
    }
    assert!(damages == 1 || tail.damage().is_some());
}

#[test]
fn a_file_that_cannot_have_it_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    for (name, day) in
        [("18-001", "18"), ("19-001", "19"), ("20-001", "20"), ("21-001", "21"), ("22-001.since-2026-11-19", "22")]
    {
        std::fs::write(dir.join(format!("delivery-2026-11-{name}.jsonl.zst")), compressed(&format!("{day}\n")))
            .unwrap();
    }
    append(dir, CURRENT, "now\n");
    let days = |since: &str, until: &str| {
        let day = |text: &str| (!text.is_empty()).then(|| format!("2026-11-{text}"));
        drain(&mut Tail::all(dir, Days { since: day(since), until: day(until) }))
    };
    // Who opens a directory to read it fails.
    std::fs::create_dir(dir.join("delivery-2026-11-17-001.jsonl.zst")).unwrap();
    assert_eq!(days("20", ""), ["20", "21", "22", "now"]);
    assert_eq!(days("18", "18"), ["18", "19", "now"]);
    assert_eq!(days("20", "20"), ["20", "21", "22", "now"]);
    assert!(Tail::all(dir, Days::default()).next().is_err());
}

#[test]
fn a_line_without_end_does_not_eat_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    append(directory.path(), CURRENT, &"x".repeat(3 * LINE_BYTES_MAX));
    let mut tail = all(directory.path());
    assert!(!drain(&mut tail).is_empty());
    assert!(tail.open.unwrap().partial.len() <= LINE_BYTES_MAX + 1);
}
