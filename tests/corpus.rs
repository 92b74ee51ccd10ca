//! Mail as it is found in the world, and as nobody should send it: each piece must reach the primary byte for byte. The messages
//! are those with which CPython and the mail-parser crate test their parsers, and our own of the shapes that transport breaks.
//! It refuses to pass with an empty corpus.

use crate::harness::client::{Random, sha256};
use crate::harness::{Client, Serve, Sink, queued_id, run, scratch, tool};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// CPython's, as Debian packages them; `tests/run` installs them.
const CPYTHON: &str = "/usr/lib/python3.11/test/test_email/data";

/// Every file below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Where cargo has the source of a crate that we build with.
fn source_of(crate_name: &str) -> PathBuf {
    let root = env!("CARGO_MANIFEST_DIR");
    let metadata = run(tool(env!("CARGO")).args(["metadata", "--format-version", "1", "--locked"]).current_dir(root));
    let metadata: Value = serde_json::from_str(&metadata.expect_code(0).out).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == crate_name).unwrap_or_else(|| panic!("no crate {crate_name}"));
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// As a client puts a text file on the wire: every line ends in CRLF. A lone CR, which SMTP has no way to carry, becomes one too.
fn on_the_wire(file: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(file.len() + file.len() / 32);
    let mut bytes = file.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => {
                bytes.next_if_eq(&b'\n');
                wire.extend_from_slice(b"\r\n");
            }
            b'\n' => wire.extend_from_slice(b"\r\n"),
            other => wire.push(other),
        }
    }
    if !wire.is_empty() && !wire.ends_with(b"\r\n") {
        wire.extend_from_slice(b"\r\n");
    }
    wire
}

/// What transport breaks: each with a name for the failure.
fn shapes() -> Vec<(String, Vec<u8>)> {
    let mut shapes: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, content: Vec<u8>| shapes.push((name.to_owned(), content));
    add("nothing at all", Vec::new());
    add("one empty line", b"\r\n".to_vec());
    add("empty lines", b"\r\n".repeat(500));
    add("no header", b"just words\r\n".to_vec());
    add("a header and no body", b"Subject: x\r\n".to_vec());
    add("a header, an empty line, no body", b"Subject: x\r\n\r\n".to_vec());
    add("looks like an end of data", b"..\r\n.\r\n...\r\n.x\r\n. \r\n".to_vec());
    add("dots alone", b".\r\n".repeat(3_000));
    add(
        "lines of 998 octets",
        [b".".repeat(998), b"x".repeat(998), vec![0xE9; 998]].map(|l| [l, b"\r\n".to_vec()].concat()).concat(),
    );
    add(
        "every byte that a line may hold",
        (1..=255u8).filter(|b| !matches!(b, b'\r' | b'\n')).chain(*b"\r\n").collect(),
    );
    add("trailing white space", b"a \r\nb\t\r\n \r\n\t\r\n".to_vec());
    add(
        "our own kind of header",
        b"Received: from a\r\n\tby mx2.example.test (Restante) with ESMTP id X;\r\n\tnow\r\n\r\nx\r\n".to_vec(),
    );
    // Around each border that content is cut at: 16 KiB reads, 64 KiB writes, 256 KiB in memory.
    for border in [16 << 10, 64 << 10, 256 << 10, 512 << 10] {
        for length in border - 4..=border + 4 {
            let mut content = b"Subject: border\r\n\r\n".to_vec();
            let lines = (length - content.len()) / 4 - 1;
            content.extend(b".x\r\n".repeat(lines));
            let rest = length - content.len() - 2;
            content.extend(vec![b'.'; rest]);
            content.extend_from_slice(b"\r\n");
            assert_eq!(content.len(), length);
            add(&format!("{length} bytes of short lines"), content);
        }
    }
    shapes
}

/// Sends each message for a recipient of its own kind and compares what the primary has.
fn arrives(corpus: &[(String, Vec<u8>)]) {
    let directory = scratch();
    let sink = {
        let mut sink = Sink::closed().digests_only().by_transaction();
        sink.open();
        sink
    };
    let daemon = Serve::new(directory.path(), sink.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    let mut sent = HashMap::new();
    for (name, content) in corpus {
        let reply = client.send("sender@example.net", &["box@example.test"], content);
        let reply = reply.unwrap_or_else(|error| panic!("{name}: {error}"));
        sent.insert(queued_id(&reply), (name, sha256(content)));
    }
    for received in sink.wait_for(corpus.len()) {
        let (name, digest) = sent.remove(&received.message_id).unwrap_or_else(|| panic!("twice: {received:?}"));
        assert_eq!(received.sha256, digest, "{name} was altered on its way");
    }
    assert!(sent.is_empty());
}

#[test]
fn mail_that_parsers_are_tested_with_is_altered_on_its_way() {
    let parser = source_of("mail-parser").join("resources");
    let of = |directory: &Path| -> Vec<(String, Vec<u8>)> {
        let read = |path: PathBuf| (path.display().to_string(), on_the_wire(&std::fs::read(&path).unwrap()));
        files(directory).into_iter().map(read).collect()
    };
    let (cpython, parser) = (of(Path::new(CPYTHON)), of(&parser));
    assert!(cpython.len() > 50 && parser.len() > 300, "{} and {} files", cpython.len(), parser.len());
    println!("{} files of CPython, {} of mail-parser", cpython.len(), parser.len());
    arrives(&cpython);
    arrives(&parser);
}

#[test]
fn mail_of_the_shapes_that_transport_breaks_is_altered_on_its_way() {
    arrives(&shapes());
}

#[test]
fn a_message_of_90_mib_is_altered_on_its_way() {
    let mut random = Random(90);
    let mut content = b"Subject: large\r\n\r\n".to_vec();
    while content.len() < 90 << 20 {
        let length = random.below(999);
        let first = u8::try_from(32 + random.below(95)).unwrap();
        content.extend((0..length).map(|n| if n % 7 == 0 { b'.' } else { first }));
        content.extend_from_slice(b"\r\n");
    }
    arrives(&[("90 MiB".into(), content)]);
}
