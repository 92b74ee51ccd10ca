//! The session as its callers see it: dialogue files, open-relay tricks, arbitrary bytes. Uses the public API alone.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "these are tests throughout: a panic is how they fail"
)]

mod against;
mod dialogues;
mod host;
mod model;
mod must;
mod open_relay;
mod played;
mod properties;
#[path = "../../../../tests/dialogue/script.rs"]
mod script;
mod spoken;
