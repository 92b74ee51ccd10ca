//! What the DNS said last, and for how long that is gone by.

use super::*;

fn question(n: usize) -> Question {
    Question::Mx(format!("{n}.test"))
}

fn answer() -> Answer {
    Answer::Mx(vec![Mx { preference: 10, exchange: "mail.test".to_owned() }])
}

#[test]
fn the_last_answer_helps_while_the_dns_is_down_and_not_for_ever() {
    let (mut last, start) = (LastGood::default(), Instant::now());
    let no = || "no answer".to_owned();
    assert_eq!(last.instead_of(question(1), no(), start), Err(no()));
    assert_eq!(last.instead_of_asking(&question(1), start), Some(Err(no())), "twenty couriers ask once");
    assert_eq!(last.instead_of_asking(&question(1), start + ASK_AGAIN_WITHOUT), None);
    last.learn(question(1), answer(), start);
    // As long as it answers, it is asked.
    assert_eq!(last.instead_of_asking(&question(1), start), None);
    let outage = start + Duration::from_secs(86_400);
    assert_eq!(last.instead_of(question(1), no(), outage), Ok(answer()));
    // Not with every connection, but soon again.
    assert_eq!(last.instead_of_asking(&question(1), outage + ASK_AGAIN / 2), Some(Ok(answer())));
    assert_eq!(last.instead_of_asking(&question(1), outage + ASK_AGAIN), None);
    assert_eq!(last.instead_of(question(1), no(), start + LAST_GOOD_MAX), Err(no()));
}

#[test]
fn that_there_was_nothing_is_no_answer_to_go_by() {
    let (mut last, now) = (LastGood::default(), Instant::now());
    for nothing in [Answer::NoSuchName, Answer::Addresses(Vec::new(), None)] {
        last.learn(question(1), nothing, now);
        assert!(last.instead_of(question(1), "no answer".to_owned(), now).is_err());
    }
    // But no MX record is one: the domain is its own host.
    last.learn(question(1), Answer::Mx(Vec::new()), now);
    assert_eq!(last.instead_of(question(1), String::new(), now), Ok(Answer::Mx(Vec::new())));
}

#[test]
fn what_is_remembered_is_bounded_and_the_oldest_goes() {
    let (mut last, start) = (LastGood::default(), Instant::now());
    for n in 0..=LAST_GOOD_COUNT_MAX {
        last.learn(question(n), answer(), start + Duration::from_millis(n as u64));
    }
    assert_eq!(last.0.len(), LAST_GOOD_COUNT_MAX);
    let now = start + Duration::from_secs(60);
    let mut ask = |n| last.instead_of(question(n), "no answer".to_owned(), now);
    assert_eq!((ask(LAST_GOOD_COUNT_MAX), ask(1), ask(0)), (Ok(answer()), Ok(answer()), Err("no answer".to_owned())));
    assert_eq!(last.0.len(), LAST_GOOD_COUNT_MAX);
}

/// Asked for over the wire, as the daemon does.
#[path = "../../../../tests/harness/dns.rs"]
#[expect(unreachable_pub, reason = "it is the one of the integration tests")]
mod server;

async fn follow(dns: &Arc<Dns>, domains: &[&str]) -> String {
    let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
    let ourselves = Ourselves { listen: vec!["127.0.9.9:2525".parse().unwrap()] };
    match dns.next_hosts(&domains, "mx2.example.test", &ourselves).await {
        Ok(hosts) => {
            hosts.iter().map(|next| format!("{}{:?}", next.host, next.addresses)).collect::<Vec<_>>().join(" ")
        }
        Err(why) => why.to_string(),
    }
}

#[tokio::test]
async fn what_the_dns_says_is_understood() {
    let server = server::Dns::start();
    let dns = Dns::new(vec![server.address], 7);
    server.mx("a.test", &[(20, "mx2.example.test"), (10, "Mail.A.test"), (5, "old.a.test")]);
    server.addresses("mail.a.test", &["192.0.2.1", "2001:db8::1", "192.0.2.3"]);
    server.alias("old.a.test", "mail.a.test");
    assert_eq!(
        follow(&dns, &["a.test"]).await,
        "old.a.test[2001:db8::1, 192.0.2.1] mail.a.test[2001:db8::1, 192.0.2.1]",
        "an MX that is an alias is forbidden, and common"
    );
    // We, by an alias; by an address that we listen on; by an address that the DNS has for our name.
    server.addresses("mx2.example.test", &["192.0.2.77"]);
    server.alias("alias.test", "mx2.example.test");
    server.addresses("listener.test", &["127.0.9.9"]);
    server.addresses("translated.test", &["192.0.2.77"]);
    for (us, how) in [
        ("alias.test", "another name of mx2.example.test, our own name"),
        ("listener.test", "which is at 127.0.9.9, where we listen"),
        ("translated.test", "which is at 192.0.2.77, as mx2.example.test is, our own name"),
    ] {
        server.mx("b.test", &[(10, us), (20, "mail.a.test")]);
        let said = follow(&Dns::new(vec![server.address], 7), &["b.test"]).await;
        assert_eq!(said, format!("the MX of b.test leads back to us: nobody is preferred over {us}, {how}"));
    }
    // Where our name tells our rank, a name whose address is the primary's by mistake does no harm.
    server.mx("c.test", &[(10, "translated.test"), (20, "mx2.example.test")]);
    assert_eq!(follow(&dns, &["c.test"]).await, "translated.test[192.0.2.77]");
    server.mx("null.test", &[(0, ".")]);
    assert_eq!(follow(&dns, &["null.test"]).await, NoHop::NullMx("null.test".into()).to_string());
    assert_eq!(follow(&dns, &["nobody.test"]).await, NoHop::NoDomain("nobody.test".into()).to_string());
    // Without a record, and as an alias.
    server.addresses("implicit.test", &["192.0.2.5"]);
    server.alias("www.implicit.test", "implicit.test");
    assert_eq!(follow(&dns, &["implicit.test"]).await, "implicit.test[192.0.2.5]");
    assert_eq!(follow(&dns, &["www.implicit.test"]).await, "www.implicit.test[192.0.2.5]");
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_is_read_whole() {
    let server = server::Dns::start();
    let hosts: Vec<String> = (0..16).map(|n| format!("a-rather-long-name-of-a-mail-host-{n}.provider.test")).collect();
    let mut records: Vec<(u16, &str)> = hosts.iter().map(|host| (30, host.as_str())).collect();
    records.push((10, "last.provider.test"));
    server.mx("a.test", &records);
    server.addresses("last.provider.test", &["192.0.2.1"]);
    let dns = Dns::new(vec![server.address], 7);
    assert_eq!(follow(&dns, &["a.test"]).await, "last.provider.test[192.0.2.1]");
}

#[tokio::test]
async fn domains_of_one_route_that_part_ways_are_named() {
    let server = server::Dns::start();
    for n in 0..40 {
        server.mx(&format!("d{n}.test"), &[(10, "mail.test"), (20, "mx2.example.test")]);
    }
    server.addresses("mail.test", &["192.0.2.1"]);
    server.addresses("other.test", &["192.0.2.2"]);
    let names: Vec<String> = (0..40).map(|n| format!("d{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(follow(&Dns::new(vec![server.address], 7), &names).await, "mail.test[192.0.2.1]");
    // One that expired goes along; it has no primary of its own.
    let with_expired: Vec<&str> = ["expired.test"].into_iter().chain(names.iter().copied()).collect();
    assert_eq!(follow(&Dns::new(vec![server.address], 7), &with_expired).await, "mail.test[192.0.2.1]");
    server.mx("d31.test", &[(10, "other.test")]);
    assert_eq!(
        follow(&Dns::new(vec![server.address], 7), &names).await,
        "d0.test goes to mail.test, d31.test to other.test: one route has one primary, so give each a route of its own"
    );
}

#[tokio::test]
async fn while_the_dns_is_down_the_last_answer_leads_the_way() {
    let server = server::Dns::start();
    server.mx("a.test", &[(10, "mail.test")]);
    server.addresses("mail.test", &["192.0.2.1"]);
    let dns = Dns::new(vec![server.address], 7);
    server.breaks(true);
    let why = follow(&dns, &["a.test"]).await;
    assert!(why.starts_with("look up a.test: "), "{why}");
    server.breaks(false);
    // As when a moment has passed.
    dns.last().0.clear();
    assert_eq!(follow(&dns, &["a.test"]).await, "mail.test[192.0.2.1]");
    server.breaks(true);
    // As when the answers in the cache have had their time.
    *dns.resolver.lock().unwrap() = None;
    let asked = server.asked("a.test");
    assert_eq!(follow(&dns, &["a.test"]).await, "mail.test[192.0.2.1]");
    assert!(server.asked("a.test") > asked);
    let asked = server.asked("a.test");
    assert_eq!(follow(&dns, &["a.test"]).await, "mail.test[192.0.2.1]");
    assert_eq!(server.asked("a.test"), asked, "not asked again with every connection");
}

#[tokio::test]
async fn servers_that_are_others_now_are_asked() {
    let server = server::Dns::start();
    server.addresses("a.test", &["192.0.2.1"]);
    let dns = Dns::new(vec![server.address], 7);
    // As of a machine that came up without a network.
    let nobody = build(ResolverConfig::from_name_servers(Vec::new())).unwrap();
    *dns.resolver.lock().unwrap() = Some((nobody, "nobody".to_owned()));
    let why = follow(&dns, &["a.test"]).await;
    assert!(why.starts_with("look up a.test: "), "{why}");
    dns.last().0.clear();
    assert_eq!(follow(&dns, &["a.test"]).await, "a.test[192.0.2.1]");
}
