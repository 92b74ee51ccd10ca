//! Whom MX records lead to, case by case, and what no records may ever do: lead to us, or to whoever comes behind us.

use super::*;
use proptest::prelude::*;

const US: &str = "mx2.example.net";
const OUR_ADDRESS: &str = "192.0.2.2";

fn mx(records: &[(u16, &str)]) -> Vec<Mx> {
    records.iter().map(|(preference, host)| Mx { preference: *preference, exchange: (*host).to_owned() }).collect()
}

/// A DNS in which `hN...` is at 198.51.100.N, `alias` is us, `none` has no address, and `lost` nobody knows.
fn look_up(host: &str) -> Result<Vec<IpAddr>, String> {
    match host.split('.').next().unwrap_or_default() {
        "alias" => Ok(vec![OUR_ADDRESS.parse().unwrap()]),
        "none" => Ok(Vec::new()),
        "lost" => Err("no answer".to_owned()),
        host => {
            let n = host.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u8>().unwrap_or(200);
            Ok(vec![IpAddr::from([198, 51, 100, n])])
        }
    }
}

fn resolved(hosts: &[Mx]) -> Vec<Resolved> {
    let resolve = |mx: &Mx| {
        let addresses = look_up(&mx.exchange);
        let is_us = addresses.iter().flatten().any(|address| *address == OUR_ADDRESS.parse::<IpAddr>().unwrap());
        let is_us = is_us.then(|| "at our address".to_owned());
        Resolved { preference: mx.preference, host: mx.exchange.clone(), addresses, is_us }
    };
    hosts.iter().map(resolve).collect()
}

fn follow(records: &[Mx], seed: u64) -> Result<Vec<NextHost>, NoHop> {
    let Candidates { hosts, are_listed } = candidates("example.com", records, US)?;
    preferred("example.com", resolved(&hosts), are_listed).map(|preferred| preferred.in_order(seed))
}

#[test]
fn mail_goes_to_whom_the_records_prefer_over_us() {
    let back = "the MX of example.com leads back to us: nobody is preferred over";
    let only_us = &format!("{back} {US}, our own name");
    let only_alias = &format!("{back} alias.test, at our address");
    let lost = "look up lost.test: no answer";
    for (records, expected) in [
        (&[(10, "h1.test"), (20, US)][..], "h1.test"),
        (&[(20, US), (10, "h1.test"), (5, "h2.test"), (30, "h3.test")], "h2.test h1.test"),
        // At our own preference nobody is preferred over us.
        (&[(10, "h1.test"), (20, US), (20, "h2.test")], "h1.test"),
        // Not listed yet: all of them are.
        (&[(10, "h1.test"), (20, "h2.test")], "h1.test h2.test"),
        (&[(10, "h1.test"), (20, "h1.test"), (30, US)], "h1.test"),
        // Under another name, by our address.
        (&[(10, "h1.test"), (20, "alias.test"), (30, "h2.test")], "h1.test"),
        (&[(5, "alias.test"), (10, "h1.test"), (20, US)], only_alias),
        (&[(10, US)], only_us),
        (&[(10, US), (20, "h1.test")], only_us),
        (&[(10, "alias.test")], only_alias),
        // Without records the domain is its own host.
        (&[], "example.com"),
        (&[(0, "")], "example.com takes no mail at all: its MX record is null (RFC 7505)"),
        (&[(0, ""), (10, "h1.test")], "h1.test"),
        (&[(10, "none.test"), (15, "h1.test"), (20, US)], "h1.test"),
        (&[(10, "none.test"), (20, US)], "no mail host of example.com has an address: none.test"),
        // Whom nobody knows is passed over where we are known not to be him; else he might be us.
        (&[(10, "lost.test"), (15, "h1.test"), (20, US)], "h1.test"),
        (&[(10, "lost.test"), (15, "h1.test"), (20, "alias.test")], "h1.test"),
        (&[(10, "h1.test"), (15, "lost.test"), (20, "h2.test")], "h1.test"),
        (&[(10, "lost.test"), (15, "h1.test")], lost),
        (&[(10, "lost.test"), (20, US)], lost),
    ] {
        let said = match follow(&mx(records), 7) {
            Ok(hosts) => hosts.iter().map(|next| next.host.clone()).collect::<Vec<_>>().join(" "),
            Err(why) => why.to_string(),
        };
        assert_eq!(said, expected, "{records:?}");
    }
    assert!(matches!(candidates(US, &[], US), Err(NoHop::OnlyUs { .. })));
}

#[test]
fn equals_share_the_load_and_a_seed_tells_how() {
    let records = mx(&[(10, "h1.test"), (10, "h2.test"), (10, "h3.test"), (20, "h4.test"), (30, US)]);
    let orders: BTreeSet<Vec<String>> =
        (0..64).map(|seed| follow(&records, seed).unwrap().into_iter().map(|next| next.host).collect()).collect();
    assert_eq!(orders.len(), 6, "each order of three comes: {orders:?}");
    assert!(orders.iter().all(|order| order.last().is_some_and(|last| last == "h4.test")), "{orders:?}");
    assert_eq!(follow(&records, 9), follow(&records, 9));
}

#[test]
fn one_broken_family_does_not_use_up_all_tries() {
    let addresses: Vec<IpAddr> = ["2001:db8::1", "2001:db8::2", "192.0.2.9"].map(|ip| ip.parse().unwrap()).into();
    assert_eq!(in_turn(addresses.clone()), [addresses[0], addresses[2]]);
}

#[test]
fn domains_agree_by_name_or_by_address_and_in_order() {
    let of = |records: &[(u16, &str)]| preferred("a.test", resolved(&mx(records)), true).unwrap();
    let one = of(&[(10, "h1.a.test"), (20, "h2.a.test")]);
    assert!(one.is_as(&of(&[(5, "h1.a.test"), (6, "h2.a.test")])));
    assert!(one.is_as(&of(&[(5, "h1.b.test"), (6, "h2.b.test")])), "other names for the same machines");
    for other in
        [&[(10, "h2.a.test"), (20, "h1.a.test")][..], &[(10, "h1.a.test"), (10, "h2.a.test")], &[(10, "h1.a.test")]]
    {
        assert!(!one.is_as(&of(other)), "{other:?}");
    }
}

proptest! {
    #[test]
    fn we_never_send_to_ourselves_nor_to_anybody_behind_us(
        records in prop::collection::vec((0_u16..6, "(h[0-9]{1,2}|alias|none|lost|mx2)\\.(test|example\\.net)|"), 0..40),
        seed in any::<u64>(),
    ) {
        let records: Vec<Mx> = records.into_iter().map(|(preference, exchange)| Mx { preference, exchange }).collect();
        let is_us = |mx: &Mx| mx.exchange == US || mx.exchange.starts_with("alias.");
        let ours = records.iter().filter(|mx| is_us(mx)).map(|mx| mx.preference).min();
        if let Ok(hosts) = follow(&records, seed) {
            prop_assert!(!hosts.is_empty() && hosts.len() <= HOSTS_MAX);
            for next in &hosts {
                prop_assert!((1..=ADDRESSES_A_HOST_MAX).contains(&next.addresses.len()));
                prop_assert!(next.host != US && !next.host.starts_with("alias."));
                let best = records.iter().filter(|mx| mx.exchange == next.host).map(|mx| mx.preference).min();
                prop_assert!(best.zip(ours).is_none_or(|(best, ours)| best < ours), "{next:?} behind {ours:?}");
            }
            let best = |next: &NextHost| records.iter().filter(|mx| mx.exchange == next.host).map(|mx| mx.preference).min();
            prop_assert!(hosts.is_sorted_by_key(best), "{hosts:?}");
        }
    }
}
