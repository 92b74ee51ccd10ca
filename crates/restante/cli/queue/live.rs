//! What only a running daemon knows: which transactions are being delivered, and how the primaries stand.

use crate::cli::args::Cli;
use crate::cli::client::Client;
use hyper::Method;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The daemon's answers; empty if there is none.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) running: bool,
    /// Transaction and route.
    pub(crate) active: HashSet<(String, String)>,
    /// Route and state.
    pub(crate) routes: HashMap<String, String>,
    /// Routes whose primary refuses what it should take, and what is known of that.
    pub(crate) tripped: HashMap<String, String>,
    /// How long settled mail is kept.
    pub(crate) retain: Option<Duration>,
}

impl Live {
    pub(crate) fn ask(cli: &Cli) -> Self {
        let ask = |path: &str| Client::new(cli, None).and_then(|client| client.ask(Method::GET, path)).ok();
        let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |answer: Option<Value>, key: &str| {
            answer.and_then(|a| a.get(key).and_then(Value::as_array).cloned()).unwrap_or_default()
        };
        let status = ask("/api/v1/status");
        let running = status.is_some();
        let retain = status.as_ref().and_then(|status| status.get("node")?.get("retain_s")?.as_u64());
        let retain = retain.map(Duration::from_secs);
        let routes = list(status, "routes");
        let is_tripped = |route: &&Value| text(route, "breaker") == "tripped";
        let tripped = routes.iter().filter(is_tripped).map(|r| (text(r, "name"), text(r, "reason"))).collect();
        let routes = routes.iter().map(|r| (text(r, "name"), text(r, "state"))).collect();
        let active = if running { list(ask("/api/v1/active"), "active") } else { Vec::new() };
        let active = active.iter().map(|a| (text(a, "id"), text(a, "route"))).collect();
        Self { running, active, routes, tripped, retain }
    }
}
