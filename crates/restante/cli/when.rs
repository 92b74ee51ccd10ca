//! Instants as people type them: `3d`, `2026-11-22`, `2026-11-22 15:00`, `2026-11-22T15:00:00Z`.
//!
//! Refuses what could mean two things: a number without a unit, a day that the calendar does not have.

use crate::config::duration;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use restante_envelope::Timestamp;

/// An age (`90m`, `3d`: so long before `now`), a day or a time in `zone`, or an instant with an offset of its own.
pub(crate) fn instant(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(age) = duration(text) {
        let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        return Ok(Timestamp::from_unix_ms(now.unix_ms().saturating_sub(ms)));
    }
    let absolute = text.parse::<jiff::Timestamp>().ok();
    let local = || text.parse::<DateTime>().ok().and_then(|time| zone.to_timestamp(time).ok());
    absolute.or_else(local).map(|instant| Timestamp::from_unix_ms(u64::try_from(instant.as_millisecond()).unwrap_or(0))).ok_or_else(
        || "a time is an age such as 90m or 3d, a day such as 2026-11-22, or \"2026-11-22 15:00\", with Z or an offset if it is not local".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_means_what_was_typed() {
        let now: jiff::Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let now = Timestamp::from_unix_ms(u64::try_from(now.as_millisecond()).unwrap());
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let read = |text: &str| instant(text, now, &zone).map(|instant| instant.to_string());
        for (text, meant) in [
            ("0", "2026-11-22T12:00:00.000Z"),
            ("90m", "2026-11-22T10:30:00.000Z"),
            ("3d", "2026-11-19T12:00:00.000Z"),
            ("2026-11-22", "2026-11-21T23:00:00.000Z"),
            ("2026-11-22 15:00", "2026-11-22T14:00:00.000Z"),
            ("2026-11-22T15:00:00Z", "2026-11-22T15:00:00.000Z"),
            ("2026-11-22T15:00:00.5+02:00", "2026-11-22T13:00:00.500Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meant), "{text}");
        }
        for text in ["", "7", "yesterday", "2026-02-30", "2026-11-22 25:00", "3x", "99999999d"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
