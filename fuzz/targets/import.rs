//! Any bytes as the files of another server's queue: whatever they are, the parsers end, and a letter that they find is no larger
//! than what it was found in allows, and can be told to another server.
#![no_main]

#[path = "../../crates/restante/import/mod.rs"]
#[expect(dead_code, reason = "what looks for the files is not fuzzed")]
mod import;

use import::{Format, Letter};
use libfuzzer_sys::fuzz_target;
use restante_fuzz::Choices;

/// Where a maildir's mail goes that does not say it.
const TO: &str = "to@example.test";

fn assert_is_a_letter(letter: &Letter, read_bytes: usize) {
    // An LF becomes CRLF; a last line gets its end.
    assert!(letter.content.len() <= read_bytes * 2 + 2, "{} bytes of {read_bytes}", letter.content.len());
    assert!(letter.content.is_empty() || letter.content.ends_with(b"\r\n"));
    let mut names = letter.recipients.clone();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), letter.recipients.len(), "each once");
    assert!(letter.recipients.iter().map(String::len).sum::<usize>() <= read_bytes * 2 + TO.len());
    let key = import::key(Format::Postfix, "name", letter);
    assert!(key.ends_with(import::ENDING) && key.len() < 255);
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let kind = choices.byte() % 3;
    let read = match kind {
        0 => import::postfix::parse(choices.0),
        1 => import::maildir::parse(choices.0, &[TO.to_owned()]),
        _ => {
            let (head, data) = (choices.number(), choices.number());
            let (head, data) = (choices.bytes(head), choices.bytes(data));
            import::exim::parse("1pABCD-000001-2x", head, data, choices.0)
        }
    };
    if let Ok(letter) = read {
        assert_is_a_letter(&letter, input.len());
    }
});
