//! Compression, stopped at each of its steps, and what the limits remove.

use super::*;
use std::process::Command;

const DAY: &str = "2026-11-22";

fn text(day: &str, lines: usize) -> String {
    (0..lines)
        .map(|n| format!("{{\"type\":\"log\",\"ts\":\"{day}T00:00:00.000Z\",\"ev\":\"sent\",\"n\":{n}}}\n"))
        .collect()
}

/// A plain file that was put aside.
fn plain(directory: &Path, day: &str, number: u32, text: &str) -> PathBuf {
    let path = directory.join(format!("delivery-{day}-{number:03}.jsonl"));
    std::fs::write(&path, text).unwrap();
    path
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// As `zstdcat` reads it.
fn zstdcat(path: &Path) -> String {
    let text = zstd::stream::decode_all(File::open(path).unwrap()).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_compressed_file_is_independent_frames_of_whole_lines() {
    let directory = tempfile::tempdir().unwrap();
    let lines = text(DAY, 150_000);
    plain(directory.path(), DAY, 1, &lines);
    compress_all(directory.path()).unwrap();
    assert_eq!(names(directory.path()), ["delivery-2026-11-22-001.jsonl.zst"]);
    let path = directory.path().join("delivery-2026-11-22-001.jsonl.zst");
    assert_eq!(zstdcat(&path), lines);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() * 8 < lines.len());
    let (mut rest, mut frames, mut together) = (&bytes[..], 0, Vec::new());
    while !rest.is_empty() {
        let len = frame_len(rest).unwrap();
        let (text, damage) = frame_text(&rest[..len]);
        assert!(damage.is_none() && text.ends_with(b"\n"));
        together.extend(text);
        (rest, frames) = (&rest[len..], frames + 1);
    }
    assert!(frames >= 2 && together == lines.as_bytes());
    let out = Command::new("zstdcat").arg(&path).output().expect("zstdcat: apt-get install zstd").stdout;
    assert!(out == lines.as_bytes());
}

#[test]
fn a_crash_at_any_step_leaves_every_line_once() {
    let lines = text(DAY, 1_000);
    let whole = {
        let directory = tempfile::tempdir().unwrap();
        plain(directory.path(), DAY, 1, &lines);
        compress_all(directory.path()).unwrap();
        std::fs::read(directory.path().join("delivery-2026-11-22-001.jsonl.zst")).unwrap()
    };
    // What is there when it stops: the part, and the file under its name, as far as they were written.
    let half = &whole[..whole.len() / 2];
    type Bytes<'a> = Option<&'a [u8]>;
    let steps: [(&str, Bytes<'_>, Bytes<'_>); 5] = [
        ("before the part", None, None),
        ("in the part", Some(half), None),
        ("before the rename", Some(&whole), None),
        ("before the plain file goes", None, Some(&whole)),
        ("a file of that name that is not ours", None, Some(half)),
    ];
    for (step, part, zst) in steps {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let path = plain(dir, DAY, 1, &lines);
        let name = dir.join("delivery-2026-11-22-001.jsonl.zst");
        part.iter().for_each(|bytes| std::fs::write(path.with_extension("part"), bytes).unwrap());
        zst.iter().for_each(|bytes| std::fs::write(&name, bytes).unwrap());
        // One file to a reader, with the plain text.
        let listed: Vec<_> = aside(dir).unwrap().into_values().collect();
        assert_eq!(listed.len(), 1, "{step}");
        assert_eq!(std::fs::read_to_string(listed[0].plain.as_ref().unwrap()).unwrap(), lines, "{step}");
        compress_all(dir).unwrap();
        assert_eq!(names(dir), ["delivery-2026-11-22-001.jsonl.zst"], "{step}");
        assert_eq!(zstdcat(&name), lines, "{step}");
        compress_all(dir).unwrap();
        assert_eq!(zstdcat(&name), lines, "{step}");
    }
}

#[test]
fn a_file_that_cannot_be_compressed_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = plain(directory.path(), DAY, 1, &text(DAY, 10));
    std::fs::create_dir(compressed_path(directory.path(), &Key { day: DAY.into(), number: 1 }, None)).unwrap();
    assert!(compress_all(directory.path()).is_err());
    assert!(path.exists() && names(directory.path()).len() == 2);
}

#[test]
fn lines_that_were_written_late_are_named() {
    let directory = tempfile::tempdir().unwrap();
    plain(directory.path(), DAY, 1, &(text(DAY, 2) + &text("2026-11-19", 1) + "no line\n" + &text(DAY, 2)));
    plain(directory.path(), DAY, 2, &(text("2026-11-21", 1) + &text(DAY, 2)));
    compress_all(directory.path()).unwrap();
    assert_eq!(
        names(directory.path()),
        ["delivery-2026-11-22-001.since-2026-11-19.jsonl.zst", "delivery-2026-11-22-002.jsonl.zst"]
    );
}

#[test]
fn the_limits_remove_the_oldest() {
    let limits = |total_bytes_max, files_max, days_max| LogLimits {
        total_bytes_max,
        files_max,
        days_max,
        ..LogLimits::default()
    };
    for (limits, left) in [
        (LogLimits::default(), 4),
        (limits(2_500, 100, 100), 2),
        (limits(u64::MAX, 3, 100), 3),
        (limits(u64::MAX, 100, 1), 3),
        (limits(0, 0, 0), 0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("delivery.jsonl"), "x\n").unwrap();
        for (day, number) in [("2026-11-20", 1), ("2026-11-21", 1), ("2026-11-22", 999), ("2026-11-22", 1000)] {
            plain(directory.path(), day, number, &"x".repeat(1_000));
        }
        remove_oldest(directory.path(), &limits, "2026-11-23T12:00:00.000Z").unwrap();
        let names = names(directory.path());
        assert_eq!(names.len(), left + 1, "{limits:?}");
        assert!(left == 0 || names.contains(&"delivery-2026-11-22-1000.jsonl".to_owned()));
    }
}

#[test]
fn a_clock_that_is_a_year_ahead_does_not_remove_the_log() {
    let directory = tempfile::tempdir().unwrap();
    for (day, number) in [("2025-11-20", 1), ("2026-11-21", 1), ("2026-11-22", 1)] {
        plain(directory.path(), day, number, "x");
    }
    remove_oldest(directory.path(), &LogLimits::default(), "2027-12-31T12:00:00.000Z").unwrap();
    // A year and two days before the newest: that one is over its time.
    assert_eq!(names(directory.path()), ["delivery-2026-11-21-001.jsonl", "delivery-2026-11-22-001.jsonl"]);
    // Nor does one that is behind.
    remove_oldest(directory.path(), &LogLimits::default(), "1970-01-01T00:00:00.000Z").unwrap();
    assert_eq!(names(directory.path()).len(), 2);
}
