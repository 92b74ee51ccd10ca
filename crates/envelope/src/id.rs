//! Transaction identifiers: 26-character ULIDs, strictly increasing within a journal, never reused.

use crate::Timestamp;
use std::fmt;
use std::str::FromStr;

/// Identifies one accepted message. Sorts in order of acceptance.
///
/// A ULID: 48 bits of milliseconds, 80 bits that start at random and count up; 26 characters of Crockford's base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(u128);

/// The text is not a 26-character ULID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a transaction id: expected 26 characters of 0-9 and A-Z without I, L, O, U")]
pub struct ParseIdError;

impl TransactionId {
    /// The identifier with these 128 bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The 128 bits, as the journal stores them (little-endian).
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; ulid::ULID_LEN];
        f.pad(ulid::Ulid(self.0).array_to_str(&mut text))
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TransactionId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        // 26 characters hold 130 bits: a first character above 7 would lose two of them.
        if text.len() != ulid::ULID_LEN || text.as_bytes().first().is_none_or(|first| *first > b'7') {
            return Err(ParseIdError);
        }
        ulid::Ulid::from_string(text).map(|u| Self(u.0)).map_err(|_| ParseIdError)
    }
}

/// Makes identifiers, each larger than the one before, whatever the clock does.
#[derive(Debug, Clone)]
pub struct IdGenerator {
    last: u128,
}

impl IdGenerator {
    /// Starts above `largest_known`, the largest identifier found in the journal.
    pub fn after(largest_known: Option<TransactionId>) -> Self {
        Self { last: largest_known.map_or(0, |id| id.0) }
    }

    /// The next identifiers are larger than this one, too.
    pub fn pass(&mut self, known: TransactionId) {
        self.last = self.last.max(known.0);
    }

    /// The next identifier. `entropy` fills the low bits when the clock has moved on; when it has not, or has stepped
    /// back, the last identifier plus one is used instead.
    pub fn next(&mut self, now: Timestamp, entropy: u64) -> TransactionId {
        let from_clock = (u128::from(now.unix_ms()) << 80) | (u128::from(entropy) << 8);
        self.last = if from_clock > self.last { from_clock } else { self.last.saturating_add(1) };
        TransactionId(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_repeats_when_the_clock_steps_back() {
        let mut ids = IdGenerator::after(None);
        let a = ids.next(Timestamp::from_unix_ms(5_000), 7);
        let b = ids.next(Timestamp::from_unix_ms(4_000), u64::MAX);
        let c = ids.next(Timestamp::from_unix_ms(5_000), 3);
        assert!(a < b && b < c, "{a} {b} {c}");
    }

    #[test]
    fn an_id_after_a_restart_is_larger_than_any_in_the_journal() {
        let known: TransactionId = "7ZZZZZZZZZZZZZZZZZZZZZZZZY".parse().unwrap();
        assert!(IdGenerator::after(Some(known)).next(Timestamp::from_unix_ms(1), 1) > known);
    }

    #[test]
    fn text_and_bits_are_the_same_id() {
        let id = IdGenerator::after(None).next(Timestamp::from_unix_ms(1_795_359_200_118), 0x0123_4567_89ab_cdef);
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        for bad in [
            "",
            "01JD9QK3T2E8V5W6X7Y8Z9ABC",
            "01JD9QK3T2E8V5W6X7Y8Z9ABCDE",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "../../etc/passwd0000000000",
        ] {
            assert_eq!(bad.parse::<TransactionId>(), Err(ParseIdError), "{bad}");
        }
    }
}
