//! A DNS server on loopback that says what it is told, over UDP and TCP (RFC 1035). It knows MX, A, AAAA and CNAME; it refuses to be
//! a resolver: what it was not told does not exist.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_MX: u16 = 15;
const TYPE_AAAA: u16 = 28;
const NXDOMAIN: u16 = 3;
const SERVFAIL: u16 = 2;
/// RFC 1035 section 4.2.1, and what a client may say by EDNS is not looked at.
const UDP_BYTES_MAX: usize = 512;
/// The client may keep it for no longer than it must.
const TTL_S: u32 = 1;

#[derive(Debug, Clone)]
enum Data {
    Mx(u16, String),
    Address(IpAddr),
    Alias(String),
}

#[derive(Default)]
struct State {
    /// By name in lower case, without a final dot. A name with an empty list exists.
    names: BTreeMap<String, Vec<Data>>,
    /// Answers SERVFAIL to everything.
    is_broken: bool,
    asked: HashMap<String, usize>,
}

/// Ends with the test's process: its threads wait for questions.
pub struct Dns {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Dns {
    /// A server that knows nothing yet.
    pub fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let (by_udp, by_tcp) = (state.clone(), state.clone());
        std::thread::spawn(move || {
            let mut question = [0; 1500];
            while let Ok((len, client)) = udp.recv_from(&mut question) {
                let mut answer = answer(&by_udp, &question[..len]);
                if answer.len() > UDP_BYTES_MAX {
                    // TC, and nothing behind the question: the client comes again by TCP.
                    answer[2] |= 2;
                    answer[6..12].fill(0);
                    answer.truncate(question_end(&question));
                }
                let _gone = udp.send_to(&answer, client);
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().map_while(Result::ok) {
                let state = by_tcp.clone();
                std::thread::spawn(move || {
                    let mut len = [0; 2];
                    while stream.read_exact(&mut len).is_ok() {
                        let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
                        stream.read_exact(&mut question).unwrap();
                        let answer = answer(&state, &question);
                        let len = u16::try_from(answer.len()).unwrap().to_be_bytes();
                        let _gone = stream.write_all(&[&len[..], &answer].concat());
                    }
                });
            }
        });
        Self { address, state }
    }

    /// From now on `name` has these MX records and no others; `.` is the null MX (RFC 7505).
    pub fn mx(&self, name: &str, records: &[(u16, &str)]) {
        let records =
            records.iter().map(|(preference, host)| Data::Mx(*preference, host.trim_end_matches('.').to_owned()));
        self.set(name, records.collect(), |data| matches!(data, Data::Mx(..)));
    }

    /// From now on `name` has these addresses and no others.
    pub fn addresses(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| Data::Address(address.parse().unwrap()));
        self.set(name, addresses.collect(), |data| matches!(data, Data::Address(_)));
    }

    /// From now on `name` is another name of `target`, and has nothing of its own.
    pub fn alias(&self, name: &str, target: &str) {
        self.set(name, vec![Data::Alias(target.to_owned())], |_| true);
    }

    /// From now on everything is answered by SERVFAIL; or not any more.
    pub fn breaks(&self, is_broken: bool) {
        self.state.lock().unwrap().is_broken = is_broken;
    }

    /// How often this name was asked for, whatever the type.
    pub fn asked(&self, name: &str) -> usize {
        self.state.lock().unwrap().asked.get(name).copied().unwrap_or(0)
    }

    fn set(&self, name: &str, new: Vec<Data>, replaced: fn(&Data) -> bool) {
        let mut state = self.state.lock().unwrap();
        let records = state.names.entry(name.to_owned()).or_default();
        records.retain(|data| !replaced(data));
        records.extend(new);
    }
}

/// Behind the header and the one question.
fn question_end(question: &[u8]) -> usize {
    let mut at = 12;
    while question[at] != 0 {
        at += 1 + usize::from(question[at]);
    }
    at + 5
}

fn asked_name(question: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    labels.join(".").to_ascii_lowercase()
}

fn answer(state: &Mutex<State>, question: &[u8]) -> Vec<u8> {
    let mut state = state.lock().unwrap();
    let (end, name) = (question_end(question), asked_name(question));
    let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    *state.asked.entry(name.clone()).or_default() += 1;
    let (mut records, mut owner, mut count) = (Vec::new(), name, 0_u16);
    // A chain of aliases is followed, as a resolver would.
    while let Some(Data::Alias(target)) = state.names.get(&owner).and_then(|all| all.first()) {
        records.extend(record(&owner, TYPE_CNAME, &wire_name(target)));
        (owner, count) = (target.clone(), count + 1);
    }
    let known = state.names.get(&owner);
    for data in known.into_iter().flatten() {
        let (of_type, data) = match data {
            Data::Mx(preference, host) => (TYPE_MX, [&preference.to_be_bytes()[..], &wire_name(host)].concat()),
            Data::Address(IpAddr::V4(address)) => (TYPE_A, address.octets().to_vec()),
            Data::Address(IpAddr::V6(address)) => (TYPE_AAAA, address.octets().to_vec()),
            Data::Alias(_) => continue,
        };
        if of_type == kind {
            records.extend(record(&owner, of_type, &data));
            count += 1;
        }
    }
    // RFC 2308: for how long there is none, the SOA says.
    let authority = match count {
        0 => record(
            "test",
            TYPE_SOA,
            &[&wire_name("ns.test")[..], &wire_name("root.test"), &[0, 0, 0, TTL_S as u8].repeat(5)].concat(),
        ),
        _ => Vec::new(),
    };
    let code = if state.is_broken { SERVFAIL } else { if known.is_some() { 0 } else { NXDOMAIN } };
    let (records, authority, count) =
        if state.is_broken { (Vec::new(), Vec::new(), 0) } else { (records, authority, count) };
    // QR, RD as asked, RA.
    let flags = 0x8080 | (u16::from(question[2] & 1) << 8) | code;
    let mut answer = question[..2].to_vec();
    for number in [flags, 1, count, u16::from(!authority.is_empty()), 0] {
        answer.extend(number.to_be_bytes());
    }
    [answer, question[12..end].to_vec(), records, authority].concat()
}

fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = wire_name(owner);
    record.extend(kind.to_be_bytes());
    record.extend(1_u16.to_be_bytes());
    record.extend(TTL_S.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}
