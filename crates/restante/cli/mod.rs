//! The commands. Each returns the exit code that the contract gives it; an error is exit 1 with its causes.

pub(crate) mod account;
pub(crate) mod args;
mod asked;
pub(crate) mod backup;
mod client;
pub(crate) mod config;
mod deliver;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod journal;
pub(crate) mod log;
mod log_line;
pub(crate) mod output;
mod owner;
pub(crate) mod packaging;
mod progress;
pub(crate) mod queue;
pub(crate) mod recover;
pub(crate) mod reload;
pub(crate) mod replay;
pub(crate) mod select;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod try_it;
pub(crate) mod verify;
mod when;
pub(crate) mod words;

/// Exit codes, as `restante --help` lists them.
pub(crate) mod exit {
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const PARTLY: u8 = 3;
    pub(crate) const NOTHING_MATCHED: u8 = 4;
    pub(crate) const UNREACHABLE: u8 = 5;
    pub(crate) const CONFIG_INVALID: u8 = 6;
    pub(crate) const NOT_PERMITTED: u8 = 7;
    pub(crate) const LOCKED: u8 = 8;
    pub(crate) const DAMAGED: u8 = 9;
    pub(crate) const UNHEALTHY: u8 = 10;
    /// The set changed since the plan.
    pub(crate) const CHANGED: u8 = 12;
    pub(crate) const INTERRUPTED: u8 = 130;
}
