//! A table's place in a file: between two comments, `<!-- NAME begin -->` and `<!-- NAME end -->`. Touches nothing outside them.

use anyhow::{Context as _, Result};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// An error unless the file has the places of all these names.
pub(crate) fn require(file: &Path, names: &[&str]) -> Result<()> {
    let text = read(file)?;
    names.iter().try_for_each(|name| place(&text, name).map(drop)).with_context(|| file.display().to_string())
}

/// Puts `table` into the place of this name.
pub(crate) fn replace(file: &Path, name: &str, table: &str) -> Result<()> {
    let mut text = read(file)?;
    let place = place(&text, name).with_context(|| file.display().to_string())?;
    text.replace_range(place, &format!("\n{}\n", table.trim()));
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

/// From behind the first comment to the start of the second.
fn place(text: &str, name: &str) -> Result<Range<usize>> {
    let find = |which: &str, from: usize| {
        let comment = format!("<!-- {name} {which} -->");
        let rest = text.get(from..).unwrap_or_default();
        let at = rest.find(&comment).with_context(|| format!("the line `{comment}` is missing"))?;
        Ok::<_, anyhow::Error>((from + at, from + at + comment.len()))
    };
    let (_, begin) = find("begin", 0)?;
    let (end, _) = find("end", begin)?;
    Ok(begin..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_a_table_is_replaced_with_it() {
        let text = "a\n<!-- one begin -->\nold\n<!-- one end -->\nb\n<!-- two begin -->\n<!-- two end -->\n";
        let mut replaced = text.to_owned();
        replaced.replace_range(place(text, "one").unwrap(), "\nnew\n");
        assert_eq!(replaced, text.replace("old", "new"));
        assert!(place(text, "two").is_ok());
    }

    #[test]
    fn a_file_without_the_place_is_written_over() {
        let missing = |text| place(text, "one").unwrap_err().to_string();
        assert_eq!(missing("nothing"), "the line `<!-- one begin -->` is missing");
        assert_eq!(missing("<!-- one end --><!-- one begin -->"), "the line `<!-- one end -->` is missing");
    }
}
