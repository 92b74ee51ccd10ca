//! Reading typed values out of a parsed TOML document, with every error noted at its place.
//!
//! Knows nothing of what the keys mean, and never stops at the first error.

use super::diagnostic::{Diagnostic, Source, nearest};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A string of the document and where it stands, quotes included.
pub(super) type Text<'t> = (&'t str, Range<usize>);

/// The keys of a table.
pub(super) struct Keys {
    /// How the table is named in messages, e.g. `[[route]]`.
    pub(super) title: &'static str,
    /// What may stand there.
    pub(super) known: &'static [&'static str],
    /// What will mean something in a later release.
    pub(super) reserved: &'static [&'static str],
}

/// The errors found so far.
pub(super) struct Walk {
    source: Source,
    /// Each with the place in the main file that led to it, by which they are sorted.
    found: Vec<(usize, Diagnostic)>,
}

impl Walk {
    pub(super) fn new(source: Source) -> Self {
        Self { source, found: Vec::new() }
    }

    /// All errors, in the order of the file.
    pub(super) fn into_errors(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(anchor, _)| *anchor);
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }

    /// Forgets errors that `keep` finds to follow from another.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Diagnostic) -> bool) {
        self.found.retain(|(_, diagnostic)| keep(diagnostic));
    }

    /// How many errors were noted.
    pub(super) fn errors(&self) -> usize {
        self.found.len()
    }

    /// The number of the line that holds `offset`.
    pub(super) fn line_number(&self, offset: usize) -> usize {
        self.source.line_number(offset)
    }

    /// Notes an error in the main file.
    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        let source = self.source.clone();
        self.error_in(span.start, Diagnostic { source, span, message: message.into(), help: help.into() });
    }

    /// Notes an error in another file, which the main file names at `anchor`.
    pub(super) fn error_in(&mut self, anchor: usize, diagnostic: Diagnostic) {
        self.found.push((anchor, diagnostic));
    }

    /// Notes each key that `keys` does not know.
    pub(super) fn check_keys(&mut self, table: &DeTable<'_>, keys: &Keys) {
        for (key, value) in table {
            let (name, title) = (key.get_ref().as_ref(), keys.title);
            if keys.known.contains(&name) {
                continue;
            }
            let what = if title.is_empty() && (value.get_ref().is_table() || is_section_list(value)) {
                format!("section [{name}]")
            } else if title.is_empty() {
                format!("key `{name}` at the top level")
            } else {
                format!("key `{name}` in {title}")
            };
            if keys.reserved.contains(&name) {
                self.error(key.span(), format!("{what} is reserved for a later release"), "remove it");
                continue;
            }
            let help = match nearest(name, keys.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", keys.known.join(", ")),
            };
            self.error(key.span(), format!("unknown {what}"), help);
        }
    }

    /// Notes that `key` is missing, unless a misspelt one was meant: one slip is one error.
    pub(super) fn missing(&mut self, table: &DeTable<'_>, keys: &Keys, key: &str, span: Range<usize>, help: &str) {
        let unknown = table.keys().map(|key| key.get_ref().as_ref()).filter(|name| !keys.known.contains(name));
        if !unknown.into_iter().any(|name| nearest(name, keys.known.iter().copied()) == Some(key)) {
            self.error(span, format!("missing `{key}`"), help);
        }
    }

    /// The table under `key`, if there is one.
    pub(super) fn section<'t>(&mut self, root: &'t DeTable<'t>, key: &str) -> Option<&'t DeTable<'t>> {
        let value = root.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            let help = format!("write [{key}] on a line of its own");
            self.error(value.span(), format!("`{key}` is {}, and must be a section", type_of(value)), help);
        }
        table
    }

    /// The string under `key`, if there is one.
    pub(super) fn string<'t>(&mut self, table: &'t DeTable<'t>, key: &str, example: &str) -> Option<Text<'t>> {
        let value = table.get(key)?;
        let text = value.get_ref().as_str().map(|text| (text, value.span()));
        if text.is_none() {
            let message = format!("`{key}` is {}, and must be a string", type_of(value));
            self.error(value.span(), message, format!("such as \"{example}\""));
        }
        text
    }

    /// The string under `key`, parsed.
    pub(super) fn parsed<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, span) = self.string(table, key, example)?;
        parse(text).map_err(|help| self.error(span, format!("bad `{key}`"), help)).ok()
    }

    /// The strings under `key`, if there is such a key; those that are none are noted and left out.
    pub(super) fn strings<'t>(&mut self, table: &'t DeTable<'t>, key: &str, example: &str) -> Option<Vec<Text<'t>>> {
        let value = table.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let help = format!("such as [\"{}\"]", value.get_ref().as_str().unwrap_or(example));
            self.error(value.span(), format!("`{key}` is {}, and must be a list of strings", type_of(value)), help);
            return None;
        };
        let mut texts = Vec::new();
        for element in array {
            match element.get_ref().as_str() {
                Some(text) => texts.push((text, element.span())),
                None => {
                    let message = format!("an element of `{key}` is {}, and must be a string", type_of(element));
                    self.error(element.span(), message, format!("such as \"{example}\""));
                }
            }
        }
        Some(texts)
    }

    /// Notes a list without elements.
    pub(super) fn check_not_empty(&mut self, table: &DeTable<'_>, key: &str, help: &str) {
        if let Some(value) = table.get(key)
            && value.get_ref().as_array().is_some_and(|array| array.is_empty())
        {
            self.error(value.span(), format!("`{key}` is empty"), help);
        }
    }

    /// The whole number under `key`, if there is one.
    pub(super) fn whole_number(&mut self, table: &DeTable<'_>, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer().map(|i| u32::from_str_radix(i.as_str(), i.radix()).ok());
        match number {
            Some(Some(number)) if range.contains(&number) => return Some(number),
            Some(_) => {
                self.error(value.span(), format!("bad `{key}`"), format!("{} to {}", range.start(), range.end()));
            }
            None => {
                let message = format!("`{key}` is {}, and must be a whole number", type_of(value));
                self.error(value.span(), message, format!("such as {}", range.end() / 100));
            }
        }
        None
    }
}

fn is_section_list(value: &Spanned<DeValue<'_>>) -> bool {
    value.get_ref().as_array().is_some_and(|array| array.iter().any(|element| element.get_ref().is_table()))
}

fn type_of(value: &Spanned<DeValue<'_>>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
