//! What is not as written, and the verdict on it. Says what was found, and judges nothing that it does not count.

use crate::blob::BlobName;
use restante_envelope::TransactionId;

/// Damage reported one by one; a disk that rotted more than that needs no longer list.
const DAMAGE_ENTRIES_MAX: usize = 10_000;

/// The verdict on a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Every byte is as written.
    Clean,
    /// The last bytes before a crash, promised to nobody, are incomplete.
    Torn,
    /// Bytes that were once safe are not as written.
    Damaged,
}

impl State {
    /// The word that reports use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Torn => "torn",
            Self::Damaged => "damaged",
        }
    }
}

/// What is not as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// No valid frame stands there (cases B, C).
    Frame,
    /// A frame's envelope part is wrong (D, F, G).
    Meta,
    /// A frame's content is wrong (D, E), or the table of a blob (Q).
    Content,
    /// The blob that a record names is missing (O).
    BlobMissing,
    /// The blob that a record names is not as written (P).
    Blob,
    /// Bytes that must be zero are not (J).
    Padding,
    /// The segment's header page is wrong (H, I).
    HeaderPage,
    /// A whole segment is missing (K).
    MissingSegment,
    /// Messages are missing that nothing names (L).
    Unnamed,
}

impl DamageKind {
    /// The word that reports use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Meta => "envelope",
            Self::Content => "content",
            Self::BlobMissing => "blob-missing",
            Self::Blob => "blob",
            Self::Padding => "padding",
            Self::HeaderPage => "header-page",
            Self::MissingSegment => "missing-segment",
            Self::Unnamed => "unnamed",
        }
    }
}

/// One place that is not as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// Bytes from the start of its file. For a blob, where the record stands that names it.
    pub offset: u64,
    /// How many bytes. For a blob, how many of it.
    pub bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
    /// The messages concerned, as far as they are known.
    pub ids: Vec<TransactionId>,
    /// The blob that is not as written, if it is one.
    pub blob: Option<BlobName>,
}

impl Damage {
    /// A place in a segment.
    pub fn new(segment: u64, offset: u64, bytes: u64, kind: DamageKind, ids: Vec<TransactionId>) -> Self {
        Self { segment, offset, bytes, kind, ids, blob: None }
    }

    /// Whether there are bytes in a segment that can be set aside.
    pub fn has_bytes(&self) -> bool {
        self.bytes > 0 && self.kind != DamageKind::MissingSegment && self.blob.is_none()
    }
}

/// Everything that is not as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Proven to have been safe once.
    pub damage: Vec<Damage>,
    /// Possibly in flight at a crash.
    pub torn: Vec<Damage>,
    /// Places beyond the 10,000 listed.
    pub unlisted: u64,
}

impl Report {
    /// The verdict.
    pub fn state(&self) -> State {
        match (self.damage.is_empty(), self.torn.is_empty()) {
            (false, _) => State::Damaged,
            (true, false) => State::Torn,
            (true, true) => State::Clean,
        }
    }

    pub(crate) fn add(&mut self, damage: Damage, proven: bool) {
        let list = if proven { &mut self.damage } else { &mut self.torn };
        if list.len() < DAMAGE_ENTRIES_MAX { list.push(damage) } else { self.unlisted += 1 }
    }
}
