//! What operators do to messages: hold, release and undo at once; bounce and remove by a plan first, then by its token. Every
//! change is a record in the journal, with who did it and why, before the answer says that it is done.
//!
//! A message that is being delivered while it is removed: the attempt is not broken off. If the primary takes it, it is sent,
//! and the books say so; if not, it is removed. One that was delivered before the token came is no longer as planned, and then
//! nothing is done at all.

use super::admin::{Admin, Desk, Params, Refusal};
use super::choose::{Choice, Chosen, Which};
use super::journal::Entry;
use super::memory::Share;
use super::plan::Token;
use super::relay::Request;
use crate::clock;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use restante_envelope::{RouteName, TransactionId};
use restante_journal::{DirStorage, Prepared, Reader};
use restante_ledger::{Action, Fact, Operated, RecipientIndex};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A list of messages in a request: more than a million names.
const LIST_BYTES_MAX: usize = 32 << 20;
/// Messages that a plan shows.
const SAMPLES: usize = 5;
/// Recipients of each that it names.
const SAMPLE_RECIPIENTS: usize = 5;

type Answer = Result<Json<Value>, Refusal>;

/// How far the operation is that has the permit. For whoever waits for it to read.
#[derive(Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    of: AtomicU64,
}

pub(super) async fn progress(State(desk): State<Desk>) -> Json<Value> {
    let Progress { done, of } = &desk.admin.progress;
    Json(json!({"type": "operation", "done": done.load(Ordering::Relaxed), "of": of.load(Ordering::Relaxed)}))
}

pub(super) async fn hold(desk: State<Desk>, headers: HeaderMap, params: Params, list: Body) -> Answer {
    at_once(desk.0, &headers, params, list, Action::Hold).await
}

pub(super) async fn release(desk: State<Desk>, headers: HeaderMap, params: Params, list: Body) -> Answer {
    at_once(desk.0, &headers, params, list, Action::Release).await
}

pub(super) async fn undo(desk: State<Desk>, headers: HeaderMap, params: Params, list: Body) -> Answer {
    at_once(desk.0, &headers, params, list, Action::Undo).await
}

pub(super) async fn bounce(desk: State<Desk>, headers: HeaderMap, params: Params, list: Body) -> Answer {
    planned(desk.0, &headers, params, list, Action::Bounce).await
}

pub(super) async fn remove(desk: State<Desk>, headers: HeaderMap, params: Params, list: Body) -> Answer {
    planned(desk.0, &headers, params, list, Action::Remove).await
}

async fn at_once(desk: Desk, headers: &HeaderMap, params: Params, list: Body, action: Action) -> Answer {
    let (which, order) = asked(&desk, headers, params, list, action).await?;
    let permit = desk.admin.permit().await?;
    let choice = desk.admin.ask(|answer| Request::Choose(which, action, answer)).await?;
    let passed_over = choice.passed_over.iter().map(|(id, why)| json!({"id": id.to_string(), "why": why}));
    let mut answer = json!({"type": verb(action), "matched": choice.members.len()});
    if let Some(object) = answer.as_object_mut().filter(|_| !choice.passed_over.is_empty()) {
        object.insert("passed_over".into(), passed_over.collect());
    }
    // A task of its own: a client that leaves does not leave half of it done.
    let admin = desk.admin.clone();
    let operating = async move {
        let done = operate_all(&admin, &choice.members, &order).await;
        drop(permit);
        done
    };
    tokio::spawn(operating).await.unwrap_or_else(|_| Err(unfinished()))?;
    Ok(Json(answer))
}

/// Without the token of a plan this makes one; with it, the plan is carried out, if it still is what would be done.
async fn planned(desk: Desk, headers: &HeaderMap, params: Params, list: Body, action: Action) -> Answer {
    let token = params.get("yes").map(|text| text.parse::<Token>());
    let token = token.transpose().map_err(|no| Refusal(StatusCode::BAD_REQUEST, no.to_string()))?;
    if let Some(token) = token.filter(|token| token.action() != action) {
        let why = format!("that is the token of a plan to {}, not to {}", verb(token.action()), verb(action));
        return Err(Refusal(StatusCode::BAD_REQUEST, why));
    }
    let (which, order) = asked(&desk, headers, params, list, action).await?;
    let permit = desk.admin.permit().await?;
    let admin = desk.admin.clone();
    let Some(token) = token else {
        let choice = admin.ask(|answer| Request::Choose(which, action, answer)).await?;
        drop(permit);
        let storage = admin.storage.clone();
        let planning = tokio::task::spawn_blocking(move || plan(&storage, &choice, action));
        return planning.await.map(Json).map_err(|_| unfinished());
    };
    let executing = async move {
        let done = execute(&admin, which, &token, &order).await;
        drop(permit);
        done
    };
    tokio::spawn(executing).await.unwrap_or_else(|_| Err(unfinished())).map(Json)
}

/// Which messages, and by whose order. Whoever may not order anything sends no list.
async fn asked(
    desk: &Desk,
    headers: &HeaderMap,
    Query(params): Params,
    list: Body,
    action: Action,
) -> Result<(Which, Order), Refusal> {
    desk.permit(headers)?;
    let required = |key: &str| {
        let given = params.get(key).filter(|value| !value.is_empty()).cloned();
        given.ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, format!("`{key}` is missing")))
    };
    let order = Order { action, actor: required("actor")?, reason: required("reason")? };
    if !params.contains_key("listed") {
        return Ok((which(&params)?, order));
    }
    let too_long = |_| Refusal(StatusCode::PAYLOAD_TOO_LARGE, "more than a million messages: narrow it".into());
    let list = to_bytes(list, LIST_BYTES_MAX).await.map_err(too_long)?;
    Ok((Which::Listed(listed(&list)?), order))
}

/// In each line a route, and the messages meant on it.
fn listed(list: &[u8]) -> Result<BTreeMap<RouteName, BTreeSet<TransactionId>>, Refusal> {
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    let list = str::from_utf8(list).map_err(|error| bad(error.to_string()))?;
    let mut lists = BTreeMap::<_, BTreeSet<_>>::new();
    for line in list.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(route) = words.next() else { continue };
        let named = lists.entry(RouteName::new(route)).or_default();
        for id in words {
            named.insert(id.parse().map_err(|e| bad(format!("`{id}`: {e}")))?);
        }
    }
    Ok(lists)
}

pub(super) fn which(params: &HashMap<String, String>) -> Result<Which, Refusal> {
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    let list = |key: &str| params.get(key).filter(|list| !list.is_empty()).map(|list| list.split(','));
    match (list("id"), list("route"), params.contains_key("all")) {
        (Some(ids), routes, false) => {
            let ids = ids.map(|id| id.parse().map_err(|e| bad(format!("`{id}`: {e}")))).collect::<Result<_, _>>()?;
            Ok(Which::Transactions(ids, routes.into_iter().flatten().map(RouteName::new).collect()))
        }
        (None, Some(routes), false) => Ok(Which::Routes(routes.map(RouteName::new).collect())),
        (None, None, true) => Ok(Which::All),
        _ => Err(bad("give `all`, or `id`, `route` or both".into())),
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Hold => "hold",
        Action::Release => "release",
        Action::Bounce => "bounce",
        Action::Settle => "settle",
        Action::Expire => "expire",
        Action::Remove => "remove",
        Action::Undo => "undo",
    }
}

fn unfinished() -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, "it ended by a defect of ours, please report it".into())
}

struct Order {
    action: Action,
    actor: String,
    reason: String,
}

impl Admin {
    /// The right to change how recipients stand.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let stopping = |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into());
        self.operating.clone().acquire_owned().await.map_err(stopping)
    }
}

/// What would be done, with a few examples, and the token to have it done.
fn plan(storage: &DirStorage, choice: &Choice, action: Action) -> Value {
    let Choice { members, active, .. } = choice;
    let mut reader = Reader::new(storage.clone());
    let samples: Vec<Value> = members.iter().take(SAMPLES).map(|member| sample(&mut reader, member)).collect();
    let recipients: usize = members.iter().map(|member| member.recipients.len()).sum();
    let bytes = members.iter().fold(0_u64, |sum, member| sum.saturating_add(member.content_len));
    let token = (!members.is_empty()).then(|| Token::of(action, choice).to_string());
    json!({"type": "plan", "action": verb(action), "matched": members.len(), "recipients": recipients, "bytes": bytes,
        "active": active, "samples": samples, "token": token})
}

/// What cannot be read is left out: it may be removed all the same.
fn sample(reader: &mut Reader<DirStorage>, member: &Chosen) -> Value {
    let accepted = reader.accepted(member.position, member.id).ok();
    let summary = super::index::summary(reader, member.position, member.id);
    let path = |index: &RecipientIndex| {
        let recipients = &accepted.as_ref()?.envelope.recipients;
        recipients.get(usize::from(*index)).map(|recipient| recipient.forward_path.as_str())
    };
    let to: Vec<&str> = member.recipients.iter().filter_map(path).take(SAMPLE_RECIPIENTS).collect();
    json!({"id": member.id.to_string(), "from": accepted.as_ref().map(|a| a.envelope.reverse_path.as_str()), "to": to,
        "recipients": member.recipients.len(), "size": member.content_len, "subject": summary.and_then(|s| s.subject)})
}

/// Carries a plan out, whole or not at all. No attempt begins until it is durable: what was compared is what is changed.
async fn execute(admin: &Arc<Admin>, which: Which, token: &Token, order: &Order) -> Result<Value, Refusal> {
    let (_rest, rests) = oneshot::channel();
    let stopping = |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into());
    admin.relay.send(Request::Rest(rests)).await.map_err(stopping)?;
    let choice = admin.ask(|answer| Request::Choose(which, order.action, answer)).await?;
    if let Err(changed) = token.check(&choice) {
        let why = format!("the set changed since the plan, and nothing was done: {changed}");
        return Err(Refusal(StatusCode::CONFLICT, why));
    }
    operate_all(admin, &choice.members, order).await?;
    // An attempt that was under way may have ended in between: what the primary took is sent.
    let ids = choice.members.iter().map(|member| member.id).collect();
    let which = Which::Transactions(ids, Vec::new());
    let now = admin.ask(|answer| Request::Choose(which, Action::Undo, answer)).await?;
    let given_up: HashMap<_, _> = now.members.iter().map(|member| (member.id, &member.recipients)).collect();
    let is_sent = |member: &&Chosen| {
        let given_up = given_up.get(&member.id);
        !member.recipients.iter().all(|index| given_up.is_some_and(|given_up| given_up.contains(index)))
    };
    let sent = choice.members.iter().filter(is_sent).count();
    Ok(json!({"type": verb(order.action), "matched": choice.members.len(), "sent_meanwhile": sent}))
}

/// Hands all of it to the journal, then waits: a thousand share a few syncs. Returns when all is durable.
async fn operate_all(admin: &Admin, chosen: &[Chosen], order: &Order) -> Result<(), Refusal> {
    let mut answers = Vec::with_capacity(chosen.len());
    let mut reader = Some(Reader::new(admin.storage.clone()));
    admin.progress.done.store(0, Ordering::Relaxed);
    admin.progress.of.store(chosen.len() as u64, Ordering::Relaxed);
    for one in chosen {
        // For the log alone: a message whose envelope cannot be read is held or released all the same.
        let about = match reader.take() {
            Some(mut open) => {
                let (position, id) = (one.position, one.id);
                let read = move || (open.accepted(position, id).ok(), open);
                let Ok((about, open)) = tokio::task::spawn_blocking(read).await else { continue };
                reader = Some(open);
                about
            }
            None => None,
        };
        let fact = Fact::Operated(Operated {
            id: one.id,
            at: clock::now(),
            action: order.action,
            recipients: one.recipients.clone(),
            actor: order.actor.clone(),
            reason: order.reason.clone(),
        });
        let (answer, outcome) = oneshot::channel();
        let record = Prepared::fact(&fact, Vec::new());
        let entry = Entry {
            record,
            fact,
            about: about.map(Arc::new),
            answer: Some(answer),
            memory: Share::default(),
            claim: None,
        };
        if admin.journal.submit(entry).await.is_err() {
            break;
        }
        answers.push(outcome);
        admin.progress.done.fetch_add(1, Ordering::Relaxed);
    }
    let (mut done, matched) = (0, chosen.len());
    for answer in answers {
        done += usize::from(matches!(answer.await, Ok(Ok(_))));
    }
    if done == matched {
        return Ok(());
    }
    let why = format!("{done} of {matched} done; the journal did not take the rest, run the command again");
    Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_each_message_on_its_route_and_what_is_no_list_is_refused() {
        let ids = [1, 2].map(TransactionId::from_bits);
        let text = format!("a {} {}\n\nb.test {}\na {}\n", ids[0], ids[1], ids[1], ids[0]);
        let lists = listed(text.as_bytes()).ok().unwrap();
        assert_eq!(lists[&RouteName::new("a")], BTreeSet::from(ids));
        assert_eq!(lists[&RouteName::new("b.test")], BTreeSet::from([ids[1]]));
        for wrong in [&b"a 12"[..], b"a \xff", b"a 00000000000000000000000001,00000000000000000000000002"] {
            assert_eq!(listed(wrong).err().unwrap().0, StatusCode::BAD_REQUEST);
        }
        assert!(listed(b"").ok().unwrap().is_empty());
    }
}
