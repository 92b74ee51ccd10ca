//! Frames and header pages as journal/FORMAT.md draws them, written a second time: a fuzzer does not guess checksums.
//! Shares no code with the journal, and reads nothing.

pub const PAGE_BYTES: usize = 4096;
pub const ALIGN_BYTES: usize = 8;
const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"RJF1";

/// A frame to be made, with right checksums and lengths.
pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u8,
    pub recipients: u16,
    pub tag: u32,
    pub sequence: u64,
    pub offset: u64,
    pub id: u128,
    pub meta: &'a [u8],
    pub content: &'a [u8],
}

impl Frame<'_> {
    /// With its padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut fields = vec![self.kind, self.flags];
        fields.extend(self.recipients.to_le_bytes());
        fields.extend(self.tag.to_le_bytes());
        fields.extend(self.sequence.to_le_bytes());
        fields.extend(self.offset.to_le_bytes());
        fields.extend(self.id.to_le_bytes());
        for part in [self.meta, self.content] {
            fields.extend((part.len() as u32).to_le_bytes());
            fields.extend(crc32c::crc32c(part).to_le_bytes());
        }
        let mut bytes =
            [MAGIC.as_slice(), &crc32c::crc32c(&fields).to_le_bytes(), &fields, self.meta, self.content].concat();
        bytes.resize(bytes.len().next_multiple_of(ALIGN_BYTES), 0);
        bytes
    }
}

/// The header page of segment `number` that follows `previous`, number and length; nothing was accepted before.
pub fn page(number: u64, tag: u32, previous: (u64, u64), made_bytes: u32) -> Vec<u8> {
    let mut copy = b"RSTJRNL\x01\x01\0\x01\0".to_vec();
    copy.extend(tag.to_le_bytes());
    copy.extend(42_u128.to_le_bytes());
    for field in [number, 1, 0, previous.0, previous.1, 0, 0] {
        copy.extend(field.to_le_bytes());
    }
    copy.extend(made_bytes.to_le_bytes());
    copy.extend(crc32c::crc32c(&copy).to_le_bytes());
    let mut page = vec![0; PAGE_BYTES];
    page[..copy.len()].copy_from_slice(&copy);
    page[2048..2048 + copy.len()].copy_from_slice(&copy);
    page
}

/// Makes the checksums of the page and of all that begins like a frame right, and the place and tag that each frame tells:
/// what was altered passes for written, and is read as deep as it goes.
pub fn repair(segment: &mut [u8]) {
    let Some(page) = segment.get_mut(..PAGE_BYTES) else { return };
    for at in [0, 2048] {
        let crc = crc32c::crc32c(&page[at..at + 92]);
        page[at + 92..at + 96].copy_from_slice(&crc.to_le_bytes());
    }
    let tag: [u8; 4] = segment[12..16].try_into().expect("four bytes");
    let number =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let mut at = PAGE_BYTES;
    while at + HEADER_BYTES <= segment.len() {
        if &segment[at..at + 4] != MAGIC {
            at += ALIGN_BYTES;
            continue;
        }
        let (header, rest) = segment[at..].split_at_mut(HEADER_BYTES);
        let (meta_len, content_len) = (number(header, 48), number(header, 56));
        let meta = rest.get(..meta_len);
        let content = meta_len.checked_add(content_len).and_then(|end| rest.get(meta_len..end));
        for (part, place) in [(meta, 52), (content, 60)] {
            if let Some(part) = part {
                header[place..place + 4].copy_from_slice(&crc32c::crc32c(part).to_le_bytes());
            }
        }
        header[12..16].copy_from_slice(&tag);
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        let crc = crc32c::crc32c(&header[8..]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        let whole = HEADER_BYTES.saturating_add(meta_len).saturating_add(content_len).next_multiple_of(ALIGN_BYTES);
        // A frame that reaches behind the end hides what follows it only if it is believed.
        at += if content.is_some() { whole } else { ALIGN_BYTES };
    }
}
