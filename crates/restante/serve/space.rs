//! Room for mail: what is free on the journal's file system, what must stay so, and how much of the rest one route may hold. Asks
//! the disk; what follows from the answer is [`restante_relay`]'s to say.
//!
//! The disk is asked for each message: that is a look into the kernel's memory and takes a microsecond or two. To ask once a
//! second and count in between was the other way; then what others write in that second is not seen.

use super::reserve::Reserve;
use crate::clock;
use crate::config::{Config, size_text};
use restante_envelope::RouteName;
use restante_relay::{Claim, Disk, Floor, Loads, Quota, Trend};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Smaller ones are rare: a route with less room than this is full.
const MESSAGE_BYTES_LEAST: u64 = 512;
/// Large messages leave so much above the floor..
const LEFT_BYTES: u64 = 16 << 20;
/// ..and this part of a disk so small that it has no more than that to leave.
const LEFT_PART: u64 = 8;

/// What holds now; a reload brings another.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    floor: Floor,
    /// Of the routes that have one of their own.
    quotas: HashMap<RouteName, Quota>,
    otherwise: Quota,
}

impl Rules {
    pub(crate) fn of(config: &Config) -> Self {
        let own = |route: &crate::config::Route| Some((RouteName::new(&route.name), route.quota?));
        Self {
            floor: config.limits.floor,
            quotas: config.routes.iter().filter_map(own).collect(),
            otherwise: Quota::default_of(config.routes.len()),
        }
    }
}

/// What the journal takes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OnDisk {
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

/// The file system under the journal.
#[derive(Debug)]
pub(crate) struct Space {
    directory: PathBuf,
    loads: Loads,
    rules: RwLock<Rules>,
    is_low: AtomicBool,
    trend: Mutex<Trend>,
    reserve: Arc<Reserve>,
}

impl Space {
    pub(crate) fn new(directory: PathBuf, loads: Loads, rules: Rules, reserve: Arc<Reserve>) -> Self {
        let (rules, trend) = (RwLock::new(rules), Mutex::default());
        Self { directory, loads, rules, is_low: AtomicBool::default(), trend, reserve }
    }

    pub(crate) fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn floor(&self) -> Floor {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).floor
    }

    /// None if the file system does not tell.
    pub(crate) fn disk(&self) -> Option<Disk> {
        let fs = rustix::fs::statvfs(&self.directory).ok()?;
        let [bytes, free_bytes] = [fs.f_blocks, fs.f_bavail].map(|blocks| blocks.saturating_mul(fs.f_frsize));
        Some(Disk { bytes, free_bytes, free_files: (fs.f_files > 0).then_some(fs.f_favail) })
    }

    /// Bytes that mail leaves free.
    pub(crate) fn floor_bytes(&self) -> u64 {
        self.disk().map_or(0, |disk| self.floor().on(disk.bytes))
    }

    /// Whether so many bytes of mail may be written. A disk that does not tell is written to until it is full. Said in the log
    /// once when room ends, and once when it is back.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        let Some(disk) = self.disk() else { return true };
        let (floor, was_low) = (self.floor(), self.is_low.load(Ordering::Relaxed));
        let takes = floor.lets(disk, bytes, was_low);
        // A message that is too large says nothing of the others.
        let is_low = !takes && !floor.lets(disk, 0, was_low);
        if self.is_low.swap(is_low, Ordering::Relaxed) != is_low {
            let kept = size_text(floor.on(disk.bytes));
            match is_low {
                true if disk.lacks_files() => {
                    tracing::warn!("the file system has hardly a file left to be made: senders are told to come back");
                }
                true => tracing::warn!("less than {kept} are free for mail: senders are told to come back"),
                false => tracing::info!("{kept} are free again, and more: mail is accepted"),
            }
        }
        takes
    }

    /// Whether it is files and not bytes that are short.
    pub(crate) fn lacks_files(&self) -> bool {
        self.disk().is_some_and(|disk| disk.lacks_files())
    }

    /// As [`Self::takes`], for a message that waits in memory for the journal: what waits there with it will be written, too.
    pub(crate) fn takes_beside_others(&self, bytes: u64) -> bool {
        self.takes(bytes.saturating_add(self.loads.unwritten_bytes()))
    }

    /// As [`Self::takes`], for a large message, which leaves some more: small mail, segments, index and log need it.
    pub(crate) fn takes_large(&self, bytes: u64) -> bool {
        let left = self.disk().map_or(0, |disk| LEFT_BYTES.min(disk.bytes / LEFT_PART));
        self.takes(bytes.saturating_add(left))
    }

    /// What this route may hold, in bytes; none if that is not limited.
    pub(crate) fn quota_bytes(&self, route: &RouteName) -> Option<u64> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let quota = rules.quotas.get(route).copied().unwrap_or(rules.otherwise);
        let limit = match quota {
            Quota::Bytes(bytes) => bytes,
            Quota::Percent(_) => quota.on(self.disk()?, rules.floor, self.loads.total_bytes()),
        };
        Some(limit).filter(|limit| *limit < u64::MAX)
    }

    /// Whether so many bytes more are too many for this route. With none: whether it is full for any message.
    pub(crate) fn is_over(&self, route: &RouteName, bytes: u64) -> bool {
        let held = self.loads.bytes(route);
        self.quota_bytes(route).is_some_and(|limit| held.saturating_add(bytes.max(MESSAGE_BYTES_LEAST)) > limit)
    }

    /// Room for a message on its way to these routes.
    pub(crate) fn claim<'r>(&self, routes: impl IntoIterator<Item = &'r RouteName>) -> Claim {
        self.loads.claim(routes)
    }

    /// Bytes of content that wait on this route, frozen ones included.
    pub(crate) fn waiting_bytes(&self, route: &RouteName) -> u64 {
        self.loads.bytes(route)
    }

    /// Whether this route holds too much, claims included.
    pub(crate) fn has_overrun(&self, route: &RouteName) -> bool {
        let held = self.loads.bytes(route);
        self.quota_bytes(route).is_some_and(|limit| held > limit)
    }

    /// To be told about once a minute: how fast it fills shows over time.
    pub(crate) fn look(&self) {
        if let Some(disk) = self.disk() {
            self.trend().note(clock::now(), disk.free_bytes);
            self.reserve.keep(disk, self.floor().on(disk.bytes));
        }
        // Without mail nobody else sees that there is room again.
        self.takes(0);
    }

    /// What the journal takes: reads two directories, so it may block. What cannot be read counts as nothing.
    pub(crate) fn journal(&self) -> OnDisk {
        let mut found = OnDisk::default();
        for directory in [self.directory.clone(), self.directory.join("blob")] {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let (name, metadata) = (entry.file_name(), entry.metadata());
                let is_segment = name.to_str().is_some_and(|name| name.starts_with("seg-") && name.ends_with(".rj"));
                if is_segment || directory != self.directory {
                    found.segments += u64::from(is_segment);
                    found.bytes += metadata.map_or(0, |metadata| metadata.len());
                }
            }
        }
        found
    }

    fn trend(&self) -> std::sync::MutexGuard<'_, Trend> {
        self.trend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In how long the room for mail is gone at this rate; none if it is not getting less, or nobody knows yet.
    pub(crate) fn gone_in(&self) -> Option<Duration> {
        let disk = self.disk()?;
        let left = disk.free_bytes.saturating_sub(self.floor().on(disk.bytes));
        self.trend().gone_in(clock::now(), disk.free_bytes, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn reserve() -> Arc<Reserve> {
        Arc::new(Reserve::in_directory(Path::new("/nowhere/at/all")))
    }

    #[test]
    fn what_cannot_be_asked_is_tried() {
        let rules = Rules { floor: Floor::default(), quotas: HashMap::new(), otherwise: Quota::default_of(2) };
        let space = Space::new("/nowhere/at/all".into(), Loads::default(), rules, reserve());
        assert!(space.takes(1) && !space.is_over(&RouteName::new("a"), 1));
        assert_eq!((space.floor_bytes(), space.gone_in()), (0, None));
    }

    #[test]
    fn a_message_too_large_for_what_is_left_is_refused_and_smaller_ones_are_not() {
        let rules = Rules {
            floor: Floor { bytes: Some(0), percent: None },
            quotas: HashMap::from([(RouteName::new("a"), Quota::Bytes(1_000))]),
            otherwise: Quota::default_of(1),
        };
        let space = Space::new("/".into(), Loads::default(), rules, reserve());
        assert!(!space.takes(u64::MAX) && space.takes(1));
        assert!(!space.is_over(&RouteName::new("a"), 1_000) && space.is_over(&RouteName::new("a"), 1_001));
        assert_eq!(space.quota_bytes(&RouteName::new("b")), None);
        let floor = Floor { bytes: Some(u64::MAX), percent: None };
        let rules = Rules { floor, ..space.rules.read().unwrap().clone() };
        space.set_rules(rules);
        assert!(!space.takes(1));
    }
}
