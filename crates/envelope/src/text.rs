//! Which characters of a stranger's text may stand on a terminal. Knows no encoding but Unicode and changes no text.

/// Whether it neither steers a terminal, nor turns the direction of writing, nor hides: no control character (C0, DEL, C1),
/// no mark of the bidirectional algorithm, no separator of lines, nothing of no width.
pub fn is_harmless(c: char) -> bool {
    let is_hidden = matches!(
        c,
        '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    !c.is_control() && !is_hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_hides_is_not_harmless_and_words_are() {
        for c in
            "\0\x07\t\n\r\x1b\x7f\u{80}\u{9b}\u{61c}\u{200b}\u{200f}\u{2028}\u{202a}\u{202e}\u{2066}\u{feff}\u{e0041}"
                .chars()
        {
            assert!(!is_harmless(c), "{c:?}");
        }
        assert!(" ~aé\u{a0}Я字\u{2026}\u{2030}\u{fffd}😀".chars().all(is_harmless));
    }
}
