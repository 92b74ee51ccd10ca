//! How much mail waits on each route, in bytes: the relay counts, and whoever stands at the door looks, without asking the
//! relay. Decides nothing.

use restante_envelope::RouteName;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of content not settled, of one route.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load(Arc<AtomicU64>);

impl Load {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: u64) {
        // One owner writes, so nothing comes between.
        self.0.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of all routes; a clone shows the same.
#[derive(Debug, Clone, Default)]
pub struct Loads(Arc<Mutex<BTreeMap<RouteName, Load>>>);

impl Loads {
    pub(crate) fn of(&self, route: &RouteName) -> Load {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(route.clone()).or_default().clone()
    }

    /// Bytes of content that wait on this route, frozen ones included; 0 if it is not known.
    pub fn bytes(&self, route: &RouteName) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(route).map_or(0, Load::bytes)
    }

    /// Of all routes together; a message on two routes counts on both.
    pub fn total_bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().map(Load::bytes).sum()
    }
}
