//! Who stands at the door: too many, too often, silent, slow, behind a proxy, or gone in the middle of a word. Whoever behaves
//! notices nothing of the others.

use crate::harness::client::{Message, connect_from, stuffed};
use crate::harness::{Client, Daemon, Serve, Sink, eventually, queued_id, scratch};
use socket2::SockRef;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// With these sections beside the route.
fn daemon(directory: &Path, sections: &str, primary: u16) -> Daemon {
    let (file, data) = (directory.join("restante.toml"), directory.join("data"));
    let text = format!(
        "hostname = \"mx2.example.test\"\n{sections}\n[[route]]\ndomains = [\"example.test\"]\nprimary = [\"127.0.0.1:{primary}\"]\n"
    );
    fs::write(&file, text).unwrap();
    Serve::by_file(&data, &file).start()
}

fn offer(client: &mut Client, n: u64) -> String {
    let message = Message::new("door", n, 600);
    queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap())
}

fn begin_content(client: &mut Client) {
    for line in ["MAIL FROM:<a@example.net>", "RCPT TO:<box@example.test>", "DATA"] {
        assert!(client.command(line).unwrap().code < 400);
    }
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric("restante_smtp_connections_refused_total", &format!("reason=\"{reason}\"")).unwrap()
}

/// What is said until the connection ends.
fn last_words(stream: &mut TcpStream) -> String {
    let mut words = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match stream.read_to_end(&mut words) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(words).unwrap(),
    }
}

#[test]
fn a_house_full_of_silent_clients_has_a_place_for_one_who_speaks_and_full_of_busy_ones_it_has_not() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "[limits]\nmax_connections = 12", primary.port);
    let mut silent: Vec<TcpStream> = (0..12).map(|_| Client::ehlo(daemon.smtp).into_stream()).collect();
    // Within its first second a connection is not silent yet.
    for n in 0..20 {
        let mut client = eventually("a place", || Client::connect(daemon.smtp).ok());
        client.hello().unwrap();
        offer(&mut client, n);
        client.command("QUIT").unwrap();
    }
    let sent_off = daemon.metric("restante_smtp_connections_sent_off_total", "").unwrap();
    assert!((1.0..=12.0).contains(&sent_off), "{sent_off}");
    // Who was silent for longest went first, and was told why.
    let words = last_words(&mut silent[0]);
    assert!(words.starts_with("421 4.3.2 ") && words.contains("you were silent"), "{words}");
    drop(silent);
    eventually("an empty house", || (daemon.metric("restante_smtp_connections", "")? == 0.0).then_some(()));
    let busy: Vec<Client> = (0..12)
        .map(|_| {
            let mut client = Client::ehlo(daemon.smtp);
            begin_content(&mut client);
            client.raw(&[b'x'; 2_000]).unwrap();
            client
        })
        .collect();
    let before = refused(&daemon, "total");
    let why = Client::connect(daemon.smtp).err().map(|error| error.to_string());
    assert!(why.as_deref().is_some_and(|why| why.contains("421 4.3.2") && why.contains("is full")), "{why:?}");
    assert_eq!(refused(&daemon, "total"), before + 1.0);
    drop(busy);
    daemon.stop();
}

#[test]
fn a_house_full_of_clients_that_take_no_reply_has_a_place_too() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "[limits]\nmax_connections = 4", primary.port);
    // Each transaction is taken, so that the session never comes to its end; its replies are a megabyte.
    let recipients = "RCPT TO:<box@example.test>\r\n".repeat(10_900);
    let cycle = format!("MAIL FROM:<a@example.net>\r\n{recipients}DATA\r\nSubject: x\r\n\r\n.\r\n");
    let deaf: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = Client::ehlo(daemon.smtp).into_stream();
            SockRef::from(&stream).set_recv_buffer_size(2_048).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // It reads no more of ours before we read some of its own.
            while stream.write_all(cycle.as_bytes()).is_ok() {}
            stream
        })
        .collect();
    let open: Vec<Client> = (0..4).map(|_| eventually("a place", || Client::connect(daemon.smtp).ok())).collect();
    eventually("as many as the house has places", || {
        (daemon.metric("restante_smtp_connections", "")? <= 4.0).then_some(())
    });
    assert_eq!(daemon.metric("restante_smtp_connections_sent_off_total", ""), Some(4.0));
    drop((deaf, open));
    daemon.stop();
}

#[test]
fn a_flood_that_takes_all_descriptors_passes_and_is_told_once() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "", primary.port);
    let soft_limit = |files: &str| {
        let (pid, files) = (daemon.pid().to_string(), format!("--nofile={files}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &files]).status().unwrap().success());
    };
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let open: Vec<u64> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The first that is free is beyond the limit.
    soft_limit(&(0..).find(|file| !open.contains(file)).unwrap().to_string());
    let flood: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(daemon.smtp).unwrap()).collect();
    let told = || daemon.stderr().matches("cannot accept connections").count();
    eventually("what is told of it", || (told() > 0).then_some(()));
    soft_limit("1024");
    drop(flood);
    let mut client = eventually("a place", || Client::connect(daemon.smtp).ok());
    client.hello().unwrap();
    offer(&mut client, 1);
    assert_eq!(told(), 1);
    assert!(refused(&daemon, "total") > 0.0);
    daemon.stop();
}

#[test]
fn one_network_may_not_have_or_do_more_than_its_part_and_its_neighbour_notices_nothing() {
    let directory = scratch();
    let primary = Sink::closed();
    let limits = "[limits]\nexempt = []\nper_client_connections = 2\nper_network_connections = 3\nconnections_per_minute = 6\n\
        messages_per_minute = 4";
    let mut daemon = daemon(directory.path(), limits, primary.port);
    let from = |last: [u8; 2]| connect_from([127, 0, last[0], last[1]], daemon.smtp).and_then(Client::over);
    let why = |last: [u8; 2]| from(last).err().map(|error| error.to_string()).unwrap_or_default();
    let mut inside = vec![from([1, 1]).unwrap(), from([1, 1]).unwrap()];
    assert!(why([1, 1]).contains("421 4.7.0") && why([1, 1]).contains("from your address"));
    inside.push(from([1, 2]).unwrap());
    assert!(why([1, 3]).contains("421 4.7.0") && why([1, 3]).contains("from your network"));
    inside.clear();
    eventually("its places", || (daemon.metric("restante_smtp_connections", "")? == 0.0).then_some(()));
    // Three of six were used: what was turned away for its number did not count.
    for _ in 0..3 {
        drop(from([1, 4]).unwrap());
        eventually("its place", || (daemon.metric("restante_smtp_connections", "")? == 0.0).then_some(()));
    }
    assert!(why([1, 5]).contains("421 4.7.0") && why([1, 5]).contains("a minute"), "{}", why([1, 5]));
    for (reason, least) in [("client", 2.0), ("network", 2.0), ("rate", 2.0), ("total", 0.0)] {
        assert_eq!(refused(&daemon, reason), least, "{reason}");
    }
    let told = |daemon: &Daemon| {
        let lines = daemon.ask(&["log"]);
        lines.into_iter().filter(|line| line["ev"] == "rejected" && line["stage"] == "connect").collect::<Vec<_>>()
    };
    let lines = eventually("the line in the log", || Some(told(&daemon)).filter(|lines| !lines.is_empty()));
    assert_eq!((lines.len(), &lines[0]["code"]), (1, &421.into()), "once a minute for a network: {lines:?}");

    // The neighbour; then mail: the fifth message of a minute.
    let mut neighbour = from([2, 1]).unwrap();
    neighbour.hello().unwrap();
    (0..4).for_each(|n| drop(offer(&mut neighbour, n)));
    let reply = neighbour.command("MAIL FROM:<a@example.net>").unwrap();
    assert!(reply.code == 450 && reply.text().contains("4.7.1") && reply.text().contains("minute"), "{}", reply.text());
    let mut other = from([3, 1]).unwrap();
    other.hello().unwrap();
    offer(&mut other, 9);
    daemon.stop();
}

#[test]
fn a_balancer_says_whose_connection_it_is_and_nobody_else_does() {
    let directory = scratch();
    let primary = Sink::closed();
    let sections =
        "[smtp]\nproxy = [\"127.0.9.0/24\"]\nxclient = [\"127.0.8.0/23\"]\n[limits]\nper_client_connections = 1";
    let mut daemon = daemon(directory.path(), sections, primary.port);
    let connect = |last: [u8; 2], header: &[u8]| {
        let mut stream = connect_from([127, 0, last[0], last[1]], daemon.smtp).unwrap();
        stream.write_all(header).unwrap();
        stream
    };
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x08\x7f\0\0\x01\x10\xe1\0\x19";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let client_of = |daemon: &Daemon, id: &str| {
        eventually("its line in the log", || {
            let lines = daemon.ask(&["log"]);
            let line = lines.iter().find(|line| line["id"] == id && line["ev"] == "accepted")?;
            Some(line["client_ip"].as_str()?.to_owned())
        })
    };
    let mut open = Vec::new();
    for (n, (header, client)) in (0..).zip([
        (&b"PROXY TCP4 203.0.113.7 127.0.0.1 4321 25\r\n"[..], "203.0.113.7"),
        (v2, "203.0.113.8"),
        (b"PROXY TCP6 2001:db8::7 ::1 4321 25\r\n", "2001:db8::7"),
        (local, "127.0.9.1"),
    ]) {
        let mut behind = Client::over(connect([9, 1], header)).unwrap();
        behind.hello().unwrap();
        let id = offer(&mut behind, n);
        assert_eq!(client_of(&daemon, &id), client);
        open.push(behind);
    }
    // The limits are those of the client, not of the balancer; the balancer's own are exempt here.
    let header = b"PROXY TCP4 203.0.113.7 127.0.0.1 4322 25\r\n";
    let why = Client::over(connect([9, 1], header)).err().unwrap().to_string();
    assert!(why.contains("421 4.7.0") && why.contains("from your address"), "{why}");
    // A balancer without a header is none, and gets no greeting.
    assert_eq!(last_words(&mut connect([9, 2], b"EHLO client.example.net\r\n")), "");
    // From elsewhere it is no header but talk before the greeting, or a command nobody knows.
    let mut elsewhere = connect([7, 1], header);
    elsewhere.shutdown(Shutdown::Write).unwrap();
    let words = last_words(&mut elsewhere);
    assert!(words.starts_with("554 5.5.0 ") || words.contains("\r\n500 5.5.1 "), "{words}");
    let mut stranger = Client::ehlo(daemon.smtp);
    assert_eq!(stranger.command("PROXY TCP4 203.0.113.7 127.0.0.1 4322 25").unwrap().code, 500);
    assert_eq!(stranger.command("XCLIENT ADDR=203.0.113.9").unwrap().code, 550);

    let mut proxy = Client::over(connect([8, 1], b"")).unwrap();
    proxy.hello().unwrap();
    assert!(proxy.extensions.iter().any(|extension| extension.starts_with("XCLIENT ")));
    assert_eq!(proxy.command("XCLIENT ADDR=203.0.113.9 PORT=99").unwrap().code, 220);
    proxy.hello().unwrap();
    let id = offer(&mut proxy, 9);
    assert_eq!(client_of(&daemon, &id), "203.0.113.9");
    // Who comes through a balancer that might say XCLIENT itself may not, but where he himself is named.
    for (client, may) in [("203.0.113.10", false), ("127.0.8.2", true)] {
        let header = format!("PROXY TCP4 {client} 127.0.0.1 4323 25\r\n");
        let mut behind = Client::over(connect([9, 1], header.as_bytes())).unwrap();
        behind.hello().unwrap();
        assert_eq!(behind.extensions.iter().any(|extension| extension.starts_with("XCLIENT ")), may, "{client}");
    }
    daemon.stop();
}

#[test]
fn who_shuts_his_side_behind_the_final_dot_still_hears_his_250() {
    let directory = scratch();
    let primary = Sink::opened();
    let mut daemon = daemon(directory.path(), "", primary.port);
    let message = Message::new("half", 1, 3_000);
    let mut stream = Client::ehlo(daemon.smtp).into_stream();
    let mut all = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<box@example.test>\r\nBDAT ".to_vec();
    all.extend(format!("{} LAST\r\n", message.content.len()).bytes());
    all.extend(&message.content);
    stream.write_all(&all).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let words = last_words(&mut stream);
    assert!(words.lines().last().is_some_and(|last| last.starts_with("250 2.0.0 Ok: queued as ")), "{words}");
    primary.wait_for(1);
    assert_eq!(primary.received()[0].sha256, crate::harness::client::sha256(&message.content));
    daemon.stop();
}

#[test]
fn a_reset_in_the_middle_of_content_leaves_nothing_behind() {
    let directory = scratch();
    let primary = Sink::opened();
    let mut daemon = daemon(directory.path(), "", primary.port);
    let whole = Message::new("reset", 1, 400 << 10);
    for cut in [0, 10, 5_000, 300 << 10] {
        let mut client = Client::ehlo(daemon.smtp);
        begin_content(&mut client);
        client.raw(&stuffed(&whole.content)[..cut]).unwrap();
        let stream = client.into_stream();
        // A reset instead of an end.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
    }
    eventually("an empty house", || (daemon.metric("restante_smtp_connections", "")? == 0.0).then_some(()));
    let blobs = directory.path().join("data/blob");
    eventually("no part of a blob", || (fs::read_dir(&blobs).map_or(0, Iterator::count) == 0).then_some(()));
    offer(&mut Client::ehlo(daemon.smtp), 2);
    primary.wait_for(1);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 1);
    daemon.stop();
}

/// Writes pieces until the connection ends; false if a thousand were read.
fn until_closed(stream: &mut TcpStream, piece: &[u8]) -> bool {
    (0..1_000).any(|_| stream.write_all(piece).is_err())
}

fn assert_it_stayed_small(daemon: &Daemon) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(most.is_some_and(|kib: u64| kib < 64 << 10), "{most:?} KiB at most");
}

#[test]
fn ten_thousand_recipients_are_a_thousand_and_the_rest_is_put_off() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "", primary.port);
    let mut client = Client::ehlo(daemon.smtp);
    assert_eq!(client.command("MAIL FROM:<a@example.net>").unwrap().code, 250);
    let mut codes = [0_u32; 2];
    for block in 0..100 {
        let lines: String = (0..100).map(|n| format!("RCPT TO:<box{block}-{n}@example.test>\r\n")).collect();
        client.raw(lines.as_bytes()).unwrap();
        for _ in 0..100 {
            codes[usize::from(client.reply().unwrap().code == 452)] += 1;
        }
    }
    assert_eq!(codes, [1_000, 9_000]);
    assert_eq!(client.command("RSET").unwrap().code, 250);
    offer(&mut client, 1);
    assert_it_stayed_small(&daemon);
    daemon.stop();
}

#[test]
fn a_command_line_without_an_end_ends_the_connection_and_costs_no_memory() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "", primary.port);
    let mut stream = Client::ehlo(daemon.smtp).into_stream();
    assert!(until_closed(&mut stream, &[b'x'; 64 << 10]), "64 MiB of one command line were read");
    offer(&mut Client::ehlo(daemon.smtp), 1);
    assert_it_stayed_small(&daemon);
    daemon.stop();
}

#[test]
fn a_header_without_an_end_is_refused_at_the_end_of_the_content_or_ends_the_connection() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = daemon(directory.path(), "[smtp]\nmax_message_size = \"2MiB\"", primary.port);
    let mut client = Client::ehlo(daemon.smtp);
    begin_content(&mut client);
    let field = b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    let reply = client.content(&field.repeat(20_000)).unwrap();
    assert!(reply.code == 552 && reply.text().contains("5.3.4"), "{}", reply.text());
    offer(&mut client, 1);
    // More than twice the largest message is not even read to be dropped.
    begin_content(&mut client);
    assert!(until_closed(&mut client.into_stream(), &field.repeat(1_000)), "66 MiB of one header were read");
    offer(&mut Client::ehlo(daemon.smtp), 2);
    assert_it_stayed_small(&daemon);
    daemon.stop();
}
