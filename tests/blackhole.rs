//! A hundred routes, and the primary of one swallows every packet: the mail of the others must not notice. In a network namespace of
//! its own, where that primary's address leads into nothing; the test runs itself there once more.

use crate::harness::client::Message;
use crate::harness::{Client, Serve, Sink, queued_id, require_root, run, scratch};
use std::fmt::Write as _;
use std::process::Command;

const ROUTES: u64 = 99;
const EACH: u64 = 5;
/// Nobody answers there, not even to say that nobody is there: packets go to a card that is not the one they are meant for.
const NETWORK: &str = "ip link set lo up \
     && ip link add hole type veth peer name nowhere && ip addr add 192.0.2.10/24 dev hole \
     && ip link set hole up && ip link set nowhere up \
     && ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev hole nud permanent";

mod needs_root {
    use super::*;

    #[test]
    fn a_primary_that_swallows_packets_delays_nobody_else() {
        require_root();
        let mut inside = Command::new("unshare");
        let script = format!("{NETWORK} && exec \"$0\" \"$@\"");
        inside.args(["-n", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
        inside.args(["--exact", "blackhole::needs_root::inside_of_the_namespace", "--ignored", "--nocapture"]);
        let done = run(&mut inside).expect_code(0);
        assert!(done.out.contains("1 passed"), "{}", done.out);
    }

    #[test]
    #[ignore = "run by the other test of this module, in a network namespace"]
    fn inside_of_the_namespace() {
        let directory = scratch();
        let primary = Sink::opened();
        let mut file = format!(
            "hostname = \"mx2.example.test\"\n[smtp]\nlisten = [\"127.0.0.1:0\"]\n[journal]\ndir = \"{}\"\n",
            directory.path().join("data").display()
        );
        for n in 0..ROUTES {
            let _ = writeln!(file, "[[route]]\ndomains = [\"d{n}.test\"]\nprimary = [\"127.0.0.1:{}\"]", primary.port);
        }
        file.push_str("[[route]]\nname = \"hole\"\ndomains = [\"hole.test\"]\nprimary = [\"192.0.2.1:25\"]\n");
        let path = directory.path().join("restante.toml");
        std::fs::write(&path, file).unwrap();
        let data = directory.path().join("data");
        let daemon = Serve::by_file(&data, &path).start();
        let mut client = Client::ehlo(daemon.smtp);
        let mut send = |n: u64, to: &str| {
            queued_id(&client.send("a@example.net", &[to], &Message::new("hole", n, 500).content).unwrap());
        };
        for n in 0..ROUTES * EACH {
            if n % 5 == 0 {
                send(1_000_000 + n, "a@hole.test");
            }
            send(n, &format!("a@d{}.test", n % ROUTES));
        }
        primary.wait_for(usize::try_from(ROUTES * EACH).unwrap());
        // Not one probe of it has ended yet: whatever was delivered has waited for none of them.
        let routes = daemon.ask(&["status"]);
        let hole = routes.iter().find(|line| line["name"] == "hole").unwrap();
        assert_eq!((&hole["state"], &hole["reason"]), (&"suspect".into(), &"not probed yet".into()), "{hole}");
        assert_eq!(hole["pending"], ROUTES * EACH / 5, "{hole}");
    }
}
