//! A maildir: files with lines that end with LF, and no envelope. Whom they are for is told, or stands in the headers that the
//! delivery left.
//!
//! Takes no name from `To` or `Cc`: what stands there is no recipient. The content stays as it is, those headers included.

use super::{Letter, Listing, Unreadable, append_with_crlf, walk};
use anyhow::bail;
use std::path::Path;

/// In which the delivery left the recipient: first those that name it as it was before aliases.
const RECIPIENT_HEADERS: [&str; 3] = ["x-original-to", "envelope-to", "delivered-to"];
/// Lines folded over more than an address's length hold none.
const HEADER_BYTES_MAX: usize = 1_024;

pub(super) fn list(path: &Path) -> anyhow::Result<Listing> {
    if !["new", "cur"].iter().all(|part| path.join(part).is_dir()) {
        bail!("{} is no maildir: there are new and cur in one", path.display());
    }
    let (mut seen, mut listing) = (Vec::new(), Listing::default());
    for part in ["new", "cur"] {
        walk(&path.join(part), 0, &mut seen)?;
    }
    for mut file in listing.plain(seen) {
        // Flags come and go; what is in front of them is the message's name for good.
        let (name, flags) = file.item.name.rsplit_once(":2,").unwrap_or((&file.item.name, ""));
        if flags.contains('T') {
            listing.left.push((file.item.path, "its reader marked it as deleted"));
        } else {
            file.item.name = name.to_owned();
            listing.items.push(file.item);
        }
    }
    Ok(listing)
}

/// What the file says. For `to`, if anybody is named there; else for whom its headers name.
pub(crate) fn parse(bytes: &[u8], to: &[String]) -> Result<Letter, Unreadable> {
    let headers = headers(bytes);
    let first = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| bare(value));
    let recipients = match RECIPIENT_HEADERS.iter().find_map(|name| first(name)) {
        _ if !to.is_empty() => to.to_vec(),
        Some(recipient) if !recipient.is_empty() => vec![recipient.to_owned()],
        _ => return Err(Unreadable::Missing("nothing says whom it is for: name them by --to ADDRESS")),
    };
    let reverse_path = first("return-path").unwrap_or_default().to_owned();
    let mut content = Vec::new();
    append_with_crlf(bytes, &mut content);
    Ok(Letter { reverse_path, recipients, content, ..Letter::default() })
}

fn bare(address: &str) -> &str {
    address.strip_prefix('<').and_then(|inner| inner.strip_suffix('>')).unwrap_or(address)
}

/// Those of interest, names in lower case, folds undone.
fn headers(bytes: &[u8]) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut is_wanted = false;
    for line in bytes.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(line.get(..HEADER_BYTES_MAX).unwrap_or(line));
        if text.starts_with([' ', '\t']) {
            if let Some((_, value)) =
                headers.last_mut().filter(|(_, value)| is_wanted && value.len() < HEADER_BYTES_MAX)
            {
                *value = format!("{value}{}", text.trim());
            }
        } else if let Some((name, value)) = text.split_once(':') {
            let name = name.trim_end().to_ascii_lowercase();
            is_wanted = name == "return-path" || RECIPIENT_HEADERS.contains(&&*name);
            if is_wanted && !headers.iter().any(|(known, _)| *known == name) {
                headers.push((name, value.trim().to_owned()));
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"Return-Path: <a@example.net>\nDelivered-To: local\nX-Original-To:\n box@example.test\n\
        X-Original-To: other@example.test\nTo: list@example.test\n\nDelivered-To: no\n\xff.\n";

    #[test]
    fn the_envelope_is_what_the_delivery_left_and_never_the_header_to() {
        let letter = parse(TEXT, &[]).unwrap();
        assert_eq!(
            (&*letter.reverse_path, &letter.recipients[..]),
            ("a@example.net", &["box@example.test".to_owned()][..])
        );
        assert_eq!(letter.content.len(), TEXT.len() + TEXT.iter().filter(|b| **b == b'\n').count());
        let to = ["one@example.test".to_owned(), "two@example.test".to_owned()];
        assert_eq!(parse(TEXT, &to).unwrap().recipients, to);
        let error = parse(b"To: list@example.test\n\nx\n", &[]).unwrap_err().to_string();
        assert!(error.contains("--to"), "{error}");
        assert_eq!(parse(b"x", &to).unwrap().reverse_path, "");
    }

    #[test]
    fn a_message_that_was_read_meanwhile_keeps_its_name_and_a_deleted_one_is_left() {
        let directory = tempfile::tempdir().unwrap();
        for part in ["new", "cur", "tmp"] {
            std::fs::create_dir(directory.path().join(part)).unwrap();
        }
        for name in ["new/1.a.host", "cur/2.b.host:2,S", "cur/3.c.host:2,ST", "tmp/4.d.host"] {
            std::fs::write(directory.path().join(name), TEXT).unwrap();
        }
        let listing = list(directory.path()).unwrap();
        let mut names: Vec<&str> = listing.items.iter().map(|item| &*item.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["1.a.host", "2.b.host"]);
        assert_eq!(listing.left.len(), 1);
        assert!(list(&directory.path().join("new")).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>, cut in 0usize..200) {
            let _any = parse(&bytes, &[]);
            let text = [&TEXT[..cut.min(TEXT.len())], &bytes].concat();
            if let Ok(letter) = parse(&text, &["a@example.test".to_owned()]) {
                prop_assert!(letter.content.len() <= text.len() * 2 + 2);
            }
        }
    }
}
