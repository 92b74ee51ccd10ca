//! What the fuzz targets share: a journal's directory in memory, the input as a source of choices, and what must hold of
//! any journal whatever stands in it. Refuses to be used by anything that is shipped.

mod format;
mod memory;

pub use format::{ALIGN_BYTES, Frame, PAGE_BYTES, page, repair};
pub use memory::Memory;

use restante_envelope::{Timestamp, TransactionId};
use restante_journal::{Depth, Options, Replay, ReplayError, Seed, Sink, Writer, replay, set_aside};
use restante_ledger::{Accepted, Base, Carried, Fact, Ledger, Position};
use std::collections::BTreeMap;

/// Any instant: no target depends on the clock.
pub fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_795_359_200_118)
}
/// Small, so that short histories have several segments.
pub const OPTIONS: Options = Options { segment_bytes: 6 << 10 };
pub const SEED: Seed = Seed { journal: 42, entropy: 7, tags: 8 };

/// The input, taken piece by piece; zeros behind its end.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A ledger, and the facts that made it.
#[derive(Default)]
pub struct Account {
    pub ledger: Ledger,
    pub facts: Vec<(Position, Fact)>,
}

impl Sink for Account {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.ledger.fact(position, fact);
        self.facts.push((position, fact.clone()));
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.ledger.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

impl Account {
    /// What is not settled: who has it, and where it stands.
    pub fn pending(&self) -> BTreeMap<TransactionId, Position> {
        self.ledger.iter().map(|(id, t)| (id, t.position)).collect()
    }
}

/// Reads every byte. The balance is even, whatever stands there.
pub fn read(storage: &Memory, depth: Depth) -> Result<(Replay, Account), ReplayError> {
    let mut account = Account::default();
    let replay = replay(storage, depth, &mut account)?;
    assert!(account.ledger.balance().is_even(), "{:?}", account.ledger.balance());
    Ok((replay, account))
}

/// A start: sets aside what is wrong, and goes on in a new segment. The journal says afterwards what it said before.
pub fn restart(storage: &Memory, options: Options) -> Result<Writer<Memory>, ReplayError> {
    let (replay, account) = read(storage, Depth::Records)?;
    set_aside(storage, &replay.report).expect("nothing is wrong with this disk");
    let largest = account.ledger.largest_id();
    let writer =
        Writer::open(storage.clone(), options, &replay, largest, SEED, now()).expect("nothing is wrong with this disk");
    Ok(writer)
}
