//! The 64-byte frame header (FORMAT.md section 3): the one place that knows where its fields stand.

use crate::codec::{Put, Take};
use restante_envelope::TransactionId;

pub(crate) const HEADER_BYTES: usize = 64;
/// Frames start at multiples of this, so that a scan past damage has few places to try.
pub(crate) const ALIGN_BYTES: u64 = 8;
/// Largest meta that a reader believes. 1,000 recipients of 256 bytes are a quarter of a MiB.
pub(crate) const META_BYTES_MAX: u32 = 16 << 20;

const MAGIC: &[u8; 4] = b"RJF1";
pub(crate) const FLAG_IGNORABLE: u8 = 1;
pub(crate) const FLAG_BLOB: u8 = 2;
pub(crate) const FLAG_REQUESTS: u8 = 4;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A message, envelope and content.
    Accepted,
    /// A try to deliver it, and its results.
    Attempted,
    /// An operator's action.
    Operated,
    /// A daemon's start.
    Served,
    /// What is torn in the segment before.
    Succession,
    /// A message written again, and how its recipients stood.
    Carried,
    /// A message that was sent, offered once more.
    Replayed,
    /// How a primary stands.
    Watched,
    /// The end of a batch.
    Mark,
    /// The end of a segment.
    Seal,
    /// A kind of a later minor format; to be skipped.
    Unknown(u8),
}

impl Kind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Accepted => 1,
            Self::Attempted => 2,
            Self::Operated => 3,
            Self::Served => 4,
            Self::Succession => 5,
            Self::Carried => 6,
            Self::Replayed => 7,
            Self::Watched => 8,
            Self::Mark => 16,
            Self::Seal => 17,
            Self::Unknown(code) => code,
        }
    }

    /// Whether it holds a message.
    pub(crate) fn is_message(self) -> bool {
        matches!(self, Self::Accepted | Self::Carried)
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Accepted,
            2 => Self::Attempted,
            3 => Self::Operated,
            4 => Self::Served,
            5 => Self::Succession,
            6 => Self::Carried,
            7 => Self::Replayed,
            8 => Self::Watched,
            16 => Self::Mark,
            17 => Self::Seal,
            other => Self::Unknown(other),
        }
    }
}

/// A frame header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) recipients: u16,
    pub(crate) tag: u32,
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) id: TransactionId,
    pub(crate) meta_len: u32,
    pub(crate) meta_crc: u32,
    pub(crate) content_len: u32,
    pub(crate) content_crc: u32,
}

impl FrameHeader {
    /// The bytes on disk, and the CRC among them, which a mark repeats.
    pub(crate) fn encode(&self) -> ([u8; HEADER_BYTES], u32) {
        let mut put = Put(Vec::with_capacity(HEADER_BYTES));
        put.u8(self.kind.code());
        put.u8(self.flags);
        put.u16(self.recipients);
        put.u32(self.tag);
        put.u64(self.sequence);
        put.u64(self.offset);
        put.u128(self.id.to_bits());
        put.u32(self.meta_len);
        put.u32(self.meta_crc);
        put.u32(self.content_len);
        put.u32(self.content_crc);
        let crc = crc32c::crc32c(&put.0);
        let mut bytes = [0; HEADER_BYTES];
        let fields = MAGIC.iter().copied().chain(crc.to_le_bytes()).chain(put.0);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        (bytes, crc)
    }

    /// The header in `bytes`, if magic and CRC are right and the lengths can be believed. Tag, offset and sequence are
    /// for the caller to compare.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, fields) = bytes.get(..HEADER_BYTES)?.split_at_checked(8)?;
        let crc = head.strip_prefix(MAGIC)?;
        if crc != crc32c::crc32c(fields).to_le_bytes() {
            return None;
        }
        let mut take = Take(fields);
        let header = (|| {
            Ok::<_, crate::codec::Malformed>(Self {
                kind: Kind::from_code(take.u8()?),
                flags: take.u8()?,
                recipients: take.u16()?,
                tag: take.u32()?,
                sequence: take.u64()?,
                offset: take.u64()?,
                id: TransactionId::from_bits(take.u128()?),
                meta_len: take.u32()?,
                meta_crc: take.u32()?,
                content_len: take.u32()?,
                content_crc: take.u32()?,
            })
        })();
        header.ok().filter(|h| h.meta_len <= META_BYTES_MAX)
    }

    /// A reader that does not know this frame's kind may skip it.
    pub(crate) fn is_ignorable(&self) -> bool {
        self.flags & FLAG_IGNORABLE != 0
    }

    /// Its content is a table of checksums, and the message is in a blob.
    pub(crate) fn has_blob(&self) -> bool {
        self.kind.is_message() && self.flags & FLAG_BLOB != 0
    }

    /// Behind what is known of the message stands what its sender asked for.
    pub(crate) fn has_requests(&self) -> bool {
        self.kind.is_message() && self.flags & FLAG_REQUESTS != 0
    }

    /// Written by a later version that means something by it, which must not be guessed at.
    pub(crate) fn is_beyond_us(&self) -> bool {
        match self.kind {
            Kind::Unknown(_) => !self.is_ignorable(),
            Kind::Accepted | Kind::Carried => self.flags & !(FLAG_IGNORABLE | FLAG_BLOB | FLAG_REQUESTS) != 0,
            _ => self.flags & !FLAG_IGNORABLE != 0,
        }
    }

    /// Where its meta starts in the file.
    pub(crate) fn meta_offset(&self) -> u64 {
        self.offset.saturating_add(HEADER_BYTES as u64)
    }

    /// Where its content starts in the file.
    pub(crate) fn content_offset(&self) -> u64 {
        self.meta_offset().saturating_add(u64::from(self.meta_len))
    }

    /// Where its padding starts.
    pub(crate) fn padding_offset(&self) -> u64 {
        self.content_offset().saturating_add(u64::from(self.content_len))
    }

    /// Where the next frame starts.
    pub(crate) fn end(&self) -> u64 {
        self.padding_offset().checked_next_multiple_of(ALIGN_BYTES).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(offset: u64, meta_len: u32, content_len: u32) -> FrameHeader {
        FrameHeader {
            kind: Kind::Accepted,
            flags: 0,
            recipients: 3,
            tag: 0xdead_beef,
            sequence: 7,
            offset,
            id: TransactionId::from_bits(5),
            meta_len,
            meta_crc: 1,
            content_len,
            content_crc: 2,
        }
    }

    #[test]
    fn every_single_flipped_bit_of_a_header_is_seen() {
        let (bytes, _) = header(4096, 100, 1000).encode();
        assert_eq!(FrameHeader::decode(&bytes), Some(header(4096, 100, 1000)));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bad), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = FrameHeader::decode(&bytes);
        }

        #[test]
        fn frames_end_on_a_multiple_of_eight(offset in any::<u64>(), meta in 0..META_BYTES_MAX, content in any::<u32>()) {
            let header = header(offset, meta, content);
            prop_assert!(header.end().is_multiple_of(ALIGN_BYTES) || header.end() == u64::MAX);
            prop_assert!(header.end() >= offset);
        }
    }
}
