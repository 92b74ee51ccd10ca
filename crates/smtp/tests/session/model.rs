//! A second server, as simple as it can be: all that a client sends is one buffer, each command is read off its front, and nothing is ever
//! half there. Written from the RFCs and from what we say we do beyond them, so that the session has somebody to be compared with.
//! What an address is it asks `restante-envelope`, as the session does; all else it reads for itself. It holds no limit of memory, and
//! knows no time.

use crate::spoken::{Asked, Parsed, read};
use restante_envelope::{
    BodyType, DomainName, EnvelopeId, ForwardPath, Notify, OriginalRecipient, PathError, Ret, ReversePath,
};
use std::collections::BTreeSet;

/// What the model is told of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) max_message_bytes: u64,
    pub(crate) max_recipients: usize,
    pub(crate) max_messages: u32,
    pub(crate) max_header_bytes: u64,
    /// Content with bare line ends is refused.
    pub(crate) is_strict: bool,
    pub(crate) starttls: bool,
    pub(crate) xclient: bool,
    /// The answers to `begin` and of the commit, in turn: there is room or there is none. Behind the last there is.
    pub(crate) begins: Vec<bool>,
    pub(crate) commits: Vec<bool>,
}

/// What came of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// `250 2.1.0`, or without the second; `220 closed` behind the last, if the server closes.
    pub(crate) replies: Vec<String>,
    /// As the recording host writes them, without our own hops.
    pub(crate) events: Vec<String>,
}

#[derive(Debug, Clone)]
struct Hello {
    name: String,
    is_esmtp: bool,
}

#[derive(Debug, Clone)]
struct Mail {
    from: String,
    /// With its route and what is asked for it.
    to: Vec<(String, &'static str, String)>,
    size: u64,
    body: BodyType,
    smtputf8: bool,
    asked: String,
}

enum Phase {
    Greeted,
    Ready,
    Mail(Mail),
    /// All octets of the chunks so far.
    Chunks(Vec<u8>),
}

/// Errors and idle commands end a session at these.
const PROTOCOL_ERRORS: u32 = 20;
const MAIL_ERRORS: u32 = 100;
const IDLE: u32 = 101;

enum Fault {
    None,
    Mail,
    Protocol,
    Fatal,
}

struct Model<'i> {
    rules: Rules,
    input: &'i [u8],
    /// Where a piece of the input ends: what is behind it was not there when the server looked.
    ends: BTreeSet<usize>,
    at: usize,
    phase: Phase,
    hello: Option<Hello>,
    has_tls: bool,
    is_proxy: bool,
    client: (String, u16),
    mails: u32,
    errors: (u32, u32, u32),
    is_closed: bool,
    outcome: Outcome,
}

const PEER: (&str, u16) = ("192.0.2.7", 4321);

/// What a server says to `input`, which came in pieces that end at `ends`.
pub(crate) fn talk(rules: &Rules, input: &[u8], ends: BTreeSet<usize>) -> Outcome {
    let mut model = Model {
        rules: rules.clone(),
        input,
        ends,
        at: 0,
        phase: Phase::Greeted,
        hello: None,
        has_tls: false,
        is_proxy: false,
        client: (PEER.0.to_owned(), PEER.1),
        mails: 0,
        errors: (0, 0, 0),
        is_closed: false,
        outcome: Outcome::default(),
    };
    model.say("220");
    while !model.is_closed {
        let Some(length) = model.rest().iter().position(|b| *b == b'\n') else { break };
        let line = &input[model.at..model.at + length + 1];
        model.at += line.len();
        model.line(line);
    }
    if model.is_closed {
        model.say("closed");
    } else {
        model.forget();
    }
    model.outcome
}

impl Model<'_> {
    fn rest(&self) -> &[u8] {
        &self.input[self.at..]
    }

    /// The client did not wait for the reply to what was just read.
    fn has_talked_on(&self) -> bool {
        self.at < self.input.len() && !self.ends.contains(&self.at)
    }

    fn say(&mut self, reply: &str) {
        self.outcome.replies.push(reply.to_owned());
    }

    fn told(&mut self, event: String) {
        self.outcome.events.push(event);
    }

    fn refuse(&mut self, reply: &str, fault: Fault) {
        self.say(reply);
        match fault {
            Fault::None => {}
            Fault::Mail => self.errors.1 += 1,
            Fault::Protocol => self.errors.0 += 1,
            Fault::Fatal => return self.close(),
        }
        self.count();
    }

    fn count(&mut self) {
        if self.errors.0 >= PROTOCOL_ERRORS || self.errors.1 >= MAIL_ERRORS || self.errors.2 >= IDLE {
            self.say("421 4.7.0");
            self.close();
        }
    }

    fn close(&mut self) {
        self.forget();
        self.is_closed = true;
    }

    /// RSET.
    fn forget(&mut self) {
        if let Phase::Chunks(_) = self.phase {
            self.told("abort".to_owned());
        }
        self.phase = if self.hello.is_some() { Phase::Ready } else { Phase::Greeted };
    }

    fn idle(&mut self, reply: &str) {
        self.say(reply);
        self.errors.2 += 1;
        self.count();
    }

    fn line(&mut self, line: &[u8]) {
        let parsed = read(line);
        let is_data = line.len() >= 4 && line[..4].eq_ignore_ascii_case(b"DATA");
        match parsed {
            Parsed::Fatal(reply) => self.refuse(reply, Fault::Fatal),
            Parsed::Malformed(reply) => self.refuse(reply, Fault::Protocol),
            Parsed::NotText => self.refuse("553 5.6.7", Fault::Mail),
            Parsed::Asked(asked) => return self.command(asked),
        }
        if is_data && self.has_talked_on() && !self.is_closed {
            self.say("421 4.5.0");
            self.close();
        }
    }

    fn command(&mut self, asked: Asked) {
        match asked {
            Asked::Hello { .. } if self.has_talked_on() => self.refuse("554 5.5.0", Fault::Fatal),
            Asked::Hello { name, is_esmtp } => {
                self.forget();
                self.hello = Some(Hello { name, is_esmtp });
                self.phase = Phase::Ready;
                let tls = if self.rules.starttls && !self.has_tls && !self.is_proxy { " STARTTLS" } else { "" };
                let xclient = if self.rules.xclient { " XCLIENT" } else { "" };
                let offers = format!("250-{tls}{xclient}");
                self.idle(if is_esmtp { &offers } else { "250" });
            }
            Asked::Mail { path, size, body, smtputf8, ret, envid } => {
                self.mail(&path, size, body, smtputf8, ret, envid)
            }
            Asked::Rcpt { path, notify, orcpt } => self.rcpt(&path, notify, orcpt),
            Asked::Data => self.data(),
            Asked::Bdat { bytes, is_last } => self.bdat(bytes, is_last),
            Asked::Rset => {
                self.forget();
                self.idle("250 2.0.0");
            }
            Asked::Noop => self.idle("250 2.0.0"),
            Asked::Vrfy => self.idle("252 2.0.0"),
            Asked::Help => self.idle("214 2.0.0"),
            Asked::Etrn(domain) => self.etrn(&domain),
            Asked::Xclient(argument) => self.xclient(&argument),
            Asked::StartTls => self.start_tls(),
            Asked::Quit => {
                self.close();
                self.say("221 2.0.0");
            }
        }
    }

    fn mail(
        &mut self,
        path: &str,
        size: u64,
        body: BodyType,
        smtputf8: bool,
        ret: Option<Ret>,
        envid: Option<EnvelopeId>,
    ) {
        if !matches!(self.phase, Phase::Ready) {
            return self.refuse("503 5.5.1", Fault::Protocol);
        }
        if self.mails >= self.rules.max_messages {
            return self.refuse("421 4.5.3", Fault::Fatal);
        }
        let from = if smtputf8 { ReversePath::parse_utf8(path) } else { ReversePath::parse(path) };
        let from = match from {
            Err(PathError::NotAscii) => return self.refuse("550 5.6.7", Fault::Mail),
            Err(_) => return self.refuse("501 5.1.7", Fault::Mail),
            Ok(_) if size > self.rules.max_message_bytes => return self.refuse("552 5.3.4", Fault::Mail),
            Ok(from) => from.to_string(),
        };
        let ret = ret.map_or(String::new(), |ret| format!(" RET={}", ret.as_str()));
        let asked = envid.map_or(ret.clone(), |envid| format!("{ret} ENVID={}", envid.as_str()));
        self.mails += 1;
        self.phase = Phase::Mail(Mail { from, to: Vec::new(), size, body, smtputf8, asked });
        self.say("250 2.1.0");
    }

    fn rcpt(&mut self, path: &str, notify: Option<Notify>, orcpt: Option<OriginalRecipient>) {
        let max = self.rules.max_recipients;
        let Phase::Mail(mail) = &mut self.phase else { return self.refuse("503 5.5.1", Fault::Protocol) };
        let parsed = if mail.smtputf8 { ForwardPath::parse_utf8(path) } else { ForwardPath::parse(path) };
        let (reply, fault) = match parsed {
            _ if orcpt.as_ref().is_some_and(|to| !to.as_str().is_ascii()) && !mail.smtputf8 => {
                ("501 5.5.4", Fault::Mail)
            }
            _ if mail.to.len() >= max => ("452 4.5.3", Fault::None),
            Err(PathError::NotAscii) => ("553 5.6.7", Fault::Mail),
            Err(PathError::TooLong) => ("501 5.1.3", Fault::Mail),
            Err(_) => ("550 5.1.3", Fault::Mail),
            Ok(to) => {
                let route = match to.domain().map(str::to_ascii_lowercase).as_deref() {
                    None | Some("ours.test") => "ours",
                    Some("second.test") => "second",
                    Some(_) => return self.refuse("550 5.7.1", Fault::Mail),
                };
                if to.local_part().contains(['%', '!', '@']) {
                    ("550 5.7.1", Fault::Mail)
                } else if to.local_part().replace(['"', '\\'], "").eq_ignore_ascii_case("nobody") {
                    ("550 5.1.1", Fault::Mail)
                } else {
                    let notify = notify.map_or(String::new(), |notify| format!(" notify={notify}"));
                    let asked = orcpt.map_or(notify.clone(), |to| format!("{notify} orcpt={}", to.as_str()));
                    mail.to.push((to.to_string(), route, asked));
                    return self.say("250 2.1.5");
                }
            }
        };
        self.refuse(reply, fault);
    }

    /// Whether the host takes the message; if so, it was told.
    fn begin(&mut self, mail: &Mail, declared: u64) -> bool {
        if !self.rules.begins.is_empty() && !self.rules.begins.remove(0) {
            return false;
        }
        let hello = self.hello.clone().unwrap_or_else(|| panic!("a message without EHLO"));
        let protocol = match (hello.is_esmtp, self.has_tls, mail.smtputf8) {
            (false, ..) => "SMTP",
            (true, false, false) => "ESMTP",
            (true, true, false) => "ESMTPS",
            (true, false, true) => "UTF8SMTP",
            (true, true, true) => "UTF8SMTPS",
        };
        let to: Vec<String> = mail.to.iter().map(|(to, route, _)| format!("<{to}>={route}")).collect();
        let asked: String = mail.to.iter().map(|(_, _, asked)| asked.as_str()).collect();
        let body = if mail.body == BodyType::EightBitMime { "8BITMIME" } else { "7BIT" };
        let size = if declared == 0 { String::new() } else { format!(" size={declared}") };
        let tls = if self.has_tls { " (TLS)" } else { "" };
        let smtputf8 = if mail.smtputf8 { " SMTPUTF8" } else { "" };
        let (from, to, name) = (&mail.from, to.join(","), hello.name);
        self.told(format!(
            "begin from=<{from}> to={to} {body} {protocol} {name}{size}{tls}{smtputf8}{}{asked}",
            mail.asked
        ));
        true
    }

    fn data(&mut self) {
        let mail = match &self.phase {
            Phase::Mail(mail) if !mail.to.is_empty() => mail.clone(),
            Phase::Mail(_) => return self.no_data("554 5.5.1", Fault::Mail),
            _ => return self.no_data("503 5.5.1", Fault::Protocol),
        };
        if !self.begin(&mail, mail.size) {
            return self.no_data("452 4.3.1", Fault::None);
        }
        self.say("354");
        self.phase = Phase::Ready;
        let mut content = Vec::new();
        while let Some(length) = self.rest().windows(2).position(|pair| pair == b"\r\n") {
            let line = self.rest()[..length].to_vec();
            self.at += length + 2;
            if line == b"." {
                return self.end(&content);
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            content.extend_from_slice(b"\r\n");
        }
        self.at = self.input.len();
        self.told("abort".to_owned());
    }

    fn no_data(&mut self, reply: &str, fault: Fault) {
        self.refuse(reply, fault);
        if !self.is_closed && self.has_talked_on() {
            self.say("421 4.5.0");
            self.close();
        }
    }

    fn bdat(&mut self, bytes: u64, is_last: bool) {
        let max = self.rules.max_message_bytes;
        let refusal = match &self.phase {
            Phase::Chunks(_) => None,
            Phase::Mail(mail) if !mail.to.is_empty() => {
                let mail = mail.clone();
                let declared = mail.size.max(if is_last { bytes } else { 0 });
                self.phase = Phase::Ready;
                if declared > max {
                    Some(("552 5.3.4", Fault::Mail))
                } else if !self.begin(&mail, declared) {
                    Some(("452 4.3.1", Fault::None))
                } else {
                    self.phase = Phase::Chunks(Vec::new());
                    None
                }
            }
            Phase::Mail(_) => Some(("554 5.5.1", Fault::Mail)),
            Phase::Ready => Some(("503 5.5.1", Fault::Mail)),
            Phase::Greeted => Some(("503 5.5.1", Fault::Protocol)),
        };
        if refusal.is_some() {
            self.forget();
        }
        if let Some((reply, _)) = refusal
            && bytes > 2 * max + (1 << 20)
        {
            self.say(reply);
            self.say("421 4.7.0");
            return self.close();
        }
        let is_whole = bytes <= self.rest().len() as u64;
        let octets = self.rest()[..usize::try_from(bytes).unwrap_or(usize::MAX).min(self.rest().len())].to_vec();
        self.at += octets.len();
        match (refusal, &mut self.phase) {
            (Some((reply, fault)), _) if is_whole => self.refuse(reply, fault),
            (None, Phase::Chunks(content)) if is_whole => {
                content.extend_from_slice(&octets);
                let content = content.clone();
                self.chunk(&content, is_last);
            }
            _ => {}
        }
    }

    fn chunk(&mut self, content: &[u8], is_last: bool) {
        if is_last {
            self.phase = Phase::Ready;
            return self.end(content);
        }
        // The CRs at its end may belong to a line end that is yet to come; two of them do not, whatever comes.
        let known = content.iter().rposition(|b| *b != b'\r').map_or(0, |last| last + 1);
        let is_bare = is_bare(&content[..known]) || content.len() - known > 1;
        match self.fault_of(&mended(&content[..known]), is_bare, false) {
            None => self.say("250 2.0.0"),
            Some(reply) => {
                self.forget();
                self.refuse(reply, Fault::Mail);
            }
        }
    }

    /// A whole content, without dots.
    fn end(&mut self, content: &[u8]) {
        // The last line gets its end, if it has none.
        let ending: &[u8] = if content.is_empty() || content.ends_with(b"\n") { b"" } else { b"\n" };
        let whole = mended(&[content, ending].concat());
        if let Some(reply) = self.fault_of(&whole, is_bare(content), true) {
            self.told("abort".to_owned());
            return self.refuse(reply, Fault::Mail);
        }
        self.told(format!("content {}", whole.escape_ascii()));
        self.told(format!("end hops={}", hops(&whole, true)));
        if self.rules.commits.is_empty() || self.rules.commits.remove(0) {
            self.errors = (0, 0, 0);
            self.say("250 2.0.0");
        } else {
            self.say("452 4.3.1");
        }
    }

    fn fault_of(&self, content: &[u8], is_bare: bool, is_over: bool) -> Option<&'static str> {
        let header = header(content);
        if is_bare && self.rules.is_strict {
            Some("554 5.6.0")
        } else if content.len() as u64 > self.rules.max_message_bytes
            || header.len() as u64 > self.rules.max_header_bytes
        {
            Some("552 5.3.4")
        } else if hops(content, is_over) > 50 {
            Some("554 5.4.6")
        } else {
            None
        }
    }

    fn etrn(&mut self, domain: &str) {
        let Ok(name) = DomainName::parse(domain.strip_prefix('@').unwrap_or(domain)) else {
            // Whether EHLO has come is looked at first.
            let reply = if self.hello.is_some() { "501 5.5.4" } else { "503 5.5.1" };
            return self.refuse(reply, Fault::Protocol);
        };
        match name.as_str() {
            _ if self.hello.is_none() => self.refuse("503 5.5.1", Fault::Protocol),
            "ours.test" => self.idle("250 2.0.0"),
            "second.test" => self.idle("251 2.0.0"),
            "busy.ours.test" => self.refuse("458 4.3.0", Fault::Mail),
            _ => self.refuse("459 4.7.1", Fault::Mail),
        }
    }

    fn xclient(&mut self, argument: &str) {
        if !self.rules.xclient {
            return self.refuse("550 5.7.0", Fault::Protocol);
        }
        if matches!(self.phase, Phase::Mail(_) | Phase::Chunks(_)) {
            return self.refuse("503 5.5.1", Fault::Protocol);
        }
        let Some(told) = crate::spoken::xclient(argument) else { return self.refuse("501 5.5.4", Fault::Protocol) };
        let port = told.port.flatten();
        self.client = match told.addr {
            None => (self.client.0.clone(), port.unwrap_or(self.client.1)),
            Some(None) => (PEER.0.to_owned(), PEER.1),
            Some(Some(addr)) => (addr, port.unwrap_or(0)),
        };
        self.is_proxy = true;
        let (ip, port) = &self.client;
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        self.told(format!("client {ip}:{port}"));
        self.hello = told.helo.map(|name| Hello { name, is_esmtp: told.is_esmtp });
        self.phase = if self.hello.is_some() { Phase::Ready } else { Phase::Greeted };
        self.idle("220");
    }

    fn start_tls(&mut self) {
        if !self.rules.starttls {
            return self.refuse("502 5.5.1", Fault::Protocol);
        }
        let is_esmtp = self.hello.as_ref().is_some_and(|hello| hello.is_esmtp);
        if self.has_tls || self.is_proxy || !is_esmtp {
            return self.refuse("503 5.5.1", Fault::Protocol);
        }
        self.forget();
        self.say("220 2.0.0");
        (self.hello, self.phase, self.errors, self.has_tls) = (None, Phase::Greeted, (0, 0, 0), true);
        // What came in the same piece was said in clear.
        self.at = self.ends.range(self.at..).next().copied().unwrap_or(self.input.len());
    }
}

/// A CR without its LF, or the other way round.
fn is_bare(content: &[u8]) -> bool {
    let lone = |at: usize| match content[at] {
        b'\r' => content.get(at + 1) != Some(&b'\n'),
        b'\n' => at == 0 || content[at - 1] != b'\r',
        _ => false,
    };
    (0..content.len()).any(lone)
}

/// Of content without CRs at its end. CRs in a row are one; in front of an LF it belongs to the line end, else it is a space; an LF alone is a line end.
fn mended(content: &[u8]) -> Vec<u8> {
    let mut mended = Vec::new();
    for line in content.split_inclusive(|b| *b == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = &text[..text.iter().rposition(|b| *b != b'\r').map_or(0, |last| last + 1)];
        for (at, b) in text.iter().enumerate() {
            match b {
                b'\r' if at > 0 && text[at - 1] == b'\r' => {}
                b'\r' => mended.push(b' '),
                b => mended.push(*b),
            }
        }
        if line.ends_with(b"\n") {
            mended.extend_from_slice(b"\r\n");
        }
    }
    mended
}

/// The lines in front of the first empty one.
fn header(content: &[u8]) -> &[u8] {
    if content.starts_with(b"\r\n") {
        return b"";
    }
    content.windows(4).position(|four| four == b"\r\n\r\n").map_or(content, |end| &content[..end + 2])
}

/// Received headers. Unless all of the content is there, the last header may go on, and does not count yet.
fn hops(content: &[u8], is_over: bool) -> u16 {
    let header = header(content);
    let is_over = is_over || header.len() < content.len();
    let text: String = header.iter().map(|b| char::from(*b)).collect();
    let text = text.strip_suffix("\r\n").unwrap_or(&text).replace("\r\n ", " ").replace("\r\n\t", "\t");
    let mut lines: Vec<&str> = text.split("\r\n").collect();
    if !is_over {
        lines.pop();
    }
    let name = |line: &&str| {
        line.split_once(':').map(|(name, _)| name.trim_end_matches([' ', '\t', '\x0c']).to_ascii_lowercase())
    };
    lines.iter().filter(|line| name(line).as_deref() == Some("received")).count() as u16
}
