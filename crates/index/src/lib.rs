//! The query index: a projection of the journal's facts into SQLite. Holds nothing that the journal does not hold, and may be
//! thrown away at any time.
#![warn(missing_docs)]
