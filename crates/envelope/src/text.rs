//! Which characters of a stranger's text may stand on a terminal. Knows no encoding but Unicode and changes no text.

/// Whether it neither steers a terminal, nor turns the direction of writing, nor hides: no control character (C0, DEL, C1),
/// no mark of the bidirectional algorithm, no separator of lines, nothing that nobody sees (of Unicode's
/// Default_Ignorable_Code_Point all but the variation selectors of emoji, which change what is seen), no noncharacter.
pub fn is_harmless(c: char) -> bool {
    let is_hidden = matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    let is_noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    !c.is_control() && !is_hidden && !is_noncharacter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_hides_is_not_harmless_and_words_are() {
        for c in
            "\0\x07\t\n\r\x1b\x7f\u{80}\u{9b}\u{61c}\u{200b}\u{200f}\u{2028}\u{202a}\u{202e}\u{2066}\u{feff}\u{e0041}\
             \u{ad}\u{34f}\u{1160}\u{3164}\u{ffa0}\u{fdd0}\u{fffe}\u{ffff}\u{1fffe}\u{10ffff}\u{e0100}"
                .chars()
        {
            assert!(!is_harmless(c), "{c:?}");
        }
        assert!(" ~aé\u{a0}Я字\u{2026}\u{2030}\u{fffd}😀\u{2764}\u{fe0f}\u{fdcf}\u{fdf0}".chars().all(is_harmless));
    }
}
