//! Instants, in whole milliseconds of the Unix epoch. Reads no clock: whoever owns one passes `now` in.

use std::fmt;
use std::time::Duration;

/// An instant, in milliseconds since 1970-01-01T00:00:00Z.
///
/// `Display` writes RFC 3339 in UTC with three decimals, e.g. `2026-11-22T15:53:20.118Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    unix_ms: u64,
}

/// The last instant that both RFC 3339 and the calendar below can write: 9999-12-30T00:00:00Z.
const LATEST_UNIX_MS: u64 = 253_402_128_000_000;

impl Timestamp {
    /// The instant `unix_ms` milliseconds after the epoch. Later than the year 9999 is cut to it.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        Self { unix_ms: unix_ms.min(LATEST_UNIX_MS) }
    }

    /// Milliseconds since the epoch.
    pub fn unix_ms(self) -> u64 {
        self.unix_ms
    }

    /// How much later `self` is than `earlier`; zero if the clock stepped back in between.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.unix_ms.saturating_sub(earlier.unix_ms))
    }

    /// The date and time of RFC 5322 section 3.3, e.g. `Sun, 22 Nov 2026 14:53:20 +0000`.
    pub fn to_rfc5322(self) -> String {
        self.calendar().strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
    }

    /// In UTC, as C's `asctime` writes it, such as `Sun Nov 22 14:53:20 2026`: what stands in an mbox.
    pub fn to_asctime(self) -> String {
        self.calendar().strftime("%a %b %e %H:%M:%S %Y").to_string()
    }

    fn calendar(self) -> jiff::civil::DateTime {
        jiff::tz::Offset::UTC.to_datetime(self.instant())
    }

    fn instant(self) -> jiff::Timestamp {
        let ms = i64::try_from(self.unix_ms).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.instant())
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, wait: Duration) -> Self {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self::from_unix_ms(self.unix_ms.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_the_rfcs_write_them() {
        let t = Timestamp::from_unix_ms(1_795_359_200_118);
        assert_eq!(t.to_string(), "2026-11-22T14:53:20.118Z");
        assert_eq!(t.to_rfc5322(), "Sun, 22 Nov 2026 14:53:20 +0000");
    }

    #[test]
    fn a_clock_that_steps_back_gives_no_negative_wait() {
        let (early, late) = (Timestamp::from_unix_ms(5), Timestamp::from_unix_ms(9));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.since(early), Duration::from_millis(4));
    }

    #[test]
    fn the_far_future_is_cut_and_never_panics() {
        assert_eq!(Timestamp::from_unix_ms(u64::MAX).to_string(), "9999-12-30T00:00:00.000Z");
        assert_eq!(Timestamp::from_unix_ms(1) + Duration::MAX, Timestamp::from_unix_ms(u64::MAX));
    }
}
