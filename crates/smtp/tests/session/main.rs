//! The session as its callers see it: dialogue files, open-relay tricks, arbitrary bytes. Uses the public API alone.

mod dialogues;
mod host;
mod open_relay;
mod properties;
