//! The one place that reads the clock and draws randomness; everything below the binary gets both passed in.

use restante_envelope::Timestamp;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// The instant, as the wall clock tells it.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// 64 bits that nobody outside can guess: from the operating system, by way of the standard library's hash keys.
pub(crate) fn entropy() -> u64 {
    RandomState::new().hash_one(now().unix_ms())
}

/// 128 such bits.
pub(crate) fn entropy128() -> u128 {
    (u128::from(entropy()) << 64) | u128::from(entropy())
}
