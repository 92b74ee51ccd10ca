//! Mail of another server's queue, handed in by `journal import`: each message goes through an SMTP session of its own, so that
//! nothing gets in that would not get in by SMTP, and out of it into the journal on the very same way.
//!
//! The session is with ourselves, and says so: the client is 127.0.0.1 with the port 0, which no connection has, and calls
//! itself by the message's key. So our Received header is true: it tells when we took the message, and from where. How it came
//! to the other server, and when, stands in that server's own Received header, which is a part of the content. And the key is
//! in the journal with the message, in one record: what has been taken is known for as long as the journal has it, across
//! crashes, restarts, backups and merges, and no other file can disagree.
//!
//! The arrival at the other server is not made the arrival here, though that would keep its age: identifiers, the order of
//! delivery, retention and the header all go by when we took responsibility.
//!
//! Reads no files of other servers.

use super::admin::{Admin, Desk, Params, Refusal};
use super::intake::Visitor;
use super::session::{Door, stop};
use crate::clock;
use crate::import::ENDING;
use anyhow::{anyhow, bail};
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use restante_envelope::{
    DsnRequest, EnvelopeId, ForwardPath, Notify, OriginalRecipient, RecipientDsn, Ret, ReversePath, Trace,
    TransactionId,
};
use restante_journal::{Depth, DirStorage, ReplayError, Sink, replay};
use restante_ledger::{Accepted, Base, Carried, Fact, Position};
use restante_smtp::{Admission, BareLineEnds, Host as _, RECIPIENTS_MAX, Resolution, Session};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::Mutex;

/// In front of the content: so many recipients, each of an address's length and its quotes and what is asked for it, and the rest.
const ENVELOPE_BYTES_MAX: usize = RECIPIENTS_MAX * 1_200 + 4_096;
/// A segment may leave while the journal is read.
const READS_MAX: usize = 4;
/// A sentence of ours.
const HOLD_BYTES_MAX: usize = 1_000;
/// What no connection has.
const OURSELVES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A message and one of its recipients, as a digest: sixteen bytes each, for as long as the daemon runs.
type Name = [u8; 16];

/// Who has been taken, and who is being taken now (false). None: nobody has asked yet.
static TAKEN: Mutex<Option<HashMap<Name, bool>>> = Mutex::const_new(None);

fn name(key: &str, recipient: &ForwardPath) -> Name {
    let mut digest = Sha256::new();
    digest.update(key);
    digest.update([0]);
    digest.update(recipient.as_str());
    let mut name = Name::default();
    name.iter_mut().zip(digest.finalize()).for_each(|(to, from)| *to = from);
    name
}

/// What the journal says was imported.
#[derive(Default)]
struct Imported(HashMap<Name, bool>);

impl Imported {
    fn message(&mut self, accepted: &Accepted) {
        let Trace { client, helo, .. } = &accepted.trace;
        if *client == OURSELVES && helo.ends_with(ENDING) {
            let recipients = accepted.envelope.recipients.iter();
            self.0.extend(recipients.map(|to| (name(helo, &to.forward_path), true)));
        }
    }
}

/// What is damaged here is not known: its source still has it whole.
impl Sink for Imported {
    fn fact(&mut self, _: Position, fact: &Fact) {
        match fact {
            Fact::Accepted(accepted) => self.message(accepted),
            Fact::Carried(carried) => self.message(&carried.accepted),
            _ => {}
        }
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {}
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, _: Position, _: &Carried) {}
    fn begins_after(&mut self, _: &Base) {}
}

fn read(storage: &DirStorage) -> anyhow::Result<HashMap<Name, bool>> {
    for reads in 1.. {
        let mut imported = Imported::default();
        match replay(storage, Depth::Records, &mut imported) {
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound && reads < READS_MAX => {}
            read => return Ok(read.map(|_| imported.0)?),
        }
    }
    bail!("the journal was not read")
}

/// What stands in front of the content.
struct Letter {
    key: String,
    reverse_path: String,
    recipients: Vec<String>,
    hold: Option<String>,
    bytes: u64,
    is_eight_bit: bool,
    smtputf8: bool,
    has_bare: bool,
    dsn: DsnRequest,
    /// As many as recipients, or none at all.
    asked: Vec<RecipientDsn>,
}

impl Letter {
    fn parse(line: &[u8]) -> Option<Self> {
        let object: Value = serde_json::from_slice(line).ok()?;
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let is = |key: &str| object.get(key).and_then(Value::as_bool) == Some(true);
        let recipients: Option<Vec<String>> =
            object.get("to")?.as_array()?.iter().map(|to| to.as_str().map(str::to_owned)).collect();
        let is_key = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        Some(Self {
            key: text("key").filter(|key| key.ends_with(ENDING) && key.bytes().all(is_key))?.to_owned(),
            reverse_path: text("from")?.to_owned(),
            recipients: recipients.filter(|all| all.len() <= RECIPIENTS_MAX)?,
            hold: text("hold").filter(|why| why.len() <= HOLD_BYTES_MAX).map(str::to_owned),
            bytes: object.get("bytes")?.as_u64()?,
            is_eight_bit: text("body") == Some("8BITMIME"),
            smtputf8: is("smtputf8"),
            has_bare: is("has_bare"),
            dsn: DsnRequest {
                ret: text("ret").map(Ret::parse).transpose().ok()?,
                envid: text("envid").map(EnvelopeId::parse).transpose().ok()?,
            },
            asked: object
                .get("asked")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(asked)
                .collect::<Option<_>>()?,
        })
    }
}

/// What is asked for a recipient; null for nothing. None: that is nothing that can be asked.
fn asked(object: &Value) -> Option<RecipientDsn> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    Some(RecipientDsn {
        notify: text("notify").map(Notify::parse).transpose().ok()?,
        original: text("orcpt").map(OriginalRecipient::parse).transpose().ok()?,
    })
}

/// What becomes of a message's recipients.
#[derive(Default)]
struct Sorted {
    taken: Vec<(ForwardPath, RecipientDsn)>,
    known: Vec<ForwardPath>,
    refused: Vec<(String, String)>,
    routes: BTreeMap<String, u64>,
}

/// `POST /api/v1/import`: a line of JSON with the envelope, then the content. With `?dry_run=1` without it: what would become of
/// the message. A task of its own: a client that leaves in the middle does not leave us in doubt.
pub(super) async fn import(
    State(desk): State<Desk>,
    headers: HeaderMap,
    Query(params): Params,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    desk.permit(&headers)?;
    let is_dry = params.contains_key("dry_run");
    match tokio::spawn(one(desk.admin.clone(), body, is_dry)).await {
        Ok(answer) => answer.map(Json),
        Err(defect) => Err(failed(&anyhow!(defect))),
    }
}

fn failed(error: &anyhow::Error) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

async fn one(admin: Arc<Admin>, mut body: Body, is_dry: bool) -> Result<Value, Refusal> {
    let no_envelope = || Refusal(StatusCode::BAD_REQUEST, "in front of the content must stand its envelope".into());
    let (line, content) = first_line(&mut body).await.ok_or_else(no_envelope)?;
    let letter = Letter::parse(&line).ok_or_else(no_envelope)?;
    let stopping = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into());
    let door = &admin.door.upgrade().ok_or_else(stopping)?;
    let mut visitor = Visitor::new(door, OURSELVES, clock::entropy());
    visitor.declare(letter.bytes);
    let mut sorted = sort(&admin, &letter, &mut visitor, is_dry).await?;
    let taken: Vec<Name> = sorted.taken.iter().map(|(to, _)| name(&letter.key, to)).collect();
    let outcome = match sorted.taken.is_empty() {
        true => Ok(Spoken::Nothing),
        false => speak(door, &mut visitor, &letter, &sorted.taken, (&mut body, content), is_dry).await,
    };
    drop(visitor);
    read_to_the_end(body).await;
    if !is_dry {
        let is_stored = matches!(outcome, Ok(Spoken::Stored(_)));
        if let Some(all) = TAKEN.lock().await.as_mut() {
            for name in taken {
                if is_stored {
                    all.insert(name, true)
                } else {
                    all.remove(&name)
                };
            }
        }
    }
    let id = match outcome? {
        Spoken::Stored(id) => Some(id.to_string()),
        Spoken::Nothing => None,
        Spoken::Refused(why) => {
            let taken = std::mem::take(&mut sorted.taken);
            sorted.refused.extend(taken.into_iter().map(|(to, _)| (to.to_string(), why.clone())));
            sorted.routes.clear();
            None
        }
    };
    let taken: Vec<String> = sorted.taken.iter().map(|(to, _)| to.to_string()).collect();
    let known: Vec<String> = sorted.known.iter().map(ToString::to_string).collect();
    let refused: Vec<Value> = sorted.refused.iter().map(|(addr, why)| json!({"addr": addr, "why": why})).collect();
    Ok(json!({"type": "import", "id": id, "taken": taken, "known": known,
        "refused": refused, "routes": sorted.routes}))
}

/// What is not wanted any more: who is still sending does not hear the answer.
async fn read_to_the_end(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// Up to the first LF, and what came behind it.
async fn first_line(body: &mut Body) -> Option<(Vec<u8>, Bytes)> {
    let mut line = Vec::new();
    while line.len() <= ENVELOPE_BYTES_MAX {
        let Ok(mut data) = body.frame().await?.ok()?.into_data() else { continue };
        match data.iter().position(|b| *b == b'\n') {
            None => line.extend_from_slice(&data),
            Some(end) => {
                line.extend_from_slice(&data.split_to(end));
                return Some((line, data.slice(1..)));
            }
        }
    }
    None
}

/// Whose mail it is, who has it already, and whom the door would refuse. What is to be taken is from now on being taken.
async fn sort(admin: &Admin, letter: &Letter, visitor: &mut Visitor<'_>, is_dry: bool) -> Result<Sorted, Refusal> {
    let mut all = TAKEN.lock().await;
    if all.is_none() {
        let storage = admin.storage.clone();
        let read =
            tokio::task::spawn_blocking(move || read(&storage)).await.map_err(|defect| failed(&defect.into()))?;
        *all = Some(read.map_err(|error| failed(&error))?);
    }
    let all = all.get_or_insert_default();
    let mut sorted = Sorted::default();
    // Checked before it goes into a command; the session would refuse it in the same words.
    let is_utf8 = letter.smtputf8;
    let sender = if is_utf8 { ReversePath::parse_utf8 } else { ReversePath::parse }(&letter.reverse_path);
    let forward_path = if is_utf8 { ForwardPath::parse_utf8 } else { ForwardPath::parse };
    let sender = sender.err().map(|error| format!("its sender: {error}"));
    for (number, text) in letter.recipients.iter().enumerate() {
        let path = match forward_path(text) {
            Ok(path) => path,
            Err(error) => {
                sorted.refused.push((text.clone(), error.to_string()));
                continue;
            }
        };
        let refused = match all.get(&name(&letter.key, &path)) {
            Some(true) => {
                sorted.known.push(path);
                continue;
            }
            None if let Some(why) = &sender => why.clone(),
            Some(false) => "another import is taking it at this moment".to_owned(),
            None => match visitor.admit(&path) {
                Admission::Accept(route) => {
                    *sorted.routes.entry(route.as_str().to_owned()).or_default() += 1;
                    sorted.taken.push((path, letter.asked.get(number).cloned().unwrap_or_default()));
                    continue;
                }
                Admission::NotOurs => "no route is configured for its domain".to_owned(),
                Admission::UnknownRecipient => "it is not among the recipients of its route".to_owned(),
                Admission::SenderSpecifiedRoute => "its local part asks to be relayed elsewhere".to_owned(),
                Admission::Full => "its route holds as much as it may: import it later".to_owned(),
            },
        };
        sorted.refused.push((text.clone(), refused));
    }
    if !is_dry {
        all.extend(sorted.taken.iter().map(|(to, _)| (name(&letter.key, to), false)));
    }
    Ok(sorted)
}

/// What the session came to.
enum Spoken {
    Stored(TransactionId),
    /// For good: what its last reply says.
    Refused(String),
    Nothing,
}

/// The whole conversation. An error is trouble of our own, which may pass.
async fn speak(
    door: &Arc<Door>,
    visitor: &mut Visitor<'_>,
    letter: &Letter,
    recipients: &[(ForwardPath, RecipientDsn)],
    (body, first): (&mut Body, Bytes),
    is_dry: bool,
) -> Result<Spoken, Refusal> {
    let mut session = Session::new(door.settings.clone(), OURSELVES, clock::entropy(), clock::now());
    let mut commands = commands(letter, recipients);
    if !is_dry {
        commands.push("DATA".to_owned());
    }
    session.output().clear();
    for command in commands {
        session.receive(format!("{command}\r\n").as_bytes(), clock::now(), visitor);
        let reply = said(&mut session);
        if !reply.starts_with(['2', '3']) {
            return unless_trouble(reply);
        }
    }
    if is_dry {
        session.disconnected(visitor);
        // What the session itself would say at the end of the content, which a dry run does not send.
        let is_strict = door.settings.bare_line_ends == BareLineEnds::Reject;
        return Ok(match letter.has_bare && is_strict {
            true => {
                Spoken::Refused("554 5.6.0 message contains bare <CR> or <LF>; lines must end in <CR><LF>".to_owned())
            }
            false => Spoken::Nothing,
        });
    }
    visitor.hold(letter.hold.clone());
    let mut stuffing = Stuffing::default();
    let mut piece = stuffing.stuff(&first);
    let mut bytes = first.len() as u64;
    loop {
        session.receive(&piece, clock::now(), visitor);
        visitor.make_room().await;
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = stop(door.stopping.clone()) => None,
        };
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                bytes += data.len() as u64;
                piece = stuffing.stuff(&data);
            }
            None if bytes == letter.bytes => break,
            _ => {
                session.disconnected(visitor);
                return Err(Refusal(StatusCode::BAD_REQUEST, "the content is not complete".into()));
            }
        }
    }
    session.receive(stuffing.end(), clock::now(), visitor);
    let mut stored = None;
    if session.awaits_commit() {
        let resolution = visitor.resolution().await;
        session.resolve(resolution, clock::now());
        if let Resolution::Stored(id) = resolution {
            stored = Some(id);
        }
    }
    door.metrics.session_ended(&session.counts());
    match stored {
        Some(id) => Ok(Spoken::Stored(id)),
        None => unless_trouble(said(&mut session)),
    }
}

/// Up to the last recipient, with all that was asked.
fn commands(letter: &Letter, recipients: &[(ForwardPath, RecipientDsn)]) -> Vec<String> {
    let body_type = if letter.is_eight_bit { "8BITMIME" } else { "7BIT" };
    let mut mail = format!("MAIL FROM:<{}> SIZE={} BODY={body_type}", letter.reverse_path, letter.bytes);
    mail += if letter.smtputf8 { " SMTPUTF8" } else { "" };
    mail.extend(letter.dsn.ret.map(|ret| format!(" RET={}", ret.as_str())));
    mail.extend(letter.dsn.envid.as_ref().map(|id| format!(" ENVID={}", id.as_str())));
    let rcpt = |(to, dsn): &(ForwardPath, RecipientDsn)| {
        let mut rcpt = format!("RCPT TO:<{to}>");
        rcpt.extend(dsn.notify.map(|notify| format!(" NOTIFY={notify}")));
        rcpt.extend(dsn.original.as_ref().map(|original| format!(" ORCPT={}", original.as_str())));
        rcpt
    };
    [format!("EHLO {}", letter.key), mail].into_iter().chain(recipients.iter().map(rcpt)).collect()
}

fn said(session: &mut Session) -> String {
    String::from_utf8_lossy(&std::mem::take(session.output())).trim_end().replace("\r\n", " ")
}

/// A 4xx is about us and not about the message: the next one would hear the same.
fn unless_trouble(reply: String) -> Result<Spoken, Refusal> {
    match reply.starts_with('5') {
        true => Ok(Spoken::Refused(reply)),
        false => Err(Refusal(StatusCode::INSUFFICIENT_STORAGE, format!("mail is not accepted now: {reply}"))),
    }
}

/// The transparency procedure of RFC 5321 section 4.5.2, over pieces.
#[derive(Default)]
struct Stuffing {
    /// The last two bytes.
    last: [u8; 2],
    has_begun: bool,
}

impl Stuffing {
    fn stuff(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.len() + piece.len() / 64);
        for byte in piece {
            if *byte == b'.' && (self.last == *b"\r\n" || !self.has_begun) {
                out.push(b'.');
            }
            out.push(*byte);
            let [_, before] = self.last;
            self.last = [before, *byte];
            self.has_begun = true;
        }
        out
    }

    fn end(&self) -> &'static [u8] {
        if self.last == *b"\r\n" || !self.has_begun { b".\r\n" } else { b"\r\n.\r\n" }
    }
}
