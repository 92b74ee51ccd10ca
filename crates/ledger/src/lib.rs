//! What the journal means: durable facts, and the one fold over them.
//!
//! ```text
//! Accepted -> waiting -> Attempted -> sent
//!                |  ^        |------> deferred (until a printed time) -> waiting
//!                |  |        |------> refused (for good, and not believed yet: shown as hold)
//!                |  |        '------> hold (safety rule)
//!                |  '---- Operated: release ----'
//!                |------- Operated: hold -> hold
//!                '------- Operated: remove, bounce, expire -> removed, bounced, expired -- Operated: undo -> waiting
//! record unreadable -> quarantined
//! ```
//!
//! Boot, the recovery command, the simulator and the live server call the same [`Ledger::apply`]. This crate reads no
//! file and no clock, keeps no address in memory, and never panics on a fact that makes no sense: such a fact changes
//! nothing and is counted.
#![warn(missing_docs)]

mod balance;
mod deliveries;
mod fact;
mod gist;
mod id_map;
mod known;
mod ledger;
mod retention;
mod transaction;
mod watch;

pub use balance::Balance;
pub use deliveries::{Deliveries, Past, ReplayMark};
pub use fact::{
    Accepted, Action, Attempted, Carried, Cause, Fact, NextHop, Operated, Outcome, Position, RecipientIndex, Replayed,
    RouteRecord, Served, Standing, Timings,
};
pub use gist::Gist;
pub use id_map::IdMap;
pub(crate) use known::Known;
pub use ledger::{Ledger, RouteIndex};
pub use retention::Base;
pub use transaction::{Mailbox, RecipientEntry, RecipientState, Recipients, Transaction};
pub use watch::{PrimaryState, Span, Watch, Watched};
