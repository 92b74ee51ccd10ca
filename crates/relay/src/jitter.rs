//! Jitter without a random number generator: the same seed gives the same waits, so a simulation can be run again.
//! Not for secrets: anybody who knows the seed knows the waits.

use std::time::Duration;

/// 64 bits that look random, for the `nth` wait of `who`.
pub(crate) fn draw(seed: u64, who: u128, nth: u64) -> u64 {
    let [low, high] = [who, who >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0));
    [low, high, nth].into_iter().fold(mix(seed), |sum, part| mix(sum ^ part))
}

/// The finalizer of SplitMix64: every bit of the input changes half of the output's.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `nominal` plus or minus up to `percent` of it, as `draw` says.
pub(crate) fn spread(nominal: Duration, percent: u64, draw: u64) -> Duration {
    let nominal_ms = u64::try_from(nominal.as_millis()).unwrap_or(u64::MAX);
    let half_ms = nominal_ms / 100 * percent;
    Duration::from_millis(nominal_ms - half_ms + draw % (2 * half_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_two_messages_do_not_fall_together() {
        let mut waits: Vec<_> =
            (0..100).map(|who| spread(Duration::from_secs(60), 10, draw(7, who, 1)).as_millis()).collect();
        assert!(waits.iter().all(|ms| (54_000..=66_000).contains(ms)), "{waits:?}");
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 90, "{waits:?}");
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 2 << 64, 3));
    }
}
