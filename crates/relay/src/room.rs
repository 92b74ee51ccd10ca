//! How much of a disk mail may take: what must stay free, what one route may hold, and how long the rest will last. Takes
//! figures and `now`; asks no disk.

use restante_envelope::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// Where nothing is configured: a fiftieth of the disk..
const FLOOR_PART: u64 = 50;
/// ..at least what settlements, index and log of a long backlog take..
const FLOOR_BYTES_MIN: u64 = 256 << 20;
/// ..no more than anybody needs, however large the disk..
const FLOOR_BYTES_MAX: u64 = 4 << 30;
/// ..and of a small disk this part.
const FLOOR_PART_OF_SMALL: u64 = 8;
/// Files that mail leaves to be made: the next segments, index, logs. Each large message is one, too.
const FREE_FILES_MIN: u64 = 32;
/// Once below the floor, so much above it is room again: a sixteenth of it. Mail does not stop and go with each message.
const HYSTERESIS_PART: u64 = 16;
/// One route of several, where nothing is configured, holds at most this part of the room there is for mail.
const QUOTA_PERCENT_DEFAULT: u8 = 50;
/// The last hour, minute by minute, and the last day, hour by hour.
const MINUTES: usize = 60;
const HOURS: usize = 24;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A file system, as it was just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All of it.
    pub bytes: u64,
    /// What is free for us.
    pub free_bytes: u64,
    /// Files that may still be made; none where the file system sets no number.
    pub free_files: Option<u64>,
}

impl Disk {
    /// Whether hardly a file can be made on it any more.
    pub fn lacks_files(&self) -> bool {
        self.free_files.is_some_and(|files| files < 2 * FREE_FILES_MIN)
    }
}

/// What mail leaves free, as configured: the larger of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// In bytes.
    pub bytes: Option<u64>,
    /// In percent of the file system, 0 to 100.
    pub percent: Option<u8>,
}

impl Floor {
    /// In bytes, on a disk of so many.
    pub fn on(&self, disk_bytes: u64) -> u64 {
        match (self.bytes, self.percent) {
            (None, None) => {
                (disk_bytes / FLOOR_PART).clamp(FLOOR_BYTES_MIN, FLOOR_BYTES_MAX).min(disk_bytes / FLOOR_PART_OF_SMALL)
            }
            (bytes, percent) => bytes.unwrap_or(0).max(part(disk_bytes, percent.unwrap_or(0))),
        }
    }

    /// Whether there is room for so many bytes more; `was_low`: there was none the last time.
    pub fn lets(&self, disk: Disk, bytes: u64, was_low: bool) -> bool {
        let floor = self.on(disk.bytes);
        let again = if was_low { floor / HYSTERESIS_PART } else { 0 };
        let files_again = if was_low { FREE_FILES_MIN } else { 0 };
        disk.free_bytes >= floor.saturating_add(again).saturating_add(bytes)
            && disk.free_files.is_none_or(|files| files >= FREE_FILES_MIN + files_again)
    }
}

/// How much one route may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// In bytes of content.
    Bytes(u64),
    /// In percent of the room for mail: of what waits on all routes and what is free above the floor. 0 to 100.
    Percent(u8),
}

impl Quota {
    /// What holds where nothing is configured: a route that is alone harms nobody.
    pub fn default_of(routes: usize) -> Self {
        Self::Percent(if routes > 1 { QUOTA_PERCENT_DEFAULT } else { 100 })
    }

    /// In bytes; `waiting_bytes` is what all routes hold.
    pub fn on(self, disk: Disk, floor: Floor, waiting_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(100..) => u64::MAX,
            Self::Percent(percent) => {
                let free = disk.free_bytes.saturating_sub(floor.on(disk.bytes));
                part(free.saturating_add(waiting_bytes), percent)
            }
        }
    }
}

fn part(whole: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// What was free in the last hour and the last day.
#[derive(Debug, Default)]
pub struct Trend {
    minutes: VecDeque<(Timestamp, u64)>,
    hours: VecDeque<(Timestamp, u64)>,
}

impl Trend {
    /// To be told as often as one likes, once a minute at least.
    pub fn note(&mut self, now: Timestamp, free_bytes: u64) {
        for (samples, every, most) in [(&mut self.minutes, MINUTE, MINUTES), (&mut self.hours, HOUR, HOURS)] {
            // The clock was set back: what was noted later is of another time.
            samples.retain(|(at, _)| *at <= now);
            if samples.back().is_none_or(|(at, _)| *at + every <= now) {
                samples.push_back((now, free_bytes));
                if samples.len() > most {
                    samples.pop_front();
                }
            }
        }
    }

    /// In how long `left_bytes` are gone at the rate of the last hour, or at that of the last day if that is faster. None if
    /// it is not getting less, or not known yet.
    pub fn gone_in(&self, now: Timestamp, free_bytes: u64, left_bytes: u64) -> Option<Duration> {
        let pace = |samples: &VecDeque<(Timestamp, u64)>| {
            let (at, free) = samples.front()?;
            let (taken, elapsed) = (free.checked_sub(free_bytes)?, now.since(*at));
            (taken > 0 && elapsed >= MINUTE).then(|| taken as f64 / elapsed.as_secs_f64())
        };
        let fastest = [pace(&self.minutes), pace(&self.hours)].into_iter().flatten().reduce(f64::max)?;
        Duration::try_from_secs_f64(left_bytes as f64 / fastest).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(bytes: u64, free_bytes: u64) -> Disk {
        Disk { bytes, free_bytes, free_files: None }
    }

    #[test]
    fn without_a_word_a_small_disk_is_not_all_floor_and_a_large_one_does_not_waste_much() {
        let floor = Floor::default();
        assert_eq!(floor.on(256 << 20), 32 << 20);
        assert_eq!(floor.on(20 * GIB), 20 * GIB / 50);
        assert_eq!(floor.on(4 * GIB), 256 << 20);
        assert_eq!(floor.on(10_000 * GIB), 4 * GIB);
    }

    #[test]
    fn of_two_floors_the_higher_one_holds() {
        let floor = |bytes, percent| Floor { bytes, percent }.on(100 * GIB);
        assert_eq!(floor(Some(GIB), Some(5)), 5 * GIB);
        assert_eq!(floor(Some(9 * GIB), Some(5)), 9 * GIB);
        assert_eq!((floor(Some(0), None), floor(None, Some(100))), (0, 100 * GIB));
    }

    #[test]
    fn a_disk_on_which_no_file_can_be_made_takes_no_mail_however_much_is_free() {
        let floor = Floor::default();
        let with = |free_files| Disk { free_files, ..disk(GIB, GIB) };
        assert!(floor.lets(with(None), 0, true) && !with(None).lacks_files());
        for (files, is_low, lets) in [(31, false, false), (32, false, true), (32, true, false), (64, true, true)] {
            assert_eq!(floor.lets(with(Some(files)), 0, is_low), lets, "{files}");
        }
        assert!(with(Some(63)).lacks_files() && !with(Some(64)).lacks_files());
    }

    #[test]
    fn mail_does_not_stop_and_go_with_each_message_at_the_floor() {
        let floor = Floor { bytes: Some(1600), percent: None };
        assert!(floor.lets(disk(10_000, 1700), 100, false) && !floor.lets(disk(10_000, 1700), 101, false));
        assert!(!floor.lets(disk(10_000, 1699), 0, true) && floor.lets(disk(10_000, 1700), 0, true));
    }

    #[test]
    fn one_route_of_several_stops_at_half_of_the_room_however_much_of_it_is_taken_already() {
        let (quota, floor) = (Quota::default_of(2), Floor { bytes: Some(10), percent: None });
        // All free; and half of it taken by this route.
        assert_eq!(quota.on(disk(200, 110), floor, 0), 50);
        assert_eq!(quota.on(disk(200, 60), floor, 50), 50);
        // Another one has taken some: this one has its half of the rest and more.
        assert_eq!(quota.on(disk(200, 30), floor, 80), 50);
        assert_eq!(Quota::default_of(1).on(disk(200, 0), floor, 50), u64::MAX);
        assert_eq!(Quota::Bytes(7).on(disk(200, 0), floor, 50), 7);
        // The disk is full of other things.
        assert_eq!(quota.on(disk(200, 0), floor, 0), 0);
    }

    #[test]
    fn what_is_left_lasts_as_long_as_the_faster_of_two_paces_says() {
        let at = |s: u64| Timestamp::from_unix_ms(s * 1_000);
        let mut trend = Trend::default();
        assert_eq!(trend.gone_in(at(0), 1_000_000, 500), None, "nothing is known yet");
        // A day at 1 byte a second, then an hour at 10.
        let mut free = 1_000_000;
        for second in (0..86_400).step_by(60) {
            trend.note(at(second), free);
            free -= 60;
        }
        assert_eq!(trend.gone_in(at(86_400), free, 1_000), Some(Duration::from_secs(1_000)));
        for second in (86_400..90_000).step_by(60) {
            trend.note(at(second), free);
            free -= 600;
        }
        let left = trend.gone_in(at(90_000), free, 1_000).unwrap();
        assert_eq!(left.as_secs(), 100);
        assert!(trend.minutes.len() <= MINUTES && trend.hours.len() <= HOURS);
        // Room came back.
        assert_eq!(trend.gone_in(at(90_000), 2_000_000, 1_000), None);
        trend.note(at(50), 7);
        assert!(trend.gone_in(at(50), 7, 1).is_none(), "the clock was set back");
    }
}
