//! Benches of the hot functions, one criterion binary: `cargo xtask bench` runs it and writes the tables of `../README.md`.
//! It refuses to measure disks, sockets and threads: those are for the peers' benchmark and the tests that print figures.
//! Only what is public is called; where a function is not, the smallest public one that contains it is.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that goes wrong shall stop, as a test does")]

mod disk;
mod facts;
mod index;
mod journal;
mod ledger;
mod mail;
mod relay;
mod smtp;

use criterion::Criterion;
use std::time::Duration;

fn main() {
    // All groups together stay below a minute. What is given on the command line goes before these.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30)
        .nresamples(10_000)
        .without_plots()
        .configure_from_args();
    smtp::bench(&mut criterion);
    journal::bench(&mut criterion);
    ledger::bench(&mut criterion);
    relay::bench(&mut criterion);
    index::bench(&mut criterion);
    criterion.final_summary();
}
