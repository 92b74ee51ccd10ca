//! The admin interface: HTTP on a socket in the data directory, and on TCP where configured. Answers what the CLI asks.
//!
//! Whoever may open the socket owns the data, so the socket asks for nothing more; over TCP a change needs the token.

use super::choose::Which;
use super::journal::Journal;
use super::merge;
use super::metrics::{Metrics, Room};
use super::relay::{Request, is_up};
use super::session::Door;
use super::space::Space;
use super::{import, operate, reload, replay};
use crate::cli::words;
use crate::clock;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use restante_journal::DirStorage;
use restante_relay::{Flush, RouteStatus};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// After a full disk: as much as the journal fills ahead, and a message.
const ROOM_AGAIN_BYTES: u64 = 4 << 20;

/// What the interface answers from.
pub(crate) struct Admin {
    pub(crate) hostname: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) storage: DirStorage,
    pub(crate) journal: Journal,
    pub(crate) relay: mpsc::Sender<Request>,
    /// Whoever changes how recipients stand has the permit.
    pub(crate) operating: Arc<Semaphore>,
    /// How far they are.
    pub(crate) progress: operate::Progress,
    /// How a replay connects.
    pub(crate) courier: restante_courier::Settings,
    pub(crate) last_replayed: replay::LastReplayed,
    /// How long settled mail is kept.
    pub(crate) retain: Duration,
    pub(crate) reload: mpsc::Sender<reload::Order>,
    pub(crate) space: Arc<Space>,
    /// The way in, for an import. At a stop it goes first.
    pub(crate) door: Weak<Door>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) token: String,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Where a request came in.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) admin: Arc<Admin>,
    /// Over TCP a change must show the token.
    needs_token: bool,
}

/// What the interface answers when it cannot.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"type": "error", "why": self.1}))).into_response()
    }
}

impl Admin {
    /// Whether mail can be accepted now.
    pub(crate) fn accepting(&self) -> bool {
        self.why_not_accepting().is_none()
    }

    /// Why mail cannot be accepted now, in words.
    fn why_not_accepting(&self) -> Option<String> {
        let free = self.disk_free_bytes();
        if *self.stopping.borrow() {
            Some("the daemon is stopping".to_owned())
        } else if self.journal.has_failed() {
            Some("the journal has failed".to_owned())
        } else if self.journal.is_full() && free < ROOM_AGAIN_BYTES {
            // Without mail nobody tries the disk again: that there is room now is as good.
            Some(format!("the disk is full, {} are free", words::bytes(free)))
        } else if !self.space.takes(0) && self.space.lacks_files() {
            Some("the file system has hardly a file left to be made (df -i): remove some".to_owned())
        } else if !self.space.takes(0) {
            let floor = words::bytes(self.space.floor_bytes());
            Some(format!("the disk has {} free, and mail leaves {floor} of it free", words::bytes(free)))
        } else {
            None
        }
    }

    /// Whether an attempt is under way.
    pub(crate) async fn is_delivering(&self) -> bool {
        self.ask(Request::Active).await.is_ok_and(|active| !active.is_empty())
    }

    fn disk_free_bytes(&self) -> u64 {
        self.space.disk().map_or(0, |disk| disk.free_bytes)
    }

    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Refusal> {
        let gone = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into());
        let (sender, answer) = oneshot::channel();
        self.relay.send(request(sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// The routes of the interface.
pub(crate) fn router(admin: Arc<Admin>, needs_token: bool) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/api/v1/status", get(status))
        .route("/api/v1/active", get(active))
        .route("/api/v1/queue/flush", post(flush))
        .route("/api/v1/queue/hold", post(operate::hold))
        .route("/api/v1/queue/release", post(operate::release))
        .route("/api/v1/queue/undo", post(operate::undo))
        .route("/api/v1/queue/bounce", post(operate::bounce))
        .route("/api/v1/queue/remove", post(operate::remove))
        .route("/api/v1/operation", get(operate::progress))
        .route("/api/v1/recover", post(recover))
        .route("/api/v1/import", post(import::import))
        .route("/api/v1/replay", post(replay::some))
        .route("/api/v1/reload", post(reload_configuration))
        .with_state(Desk { admin, needs_token })
}

async fn healthz(State(desk): State<Desk>) -> (StatusCode, String) {
    match desk.admin.why_not_accepting() {
        None => (StatusCode::OK, "accepting mail\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not accepting mail: {why}\n")),
    }
}

async fn metrics(State(desk): State<Desk>) -> Result<Response, Refusal> {
    let admin = &desk.admin;
    let routes = admin.ask(Request::Routes).await?;
    let space = admin.space.clone();
    let room = Room {
        free_bytes: admin.disk_free_bytes(),
        floor_bytes: admin.space.floor_bytes(),
        gone_in: admin.space.gone_in(),
        journal: tokio::task::spawn_blocking(move || space.journal()).await.unwrap_or_default(),
        quotas: routes.iter().map(|route| admin.space.quota_bytes(&route.name)).collect(),
    };
    let page = admin.metrics.render(&routes, admin.accepting(), &room);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response())
}

async fn status(State(desk): State<Desk>) -> Result<Json<Value>, Refusal> {
    let admin = &desk.admin;
    let routes = admin.ask(Request::Routes).await?;
    let now = clock::now();
    let why_not = admin.why_not_accepting();
    let node = json!({"type": "node", "hostname": admin.hostname, "accepting": why_not.is_none(), "why_not": why_not,
        "disk_free_bytes": admin.disk_free_bytes(), "min_free_bytes": admin.space.floor_bytes(),
        "disk_full_s": admin.space.gone_in().map(|left| left.as_secs()), "connections": admin.metrics.connections(),
        "journal_damage": admin.metrics.damaged_places(), "retain_s": admin.retain.as_secs()});
    let routes: Vec<Value> = routes.iter().map(|route| route_json(route, &admin.space, now)).collect();
    Ok(Json(json!({"node": node, "routes": routes})))
}

fn route_json(route: &RouteStatus, space: &Space, now: restante_envelope::Timestamp) -> Value {
    json!({
        "type": "route",
        "name": route.name.as_str(),
        "state": route.state.as_str(),
        "since": route.since.to_string(),
        "reason": Some(&route.reason).filter(|reason| !reason.is_empty()),
        "pending": route.pending,
        "bytes": route.bytes,
        "quota_bytes": space.quota_bytes(&route.name),
        "over_quota": space.is_over(&route.name, 0),
        "oldest_s": route.oldest.map(|oldest| now.since(oldest).as_secs()),
        "eta_s": route.eta.map(|eta| eta.as_secs()),
        "active": route.counts.active,
        "deferred": route.counts.deferred,
        "waiting": route.counts.waiting,
        "hold": route.counts.hold,
        "expiring": route.expiring,
        "breaker": if route.is_tripped { "tripped" } else { "closed" },
        "connections": route.connections,
        "per_minute": route.speed_milli.map(per_minute),
        "per_minute_max": route.limit_milli.map(per_minute),
        "primary": route.next_hops,
        "next_probe_at": route.next_probe.map(|at| at.to_string()),
    })
}

/// Of thousandths a second.
fn per_minute(milli: u64) -> u64 {
    milli * 60 / 1_000
}

async fn active(State(desk): State<Desk>) -> Result<Json<Value>, Refusal> {
    let active = desk.admin.ask(Request::Active).await?;
    let active: Vec<Value> =
        active.iter().map(|(id, route)| json!({"id": id.to_string(), "route": route.as_str()})).collect();
    Ok(Json(json!({"active": active})))
}

async fn page(State(desk): State<Desk>) -> Result<Html<String>, Refusal> {
    let admin = &desk.admin;
    let routes = admin.ask(Request::Routes).await?;
    let down = routes.iter().filter(|route| !is_up(route)).count();
    let sentence = match (admin.accepting(), down) {
        (false, _) => "Mail cannot be accepted now; senders keep it and try again.".to_owned(),
        (true, 0) => "All primaries take mail.".to_owned(),
        (true, n) => {
            format!("{n} of {} primaries are not up. Mail for them is kept and will arrive later.", routes.len())
        }
    };
    let row = |r: &RouteStatus| {
        let (name, state) = (escape(r.name.as_str()), r.state.as_str());
        format!("<tr><th scope=row>{name}</th><td>{state}</td><td>{}</td><td>{}</td></tr>", r.since, r.pending)
    };
    let rows: String = routes.iter().map(row).collect();
    Ok(Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{host}</title>\
         <style>body{{font:1em/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}\
         table{{border-collapse:collapse}}th,td{{text-align:left;padding:.3em 1em .3em 0}}</style>\
         <h1>{host}</h1><p role=status>{sentence}</p><table><caption>Routes</caption>\
         <tr><th scope=col>Route</th><th scope=col>Primary</th><th scope=col>Since (UTC)</th>\
         <th scope=col>Pending</th></tr>{rows}</table></html>",
        host = escape(&admin.hostname),
    )))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub(super) type Params = Query<HashMap<String, String>>;

async fn flush(State(desk): State<Desk>, headers: HeaderMap, Query(params): Params) -> Result<Json<Value>, Refusal> {
    desk.permit(&headers)?;
    let orders: Vec<Flush> = match operate::which(&params)? {
        Which::All => vec![Flush::All],
        Which::Routes(routes) => routes.into_iter().map(Flush::Route).collect(),
        Which::Transactions(ids, _) => ids.into_iter().map(Flush::Transaction).collect(),
        Which::Listed(lists) => lists.into_values().flatten().map(Flush::Transaction).collect(),
    };
    let mut matched = 0;
    for order in orders {
        matched += desk.admin.ask(|answer| Request::Flush(order, answer)).await?;
    }
    Ok(Json(json!({"type": "flush", "matched": matched})))
}

async fn reload_configuration(State(desk): State<Desk>, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    desk.permit(&headers)?;
    let stopping = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into());
    let (order, answer) = oneshot::channel();
    desk.admin.reload.send(order).await.map_err(|_| stopping())?;
    match answer.await.map_err(|_| stopping())? {
        Ok(done) => Ok(Json(json!({"type": "reload", "changes": done.changes, "after_restart": done.after_restart}))),
        Err(invalid) => Err(Refusal(
            StatusCode::UNPROCESSABLE_ENTITY,
            invalid.render_with(false, reload::KEPT).trim_end().to_owned(),
        )),
    }
}

/// A task of its own: a client that leaves does not leave half of it done.
async fn recover(State(desk): State<Desk>, headers: HeaderMap, Query(params): Params) -> Result<Json<Value>, Refusal> {
    desk.permit(&headers)?;
    let from = params.get("from").map(PathBuf::from).filter(|from| from.is_absolute());
    let from = from.ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "`from` is missing, or no absolute path".into()))?;
    match tokio::spawn(merge::merge(desk.admin.clone(), from)).await {
        Ok(Ok(account)) => Ok(Json(account)),
        Ok(Err(error)) if merge::is_locked(&error) => Err(Refusal(StatusCode::LOCKED, format!("{error:#}"))),
        Ok(Err(error)) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))),
        Err(defect) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, defect.to_string())),
    }
}

impl Desk {
    pub(super) fn permit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let shown =
            headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        if !self.needs_token || shown.is_some_and(|shown| same(shown.as_bytes(), self.admin.token.as_bytes())) {
            return Ok(());
        }
        Err(Refusal(StatusCode::FORBIDDEN, "a change over TCP needs the token in admin.token".into()))
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (x, y)| differences | (x ^ y)) == 0
}
