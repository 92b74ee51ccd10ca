//! Who is at the door: counts connections and mail by client and by network, and says who goes when every place is taken. Reads
//! no socket; what a refusal sounds like is the session's.
//!
//! Who takes all places does it with connections that say nothing, for those cost him nothing. So a full house does not turn
//! the next one away: it sends off who has been silent for longest, of the network that is silent most. To shorten the idle
//! timeout for all under pressure, as Postfix does, was the other way: it needs a restart of nothing either, but sends off the
//! slow with the silent, and still turns away those who come before the timeout is over.

use super::session::Guest;
use crate::config::Limits;
use governor::clock::MonotonicClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use restante_envelope::Timestamp;
use restante_smtp::RefusedConnection;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Networks whose rate is known at once, some hundred bytes each. With more than so many in one minute, those that come new
/// share one: who was here before notices nothing.
const NETWORKS_MAX: usize = 65_536;
const MINUTE: Duration = Duration::from_secs(60);
/// As often as such a full table is looked through for networks that have been quiet.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Who is turned away stands in the log once a minute for each network, and no more of them in a minute than this: a flood
/// must not bury the log. The counter tells of all.
const TOLD_EVERY: Duration = Duration::from_secs(60);
const TOLD_MAX: usize = 100;
/// Lines of the log about commands refused, a minute and network, a minute's worth at once: some 160 KiB, four files of the log a day.
/// A command of a few octets makes a line of hundreds: without a bound one client would put away the history of all others. How many
/// there were stands in the line of each session's end, and in the counter.
const REFUSALS_TOLD_PER_MINUTE: u32 = 600;
/// Networks are these parts of an address: what one customer, or one rented machine, can change at will.
const PREFIX_V4: u32 = 24;
const PREFIX_V6: u32 = 64;

/// All who are connected.
pub(crate) struct Crowd {
    limits: watch::Receiver<Limits>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    clients: HashMap<IpAddr, u32>,
    networks: HashMap<IpAddr, u32>,
    guests: HashMap<u64, (IpAddr, Arc<Guest>)>,
    connections: Rate,
    messages: Rate,
    refusals: Rate,
    told: HashMap<IpAddr, Timestamp>,
}

/// A place among the connections of a client and of its network; given back when dropped.
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    client: IpAddr,
}

/// A place among all; given back when dropped.
pub(crate) struct Seat {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Crowd {
    pub(crate) fn new(limits: watch::Receiver<Limits>) -> Self {
        Self { limits, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this client may have one more connection.
    pub(crate) fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Place, RefusedConnection> {
        let (limits, network) = (self.limits.borrow(), network(client));
        let inner = &mut *self.inner();
        let of = |counts: &HashMap<IpAddr, u32>, key: IpAddr| counts.get(&key).copied().unwrap_or(0);
        if !is_exempt(&limits, client) {
            if of(&inner.clients, client) >= limits.per_client_connections {
                return Err(RefusedConnection::TooManyConnections);
            }
            if of(&inner.networks, network) >= limits.per_network_connections {
                return Err(RefusedConnection::TooManyOfNetwork);
            }
            if !inner.connections.takes(network, limits.connections_per_minute) {
                return Err(RefusedConnection::TooOften);
            }
        }
        *inner.clients.entry(client).or_insert(0) += 1;
        *inner.networks.entry(network).or_insert(0) += 1;
        Ok(Place { crowd: self.clone(), client })
    }

    /// Whether this client's network may send one message more now.
    pub(crate) fn takes_message(&self, client: IpAddr) -> bool {
        let limits = self.limits.borrow();
        is_exempt(&limits, client) || self.inner().messages.takes(network(client), limits.messages_per_minute)
    }

    /// To be told by [`Crowd::send_one_off`] when it has to go.
    pub(crate) fn seat(self: &Arc<Self>, number: u64, peer: IpAddr, guest: Arc<Guest>) -> Seat {
        self.inner().guests.insert(number, (network(peer), guest));
        Seat { crowd: self.clone(), number }
    }

    /// Who sits there is another's voice.
    pub(crate) fn speaks_for(&self, number: u64, client: IpAddr) {
        if let Some((of, _)) = self.inner().guests.get_mut(&number) {
            *of = network(client);
        }
    }

    /// Whether the log is to hear of a command that was refused.
    pub(crate) fn is_refusal_to_be_told(&self, client: IpAddr) -> bool {
        self.inner().refusals.takes(network(client), REFUSALS_TOLD_PER_MINUTE)
    }

    /// Tells the one who has been silent for longest, of the network with most who are silent, to go. False if nobody is.
    pub(crate) fn send_one_off(&self, now: Timestamp) -> bool {
        let inner = self.inner();
        let mut silent: HashMap<IpAddr, (u32, Timestamp, &Arc<Guest>)> = HashMap::new();
        for (network, guest) in inner.guests.values() {
            let Some(since) = guest.silent_since().filter(|since| *since <= now) else { continue };
            let (count, oldest, who) = silent.entry(*network).or_insert((0, since, guest));
            *count += 1;
            if since < *oldest {
                (*oldest, *who) = (since, guest);
            }
        }
        let worst = silent.into_values().max_by_key(|(count, oldest, _)| (*count, std::cmp::Reverse(*oldest)));
        worst.is_some_and(|(_, _, guest)| {
            guest.send_off();
            true
        })
    }

    /// Whether the log is to hear of one who was turned away.
    pub(crate) fn is_to_be_told(&self, client: IpAddr, now: Timestamp) -> bool {
        let told = &mut self.inner().told;
        let network = network(client);
        if told.get(&network).is_some_and(|before| now.since(*before) < TOLD_EVERY) {
            return false;
        }
        if told.len() >= TOLD_MAX {
            told.retain(|_, before| now.since(*before) < TOLD_EVERY);
        }
        told.len() < TOLD_MAX && told.insert(network, now).is_none_or(|_| true)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let inner = &mut *self.crowd.inner();
        let counted = [(&mut inner.clients, self.client), (&mut inner.networks, network(self.client))];
        for (counts, key) in counted {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crowd.inner().guests.remove(&self.number);
    }
}

fn is_exempt(limits: &Limits, client: IpAddr) -> bool {
    limits.exempt.iter().any(|network| network.contains(client))
}

/// Of one address.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX << (32 - PREFIX_V4)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX << (128 - PREFIX_V6)).into(),
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

/// So many a minute for each network, a minute's worth at once.
#[derive(Default)]
struct Rate {
    per_minute: u32,
    networks: HashMap<IpAddr, (Instant, Limiter)>,
    /// Of those that found no place among the networks.
    others: Option<Limiter>,
    swept_at: Option<Instant>,
}

impl Rate {
    /// 0 a minute: as many as come.
    fn takes(&mut self, network: IpAddr, per_minute: u32) -> bool {
        let Some(quota) = NonZeroU32::new(per_minute).map(Quota::per_minute) else { return true };
        // A reload changed it: all begin anew.
        if self.per_minute != per_minute {
            *self = Self { per_minute, ..Self::default() };
        }
        let now = Instant::now();
        if self.networks.len() >= NETWORKS_MAX && self.swept_at.is_none_or(|at| now.duration_since(at) >= SWEEP_EVERY) {
            self.swept_at = Some(now);
            // After a minute a network may do all it might at first: to forget it is the same.
            self.networks.retain(|_, (last, _)| now.duration_since(*last) < MINUTE);
        }
        let fresh = || RateLimiter::direct_with_clock(quota, MonotonicClock);
        let has_room = self.networks.len() < NETWORKS_MAX;
        match self.networks.entry(network) {
            Entry::Occupied(known) => {
                let (last, limiter) = known.into_mut();
                *last = now;
                limiter.check().is_ok()
            }
            Entry::Vacant(new) if has_room => new.insert((now, fresh())).1.check().is_ok(),
            Entry::Vacant(_) => self.others.get_or_insert_with(fresh).check().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn crowd(limits: Limits) -> (watch::Sender<Limits>, Arc<Crowd>) {
        let (now, limits) = watch::channel(limits);
        (now, Arc::new(Crowd::new(limits)))
    }

    #[test]
    fn one_address_and_one_network_have_so_many_and_not_one_more_whatever_comes_and_goes() {
        let limits = Limits { per_client_connections: 2, per_network_connections: 3, ..Limits::default() };
        let (change, crowd) = crowd(limits.clone());
        let why = |client: &str| crowd.enter(ip(client)).err();
        let mut places = vec![crowd.enter(ip("192.0.2.1")).ok(), crowd.enter(ip("192.0.2.1")).ok()];
        assert_eq!(why("192.0.2.1"), Some(RefusedConnection::TooManyConnections));
        places.push(crowd.enter(ip("192.0.2.200")).ok());
        assert_eq!(why("192.0.2.3"), Some(RefusedConnection::TooManyOfNetwork));
        assert_eq!(why("192.0.3.3"), None);
        places.remove(0);
        assert_eq!((why("192.0.2.3"), why("192.0.2.1")), (None, None));
        places.clear();
        assert!(crowd.inner().clients.is_empty() && crowd.inner().networks.is_empty());
        // IPv6 goes by /64, and who is exempt is not looked at.
        places.extend((0..3).map(|n| crowd.enter(ip(&format!("2001:db8::{n}"))).ok()));
        assert_eq!(why("2001:db8::ffff:0:0:9"), Some(RefusedConnection::TooManyOfNetwork));
        assert_eq!(why("2001:db8:0:1::9"), None);
        places.extend((0..9).map(|_| crowd.enter(ip("127.0.0.1")).ok()));
        assert!(places.iter().all(Option::is_some));
        change.send_replace(Limits { exempt: Vec::new(), ..limits });
        assert_eq!(why("127.0.0.1"), Some(RefusedConnection::TooManyConnections));
    }

    #[test]
    fn a_network_that_comes_too_often_waits_and_others_do_not() {
        let limits = Limits { connections_per_minute: 3, messages_per_minute: 2, ..Limits::default() };
        let (change, crowd) = crowd(limits.clone());
        let enter = |client: &str| crowd.enter(ip(client)).map(drop);
        for n in 0..3 {
            assert_eq!(enter(&format!("192.0.2.{n}")), Ok(()));
        }
        assert_eq!(enter("192.0.2.77"), Err(RefusedConnection::TooOften));
        assert_eq!((enter("192.0.3.77"), enter("127.0.0.1")), (Ok(()), Ok(())));
        let mail = |client: &str| crowd.takes_message(ip(client));
        assert!(mail("192.0.2.1") && mail("192.0.2.2") && !mail("192.0.2.3") && mail("192.0.4.1"));
        // A reload begins anew; 0 is no limit.
        change.send_replace(Limits { messages_per_minute: 0, connections_per_minute: 1, ..limits });
        assert!((0..100).all(|_| mail("192.0.2.3")));
        assert_eq!((enter("192.0.2.1"), enter("192.0.2.1")), (Ok(()), Err(RefusedConnection::TooOften)));
    }

    #[test]
    fn networks_that_were_here_before_a_flood_of_new_ones_keep_what_is_theirs() {
        let mut rate = Rate::default();
        let known = ip("192.0.2.0");
        assert!(rate.takes(known, 3));
        for n in 1..NETWORKS_MAX as u32 {
            rate.takes(Ipv4Addr::from_bits(n << 8).into(), 3);
        }
        assert_eq!(rate.networks.len(), NETWORKS_MAX);
        let mut new = String::new();
        for n in 0..5 {
            write!(new, "{} ", rate.takes(Ipv4Addr::from_bits(n << 8 | 0xe000_0000).into(), 3)).unwrap();
        }
        assert_eq!(new, "true true true false false ", "all that are new have three together");
        assert!(rate.takes(known, 3) && rate.takes(known, 3) && !rate.takes(known, 3));
    }

    #[test]
    fn who_is_silent_longest_in_the_network_that_is_silent_most_goes_first_and_who_is_at_work_stays() {
        let (_limits, crowd) = crowd(Limits::default());
        let at = Timestamp::from_unix_ms;
        let mut seats = Vec::new();
        let mut sit = |number: u64, peer: &str, silent_since: u64| {
            let guest = Arc::new(Guest::new(at(silent_since)));
            seats.push(crowd.seat(number, ip(peer), guest.clone()));
            guest
        };
        let alone = sit(1, "198.51.100.1", 10);
        let first = sit(2, "192.0.2.1", 30);
        let second = sit(3, "192.0.2.2", 20);
        let busy = sit(4, "192.0.2.3", 5);
        busy.is_busy();
        let soon = sit(5, "203.0.113.4", 1_000);
        // Not the network that his connection comes from counts, but his own.
        crowd.speaks_for(5, ip("192.0.2.4"));
        let gone = |guests: &[&Arc<Guest>]| guests.iter().map(|guest| guest.was_sent_off()).collect::<Vec<_>>();
        let all = [&second, &alone, &first, &busy, &soon];
        assert!(crowd.send_one_off(at(100)));
        assert_eq!(gone(&all), [true, false, false, false, false]);
        assert!(crowd.send_one_off(at(100)) && crowd.send_one_off(at(100)));
        assert_eq!(gone(&all), [true, true, true, false, false]);
        assert!(!crowd.send_one_off(at(100)), "the others are at work, or were heard just now");
        assert!(crowd.send_one_off(at(1_000)) && gone(&all)[4]);
        seats.clear();
        assert!(crowd.inner().guests.is_empty());
    }

    #[test]
    fn one_network_fills_no_log_with_what_it_was_refused() {
        let (_limits, crowd) = crowd(Limits::default());
        let told = |client: &str| (0..100_000).filter(|_| crowd.is_refusal_to_be_told(ip(client))).count();
        let first = told("192.0.2.1");
        // What comes by in the time that this takes.
        assert!((600..1_200).contains(&first), "{first}");
        assert!(told("192.0.2.2") < 600 && told("127.0.0.1") >= 600);
    }

    #[test]
    fn a_flood_of_clients_is_told_once_a_minute_for_each_network_and_of_no_more_than_a_few() {
        let (_limits, crowd) = crowd(Limits::default());
        let at = Timestamp::from_unix_ms;
        let told = |client: &str, now: u64| crowd.is_to_be_told(ip(client), at(now));
        assert!(told("192.0.2.1", 0) && !told("192.0.2.2", 59_999) && told("192.0.2.3", 60_000));
        let many = (0..1_000).filter(|n| told(&format!("10.{}.{}.1", n / 256, n % 256), 60_001)).count();
        assert_eq!(many, TOLD_MAX - 1);
        assert!(told("10.9.9.9", 120_002));
    }
}
