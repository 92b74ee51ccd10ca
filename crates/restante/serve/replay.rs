//! What `restante replay` asks of a running daemon: a few messages, delivered once more and recorded one after the other. Which ones
//! is the command's to say; that none of them is recorded already is seen to here.

use super::admin::{Admin, Desk, Params, Refusal};
use super::journal::Entry;
use super::memory::Share;
use super::relay::Request;
use crate::replay::{Item, Order, Round, TURN, Tally, position};
use crate::routing;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use restante_courier::Target;
use restante_journal::Prepared;
use restante_ledger::{Accepted, Fact, Position, Replayed};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Mutex, oneshot};

/// A thousand messages to a thousand recipients each.
const LIST_BYTES_MAX: usize = 8 << 20;

/// The place of the last replayed record; held while messages are replayed, for two commands at once would each send what the
/// other does.
pub(crate) type LastReplayed = Arc<Mutex<Option<Position>>>;

pub(super) async fn some(
    State(desk): State<Desk>,
    headers: HeaderMap,
    Query(params): Params,
    list: Body,
) -> Result<Json<Value>, Refusal> {
    desk.permit(&headers)?;
    let bad = |why: &str| Refusal(StatusCode::BAD_REQUEST, why.to_owned());
    let required = |key: &str| params.get(key).filter(|value| !value.is_empty()).cloned();
    let job =
        required("job").and_then(|job| u64::from_str_radix(&job, 16).ok()).ok_or_else(|| bad("`job` is missing"))?;
    let actor = required("actor").ok_or_else(|| bad("`actor` is missing"))?;
    let reason = required("reason").ok_or_else(|| bad("`reason` is missing"))?;
    let read_to = params.get("end").and_then(|end| position(end));
    let list = to_bytes(list, LIST_BYTES_MAX).await.map_err(|_| bad("the list is too long"))?;
    let (primaries, items) = listed(&list).map_err(|why| bad(&why))?;
    let admin = desk.admin;
    let at_work = |_| Refusal(StatusCode::LOCKED, "another replay is at work: wait for its end".to_owned());
    let mut last = admin.last_replayed.clone().try_lock_owned().map_err(at_work)?;
    if *last > read_to {
        let why = "another replay wrote something since this one read the journal: run the same command again";
        return Err(Refusal(StatusCode::CONFLICT, why.to_owned()));
    }
    let round = Round::new(Order { job, actor, reason }, admin.courier.clone(), admin.storage.clone(), primaries);
    // A task of its own: what the primary takes is recorded, though the client leaves.
    let working = async move {
        let tally = deliver(&admin, round, &items).await;
        *last = (*last).max(tally.end);
        tally
    };
    let tally = tokio::spawn(working).await;
    let tally = tally.map_err(|defect| Refusal(StatusCode::INTERNAL_SERVER_ERROR, defect.to_string()))?;
    Ok(Json(tally.to_json()))
}

async fn deliver(admin: &Admin, mut round: Round, items: &[Item]) -> Tally {
    let (mut tally, began) = (Tally::default(), Instant::now());
    for item in items {
        if tally.tried > 0 && began.elapsed() >= TURN {
            break;
        }
        if *admin.stopping.borrow() {
            tally.stopped = Some("the daemon is stopping".to_owned());
            break;
        }
        if admin.journal.is_full() {
            tally.stopped = Some("the disk is full: what room there is is for what becomes of live mail".to_owned());
            break;
        }
        let mut offered = round.offer(item).await;
        if offered.tally.unreadable > 0
            && let Some(moved) = moved(admin, item).await
        {
            offered = round.offer(&moved).await;
        }
        if let Some(fact) = offered.fact {
            match record(admin, fact, offered.about).await {
                Ok(place) => tally.end = Some(place),
                Err(why) => {
                    tally.stopped = Some(format!("{why}; {} was taken, and would be sent again", item.id));
                    break;
                }
            }
        }
        tally.add(offered.tally);
    }
    round.quit().await;
    tally
}

/// Where the message stands now, if it was written again elsewhere since whoever made the list read the journal.
async fn moved(admin: &Admin, item: &Item) -> Option<Item> {
    let (found, _) = admin.ask(|answer| Request::Find(vec![item.id], answer)).await.ok()?;
    let position = found.get(&item.id)?.position;
    (position != item.position).then(|| Item { position, ..item.clone() })
}

async fn record(admin: &Admin, replayed: Replayed, about: Option<Arc<Accepted>>) -> Result<Position, String> {
    let fact = Fact::Replayed(replayed);
    let (answer, outcome) = oneshot::channel();
    let record = Prepared::fact(&fact, Vec::new());
    let entry = Entry { record, fact, about, answer: Some(answer), memory: Share::default(), claim: None };
    let refused = |why| format!("the journal does not take it ({why:?})");
    admin.journal.submit(entry).await.map_err(refused)?;
    let receipt = outcome.await.map_err(|_| "the journal has ended".to_owned())?.map_err(refused)?;
    Ok(receipt.position())
}

/// A line for each primary, `to HOST:PORT ...` or `to mx=DOMAIN,DOMAIN...`; then one for each message, `mail PRIMARY ID SEGMENT:OFFSET RECIPIENT ...`.
pub(crate) fn listed(list: &[u8]) -> Result<(Vec<Vec<Target>>, Vec<Item>), String> {
    let list = str::from_utf8(list).map_err(|error| error.to_string())?;
    let (mut primaries, mut items) = (Vec::new(), Vec::new());
    for line in list.lines() {
        let wrong = || format!("`{line}` is no message and no server");
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("to") => {
                let hops = words.map(|word| routing::from_word(word).ok_or_else(wrong));
                primaries.push(hops.collect::<Result<_, _>>()?);
            }
            Some("mail") => items.push(item(words).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        }
    }
    Ok((primaries, items))
}

fn item<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Item> {
    let primary = words.next()?.parse().ok()?;
    let id = words.next()?.parse().ok()?;
    let position = position(words.next()?)?;
    let recipients = words.map(|word| word.parse().ok()).collect::<Option<Vec<u16>>>()?;
    Some(Item { id, position, recipients, primary }).filter(|item| !item.recipients.is_empty())
}
