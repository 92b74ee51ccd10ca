//! Sizes, times and errors for people.

/// `512 B`, `2.0 KiB`, `1.4 GiB`
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut name) = (n as f64 / 1024.0, "KiB");
    for unit in UNITS.iter().skip(1).take_while(|_| n >= 1024 * 1024) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    format!("{value:.1} {name}")
}

/// `42 s`, `1 min 30 s`, `3 h 5 min`, `2 d 4 h`
pub(crate) fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// The error and its causes, each said once: some repeat their cause in their own text.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |mut text, cause| {
        if !text.ends_with(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let disk = || std::io::Error::other("read-only");
        let doubled = restante_journal::ReplayError::Io(disk());
        let text = causes(&anyhow::Error::new(doubled).context("in /data"));
        assert_eq!(text, "in /data: cannot read the journal: read-only");
        assert_eq!(causes(&anyhow::Error::new(disk()).context("no log")), "no log: read-only");
    }

    #[test]
    fn units_change_at_their_borders() {
        for (n, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 50, "1024.0 TiB"),
        ] {
            assert_eq!(bytes(n), words);
        }
        for (s, words) in
            [(59, "59 s"), (60, "1 min 0 s"), (3_599, "59 min 59 s"), (3_700, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(seconds(s), words);
        }
    }
}
