//! The one integration binary: it drives the real `restante` from outside, by the names users have, and believes nothing it says
//! about itself. It refuses to sleep and hope, to skip a test quietly, and to reach any host but loopback.
//! How to run it, and which test guards which promise: `tests/README.md`.
#![expect(unreachable_pub, reason = "a test binary exports nothing; `pub(crate)` on every helper would be noise")]

#[cfg(test)]
mod backup;
#[cfg(test)]
mod blackhole;
#[cfg(test)]
mod configuration;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod custody;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod dialogues;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod door;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod encryption;
#[cfg(test)]
mod encryption_out;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod footprint;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod holdings;
#[cfg(test)]
mod import;
#[cfg(test)]
mod index;
#[cfg(test)]
mod instruments;
#[cfg(test)]
mod large;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod logging;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod packaging;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod relaying;
#[cfg(test)]
mod removal;
#[cfg(test)]
mod removed;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod routing;
#[cfg(test)]
#[path = "dialogue/script.rs"]
mod script;
#[cfg(test)]
mod scrub;
#[cfg(test)]
mod senders;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod smuggling;
#[cfg(test)]
mod storage;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tryout;
