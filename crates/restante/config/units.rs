//! Durations and sizes as people write them: a whole number and a unit, `"7d"`, `"100MiB"`.
//!
//! Refuses a number without a unit: nobody knows whether `7` is seconds or days.

use restante_relay::Quota;
use std::time::Duration;

/// Longer than any retention that anybody means; keeps sums of times far from overflow.
const DURATION_DAYS_MAX: u64 = 36_500;
const SECONDS_PER_DAY: u64 = 86_400;

/// `"0"`, or a whole number with one of `s m h d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let form = "a duration is a whole number with s, m, h or d, such as \"12h\" or \"7d\"";
    let (number, unit) = split(text).ok_or(form)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => SECONDS_PER_DAY,
        "" => return Err(format!("a unit is missing: \"{number}s\", \"{number}m\", \"{number}h\" or \"{number}d\"?")),
        _ => return Err(form.to_owned()),
    };
    let longest = DURATION_DAYS_MAX * SECONDS_PER_DAY;
    let total = number.checked_mul(seconds).filter(|s| *s <= longest);
    total.map(Duration::from_secs).ok_or_else(|| format!("at most \"{DURATION_DAYS_MAX}d\""))
}

/// A whole number of bytes with one of `KB MB GB KiB MiB GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let form = "a size is a whole number with KB, MB, GB, KiB, MiB or GiB, such as \"100MiB\"";
    let (number, unit) = split(text).ok_or(form)?;
    let bytes = match unit {
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" => return Err(format!("a unit is missing: \"{number}KiB\" or \"{number}MiB\"?")),
        _ => return Err(form.to_owned()),
    };
    number.checked_mul(bytes).ok_or_else(|| "this is more than 64 bits can count".to_owned())
}

/// A size, or a whole number of percent.
pub(crate) fn quota(text: &str) -> Result<Quota, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return size(text).map(Quota::Bytes).map_err(|why| format!("{why}; or percent, such as \"50%\""));
    };
    let percent = percent.trim_end().parse().ok().filter(|percent| (1..=100).contains(percent));
    percent.map(Quota::Percent).ok_or_else(|| "\"1%\" to \"100%\"".to_owned())
}

/// As it is written.
pub(crate) fn quota_text(quota: Quota) -> String {
    match quota {
        Quota::Bytes(bytes) => size_text(bytes),
        Quota::Percent(percent) => format!("{percent}%"),
    }
}

/// A duration as it is written: `7d`, `90s`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(SECONDS_PER_DAY, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    match units.iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => "0".to_owned(),
    }
}

/// A size as it is written: `100MiB`, `50MB`. Sizes are multiples of 1000 or 1024; others are cut to such a one.
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1 << 10, "KiB")];
    let fits = units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    let (unit, name) = fits.copied().unwrap_or((1_000, "KB"));
    format!("{}{name}", bytes / unit)
}

/// `"12 h"` -> `(12, "h")`; none without leading digits, or with more of them than 64 bits hold.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_mean_what_they_say() {
        for (text, seconds) in [("0", 0), ("0d", 0), ("45s", 45), ("30m", 1_800), ("12h", 43_200), ("7 d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn sizes_mean_what_they_say() {
        for (text, bytes) in [("64KiB", 65_536), ("50MB", 50_000_000), ("100MiB", 104_857_600), ("1GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_quota_is_a_size_or_a_part() {
        assert_eq!(quota("10GiB"), Ok(Quota::Bytes(10 << 30)));
        assert_eq!((quota("50%"), quota("100 %")), (Ok(Quota::Percent(50)), Ok(Quota::Percent(100))));
        for text in ["0%", "101%", "%", "half", "50", "-1%"] {
            assert!(quota(text).is_err_and(|why| why.contains('%')), "{text}");
        }
        assert_eq!(
            (quota_text(Quota::Percent(50)), quota_text(Quota::Bytes(10 << 30))),
            ("50%".into(), "10GiB".into())
        );
    }

    #[test]
    fn a_number_without_a_unit_is_asked_back() {
        assert_eq!(duration("7"), Err("a unit is missing: \"7s\", \"7m\", \"7h\" or \"7d\"?".to_owned()));
        assert_eq!(size("100"), Err("a unit is missing: \"100KiB\" or \"100MiB\"?".to_owned()));
    }

    #[test]
    fn other_forms_and_absurd_amounts_are_refused() {
        for text in
            ["", "d", "-1d", "1.5h", "7days", "1w", "1D", "36501d", "99999999999999999999d", "18446744073709551615d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "MiB", "-1MB", "1.5MiB", "1mb", "1M", "99999999999999999999KB", "18446744073709551615KB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error_and_never_a_panic(text in "\\PC{0,24}|[0-9]{0,24} ?[a-zA-Z]{0,4}") {
            let _ = (duration(&text), size(&text));
        }

        #[test]
        fn what_was_meant_is_what_is_read(number in 0_u64..36_500) {
            prop_assert_eq!(duration(&format!("{number}d")), Ok(Duration::from_secs(number * 86_400)));
            prop_assert_eq!(size(&format!("{number}KiB")), Ok(number * 1_024));
            for unit in ["s", "m", "h", "d"] {
                let meant = duration(&format!("{number}{unit}")).unwrap();
                prop_assert_eq!(duration(&duration_text(meant)), Ok(meant));
            }
            for unit in ["KB", "MB", "GB", "KiB", "MiB", "GiB"] {
                let meant = size(&format!("{number}{unit}")).unwrap();
                prop_assert_eq!(size(&size_text(meant)), Ok(meant));
            }
        }
    }
}
