//! The relay's decisions: whose mail we take, when it is handed to which primary, what an answer means, and what its sender hears
//! of it.
//!
//! ```text
//!             Accepted                     attempt_failed (nothing recorded)
//!                |                  .------------------------------.
//!                v                  v                              |
//!             waiting -- poll: Attempt, if the route is up --> active
//!                ^  ^                                              |  Attempted
//!   time passes, |  '---------- Release ---------- hold <----------+----------> sent, quarantined
//!   flush        '------------- deferred <-------------------------'
//! ```
//!
//! Pure: facts, reports and `now` go in, actions and the next deadline come out. This crate opens no socket and no
//! file, reads no clock and draws no random number; jitter is a hash of a seed that is passed in. It keeps no address
//! of a message in memory.
#![warn(missing_docs)]

mod breaker;
pub mod dsn;
mod health;
mod jitter;
mod lane;
mod lifetime;
mod load;
mod pace;
mod pattern;
mod relay;
mod room;
mod routes;
mod schedule;
mod status;
#[cfg(test)]
mod tests;
mod trace;
mod turns;
mod verdict;
mod view;

pub use health::ConnectionTrouble;
pub use lifetime::{EXPIRE_CAP_DEFAULT, EXPIRE_DEFAULT};
pub use load::{Claim, Loads};
pub use pattern::{DomainPattern, PatternError};
pub use relay::{Action, Flush, Relay};
pub use room::{Disk, Floor, Quota, Trend};
pub use routes::{ATTEMPTS_AHEAD_DEFAULT, Admit, MAX_CONNECTIONS_DEFAULT, RouteError, RouteSettings, Routes};
pub use status::{Counts, Event, RouteState, RouteStatus, StateView, TransactionState};
pub use trace::{hold_for_loop, received_header};
pub use verdict::{Heard, Verdict, backoff, judge};
