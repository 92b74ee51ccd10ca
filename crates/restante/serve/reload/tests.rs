//! What a change of a recipients file leads to, look by look.

use super::*;
use crate::cli::journal::testing;
use crate::serve::journal::{self, Recorded};
use crate::serve::reserve::Reserve;
use restante_relay::Loads;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

const TOML: &str = "hostname = \"mx2.example.net\"\n[[route]]\nname = \"office\"\ndomains = [\"a.test\"]\n\
                    primary = [\"h.test\"]\nrecipients = [\"boss@a.test\", \"file:list\"]\n";

fn config(dir: &Path, toml: &str) -> Config {
    config::check_text(&dir.join("restante.toml"), toml).unwrap()
}

fn replace(dir: &Path, text: &str) {
    fs::write(dir.join("new"), text).unwrap();
    fs::rename(dir.join("new"), dir.join("list")).unwrap();
}

#[test]
fn a_list_is_read_when_it_is_at_rest_and_a_bad_one_is_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list"), "x@a.test\n").unwrap();
    let mut routes = config(dir.path(), TOML).routes;
    let mut watched = Watched::default();
    let mut look = |routes: &mut Vec<Route>| watched.look(routes);
    for _ in 0..3 {
        assert_eq!(look(&mut routes), []);
    }
    replace(dir.path(), "x@a.test\ny@a.test\n");
    assert_eq!(look(&mut routes), [], "it may still be written");
    assert_eq!(look(&mut routes), [Ok("route office: 3 recipients (was 2)".to_owned())]);
    assert_eq!(look(&mut routes), []);
    let good = routes.clone();
    let list = dir.path().join("list").display().to_string();
    let kept = "route office: the recipients stay as they were, 3 recipients: ";
    for (bad, why) in [
        (
            "x@a.test\n\nx@b.test\nz\n",
            format!(
                "{list}:3: `x@b.test` is in no domain of this route (move it, or add its domain), and 1 more bad lines"
            ),
        ),
        ("# nobody\n", format!("{list} has no address any more; if that is meant, run `restante reload`")),
    ] {
        replace(dir.path(), bad);
        assert_eq!(look(&mut routes), []);
        assert_eq!(look(&mut routes), [Err(format!("{kept}{why}"))]);
        for _ in 0..3 {
            assert_eq!((look(&mut routes), &routes), (vec![], &good), "told once, and nothing is changed");
        }
    }
    fs::remove_file(dir.path().join("list")).unwrap();
    look(&mut routes);
    let gone = look(&mut routes);
    assert!(matches!(&gone[..], [Err(why)] if why.contains("No such file")), "{gone:?}");
    replace(dir.path(), "z@a.test\n");
    look(&mut routes);
    assert_eq!(look(&mut routes), [Ok("route office: 2 recipients (was 3)".to_owned())]);
}

#[test]
fn the_advice_on_an_emptied_list_is_none_that_reload_refuses() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list"), "x@a.test\n").unwrap();
    let mut route = config(dir.path(), TOML).routes.remove(0);
    replace(dir.path(), "");
    let list = [dir.path().join("list")];
    assert!(config::read_recipients(&route, &list).unwrap_err().ends_with("run `restante reload`"));
    route.listed.retain(|listed| matches!(listed, Listed::File(..)));
    let why = config::read_recipients(&route, &list).unwrap_err();
    assert!(why.ends_with("a route that takes no mail is removed from the configuration instead"), "{why}");
}

#[test]
fn the_same_addresses_in_another_order_are_no_change() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list"), "x@a.test\ny@a.test\n").unwrap();
    let mut routes = config(dir.path(), TOML).routes;
    let mut watched = Watched::default();
    replace(dir.path(), "Y@a.test\nx@a.test # first\n");
    assert_eq!(
        (watched.look(&mut routes), watched.look(&mut routes), watched.look(&mut routes)),
        (vec![], vec![], vec![])
    );
}

#[test]
fn changes_are_told_in_words() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list"), "x@a.test\n").unwrap();
    let old = config(dir.path(), TOML);
    assert_eq!((changes::in_words(&old, &old), changes::after_restart(&old, &old)), (vec![], vec![]));
    let new = "hostname = \"mx3.example.net\"\n[smtp]\nlisten = [\"[::]:2525\"]\nxclient = [\"192.0.2.1\"]\n[limits]\nmax_connections = 9\nmessages_per_minute = 5\n\
               [[route]]\nname = \"office\"\ndomains = [\"b.test\"]\nprimary = [\"i.test:26\"]\n\
               [[route]]\nname = \"lab\"\ndomains = [\"a.test\", \"c.test\"]\nprimary = [\"h.test\"]\n";
    let new = config(dir.path(), new);
    let words = [
        "route office: primary h.test:25 -> i.test:26",
        "route office: takes mail for b.test",
        "route office: takes no more mail for a.test",
        "route office: any recipient (was 2)",
        "route lab: new, a.test, c.test to h.test:25, any recipient",
        "max_connections: 2500 -> 9",
        "messages_per_minute: 6000 -> 5",
    ];
    assert_eq!(changes::in_words(&old, &new), words);
    assert!(
        changes::in_words(&new, &old)
            .contains(&"route lab: removed; what is pending for it waits until it is back".to_owned())
    );
    let later = [
        "hostname (mx2.example.net -> mx3.example.net)",
        "[smtp] listen ([::]:25 -> [::]:2525)",
        "[smtp] xclient ( -> 192.0.2.1/32)",
    ];
    assert_eq!(changes::after_restart(&old, &new), later);
}

#[test]
fn routes_that_met_a_full_disk_are_offered_until_the_journal_knows_them() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("list"), "x@a.test\n").unwrap();
        let config = config(dir.path(), TOML);
        let full_data = tempfile::tempdir().unwrap();
        let (full, offered) = Journal::full(testing::writer(full_data.path()));
        let reserve = Arc::new(Reserve::in_directory(dir.path()));
        let parts = Parts {
            routes: watch::channel(table(&config.routes).unwrap()).0,
            limits: watch::channel(config.limits.clone()).0,
            relay: mpsc::channel(1).0,
            journal: full,
            metrics: Arc::default(),
            tls: Tls::new(None, dir.path(), "mx2.example.net").unwrap(),
            space: Arc::new(Space::new(dir.path().to_owned(), Loads::default(), Rules::of(&config), reserve.clone())),
            stopping: watch::channel(false).1,
        };
        let hangups = crate::serve::shutdown::hangups().unwrap();
        let means = Means { flags: Flags::default(), hangups, courier: Settings::new("mx2.test".into()) };
        let mut reloading = Reloading::new(config, means, parts, mpsc::channel(1).1);
        reloading.record().await;
        for _ in 0..2 {
            reloading.look().await;
        }
        assert_eq!((reloading.unrecorded, offered.load(Ordering::Relaxed)), (Some(Refused::Full), 3));
        let (sender, mut facts) = mpsc::channel(8);
        let data = tempfile::tempdir().unwrap();
        let (journal, thread) =
            journal::start(testing::writer(data.path()), sender, Arc::new(Reserve::in_directory(data.path()))).unwrap();
        reloading.parts.journal = journal.clone();
        for _ in 0..2 {
            reloading.look().await;
        }
        journal.close();
        assert!(matches!(&facts.recv().await.unwrap()[..], [Recorded { fact: Fact::Served(_), .. }]));
        assert!(facts.recv().await.is_none() && reloading.unrecorded.is_none(), "known, and offered again");
        thread.join().unwrap().unwrap();
    });
}
