//! From MX records to next hops in order (RFC 5321 section 5.1, RFC 7505).
//!
//! Pure: what the DNS says comes in as values, chance as a seed. It never gives a host that is not strictly preferred over us:
//! mail that went there would come back.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Hosts tried for one connection. RFC 5321 section 5.1 wants two at least; a primary with more than five of one rank takes
/// its mail by any five of them.
pub(crate) const HOSTS_MAX: usize = 5;
/// Addresses tried of each, the families in turn. RFC 5321 section 5.1 lets a client bound it; one of each family is what a
/// host usually has.
pub(crate) const ADDRESSES_A_HOST_MAX: usize = 2;
/// Hosts of one domain whose addresses are looked up: large providers list five, nobody lists more than a dozen.
pub(crate) const LOOKED_UP_MAX: usize = 20;

/// An MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mx {
    /// Lower is preferred.
    pub(crate) preference: u16,
    /// In lower case, without a final dot; empty for the root, which stands for no host.
    pub(crate) exchange: String,
}

/// Why a domain leads to no next hop. All of them are told to the operator while the mail waits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoHop {
    /// The domain takes no mail, and says so (RFC 7505). For good, until its owner changes it.
    #[error("{0} takes no mail at all: its MX record is null (RFC 7505)")]
    NullMx(String),
    /// There is no such domain.
    #[error("there is no domain {0} in the DNS")]
    NoDomain(String),
    /// Nobody is preferred over us.
    #[error("the MX of {domain} leads back to us: nobody is preferred over {host}, {how}")]
    OnlyUs {
        /// The domain.
        domain: String,
        /// The host that is us.
        host: String,
        /// By what it is known to be.
        how: String,
    },
    /// There are hosts, and none of them has an address.
    #[error("no mail host of {domain} has an address: {hosts}")]
    NoAddress {
        /// The domain.
        domain: String,
        /// Their names.
        hosts: String,
    },
    /// The DNS could not tell now, and had told nothing before that could still be used.
    #[error("look up {name}: {why}")]
    Unknown {
        /// The domain, or a host.
        name: String,
        /// The resolver's words.
        why: String,
    },
    /// Domains of one route that have other hosts.
    #[error(
        "{first} goes to {to_first}, {second} to {to_second}: one route has one primary, so give each a route of its own"
    )]
    Differ {
        /// A domain.
        first: String,
        /// Its hosts.
        to_first: String,
        /// Another.
        second: String,
        /// Its hosts.
        to_second: String,
    },
}

/// The hosts that may come before us, by preference, as far as names tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// Without us and whoever is not preferred over us; at most twenty.
    pub(crate) hosts: Vec<Mx>,
    /// We are among the records by name, so nobody who is left can be us under a name that is not resolved.
    pub(crate) are_listed: bool,
}

/// Who may come before us, by name. Without any record the domain itself is the host (implicit MX).
pub(crate) fn candidates(domain: &str, records: &[Mx], our_name: &str) -> Result<Candidates, NoHop> {
    let mut hosts: Vec<Mx> = records.iter().filter(|mx| !mx.exchange.is_empty()).cloned().collect();
    if hosts.is_empty() && !records.is_empty() {
        return Err(NoHop::NullMx(domain.to_owned()));
    }
    if records.is_empty() {
        hosts.push(Mx { preference: 0, exchange: domain.to_owned() });
    }
    let ours = hosts.iter().filter(|mx| mx.exchange == our_name).map(|mx| mx.preference).min();
    hosts.retain(|mx| ours.is_none_or(|ours| mx.preference < ours));
    if hosts.is_empty() {
        let (host, how) = (our_name.to_owned(), "our own name".to_owned());
        return Err(NoHop::OnlyUs { domain: domain.to_owned(), host, how });
    }
    hosts.sort_by(|a, b| (a.preference, &a.exchange).cmp(&(b.preference, &b.exchange)));
    let mut seen = BTreeSet::new();
    hosts.retain(|mx| seen.insert(mx.exchange.clone()));
    hosts.truncate(LOOKED_UP_MAX);
    Ok(Candidates { hosts, are_listed: ours.is_some() })
}

/// A candidate, looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// As in its record.
    pub(crate) preference: u16,
    /// As in its record.
    pub(crate) host: String,
    /// Its addresses, maybe none; or why nobody knows them.
    pub(crate) addresses: Result<Vec<IpAddr>, String>,
    /// By what it is known to be us, under another name or at an address of ours.
    pub(crate) is_us: Option<String>,
}

/// A host that is preferred over us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextHost {
    /// Its name.
    pub(crate) host: String,
    /// At least one.
    pub(crate) addresses: Vec<IpAddr>,
}

/// All hosts that are preferred over us: those of equal preference together, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preferred(Vec<Vec<NextHost>>);

/// Who of `hosts` comes before us; `are_listed` as in [`Candidates`].
///
/// As long as we were not found, a host whose addresses nobody knows may be us: then only those before it are taken.
pub(crate) fn preferred(domain: &str, hosts: Vec<Resolved>, are_listed: bool) -> Result<Preferred, NoHop> {
    let best_of_ours = hosts.iter().filter(|host| host.is_us.is_some()).min_by_key(|host| host.preference).cloned();
    let ours = best_of_ours.as_ref().map(|host| host.preference);
    let maybe_ours = hosts.iter().filter(|host| host.addresses.is_err() && !are_listed && ours.is_none());
    let limit = ours.or_else(|| maybe_ours.map(|host| host.preference).min());
    let is_before = |host: &Resolved| limit.is_none_or(|limit| host.preference < limit);
    let unknown = hosts.iter().filter(|host| ours.is_none() || is_before(host)).find_map(|host| {
        let why = host.addresses.as_ref().err()?;
        Some(NoHop::Unknown { name: host.host.clone(), why: why.clone() })
    });
    let (before, rest): (Vec<_>, Vec<_>) = hosts.into_iter().partition(is_before);
    if let Some(Resolved { host, is_us: Some(how), .. }) = best_of_ours.filter(|_| before.is_empty()) {
        return Err(NoHop::OnlyUs { domain: domain.to_owned(), host, how });
    }
    let names = before.iter().chain(&rest).map(|host| host.host.as_str()).collect::<Vec<_>>().join(", ");
    let mut groups: Vec<(u16, Vec<NextHost>)> = Vec::new();
    for Resolved { preference, host, addresses, .. } in before {
        let Some(addresses) = addresses.ok().filter(|addresses| !addresses.is_empty()) else { continue };
        let next = NextHost { host, addresses };
        match groups.last_mut().filter(|(of, _)| *of == preference) {
            Some((_, group)) => group.push(next),
            None => groups.push((preference, vec![next])),
        }
    }
    if groups.is_empty() {
        return Err(unknown.unwrap_or_else(|| NoHop::NoAddress { domain: domain.to_owned(), hosts: names }));
    }
    Ok(Preferred(groups.into_iter().map(|(_, group)| group).collect()))
}

impl Preferred {
    /// Whether mail for both goes to the same servers in the same order: by name, or by address, as a provider's customers
    /// have each a name of their own for the same machines.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let names = |group: &[NextHost]| group.iter().map(|next| next.host.clone()).collect::<BTreeSet<_>>();
        let addresses =
            |group: &[NextHost]| group.iter().flat_map(|next| next.addresses.clone()).collect::<BTreeSet<_>>();
        let same = |a: &Vec<NextHost>, b: &Vec<NextHost>| names(a) == names(b) || addresses(a) == addresses(b);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| same(a, b))
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> String {
        self.0.iter().flatten().map(|next| next.host.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Whom to try, in order: those of equal preference as `seed` has it (RFC 5321 section 5.1), at most [`HOSTS_MAX`], with at
    /// most [`ADDRESSES_A_HOST_MAX`] addresses each, IPv6 and IPv4 in turn.
    pub(crate) fn in_order(self, seed: u64) -> Vec<NextHost> {
        let shuffled = self.0.into_iter().flat_map(|mut group| {
            group.sort_by_cached_key(|next| draw(seed, &next.host));
            group
        });
        let hosts = shuffled.take(HOSTS_MAX);
        hosts.map(|NextHost { host, addresses }| NextHost { host, addresses: in_turn(addresses) }).collect()
    }
}

/// The families in turn, so that one that is broken does not use up all tries.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let mut places: Vec<(usize, IpAddr)> = v6.into_iter().enumerate().chain(v4.into_iter().enumerate()).collect();
    places.sort_by_key(|(place, _)| *place);
    places.into_iter().map(|(_, address)| address).take(ADDRESSES_A_HOST_MAX).collect()
}

/// 64 bits that look random: FNV-1a of the name, stirred with the seed by the finalizer of SplitMix64.
fn draw(seed: u64, name: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(seed ^ mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, hash)))
}

/// Every bit of the input changes half of the output's.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "tests/mx.rs"]
mod tests;
