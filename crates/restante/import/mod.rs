//! Mail that waits in another server's queue, read from its files: which there are, and what each of them says.
//!
//! Opens nothing for writing and takes no lock; decides about no recipient. The parsers take bytes and give a [`Letter`]:
//! whatever the bytes are, they end, and take no more memory than some few times as much.

pub(crate) mod exim;
pub(crate) mod maildir;
pub(crate) mod postfix;

use restante_envelope::{DsnRequest, RecipientDsn};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A file is read in one piece. Twice this is in memory at most; no server takes mail of this size by default.
pub(crate) const FILE_BYTES_MAX: u64 = 256 << 20;
/// Subdirectories of subdirectories: Postfix hashes by two letters by default, Exim by one; nobody by more than this.
const DEPTH_MAX: usize = 8;
/// Of the source's own name for a message, in what it is known by here. Theirs have some twenty.
const NAME_BYTES_MAX: usize = 64;

/// Whose files they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The queue directory of a Postfix, such as /var/spool/postfix
    Postfix,
    /// The spool directory of an Exim, such as /var/spool/exim4
    Exim,
    /// A maildir: new/ and cur/
    Maildir,
}

impl Format {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Postfix => "postfix",
            Self::Exim => "exim",
            Self::Maildir => "maildir",
        }
    }
}

/// A message as its source holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Letter {
    /// Empty for `<>`.
    pub(crate) reverse_path: String,
    /// Those that have not got it yet, as written, each once.
    pub(crate) recipients: Vec<String>,
    /// What the sender wants to hear of one of them; of those that are not here, nothing was said.
    pub(crate) asked: HashMap<String, RecipientDsn>,
    /// What the sender wants to hear of the message.
    pub(crate) dsn: DsnRequest,
    /// The sender gave SMTPUTF8.
    pub(crate) smtputf8: bool,
    /// How many have.
    pub(crate) delivered: usize,
    /// Why it is not to be sent, if an operator or the source itself froze it.
    pub(crate) hold: Option<String>,
    /// When it arrived there, in the source's own digits; empty where nothing tells.
    pub(crate) arrived: String,
    /// With CRLF behind every line. What the source would send, without trace headers that are to come.
    pub(crate) content: Vec<u8>,
}

/// Why a file is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("has {0} bytes; import reads no file larger than {FILE_BYTES_MAX}")]
    TooLarge(u64),
    #[error("at byte {at}: {what}")]
    Malformed { at: usize, what: &'static str },
    #[error("line {line} of {file}: {what}")]
    Line { file: &'static str, line: usize, what: &'static str },
    #[error("{0}")]
    Missing(&'static str),
    #[error(
        "at byte {at}: the {what} {shown} is no UTF-8 text, and no server could be told of it; nothing of the message was taken: deliver it there, or remove it"
    )]
    NoText { at: usize, what: &'static str, shown: String },
    #[error("its {what} is none that RFC 3461 allows: {shown}; nothing of the message was taken")]
    Dsn { what: &'static str, shown: String },
}

/// A file that may be a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    /// When the file was last written: older ones come first.
    modified: std::time::SystemTime,
    pub(crate) path: PathBuf,
    /// As the source names the message.
    pub(crate) name: String,
    /// Why messages that stand where it does are frozen.
    hold: Option<&'static str>,
}

/// What a source holds.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Oldest first.
    pub(crate) items: Vec<Item>,
    /// Files that are no message yet, and why not.
    pub(crate) left: Vec<(PathBuf, &'static str)>,
}

/// Looks at what is in `path`. An error: that is no such source, and why.
pub(crate) fn list(format: Format, path: &Path) -> anyhow::Result<Listing> {
    let mut listing = match format {
        Format::Postfix => postfix::list(path),
        Format::Exim => exim::list(path),
        Format::Maildir => maildir::list(path),
    }?;
    listing.items.sort();
    Ok(listing)
}

impl Listing {
    /// Takes what is a plain file; the rest is told.
    fn plain(&mut self, seen: Vec<Seen>) -> Vec<Seen> {
        let (files, others): (Vec<Seen>, Vec<Seen>) = seen.into_iter().partition(|seen| seen.is_file);
        let why = "it is a symbolic link, or another thing that is no plain file: import follows none";
        self.left.extend(others.into_iter().map(|other| (other.item.path, why)));
        files
    }
}

/// Reads a message. `to` is for those that come without an envelope.
pub(crate) fn read(format: Format, item: &Item, to: &[String]) -> Result<Letter, Unreadable> {
    let bytes = contents(&item.path)?;
    let mut letter = match format {
        Format::Postfix => postfix::parse(&bytes),
        Format::Exim => exim::read(item, &bytes),
        Format::Maildir => maildir::parse(&bytes, to),
    }?;
    letter.hold = letter.hold.or_else(|| item.hold.map(str::to_owned));
    Ok(letter)
}

/// What a message is known by from now on: its source's name for it, and a digest of all that makes it that message. Stands
/// in the journal as the name that the client gave itself; letters, digits, `.`, `-` and `_`.
pub(crate) fn key(format: Format, name: &str, letter: &Letter) -> String {
    let mut digest = Sha256::new();
    for part in [format.as_str(), name, &letter.arrived, &letter.reverse_path] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.update(&letter.content);
    let mut key = format!("{}.", format.as_str());
    key.extend(name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(NAME_BYTES_MAX));
    key.push('.');
    for byte in digest.finalize().iter().take(16) {
        let _infallible = write!(key, "{byte:02x}");
    }
    key + ENDING
}

/// Behind every key. The domain of loopback alone.
pub(crate) const ENDING: &str = ".import.localhost";

fn contents(path: &Path) -> Result<Vec<u8>, Unreadable> {
    // To open a FIFO would wait for whoever writes it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Unreadable::Missing("it is no plain file"));
    }
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Unreadable::TooLarge(bytes));
    }
    let mut read = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    // It may grow meanwhile.
    file.take(FILE_BYTES_MAX).read_to_end(&mut read)?;
    Ok(read)
}

/// A file, or what is none, below a directory.
struct Seen {
    item: Item,
    mode: u32,
    is_file: bool,
}

/// All files below `directory`, and whatever else is no directory; none if it is not there.
fn walk(directory: &Path, depth: usize, seen: &mut Vec<Seen>) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() && depth < DEPTH_MAX {
            walk(&entry.path(), depth + 1, seen)?;
        } else {
            let name = entry.file_name().to_string_lossy().into_owned();
            let item = Item { modified: metadata.modified()?, path: entry.path(), name, hold: None };
            seen.push(Seen { item, mode: metadata.permissions().mode(), is_file: metadata.is_file() });
        }
    }
    Ok(())
}

/// Appends lines with LF behind them, each with CRLF behind it. The last one gets it even if it had none.
fn append_with_crlf(text: &[u8], content: &mut Vec<u8>) {
    content.reserve(text.len() + text.len() / 32);
    for line in text.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        content.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        content.extend_from_slice(b"\r\n");
    }
}

/// Each once, in the order of their first.
fn push_once(recipients: &mut Vec<String>, known: &mut std::collections::HashSet<String>, recipient: String) {
    if known.insert(recipient.clone()) {
        recipients.push(recipient);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_another_message_and_the_same_is_the_same() {
        let letter = Letter { reverse_path: "a@b.test".into(), content: b"x\r\n".to_vec(), ..Letter::default() };
        let known = key(Format::Postfix, "3F5A", &letter);
        assert!(known.starts_with("postfix.3F5A.") && known.ends_with(ENDING), "{known}");
        let delivered = Letter { recipients: vec!["c@d.test".into()], delivered: 1, ..letter.clone() };
        assert_eq!(key(Format::Postfix, "3F5A", &delivered), known);
        let other = [
            key(Format::Exim, "3F5A", &letter),
            key(Format::Postfix, "3F5B", &letter),
            key(Format::Postfix, "3F5A", &Letter { arrived: "1".into(), ..letter.clone() }),
            key(Format::Postfix, "3F5A", &Letter { content: b"y\r\n".to_vec(), ..letter.clone() }),
            key(Format::Postfix, "3F5A", &Letter { reverse_path: String::new(), ..letter.clone() }),
        ];
        assert!(other.iter().all(|other| *other != known), "{other:?}");
        // As a HELO name, whatever a file is called.
        let odd = key(Format::Maildir, &"1.M2P3.host,S=4:2,S (\r\n".repeat(40), &letter);
        assert!(odd.len() < 200 && odd.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)), "{odd}");
    }

    #[test]
    fn lines_end_with_crlf_whatever_they_ended_with() {
        let mut content = Vec::new();
        append_with_crlf(b"a\nb\r\n\nc\rd\n.e", &mut content);
        assert_eq!(content, b"a\r\nb\r\n\r\nc\rd\r\n.e\r\n");
        append_with_crlf(b"", &mut content);
        assert_eq!(content.len(), 17);
    }
}
