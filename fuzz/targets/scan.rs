//! Any bytes as one segment, or as two that follow each other: read to the end or refused in words, within bounds, and a
//! start on top of them changes nothing of what they say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use restante_fuzz::{Choices, Memory, page, read, repair, restart};
use restante_journal::{Depth, Options, State};

const TAG: u32 = 0x5eed;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let (shape, cut) = (choices.byte(), choices.number());
    let (first, second) = choices.0.split_at(if shape & 1 == 0 { choices.0.len() } else { cut.min(choices.0.len()) });
    let storage = Memory::default();
    let segments = [first, second];
    let count = if shape & 1 == 0 { 1 } else { 2 };
    for (n, bytes) in (1..=count).zip(segments) {
        let previous = if n == 1 { (0, 0) } else { (1, first.len() as u64) };
        // A page of ours in front costs the fuzzer nothing; half of the time it makes its own.
        let mut segment = if shape & 2 == 0 { page(n, TAG, previous, 0) } else { Vec::new() };
        segment.extend_from_slice(bytes);
        if shape & 4 == 0 {
            repair(&mut segment);
        }
        storage.put(&format!("seg-{n:020}.rj"), segment);
    }
    let Ok((before, account)) = read(&storage, Depth::Everything) else { return };
    let (_, at_start) = read(&storage, Depth::Records).expect("what can be read whole can be read in part");
    assert_eq!(at_start.ledger.balance().accepted, account.ledger.balance().accepted);
    let writer = restart(&storage, Options::default()).expect("it was read");
    writer.close().expect("memory does not fail");
    let (after, again) = read(&storage, Depth::Everything).expect("it was read, and ours stands behind it");
    if before.report.state() == State::Damaged {
        assert_eq!(after.report.state(), State::Damaged, "damage stays reported");
    }
    // A frame whose numbers were forged may be told apart by the segment behind it, so only the honest are compared.
    if shape & 4 != 0 {
        assert_eq!(account.ledger.balance(), again.ledger.balance());
        assert_eq!(account.pending(), again.pending());
    }
});
