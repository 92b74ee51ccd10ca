//! The relay through its public interface: one rule at a time, and a seeded simulation of them all.

mod drains;
mod facts;
mod lifetimes;
mod rules;
mod simulation;
