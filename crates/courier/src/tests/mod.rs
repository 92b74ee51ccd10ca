//! The client against a scripted server: each test is named by the failure it guards against.

mod ahead;
mod chunks;
mod content;
mod dialogue;
mod flights;
mod handshake;
mod server;
mod streaming;
mod tls;

use crate::{Connection, Content, Delivery, InMemory, Mail, RecipientResult, Settings, connect};
use restante_envelope::{
    BodyType, DsnRequest, EnvelopeId, ForwardPath, Notify, OriginalRecipient, Recipient, Ret, ReversePath, RouteName,
};
use server::{Script, Server};

const HEADER: &[u8] = b"Received: from a by b;\r\n\tnow\r\n";
const CONTENT: &[u8] = b"Subject: hello\r\n\r\nbody\r\n";

fn settings() -> Settings {
    Settings::new("mx2.example.test".into())
}

async fn connected(server: &Server) -> Connection {
    connect(server.target(), &settings()).await.unwrap()
}

/// Delivers `content` to `recipients` with our header in front.
async fn deliver_to(connection: &mut Connection, recipients: &[&str], content: &[u8]) -> Delivery {
    deliver_from(connection, recipients, &mut InMemory(content), content.len() as u64).await
}

/// Of whom nothing is asked.
const PLAIN: DsnRequest = DsnRequest { ret: None, envid: None };

fn to(path: &str) -> Recipient {
    Recipient::new(ForwardPath::parse(path).unwrap(), RouteName::new("x"))
}

/// Delivers what `content` gives, announced as `size_bytes`.
async fn deliver_from(
    connection: &mut Connection,
    recipients: &[&str],
    content: &mut dyn Content,
    size_bytes: u64,
) -> Delivery {
    let recipients: Vec<Recipient> = recipients.iter().map(|path| to(path)).collect();
    let recipients: Vec<&Recipient> = recipients.iter().collect();
    let reverse_path = ReversePath::parse("s@example.test").unwrap();
    let mail = Mail {
        reverse_path: &reverse_path,
        recipients: &recipients,
        body: BodyType::SevenBit,
        smtputf8: false,
        dsn: &PLAIN,
        trace_header: HEADER,
        size_bytes,
    };
    connection.deliver(&mail, content, None).await
}

async fn deliver(connection: &mut Connection, recipients: &[&str]) -> Vec<RecipientResult> {
    deliver_to(connection, recipients, CONTENT).await.results
}

/// `250 2.0.0 ok` for a reply; the stage or `in doubt` with the reason for the rest.
fn told(results: &[RecipientResult]) -> Vec<String> {
    let tell = |result: &RecipientResult| match result {
        RecipientResult::Replied(reply) => reply.to_string(),
        RecipientResult::Lost { why, .. } => format!("lost: {why}"),
        RecipientResult::NotOffered { why } => format!("not offered: {why}"),
        RecipientResult::InDoubt { why } => format!("in doubt: {why}"),
    };
    results.iter().map(tell).collect()
}

fn plain() -> Script {
    Script::new().send("220 ready\r\n").expect("EHLO mx2.example.test").send("250 server\r\n")
}

fn pipelining() -> Script {
    Script::new()
        .send("220 ready\r\n")
        .expect("EHLO")
        .send("250-server\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 8BITMIME\r\n")
}

fn chunking() -> Script {
    Script::new()
        .send("220 ready\r\n")
        .expect("EHLO")
        .send("250-server\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 CHUNKING\r\n")
}
