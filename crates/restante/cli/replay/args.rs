//! What is to be replayed, and what makes one order the same as another: its name is made of what was asked for, so that the same
//! command goes on where it was, and another one begins anew.

use crate::cli::select::{Address, Selector, address, instant, route};
use crate::config::{HostPort, Network, duration, size};
use clap::Args;
use restante_envelope::{Timestamp, TransactionId};
use std::fmt::Display;
use std::time::Duration;

/// Gentle: a primary that was just rebuilt has its live mail to take too, and one that looks into each message takes some tenth of
/// a second. There is one connection, so a slower primary slows this down by itself.
const RATE_DEFAULT: &str = "10";

/// The names of the arguments that say which; without one of them nothing is replayed.
const WHICH: [&str; 12] =
    ["since", "until", "ids", "routes", "domains", "from", "recipients", "clients", "older", "larger", "text", "all"];

/// Deliver again.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(WHICH))]
pub(crate) struct Replay {
    /// Delivered then or later: 2026-11-22, "2026-11-22 15:00", 2026-11-22T15:00:00Z; with --dry-run also 90m or 3d ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) since: Option<Moment>,
    /// Delivered before
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) until: Option<Moment>,
    /// Deliver to this server instead of the route's primary
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) to: Option<HostPort>,
    /// Messages in a second, at most
    #[arg(long, value_name = "N", default_value = RATE_DEFAULT, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) rate: u16,
    /// Why, for the log and the history of each message; needed unless --dry-run
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub(super) reason: Option<String>,
    /// Say what would be done, and send nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Once more what this replay has done already: 2 for the second time, 3 for the third
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) again: u16,
    /// Offer again what the primary refused for good when this replay offered it
    #[arg(long)]
    pub(super) retry_refused: bool,
    /// The transaction with this ID; this and most of the others may be repeated
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<TransactionId>,
    /// Those of this route
    #[arg(long = "route", value_name = "NAME", value_parser = route)]
    routes: Vec<String>,
    /// Recipients in this domain
    #[arg(long = "domain", value_name = "DOMAIN")]
    domains: Vec<String>,
    /// From this address; without an @: with this in the address. <> is the null reverse-path
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    from: Vec<Address>,
    /// Recipients with this address; without an @: with this in the address. (--to is the server)
    #[arg(long = "recipient", value_name = "ADDRESS", value_parser = address)]
    recipients: Vec<Address>,
    /// From the client with this IP address, or in this block such as 192.0.2.0/24
    #[arg(long = "client", value_name = "IP[/BITS]")]
    clients: Vec<Network>,
    /// Accepted longer ago than this, such as 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older: Option<Duration>,
    /// With more content than this, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    larger: Option<u64>,
    /// With this in the subject, the header From, the Message-ID or an address
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// All that the journal has
    #[arg(long)]
    pub(super) all: bool,
}

/// An instant, and whether it is another one when the same is typed later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) at: Timestamp,
    is_age: bool,
}

fn moment(text: &str) -> Result<Moment, String> {
    Ok(Moment { at: instant(text)?, is_age: duration(text).is_ok() })
}

/// When something was delivered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

impl Range {
    pub(super) fn contains(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

impl Replay {
    pub(super) fn range(&self) -> Range {
        Range { since: self.since.map(|since| since.at), until: self.until.map(|until| until.at) }
    }

    /// Whether the same words will mean the same later; else what to say instead. A replay that was cut off is gone on with by
    /// the same command, and a range that moves would leave out some and send others twice.
    pub(super) fn is_fixed(&self, now: Timestamp) -> Result<(), String> {
        for (flag, moment) in [("--since", self.since), ("--until", self.until)] {
            if let Some(Moment { at, is_age: true }) = moment {
                return Err(format!("{flag} must be a fixed time, so that the same command can go on: {flag} {at}"));
            }
        }
        match self.until {
            None if self.ids.is_empty() => {
                Err(format!("--until is missing: what is delivered from now on is not meant; now is --until {now}"))
            }
            Some(until) if until.at > now => Err(format!(
                "--until is in the future, and what is not delivered yet cannot be lost; now is --until {now}"
            )),
            _ => Ok(()),
        }
    }

    /// Whether it is one of those named by their ID.
    pub(super) fn names(&self, id: TransactionId) -> bool {
        self.ids.contains(&id)
    }

    /// All but the range and the server.
    pub(super) fn selector(&self) -> Selector {
        Selector {
            ids: self.ids.clone(),
            routes: self.routes.clone(),
            domains: self.domains.clone(),
            from: self.from.clone(),
            to: self.recipients.clone(),
            clients: self.clients.clone(),
            older: self.older,
            larger: self.larger,
            text: self.text.clone(),
            ..Selector::default()
        }
    }

    /// The name of the order: the same for the same.
    pub(super) fn job(&self) -> u64 {
        let mut parts = vec![format!("again={}", self.again)];
        let mut list = |key: &str, values: Vec<String>| {
            let mut values: Vec<String> = values.into_iter().map(|value| format!("{key}={value}")).collect();
            values.sort();
            values.dedup();
            parts.append(&mut values);
        };
        list("to", words(&self.to));
        list("since", words(&self.since.map(|since| since.at)));
        list("until", words(&self.until.map(|until| until.at)));
        list("id", words(&self.ids));
        list("route", words(&self.routes));
        list("domain", self.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect());
        list("from", self.from.iter().map(ToString::to_string).collect());
        list("recipient", self.recipients.iter().map(ToString::to_string).collect());
        list("client", words(&self.clients));
        list("older", words(&self.older.map(|older| older.as_millis())));
        list("larger", words(&self.larger));
        list("text", words(&self.text));
        fnv(parts.join("\n").as_bytes())
    }
}

fn words<'a, T: Display + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}

/// FNV-1a. The same in every version of ours: the journal keeps it.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        replay: Replay,
    }

    fn parsed(line: &str) -> Result<Replay, clap::Error> {
        Line::try_parse_from(["replay"].into_iter().chain(line.split_whitespace())).map(|line| line.replay)
    }

    #[test]
    fn the_same_order_has_the_same_name_and_another_one_another() {
        let job = |line: &str| parsed(&format!("--dry-run {line}")).unwrap().job();
        let order = "--since 2026-11-22T03:00:00Z --until 2026-11-22T07:00:00Z --route a --route b";
        let same = "--route b --route a --until 2026-11-22T08:00:00+01:00 --since 2026-11-22T03:00:00Z --rate 7";
        assert_eq!(job(order), job(same));
        let others =
            ["--again 2", "--to a.test", "--id 00000000000000000000000007", "--domain a", "--from a", "--recipient a"];
        let mut jobs: Vec<u64> = others.iter().map(|more| job(&format!("{order} {more}"))).collect();
        jobs.extend(
            ["--client ::1", "--older 1d", "--larger 1KiB", "--text a", "--route c", "--all", "--from <a@b>"].map(job),
        );
        jobs.push(job(order));
        let count = jobs.len();
        jobs.sort_unstable();
        jobs.dedup();
        assert_eq!(jobs.len(), count);
        // Journals keep it.
        assert_eq!(format!("{:016x}", job("--all")), format!("{:016x}", fnv(b"again=1")));
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_range_that_moves_is_refused_and_a_slip_is_not_everything() {
        let now = Timestamp::from_unix_ms(1_795_359_200_118);
        let fixed = |line: &str| parsed(&format!("--reason x {line}")).unwrap().is_fixed(now);
        assert!(
            fixed("--since 2026-11-01 --until 2026-11-02").is_ok() && fixed("--id 00000000000000000000000007").is_ok()
        );
        for line in ["--since 3d --until 2026-11-02", "--since 2026-11-01 --until 0", "--all", "--until 2030-01-01"] {
            let said = fixed(line).unwrap_err();
            assert!(said.contains(" 2026-11-"), "{said}");
        }
        for line in
            ["--reason x", "--all", "--reason x --all --rate 0", "--reason x --all --again 0", "--dry-run --state hold"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
