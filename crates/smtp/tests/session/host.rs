//! A host that owns two domains, records what it is told, and fails on request. Stores nothing.

use restante_envelope::{BodyType, DomainName, Envelope, ForwardPath, RouteName, Timestamp, Trace};
use restante_smtp::{Admission, EndOfData, Etrn, Host, RefusedCommand, Session, Settings, Trouble};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) const START: u64 = 1_795_359_200_000;
/// Whose connection it is.
const PEER: &str = "192.0.2.7:4321";

#[derive(Default)]
pub(crate) struct Recorder {
    /// `begin ..`, `content ..`, `end ..`, `abort`
    pub(crate) events: VecDeque<String>,
    /// `refused ..`
    pub(crate) log: VecDeque<String>,
    pub(crate) content: Vec<u8>,
    pub(crate) open: bool,
    /// As the proxy says.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) mail_fails: Option<Trouble>,
    pub(crate) begin_fails: Option<Trouble>,
    /// Whether there is room for each message in turn.
    pub(crate) begins: VecDeque<bool>,
    pub(crate) chunk_fails: Option<Trouble>,
}

impl Host for Recorder {
    fn mail(&mut self, _declared_bytes: u64) -> Result<(), Trouble> {
        self.mail_fails.take().map_or(Ok(()), Err)
    }

    /// As a relay decides: `ours.test` and `second.test`, where nobody has no mailbox.
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        let route = match path.domain().map(str::to_ascii_lowercase).as_deref() {
            Some("ours.test") | None => "ours",
            Some("second.test") => "second",
            Some(_) => return Admission::NotOurs,
        };
        if path.has_sender_specified_route() {
            Admission::SenderSpecifiedRoute
        } else if path.canonical().starts_with("nobody@") {
            Admission::UnknownRecipient
        } else {
            Admission::Accept(RouteName::new(route))
        }
    }

    fn begin(&mut self, envelope: &Envelope, trace: &Trace, declared_bytes: u64) -> Result<(), Trouble> {
        assert!(!self.open, "begin within a content");
        assert!(!envelope.recipients.is_empty(), "begin without recipients");
        if let Some(trouble) = self.begin_fails.take() {
            return Err(trouble);
        }
        if self.begins.pop_front() == Some(false) {
            return Err(Trouble::Storage);
        }
        self.open = true;
        self.content.clear();
        let to: Vec<String> = envelope.recipients.iter().map(|r| format!("<{}>={}", r.forward_path, r.route)).collect();
        let body = if envelope.body == BodyType::EightBitMime { "8BITMIME" } else { "7BIT" };
        let (helo, protocol) = (&trace.helo, trace.protocol.as_str());
        let from = &envelope.reverse_path;
        let size = if declared_bytes == 0 { String::new() } else { format!(" size={declared_bytes}") };
        let tls = trace.tls.as_ref().map_or(String::new(), |tls| format!(" ({tls})"));
        let to = to.join(",");
        let asked = asked(envelope);
        assert_eq!(trace.client, self.client.unwrap_or(PEER.parse().unwrap()), "not who was told");
        self.events.push_back(format!("begin from=<{from}> to={to} {body} {protocol} {helo}{size}{tls}{asked}"));
        Ok(())
    }

    fn etrn(&mut self, domain: &DomainName) -> Etrn {
        match domain.as_str() {
            "ours.test" => Etrn::Started,
            "second.test" => Etrn::Nothing,
            "busy.ours.test" => Etrn::Refused,
            _ => Etrn::NotOurs,
        }
    }

    fn xclient(&mut self, client: SocketAddr) {
        self.client = Some(client);
        self.events.push_back(format!("client {client}"));
    }

    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        assert!(self.open, "chunk outside of a content");
        assert!(!content.is_empty(), "empty chunk");
        self.content.extend_from_slice(content);
        self.chunk_fails.take().map_or(Ok(()), Err)
    }

    fn end(&mut self, end: EndOfData) {
        assert!(std::mem::take(&mut self.open), "end outside of a content");
        assert!(self.content.is_empty() || self.content.ends_with(b"\r\n"));
        self.events.push_back(format!("content {}", self.content.escape_ascii()));
        self.events.push_back(format!("end hops={} own={}", end.hops, end.own_hops));
    }

    fn abort(&mut self) {
        assert!(std::mem::take(&mut self.open), "abort outside of a content");
        self.events.push_back("abort".to_owned());
    }

    fn refused(&mut self, refusal: &RefusedCommand) {
        assert!(refusal.reply.code() >= 400);
        let shown =
            |name: &str, path: &Option<String>| path.as_ref().map_or(String::new(), |p| format!(" {name}=<{p}>"));
        let (from, to) = (shown("from", &refusal.reverse_path), shown("to", &refusal.forward_path));
        let helo = refusal.helo.as_deref().unwrap_or("-");
        self.log.push_back(format!("refused {} {} {helo}{from}{to}", refusal.stage.as_str(), refusal.reply.code()));
    }
}

/// What is asked for, in the order of the commands.
fn asked(envelope: &Envelope) -> String {
    let mut words = Vec::new();
    words.extend(envelope.smtputf8.then(|| "SMTPUTF8".to_owned()));
    words.extend(envelope.dsn.ret.map(|ret| format!("RET={}", ret.as_str())));
    words.extend(envelope.dsn.envid.as_ref().map(|id| format!("ENVID={}", id.as_str())));
    for dsn in envelope.recipients.iter().map(|recipient| &recipient.dsn) {
        words.extend(dsn.notify.map(|notify| format!("notify={notify}")));
        words.extend(dsn.original.as_ref().map(|to| format!("orcpt={}", to.as_str())));
    }
    words.iter().map(|word| format!(" {word}")).collect()
}

pub(crate) fn settings() -> Settings {
    Settings::new("mx2.test".to_owned(), 1_000)
}

pub(crate) fn session(settings: Settings) -> Session {
    Session::new(Arc::new(settings), PEER.parse().unwrap(), 7, Timestamp::from_unix_ms(START))
}
