//! Settled mail leaves the disk when its time has come; what is not settled stays, whatever it takes.

use crate::harness::{Client, Message, Serve, Sink, cli, eventually, queued_id, scratch};
use crate::storage::segments;
use std::fs;
use std::path::{Path, PathBuf};

/// The large one that stays is as large, so that its blob must be kept while others go.
const LARGE_BYTES: usize = 400 << 10;

pub(crate) fn config(directory: &Path, retain: &str, primary: u16) -> PathBuf {
    let file = directory.join("restante.toml");
    let data = directory.join("data");
    let text = format!(
        "hostname = \"mx2.example.test\"\n[journal]\ndir = {data:?}\nretain = \"{retain}\"\n[smtp]\nlisten = [\"127.0.0.1:0\"]\n\
         [admin]\nhttp = \"127.0.0.1:0\"\n[[route]]\nname = \"office\"\ndomains = [\"example.test\"]\nprimary = [\"127.0.0.1:{primary}\"]\n"
    );
    fs::write(&file, text).unwrap();
    file
}

pub(crate) fn blobs(data: &Path) -> usize {
    fs::read_dir(data.join("blob")).map_or(0, Iterator::count)
}

pub(crate) fn first_segment(data: &Path) -> String {
    segments(data)[0].file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn settled_mail_leaves_and_one_message_that_stays_pins_nothing_and_survives() {
    let directory = scratch();
    let data = directory.path().join("data");
    let primary = Sink::opened();
    primary.answer("stuck@example.test", "450 4.2.1 not now");
    let file = config(directory.path(), "0", primary.port);
    let mut daemon = Serve::by_file(&data, &file).start();
    let stuck = [Message::new("stuck", 1, 900), Message::new("stuck", 2, LARGE_BYTES)];
    let mut client = Client::ehlo(daemon.smtp);
    let ids: Vec<String> = stuck
        .iter()
        .map(|message| queued_id(&client.send("a@example.net", &["stuck@example.test"], &message.content).unwrap()))
        .collect();
    let both = Message::new("both", 1, 500);
    queued_id(&client.send("a@example.net", &["stuck@example.test", "box@example.test"], &both.content).unwrap());
    for n in 0..30 {
        let size = if n % 10 == 0 { LARGE_BYTES + 1 } else { 3_000 };
        let message = Message::new("gone", n, size);
        queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap());
    }
    primary.wait_for(31);
    let first = first_segment(&data);
    eventually("the first segment has left, and the blobs of what was sent", || {
        (first_segment(&data) != first && blobs(&data) == 1).then_some(())
    });
    let account = cli(&data, &["verify", "--json"]).expect_code(0).account();
    let counts =
        ["transactions", "accepted", "pending", "sent", "quarantined"].map(|key| account[key].as_u64().unwrap());
    assert_eq!((counts, &account["state"]), ([33, 34, 3, 31, 0], &"clean".into()));
    for (id, message) in ids.iter().zip(&stuck) {
        let out = cli(&data, &["queue", "cat", id]).expect_code(0).out;
        assert!(out == String::from_utf8_lossy(&message.content), "{id} is another");
    }
    let listed = daemon.ask(&["queue", "ls"]);
    assert_eq!(listed.iter().filter(|line| line["type"] == "transaction").count(), 3, "{listed:?}");

    daemon.kill9();
    primary.answer("stuck@example.test", "250 2.1.5 Ok");
    let mut daemon = Serve::by_file(&data, &file).start();
    daemon.ask(&["queue", "flush", "--all"]);
    daemon.wait_until_empty();
    assert_eq!(primary.deliveries_to("stuck@example.test"), 3);
    assert_eq!(primary.deliveries_to("box@example.test"), 31, "nothing settled is delivered again");
    eventually("nothing is left but what a start writes", || (blobs(&data) == 0).then_some(()));
    daemon.stop();
    let account = cli(&data, &["verify", "--json"]).expect_code(0).account();
    assert_eq!((&account["sent"], &account["pending"], &account["transactions"]), (&34.into(), &0.into(), &33.into()));
}
