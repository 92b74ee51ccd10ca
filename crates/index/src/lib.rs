//! The query index: a projection of the journal's facts into SQLite, for listings and search.
//!
//! ```text
//! facts ──apply, with the cursor, in one transaction──▶ index.sqlite ──select──▶ rows, in order of acceptance
//! ```
//!
//! Holds nothing that the journal does not hold, and may be thrown away at any time. Nothing is routed, admitted, delivered
//! or settled by it. What a fact does to a recipient is [`restante_ledger::RecipientState::after`], as in the ledger. Removes
//! no file: whoever owns the directory does that when [`IndexError::Unusable`] says so.
#![warn(missing_docs)]

mod error;
mod fold;
mod index;
mod rows;
mod state;
mod summary;
#[cfg(test)]
mod tests;

pub use error::IndexError;
pub use index::{Change, Event, Index, Keep, Origin};
pub use rows::{RecipientRow, Row, Selector};
pub use summary::{HEAD_BYTES_MAX, Summary};
