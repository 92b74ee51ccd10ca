//! The resolver: MX records and the addresses of mail hosts, cached; and, while the DNS is down, what it said last.
//!
//! All that is known here of hickory. It decides nothing about mail (see `mx.rs`), validates no DNSSEC, and reads no
//! `/etc/hosts`: whose mail host is where, is what all other senders see. A primary named by the operator is not looked up here.

use crate::mx::{self, Candidates, Mx, NextHost, NoHop, Preferred, Resolved};
use crate::ourselves::Ourselves;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Resolver, TokioResolver};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// An answer is kept so long, though its TTL be shorter: twenty couriers that connect at once ask once.
const TTL_MIN: Duration = Duration::from_secs(5);
/// And not longer, though its TTL be a day: whoever moves a broken primary changes its records now.
const TTL_MAX: Duration = Duration::from_secs(5 * 60);
/// "There is none" is believed so long: the zone of a primary that is set up anew is often filled a minute too late.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(60);
/// How long the last answer is used while the DNS gives none. RFC 8767 section 5 suggests one to three days; mail hosts move
/// more seldom than other servers.
const LAST_GOOD_MAX: Duration = Duration::from_secs(3 * 86_400);
/// So long after a failure the last answer is used without asking again: every connection would wait for it.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The same where there is no last answer: the next probe is to find out soon, and twenty couriers are to ask once.
const ASK_AGAIN_WITHOUT: Duration = Duration::from_secs(2);
/// Last answers kept; a thousand domains with two hosts each need as many thousands. The oldest goes.
const LAST_GOOD_COUNT_MAX: usize = 20_000;
/// Answers in hickory's cache: as many.
const CACHE_COUNT: u64 = 20_000;
/// One query to one server. A resolver at hand answers within a second, or has asked somebody who is silent.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// All tries of one lookup. Two one after the other (MX, then addresses) leave a probe half of its twenty seconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lookups under way, of at most two queries each: hickory refuses more than 32 to one server.
const LOOKUPS_MAX: usize = 16;
/// Domains of one route that are looked up at once: enough to keep so many lookups under way.
const DOMAINS_AT_ONCE: usize = 16;
/// What is told of a lookup that panicked.
const DEFECT: &str = "the lookup ended by a defect of ours";

/// One of these is enough for a daemon: connections share what was learned.
pub struct Dns {
    /// None: those of `/etc/resolv.conf`.
    servers: Vec<SocketAddr>,
    /// With the configuration that it was made by.
    resolver: Mutex<Option<(TokioResolver, String)>>,
    last: Mutex<LastGood>,
    turns: Semaphore,
    seed: u64,
    turn: AtomicU64,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Question {
    Mx(String),
    Addresses(String),
}

/// What the DNS says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    NoSuchName,
    /// Maybe none.
    Mx(Vec<Mx>),
    /// Maybe none; with the name at the end of a chain of CNAMEs, if there was one.
    Addresses(Vec<IpAddr>, Option<String>),
}

impl Dns {
    /// Asks `servers`, or the system's where there are none. `seed` shuffles hosts of equal preference. Does nothing yet.
    pub fn new(servers: Vec<SocketAddr>, seed: u64) -> Arc<Self> {
        let (resolver, last, turns) = (Mutex::default(), Mutex::default(), Semaphore::new(LOOKUPS_MAX));
        Arc::new(Self { servers, resolver, last, turns, seed, turn: AtomicU64::new(0) })
    }

    /// The hosts that take mail for all of `domains` and are preferred over us, in the order in which to try them.
    ///
    /// A domain that the DNS does not tell of goes along with the others, as one route has one primary: a customer who let his
    /// domain expire must not keep the mail of all others from it.
    ///
    /// # Errors
    /// Of the first domain that leads nowhere; or if two lead to different hosts.
    pub(crate) async fn next_hosts(
        self: &Arc<Self>,
        domains: &[String],
        our_name: &str,
        ourselves: &Ourselves,
    ) -> Result<Vec<NextHost>, NoHop> {
        let mut first: Option<(&String, Preferred)> = None;
        let mut untold = None;
        for some in domains.chunks(DOMAINS_AT_ONCE) {
            let mut lookups = JoinSet::new();
            for (n, domain) in some.iter().enumerate() {
                let (dns, domain) = (self.clone(), domain.clone());
                let (our_name, ourselves) = (our_name.to_ascii_lowercase(), ourselves.clone());
                lookups.spawn(async move { (n, dns.preferred(&domain, &our_name, &ourselves).await) });
            }
            let mut found = all(lookups).await;
            for (n, domain) in some.iter().enumerate() {
                let defect = || Err(NoHop::Unknown { name: domain.clone(), why: DEFECT.to_owned() });
                let preferred = match found.remove(&n).unwrap_or_else(defect) {
                    Err(why @ (NoHop::Unknown { .. } | NoHop::NoDomain(_))) => {
                        untold = untold.or(Some(why));
                        continue;
                    }
                    told => told?,
                };
                match &first {
                    None => first = Some((domain, preferred)),
                    Some((_, same)) if same.is_as(&preferred) => {}
                    Some((other, others)) => {
                        return Err(NoHop::Differ {
                            first: (*other).clone(),
                            to_first: others.names(),
                            second: domain.clone(),
                            to_second: preferred.names(),
                        });
                    }
                }
            }
        }
        let seed = mx::mix(self.seed ^ self.turn.fetch_add(1, Ordering::Relaxed));
        match (first, untold) {
            (Some((_, preferred)), _) => Ok(preferred.in_order(seed)),
            (None, Some(why)) => Err(why),
            (None, None) => Ok(Vec::new()),
        }
    }

    async fn preferred(self: &Arc<Self>, domain: &str, our_name: &str, us: &Ourselves) -> Result<Preferred, NoHop> {
        let unknown = |why| NoHop::Unknown { name: domain.to_owned(), why };
        let records = match self.ask(Question::Mx(domain.to_owned())).await.map_err(unknown)? {
            Answer::Mx(records) => records,
            Answer::NoSuchName | Answer::Addresses(..) => return Err(NoHop::NoDomain(domain.to_owned())),
        };
        let Candidates { hosts, are_listed } = mx::candidates(domain, &records, our_name)?;
        // Where our name is not among them, what the DNS says of it tells which host is us: behind address translation this
        // machine does not know. A name without a dot is nobody's in the DNS.
        let own = Some(Question::Addresses(our_name.to_owned())).filter(|_| !are_listed && our_name.contains('.'));
        let mut lookups = JoinSet::new();
        let questions = hosts.iter().map(|mx| Some(Question::Addresses(mx.exchange.clone()))).chain([own]);
        for (n, question) in questions.enumerate() {
            let dns = self.clone();
            lookups.spawn(async move {
                match question {
                    Some(question) => (n, dns.ask(question).await),
                    None => (n, Ok(Answer::NoSuchName)),
                }
            });
        }
        let mut answers: HashMap<usize, Result<Answer, String>> = all(lookups).await;
        let own = match answers.remove(&hosts.len()) {
            Some(Ok(Answer::Addresses(addresses, _))) => addresses,
            _ => Vec::new(),
        };
        let resolved = hosts.into_iter().enumerate().map(|(n, Mx { preference, exchange })| {
            let answer = answers.remove(&n).unwrap_or_else(|| Err(DEFECT.to_owned()));
            let (addresses, alias) = match answer {
                Ok(Answer::Addresses(addresses, alias)) => (Ok(addresses), alias),
                Ok(Answer::NoSuchName | Answer::Mx(_)) => (Ok(Vec::new()), None),
                Err(why) => (Err(why), None),
            };
            let how = |address: &IpAddr| match own.contains(address) {
                true => Some(format!("which is at {address}, as {our_name} is, our own name")),
                false => us.are_at(*address).then(|| format!("which is at {address}, where we listen")),
            };
            let is_alias = alias.is_some_and(|alias| alias == our_name);
            let by_name = is_alias.then(|| format!("another name of {our_name}, our own name"));
            let is_us = by_name.or_else(|| addresses.iter().flatten().find_map(how));
            Resolved { preference, host: exchange, addresses, is_us }
        });
        mx::preferred(domain, resolved.collect(), are_listed)
    }

    /// The answer; the last one, where there is none now.
    async fn ask(&self, question: Question) -> Result<Answer, String> {
        if let Some(known) = self.last().instead_of_asking(&question, Instant::now()) {
            return known;
        }
        // Never closed.
        let _turn = self.turns.acquire().await;
        let asked = timeout(LOOKUP_TIMEOUT, self.look_up(&question)).await;
        match asked.unwrap_or_else(|_late| Err("the DNS does not answer".to_owned())) {
            Ok(answer) => {
                self.last().learn(question, answer.clone(), Instant::now());
                Ok(answer)
            }
            Err(why) => {
                self.look_for_other_servers();
                self.last().instead_of(question, why, Instant::now())
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, LastGood> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut made = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((resolver, _)) = made.as_ref() {
            return Ok(resolver.clone());
        }
        let config = configuration(&self.servers).map_err(|error| in_words(&error))?;
        let by = format!("{config:?}");
        let resolver = build(config).map_err(|error| in_words(&error))?;
        *made = Some((resolver.clone(), by));
        Ok(resolver)
    }

    /// Who does not answer may have been replaced: a machine that just came up, or moved to another network.
    fn look_for_other_servers(&self) {
        let by = configuration(&self.servers).map(|config| format!("{config:?}")).unwrap_or_default();
        let mut made = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if made.as_ref().is_some_and(|(_, then)| *then != by) {
            *made = None;
        }
    }

    async fn look_up(&self, question: &Question) -> Result<Answer, String> {
        let resolver = &self.resolver()?;
        match question {
            Question::Mx(domain) => match records(resolver, domain, RecordType::MX).await? {
                None => Ok(Answer::NoSuchName),
                Some(found) => Ok(Answer::Mx(found.into_iter().filter_map(|(_, data)| mx_record(&data)).collect())),
            },
            Question::Addresses(host) => {
                let (v4, v6) =
                    tokio::join!(records(resolver, host, RecordType::A), records(resolver, host, RecordType::AAAA));
                if matches!((&v4, &v6), (Ok(None), Ok(None))) {
                    return Ok(Answer::NoSuchName);
                }
                let families = [v4, v6];
                let found: Vec<_> = families.iter().flatten().flatten().flatten().cloned().collect();
                // One family is enough to go by.
                if let Some(Err(why)) = families.into_iter().find(Result::is_err).filter(|_| found.is_empty()) {
                    return Err(why);
                }
                let alias = found.first().map(|(owner, _)| owner.clone()).filter(|owner| owner != host);
                Ok(Answer::Addresses(found.iter().filter_map(|(_, data)| data.ip_addr()).collect(), alias))
            }
        }
    }
}

/// These servers, or those of `/etc/resolv.conf`.
fn configuration(servers: &[SocketAddr]) -> Result<ResolverConfig, NetError> {
    if servers.is_empty() {
        return Ok(read_system_conf()?.0);
    }
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    };
    Ok(ResolverConfig::from_name_servers(servers.iter().map(server).collect()))
}

fn build(config: ResolverConfig) -> Result<TokioResolver, NetError> {
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = QUERY_TIMEOUT;
    options.attempts = 1;
    options.cache_size = CACHE_COUNT;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_min_ttl = Some(TTL_MIN);
    options.positive_max_ttl = Some(TTL_MAX);
    options.negative_min_ttl = Some(TTL_MIN);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    // Twenty MX records with long names do not fit into one datagram.
    options.try_tcp_on_error = true;
    builder.build()
}

/// The records with their owners, without those of other types (CNAMEs on the way); none at all: there is no such name.
async fn records(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
) -> Result<Option<Vec<(String, RData)>>, String> {
    // Fully qualified: no search list makes another name of it.
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let of_kind = lookup.answers().iter().filter(|record| record.record_type() == kind);
            Ok(Some(of_kind.map(|record| (plain(&record.name), record.data.clone())).collect()))
        }
        Err(error) if error.is_nx_domain() => Ok(None),
        Err(error) if error.is_no_records_found() => Ok(Some(Vec::new())),
        Err(error) => Err(in_words(&error)),
    }
}

fn mx_record(data: &RData) -> Option<Mx> {
    let RData::MX(mx) = data else { return None };
    Some(Mx { preference: mx.preference, exchange: plain(&mx.exchange) })
}

/// By number; one that panicked is missing.
async fn all<T: 'static>(mut tasks: JoinSet<(usize, T)>) -> HashMap<usize, T> {
    let mut done = HashMap::new();
    while let Some(ended) = tasks.join_next().await {
        done.extend(ended.ok());
    }
    done
}

/// In lower case, without the final dot.
fn plain(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    text.truncate(text.trim_end_matches('.').len());
    text
}

/// Without the words of a library for its developers.
fn in_words(error: &NetError) -> String {
    match error {
        NetError::Timeout => "the DNS does not answer".to_owned(),
        NetError::NoConnections => "no DNS server can be reached".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the DNS says {code}"),
        NetError::Io(error) => format!("the DNS cannot be asked: {error}"),
        other => format!("the DNS: {other}"),
    }
}

/// What the DNS said last, for the hours in which it says nothing: the primary's own name server is often down with it.
#[derive(Default)]
struct LastGood(HashMap<Question, Told>);

struct Told {
    /// None yet, or why there is none.
    answer: Result<Answer, String>,
    /// When that was said.
    at: Instant,
    /// The last failure since.
    failed: Option<Instant>,
}

impl Told {
    /// "There is none" is of none: that the DNS does not answer is the better reason.
    fn is_of_use(&self, now: Instant) -> bool {
        let is_something = match &self.answer {
            Err(_) | Ok(Answer::NoSuchName) => false,
            Ok(Answer::Mx(_)) => true,
            Ok(Answer::Addresses(addresses, _)) => !addresses.is_empty(),
        };
        is_something && now.duration_since(self.at) < LAST_GOOD_MAX
    }
}

impl LastGood {
    fn learn(&mut self, question: Question, answer: Answer, now: Instant) {
        self.keep(question, Told { answer: Ok(answer), at: now, failed: None });
    }

    fn keep(&mut self, question: Question, told: Told) {
        if self.0.len() >= LAST_GOOD_COUNT_MAX && !self.0.contains_key(&question) {
            let oldest = self.0.iter().min_by_key(|(_, told)| told.at).map(|(question, _)| question.clone());
            oldest.iter().for_each(|oldest| drop(self.0.remove(oldest)));
        }
        self.0.insert(question, told);
    }

    /// The DNS failed a moment ago: it is not asked again with every connection.
    fn instead_of_asking(&self, question: &Question, now: Instant) -> Option<Result<Answer, String>> {
        let told = self.0.get(question)?;
        let patience = if told.is_of_use(now) { ASK_AGAIN } else { ASK_AGAIN_WITHOUT };
        told.failed.filter(|failed| now.duration_since(*failed) < patience).map(|_| told.answer.clone())
    }

    /// The DNS failed, and said `why`.
    fn instead_of(&mut self, question: Question, why: String, now: Instant) -> Result<Answer, String> {
        match self.0.get_mut(&question).filter(|told| told.is_of_use(now)) {
            Some(told) => {
                told.failed = Some(now);
                told.answer.clone()
            }
            None => {
                self.keep(question, Told { answer: Err(why.clone()), at: now, failed: Some(now) });
                Err(why)
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/dns.rs"]
mod tests;
