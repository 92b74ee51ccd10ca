//! One frame with right checksums and any meta: it is read or refused, and a fact that was read is written and read again
//! as the same fact.
#![no_main]

use libfuzzer_sys::fuzz_target;
use restante_fuzz::{Account, Choices, Frame, Memory, PAGE_BYTES, now, page, read, restart};
use restante_journal::{Depth, Options, Prepared, Reader};
use restante_ledger::{Carried, Fact};

const TAG: u32 = 0x5eed;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let (kind, flags, recipients) = (choices.byte(), choices.byte(), u16::from(choices.byte()));
    let content = choices.byte();
    let content = choices.bytes(usize::from(content));
    let id = 1 << 90;
    let offset = PAGE_BYTES as u64;
    let frame = Frame { kind, flags, recipients, tag: TAG, sequence: 1, offset, id, meta: choices.0, content };
    let storage = Memory::default();
    storage.put("seg-00000000000000000001.rj", [page(1, TAG, (0, 0), 0), frame.bytes()].concat());
    let Ok((replay, account)) = read(&storage, Depth::Everything) else { return };
    let (records, _) = read(&storage, Depth::Records).expect("what can be read whole can be read in part");
    assert_eq!(records.segments, replay.segments);
    let Account { facts, .. } = &account;
    assert!(facts.len() <= 1);
    for (position, fact) in facts {
        let stored = Reader::new(storage.clone()).message(*position).expect("what was told can be read");
        // A message is told as it was accepted, though it was written again since.
        let told = match fact.clone() {
            Fact::Carried(carried) => Fact::Accepted(carried.accepted),
            fact => fact,
        };
        assert_eq!(stored.fact, told);
        if flags & 2 != 0 {
            continue;
        }
        assert_eq!(stored.content.read_all().expect("it is in the record"), content);
        let again = Memory::default();
        let mut writer = restart(&again, Options::default()).expect("an empty directory");
        writer.stage(&Prepared::fact(fact, content.to_vec()), now()).expect("memory does not fail");
        writer.commit(now()).expect("memory does not fail");
        writer.close().expect("memory does not fail");
        let (_, written) = read(&again, Depth::Everything).expect("we wrote it");
        let mut written: Vec<Fact> = written.facts.into_iter().map(|(_, fact)| fact).collect();
        let mut fact = fact.clone();
        // Only messages have content.
        match &mut fact {
            Fact::Accepted(accepted) | Fact::Carried(Carried { accepted, .. }) => {
                accepted.content_len = content.len() as u64
            }
            _ => {}
        }
        assert_eq!(written.pop(), Some(fact));
    }
});
