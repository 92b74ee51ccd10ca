//! Room: a disk that others fill, a floor that mail leaves free, and a route that may not take the room of another.

use crate::harness::client::Message;
use crate::harness::{Client, Daemon, Serve, Sink, cli, eventually, queued_id, scratch};
use std::fs;
use std::path::Path;

fn send(daemon: &Daemon, to: &[&str], message: &Message) -> (u16, String) {
    let reply = Client::ehlo(daemon.smtp).send("a@example.net", to, &message.content).unwrap();
    (reply.code, reply.text())
}

/// A route for `a.test` and one for `b.test`.
fn two_routes(directory: &Path, ports: [u16; 2], limits: &str, quota: &str) -> Serve {
    let file = directory.join("restante.toml");
    let [a, b] = ports;
    let text = format!(
        "hostname = \"mx2.example.test\"\n{limits}\n[[route]]\ndomains = [\"a.test\"]\nprimary = [\"127.0.0.1:{a}\"]\n{quota}\n\
         [[route]]\ndomains = [\"b.test\"]\nprimary = [\"127.0.0.1:{b}\"]\n"
    );
    fs::write(&file, text).unwrap();
    Serve::by_file(&directory.join("data"), &file)
}

#[test]
fn a_route_over_its_quota_is_told_to_come_back_and_the_other_one_notices_nothing() {
    let directory = scratch();
    let (mut primary, other) = (Sink::closed(), Sink::closed());
    let ports = [primary.port, other.port];
    let mut daemon = two_routes(directory.path(), ports, "", "quota = \"64KiB\"").start();
    let big = |n| Message::new("big", n, 30_000);
    assert_eq!((send(&daemon, &["x@a.test"], &big(1)).0, send(&daemon, &["x@a.test"], &big(2)).0), (250, 250));
    eventually("the count", || (daemon.ask(&["status"])[1]["bytes"].as_u64()? >= 60_000).then_some(()));
    // It would fit by itself, and not with these two.
    let (code, text) = send(&daemon, &["x@a.test"], &big(3));
    assert_eq!(code, 452, "{text}");
    assert_eq!(send(&daemon, &["x@a.test"], &Message::new("small", 1, 5_500)).0, 250);
    eventually("the count", || (daemon.ask(&["status"])[1]["bytes"].as_u64()? >= 65_500).then_some(()));
    // The other one, and a message for both: who is full is told at once.
    assert_eq!(send(&daemon, &["x@b.test"], &big(4)).0, 250);
    let mut client = Client::ehlo(daemon.smtp);
    assert_eq!(client.command("MAIL FROM:<a@example.net>").unwrap().code, 250);
    let full = client.command("RCPT TO:<x@a.test>").unwrap();
    assert!(full.code == 452 && full.text().contains("too much mail waits for this domain"), "{}", full.text());
    assert_eq!(client.command("RCPT TO:<x@b.test>").unwrap().code, 250);
    assert_eq!(client.command("DATA").unwrap().code, 354);
    queued_id(&client.content(&big(5).content).unwrap());

    let status = cli(&daemon.data, &["status"]).expect_code(0).out;
    assert!(status.contains("of 64.0 KiB it may hold, NO MORE IS TAKEN"), "{status}");
    let routes = daemon.ask(&["status"]);
    assert_eq!((&routes[1]["quota_bytes"], routes[2]["quota_bytes"].is_u64()), (&65_536.into(), true), "{routes:?}");
    assert_eq!(daemon.metric("restante_route_quota_bytes", "route=\"a.test\""), Some(65_536.0));
    eventually("the refusal in the log", || {
        let lines = daemon.ask(&["log"]);
        lines.iter().any(|line| line["ev"] == "rejected" && line["code"] == 452).then_some(())
    });

    primary.open();
    eventually("room on the route", || (send(&daemon, &["x@a.test"], &big(6)).0 == 250).then_some(()));
    primary.wait_for(4);
    daemon.stop();
}

#[test]
fn a_message_for_two_routes_is_put_off_for_the_full_one_alone() {
    let directory = scratch();
    let (primary, other) = (Sink::closed(), Sink::closed());
    let mut daemon = two_routes(directory.path(), [primary.port, other.port], "", "quota = \"64KiB\"").start();
    let big = |n| Message::new("both", n, 40_000);
    assert_eq!(send(&daemon, &["x@a.test"], &big(1)).0, 250);
    // Not full yet, but with this one it would be.
    let mut client = Client::ehlo(daemon.smtp);
    assert_eq!(client.command("MAIL FROM:<a@example.net> SIZE=40000").unwrap().code, 250);
    let full = client.command("RCPT TO:<x@a.test>").unwrap();
    assert!(full.code == 452 && full.text().contains("too much mail waits for this domain"), "{}", full.text());
    assert_eq!(client.command("RCPT TO:<x@b.test>").unwrap().code, 250);
    assert_eq!(client.command("DATA").unwrap().code, 354);
    queued_id(&client.content(&big(2).content).unwrap());
    // Who does not say how large it is finds room for a small one; at its end one answer goes for both.
    assert_eq!(send(&daemon, &["x@a.test", "x@b.test"], &big(3)).0, 250);
    assert_eq!(send(&daemon, &["x@a.test", "x@b.test"], &big(4)).0, 250, "for the other one");
    let routes = daemon.ask(&["status"]);
    assert_eq!((&routes[1]["pending"], &routes[2]["pending"]), (&2.into(), &3.into()), "{routes:?}");
    daemon.stop();
}

#[test]
fn many_at_once_do_not_find_the_same_room_on_a_route() {
    let directory = scratch();
    let (primary, other) = (Sink::closed(), Sink::closed());
    let mut daemon = two_routes(directory.path(), [primary.port, other.port], "", "quota = \"3MiB\"").start();
    // All are let in before the first content comes; those of 600 kB go to blobs.
    let messages = [600_000, 200_000].into_iter().flat_map(|size| (0..8).map(move |n| (n, size)));
    let begun: Vec<(Client, Message)> = messages
        .map(|(n, size)| {
            let mut client = Client::ehlo(daemon.smtp);
            for (command, code) in [("MAIL FROM:<a@example.net>", 250), ("RCPT TO:<x@a.test>", 250), ("DATA", 354)] {
                assert_eq!(client.command(command).unwrap().code, code);
            }
            (client, Message::new("at once", size as u64 + n, size))
        })
        .collect();
    let sending: Vec<_> = begun
        .into_iter()
        .map(|(mut client, message)| std::thread::spawn(move || client.content(&message.content).unwrap().code))
        .collect();
    let codes: Vec<u16> = sending.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(codes.iter().all(|code| [250, 452].contains(code)) && codes.contains(&452), "{codes:?}");
    let held = daemon.ask(&["status"])[1]["bytes"].as_u64().unwrap();
    assert!(held <= 3 << 20, "{held} bytes are held: {codes:?}");
    // Nothing is claimed any more by those that were refused.
    eventually("room for what fits", || {
        (send(&daemon, &["x@a.test"], &Message::new("fits", 1, 100_000)).0 == 250).then_some(())
    });
    daemon.stop();
}

mod needs_root {
    use super::*;
    use crate::harness::Small;

    #[test]
    fn one_domains_junk_leaves_half_of_the_room_to_the_others_without_a_word_in_the_configuration() {
        let directory = scratch();
        let _small = Small::mount("32m", directory.path());
        let (primary, other) = (Sink::closed(), Sink::closed());
        let mut daemon = two_routes(directory.path(), [primary.port, other.port], "", "").start();
        let until_full =
            |to: &str| (0..300).take_while(|n| send(&daemon, &[to], &Message::new(to, *n, 200_000)).0 == 250).count();
        let (junk, mail) = (until_full("x@a.test"), until_full("x@b.test"));
        assert!(junk > 20 && mail > junk / 3, "{junk} and {mail} of 200 kB on 32 MiB");
        let node = &cli(&daemon.data, &["status", "--json"]).json()[0];
        assert_eq!(node["min_free_bytes"], 4 << 20, "{node}");
        daemon.stop();
    }

    #[test]
    fn a_disk_without_a_file_left_to_be_made_says_so_and_takes_mail_again_when_there_are_some() {
        let directory = scratch();
        let _small = Small::mount("64m,nr_inodes=300", directory.path());
        let primary = Sink::closed();
        let mut daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        assert_eq!(send(&daemon, &["x@example.test"], &Message::new("files", 1, 500)).0, 250);
        let others = directory.path().join("others");
        fs::create_dir(&others).unwrap();
        let made = (0..).take_while(|n| fs::write(others.join(n.to_string()), "").is_ok()).count();
        assert!(made > 100, "{made}");
        let (code, text) = send(&daemon, &["x@example.test"], &Message::new("files", 2, 500));
        assert_eq!(code, 452, "{text}");
        assert_eq!(daemon.get("/healthz").0, 503);
        let status = cli(&daemon.data, &["status"]).out;
        assert!(status.contains("hardly a file left to be made"), "{status}");
        fs::remove_dir_all(&others).unwrap();
        assert_eq!(send(&daemon, &["x@example.test"], &Message::new("files", 3, 500)).0, 250);
        assert_eq!(daemon.get("/healthz").0, 200);
        daemon.stop();
    }

    /// Others fill the disk to its last byte.
    fn fill(directory: &Path) {
        let (ballast, piece) = (directory.join("ballast"), vec![1; 1 << 20]);
        let mut file = fs::OpenOptions::new().create(true).append(true).open(ballast).unwrap();
        use std::io::Write as _;
        while file.write_all(&piece).is_ok() {}
        while file.write_all(b"1").is_ok() {}
    }

    #[test]
    fn a_disk_that_is_full_under_load_takes_no_mail_loses_none_and_still_lets_it_go() {
        let directory = scratch();
        let _small = Small::mount("256m", directory.path());
        let data = directory.path().join("data");
        // Most of it is taken before: to fill all of it by SMTP would only take longer.
        fs::write(directory.path().join("ballast"), vec![1; 150 << 20]).unwrap();
        let mut primary = Sink::closed().digests_only();
        let mut daemon = Serve::new(&data, primary.port).start();
        eventually("the reserve", || data.join("reserve").exists().then_some(()));
        let address = daemon.smtp;
        let clients: Vec<_> = (0..6)
            .map(|client: u64| {
                std::thread::spawn(move || {
                    let (mut connection, mut promised) = (Client::ehlo(address), Vec::new());
                    for n in 0.. {
                        let message = Message::new("disk", client << 32 | n, 30_000);
                        let to = if client & 1 == 0 { "box@example.test" } else { "later@example.test" };
                        let reply = connection.send("a@example.net", &[to], &message.content).unwrap();
                        if reply.code == 452 {
                            return promised;
                        }
                        queued_id(&reply);
                        promised.push((to, message.message_id));
                    }
                    promised
                })
            })
            .collect();
        let promised: Vec<(&str, String)> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert!(promised.len() > 1_000, "{}", promised.len());
        let status = cli(&data, &["status"]).expect_code(10);
        assert!(status.out.contains("NOT accepting mail: the disk has "), "{}", status.out);
        assert_eq!(daemon.get("/healthz").0, 503);

        // Others take what was left, to the last byte, beside the daemon. What an operator says and what is delivered is
        // recorded all the same.
        fill(directory.path());
        let later = |verb: &str| {
            let held = ["queue", verb, "--to", "later@example.test", "--reason", "the disk is full"];
            cli(&data, &held).expect_code(0);
        };
        later("hold");
        primary.open();
        let pending =
            || cli(&data, &["status", "--json"]).json()[1]["pending"].as_u64().and_then(|n| usize::try_from(n).ok());
        let held = promised.len() - promised.iter().filter(|(to, _)| *to == "box@example.test").count();
        eventually("the others gone", || (pending()? == held).then_some(()));
        assert!(held > 100 && primary.count() == promised.len() - held, "{held} are held");
        daemon.kill9();
        let account = cli(&data, &["verify", "--json"]).expect_code(0).account();
        assert_eq!((&account["pending"], &account["sent"]), (&held.into(), &primary.count().into()), "{account}");

        // A start finds not one byte, whatever a kill gave back.
        fill(directory.path());
        let mut daemon = Serve::new(&data, primary.port).start();
        assert_eq!(send(&daemon, &["box@example.test"], &Message::new("late", 1, 500)).0, 452);
        later("release");
        daemon.wait_until_empty();
        let status = cli(&data, &["verify", "--json"]).expect_code(0).account();
        assert_eq!((&status["pending"], &status["sent"]), (&0.into(), &promised.len().into()), "{status}");

        fs::remove_file(directory.path().join("ballast")).unwrap();
        let late = Message::new("late", 2, 500);
        eventually("a 250 when there is room", || (send(&daemon, &["box@example.test"], &late).0 == 250).then_some(()));
        let mut promised: Vec<String> = promised.into_iter().map(|(_, id)| id).chain([late.message_id]).collect();
        daemon.wait_until_empty();
        let mut came: Vec<String> = primary.received().into_iter().map(|received| received.message_id).collect();
        came.sort_unstable();
        promised.sort_unstable();
        assert!(came == promised, "{} came, {} were promised", came.len(), promised.len());
        eventually("the reserve again", || data.join("reserve").exists().then_some(()));
        daemon.stop();
        cli(&data, &["verify"]).expect_code(0);
    }
}
