//! How much mail waits on each route, and how much is on its way to it, in bytes: the relay counts the one, the door the other,
//! and whoever stands there looks without asking the relay. Decides nothing.

use restante_envelope::RouteName;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of content, of one route.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// Not settled.
    waiting: AtomicU64,
    /// Not counted by the relay yet.
    arriving: AtomicU64,
}

impl Load {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: u64) {
        // One owner writes, so nothing comes between.
        self.0.waiting.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    fn with_arriving(&self) -> u64 {
        self.bytes().saturating_add(self.0.arriving.load(Ordering::Relaxed))
    }
}

/// Of all routes; a clone shows the same.
#[derive(Debug, Clone, Default)]
pub struct Loads {
    routes: Arc<Mutex<BTreeMap<RouteName, Load>>>,
    unwritten: Arc<AtomicU64>,
}

impl Loads {
    pub(crate) fn of(&self, route: &RouteName) -> Load {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).entry(route.clone()).or_default().clone()
    }

    /// Bytes of content that wait on this route, frozen ones and claimed ones included; 0 if it is not known.
    pub fn bytes(&self, route: &RouteName) -> u64 {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).get(route).map_or(0, Load::with_arriving)
    }

    /// Of all routes together; a message on two routes counts on both.
    pub fn total_bytes(&self) -> u64 {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).values().map(Load::with_arriving).sum()
    }

    /// Bytes of claims that have not come to the disk.
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// For a message on its way to these routes.
    pub fn claim<'r>(&self, routes: impl IntoIterator<Item = &'r RouteName>) -> Claim {
        let loads = routes.into_iter().map(|route| self.of(route)).collect();
        Claim { loads, bytes: 0, unwritten: None, all_unwritten: self.unwritten.clone() }
    }
}

/// The room of a message that has come in, as far as it has come, until the relay counts it or nothing comes of it: many that
/// come at the same moment must not all find the same room. Not what it says that it will be: whoever says much and sends
/// nothing would take the room of others.
#[derive(Debug)]
pub struct Claim {
    loads: Vec<Load>,
    bytes: u64,
    unwritten: Option<u64>,
    all_unwritten: Arc<AtomicU64>,
}

impl Claim {
    /// All of it that has come. Never less than before.
    pub fn cover(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        for load in &self.loads {
            load.0.arriving.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// It is in memory as a whole, and stays there until it has been written.
    pub fn is_unwritten(&mut self) {
        if self.unwritten.is_none() {
            self.unwritten = Some(self.bytes);
            self.all_unwritten.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for load in &self.loads {
            load.0.arriving.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.all_unwritten.fetch_sub(self.unwritten.unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_at_the_same_moment_is_counted_before_the_relay_hears_of_it() {
        let (loads, [a, b]) = (Loads::default(), ["a", "b"].map(RouteName::new));
        loads.of(&a).add(10);
        let mut claims = [loads.claim([&a]), loads.claim([&a, &b])];
        claims.iter_mut().for_each(|claim| claim.cover(100));
        claims[1].cover(150);
        claims[1].cover(7);
        assert_eq!((loads.bytes(&a), loads.bytes(&b), loads.total_bytes()), (260, 150, 410));
        assert_eq!((loads.of(&a).bytes(), loads.unwritten_bytes()), (10, 0), "what waits is the relay's to count");
        claims[1].is_unwritten();
        claims[1].is_unwritten();
        assert_eq!(loads.unwritten_bytes(), 150);
        drop(claims);
        assert_eq!((loads.bytes(&a), loads.bytes(&b), loads.unwritten_bytes()), (10, 0, 0));
    }
}
