//! The header page of a segment (FORMAT.md section 2), and the segment's file name.

use crate::codec::{Malformed, Put, Take};
use crate::scan::NUMBER_MAX;
use restante_envelope::TransactionId;
use restante_ledger::{Balance, Base};

/// Frames start behind the page.
pub(crate) const PAGE_BYTES: usize = 4096;
const SECOND_COPY_AT: usize = 2048;
const MAGIC: &[u8; 8] = b"RSTJRNL\x01";
/// Without a base: no segment has left yet, nor could.
const FORMAT_1: u16 = 1;
const FORMAT_1_BYTES: usize = 96;
const FORMAT_2: u16 = 2;
/// Of one copy.
pub(crate) const FORMAT_2_BYTES: usize = 192;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) tag: u32,
    pub(crate) journal: u128,
    pub(crate) number: u64,
    pub(crate) first_sequence: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) previous_number: u64,
    pub(crate) previous_bytes: u64,
    pub(crate) transactions: u64,
    pub(crate) recipients: u64,
    /// How long the file was when it came into use, zeros included.
    pub(crate) made_bytes: u32,
    /// What is known of the segments that have left; none in format 1.
    pub(crate) base: Option<Base>,
}

/// What became of reading a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// As written.
    Intact(SegmentHeader),
    /// One copy is good; some other byte of the page is not as written.
    Damaged(SegmentHeader),
    /// Neither copy is good.
    Lost,
    /// Good, and of a format that this reader must not touch.
    TooNew { format: u16 },
}

impl SegmentHeader {
    /// The whole page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut put = Put(Vec::with_capacity(FORMAT_2_BYTES));
        put.0.extend_from_slice(MAGIC);
        let format = if self.base.is_some() { FORMAT_2 } else { FORMAT_1 };
        put.u16(format);
        put.u16(format);
        put.u32(self.tag);
        put.u128(self.journal);
        for field in [
            self.number,
            self.first_sequence,
            self.created_unix_ms,
            self.previous_number,
            self.previous_bytes,
            self.transactions,
            self.recipients,
        ] {
            put.u64(field);
        }
        put.u32(self.made_bytes);
        if let Some(base) = &self.base {
            put_base(&mut put, base);
        }
        put.u32(crc32c::crc32c(&put.0));
        page_of(&put.0)
    }

    /// Reads a page; a short one counts as filled up with zeros.
    pub(crate) fn decode(page: &[u8]) -> Page {
        let copy = |at: usize, bytes: usize| page.get(at..at + bytes);
        let copies = [0, SECOND_COPY_AT].map(|at| [copy(at, FORMAT_2_BYTES), copy(at, FORMAT_1_BYTES)]);
        let good = copies.into_iter().flatten().flatten().find_map(|copy| Some((copy, Self::decode_copy(copy)?)));
        match good {
            // Held against the copy itself: a later minor format has another number in it than we would write.
            Some((copy, Ok(header))) if page == page_of(copy) => Page::Intact(header),
            Some((_, Ok(header))) => Page::Damaged(header),
            Some((_, Err(format))) => Page::TooNew { format },
            None => Page::Lost,
        }
    }

    fn decode_copy(copy: &[u8]) -> Option<Result<Self, u16>> {
        let (fields, crc) = copy.split_at_checked(copy.len().checked_sub(4)?)?;
        if crc != crc32c::crc32c(fields).to_le_bytes() {
            return None;
        }
        let mut take = Take(fields.strip_prefix(MAGIC)?);
        let read = || -> Result<Result<Self, u16>, Malformed> {
            let format = take.u16()?;
            if take.u16()? > FORMAT_2 {
                return Ok(Err(format));
            }
            if (format < FORMAT_2) != (copy.len() == FORMAT_1_BYTES) {
                return Err(Malformed);
            }
            Ok(Ok(Some(Self {
                tag: take.u32()?,
                journal: take.u128()?,
                number: take.u64()?,
                first_sequence: take.u64()?,
                created_unix_ms: take.u64()?,
                previous_number: take.u64()?,
                previous_bytes: take.u64()?,
                transactions: take.u64()?,
                recipients: take.u64()?,
                made_bytes: take.u32()?,
                base: (format >= FORMAT_2).then(|| take_base(&mut take)).transpose()?,
            })
            // One that counts itself no more would have all of the journal removed.
            .filter(|header: &Self| header.base.is_none_or(|base| base.first <= header.number))
            .ok_or(Malformed)?))
        };
        let mut read = read;
        read().ok()
    }
}

fn put_base(put: &mut Put, base: &Base) {
    let Balance { transactions, accepted: _, pending: _, sent, bounced, expired, removed, quarantined, generated } =
        base.left;
    let left = [transactions, sent, bounced, expired, removed, quarantined, generated];
    for field in [base.first, base.transactions, base.recipients].into_iter().chain(left) {
        put.u64(field);
    }
    put.u128(base.largest_id.map_or(0, TransactionId::to_bits));
}

fn take_base(take: &mut Take<'_>) -> Result<Base, Malformed> {
    let mut count = || take.u64().and_then(|n| if n < NUMBER_MAX { Ok(n) } else { Err(Malformed) });
    let (first, transactions, recipients) = (count()?, count()?, count()?);
    let mut left = Balance {
        transactions: count()?,
        sent: count()?,
        bounced: count()?,
        expired: count()?,
        removed: count()?,
        quarantined: count()?,
        generated: count()?,
        ..Balance::default()
    };
    left.accepted = left.sent + left.bounced + left.expired + left.removed + left.quarantined;
    let largest_id = Some(take.u128()?).filter(|bits| *bits != 0).map(TransactionId::from_bits);
    Ok(Base { first, transactions, recipients, left, largest_id })
}

/// The page that holds a copy of a header twice.
fn page_of(copy: &[u8]) -> Vec<u8> {
    let mut page = copy.to_vec();
    page.resize(SECOND_COPY_AT, 0);
    page.extend_from_slice(copy);
    page.resize(PAGE_BYTES, 0);
    page
}

/// `seg-00000000000000000001.rj`
pub(crate) fn file_name(number: u64) -> String {
    format!("seg-{number:020}.rj")
}

/// `seg-00000000000000000001.new`: a segment whose directory entry is not final.
pub(crate) fn unfinished_name(number: u64) -> String {
    format!("seg-{number:020}.new")
}

/// The number in a segment's file name.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".rj")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Whether this is the name of a segment that never came into use.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with("seg-") && name.ends_with(".new")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        let left = Balance { transactions: 5, accepted: 7, sent: 4, removed: 2, quarantined: 1, ..Balance::default() };
        let largest_id = TransactionId::from_bits(77);
        SegmentHeader {
            tag: 1,
            journal: 2,
            number: 3,
            first_sequence: 4,
            created_unix_ms: 5,
            previous_number: 2,
            previous_bytes: 7,
            transactions: 8,
            recipients: 9,
            made_bytes: 10,
            base: Some(Base { first: 3, transactions: 8, recipients: 9, left, largest_id: Some(largest_id) }),
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_in_the_page_is_seen_and_survived() {
        for header in [header(), SegmentHeader { base: None, ..header() }] {
            let page = header.encode();
            assert_eq!(page.len(), PAGE_BYTES);
            assert_eq!(SegmentHeader::decode(&page), Page::Intact(header));
            for byte in 0..PAGE_BYTES {
                let mut bad = page.clone();
                bad[byte] ^= 0x10;
                assert_eq!(SegmentHeader::decode(&bad), Page::Damaged(header), "byte {byte}");
            }
        }
    }

    #[test]
    fn a_header_that_counts_its_own_segment_no_more_is_not_believed() {
        let forged = |base: Base| SegmentHeader { base: Some(base), ..header() }.encode();
        let base = header().base.unwrap();
        assert_eq!(SegmentHeader::decode(&forged(Base { first: 4, ..base })), Page::Lost);
        assert_eq!(SegmentHeader::decode(&forged(Base { transactions: NUMBER_MAX, ..base })), Page::Lost);
    }

    #[test]
    fn a_page_without_a_good_copy_is_lost_and_a_newer_one_refused() {
        assert_eq!(SegmentHeader::decode(&[]), Page::Lost);
        assert_eq!(SegmentHeader::decode(&[0; PAGE_BYTES]), Page::Lost);
        let mut newer = header().encode();
        newer[8..12].copy_from_slice(&[9, 0, 3, 0]);
        let crc = crc32c::crc32c(&newer[..188]).to_le_bytes();
        newer[188..192].copy_from_slice(&crc);
        assert_eq!(SegmentHeader::decode(&newer), Page::TooNew { format: 9 });
    }

    #[test]
    fn only_segments_have_segment_names() {
        assert_eq!(parse_file_name(&file_name(u64::MAX)), Some(u64::MAX));
        for name in [
            "seg-1.rj",
            "seg-00000000000000000001.new",
            "seg--0000000000000000001.rj",
            "lock",
            "seg-99999999999999999999.rj",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
