//! How much memory reading a journal takes: lengths and counts that rot, or that a forger wrote with right checksums, are not
//! believed before the bytes are there. A process of its own, and one test after the other: the heap is counted for all threads.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use peak_alloc::PeakAlloc;
use restante_envelope::TransactionId;
use restante_journal::{Depth, DirStorage, PIECE_BYTES, Reader, Sink, State, replay};
use restante_ledger::{Accepted, Base, Carried, Fact, Ledger, Position};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// FORMAT.md section 7.
const META_BYTES_MAX: usize = 16 << 20;
/// What reading takes at its peak beside the bytes of the journal: a piece of a blob, and as much again for what is told.
const SPARE_BYTES: usize = 2 * PIECE_BYTES;
/// Read at once from a longer segment.
const WINDOW_BYTES: usize = 1 << 20;
/// For each byte of a meta, at its peak: a text of two bytes is a `String` of 24, in a list that grows by doubling.
const UNFOLDED_BYTES_MAX: usize = 32;
const SPOILINGS: u64 = 2_000;
const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
const MARK: u8 = 16;
const SUCCESSION: u8 = 5;
const CARRIED: u8 = 6;
const FLAG_IGNORABLE: u8 = 1;
const FLAG_BLOB: u8 = 2;

/// Everything that is told, and where messages stand.
#[derive(Default)]
struct Told {
    ledger: Ledger,
    messages: Vec<Position>,
}

impl Sink for Told {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.messages.extend(matches!(fact, Fact::Accepted(_)).then_some(position));
        self.ledger.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.messages.push(position);
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.messages.push(position);
        self.ledger.lost(position, id, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.damaged_carried(position, carried);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

/// Reads the journal as a start does and as `verify` does, and each message in it; returns what that took at its peak.
fn peak(storage: &DirStorage) -> usize {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    for depth in [Depth::Records, Depth::Everything] {
        let mut told = Told::default();
        // What is refused in words is bounded too.
        let _refused = replay(storage, depth, &mut told);
        let mut reader = Reader::new(storage.clone());
        for position in told.messages {
            let _damaged = reader.message(position).and_then(|stored| stored.content.read_all());
        }
    }
    HEAP.peak_usage() - before
}

/// The heap is everybody's: one test at a time.
fn alone() -> impl Drop {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A journal in a directory of its own, that is spoilt and mended again and again.
struct Journal {
    directory: tempfile::TempDir,
    storage: DirStorage,
    /// As they are when nothing is spoilt.
    segments: Vec<(PathBuf, Vec<u8>)>,
}

impl Journal {
    /// With these segments, numbered from 1.
    fn of(segments: Vec<Vec<u8>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = |n: usize| directory.path().join(format!("seg-{:020}.rj", n + 1));
        let segments: Vec<_> = segments.into_iter().enumerate().map(|(n, bytes)| (name(n), bytes)).collect();
        segments.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        Self { storage: DirStorage::open(directory.path()).unwrap(), directory, segments }
    }

    /// A copy of a golden one.
    fn golden(fixture: &Path) -> Self {
        let mut journal = Self::of(Vec::new());
        std::fs::create_dir(journal.directory.path().join("blob")).unwrap();
        for from in [fixture.to_owned(), fixture.join("blob")] {
            for entry in std::fs::read_dir(from).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    continue;
                }
                let to = journal.directory.path().join(path.strip_prefix(fixture).unwrap());
                std::fs::copy(&path, &to).unwrap();
                if to.extension().is_some_and(|extension| extension == "rj") {
                    journal.segments.push((to, std::fs::read(path).unwrap()));
                }
            }
        }
        journal
    }

    fn golden_ones() -> Vec<Self> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let mut names: Vec<_> = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().map(|fixture| Self::golden(fixture)).collect()
    }

    fn bytes(&self) -> usize {
        self.segments.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Every frame that begins in one of the segments: the segment, and where.
    fn frames(&self) -> impl Iterator<Item = (usize, usize)> {
        let starts = |bytes: &[u8]| (PAGE_BYTES..bytes.len().saturating_sub(HEADER_BYTES)).step_by(8);
        self.segments.iter().enumerate().flat_map(move |(nth, (_, bytes))| {
            starts(bytes).filter(|at| &bytes[*at..*at + 4] == b"RJF1").map(move |at| (nth, at))
        })
    }

    /// The peak while segment `nth` is as `spoil` makes it.
    fn peak_with(&self, nth: usize, spoil: impl FnOnce(&mut Vec<u8>)) -> usize {
        let (path, good) = &self.segments[nth];
        let mut bytes = good.clone();
        spoil(&mut bytes);
        std::fs::write(path, &bytes).unwrap();
        let peak = peak(&self.storage);
        std::fs::write(path, good).unwrap();
        peak
    }
}

/// A splitmix64 sequence.
struct Draw(u64);

impl Draw {
    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.any() % n.max(1) as u64) as usize
    }

    /// A length or a count as a bug, rot or a forger would write it, in a file of `len` bytes.
    fn number(&mut self, len: usize) -> u64 {
        let near = [len as u64, META_BYTES_MAX as u64, 1 << 16, 1 << 30, 1 << 32, 1 << 48, 1 << 56, 1 << 60];
        match self.below(4) {
            0 => self.any() >> self.below(64),
            1 => u64::MAX,
            _ => near[self.below(near.len())].wrapping_add(self.any() % 17).wrapping_sub(8),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where meta and content of the frame at `at` stand, as its header says.
fn parts(bytes: &[u8], at: usize) -> (Range<usize>, Range<usize>) {
    let meta = at + HEADER_BYTES..at + HEADER_BYTES + u32_at(bytes, at + 48);
    let content = meta.end..meta.end + u32_at(bytes, at + 56);
    (meta, content)
}

/// Makes the checksums of the frame at `at` right: what was spoilt passes for written.
fn forge(bytes: &mut [u8], at: usize) {
    let (meta, content) = parts(bytes, at);
    for (part, place) in [(meta, at + 52), (content, at + 60)] {
        if let Some(crc) = bytes.get(part).map(crc32c::crc32c) {
            put(bytes, place, &crc.to_le_bytes());
        }
    }
    let crc = crc32c::crc32c(&bytes[at + 8..at + HEADER_BYTES]);
    put(bytes, at + 4, &crc.to_le_bytes());
}

/// The same for both copies of the header page.
fn forge_page(bytes: &mut [u8]) {
    let crc_at = if bytes[8] == 1 { 92 } else { 188 };
    let crc = crc32c::crc32c(&bytes[..crc_at]).to_le_bytes();
    put(bytes, crc_at, &crc);
    let copy = bytes[..crc_at + 4].to_vec();
    put(bytes, 2048, &copy);
}

/// Spoils one thing in the frame at `at`, so that all checksums hold.
fn spoil_frame(bytes: &mut [u8], at: usize, draw: &mut Draw) {
    let (len, number) = (bytes.len(), draw.number(bytes.len()));
    let (meta, _) = parts(bytes, at);
    let (kind, flags) = (bytes[at + 8], bytes[at + 9]);
    match draw.below(6) {
        0 => put(bytes, at + 48, &(number as u32).to_le_bytes()),
        1 => put(bytes, at + 56, &(number as u32).to_le_bytes()),
        // Which kind it is; what was a count may be a text now, and the other way round.
        2 => put(bytes, at + 8, &[[1, 2, 3, 4, SUCCESSION, CARRIED, MARK, 17, 99][draw.below(9)], FLAG_IGNORABLE]),
        // A count of 32 bits.
        3 if kind == MARK => put(bytes, meta.start + 24, &u32::MAX.to_le_bytes()),
        3 if kind == SUCCESSION => put(bytes, meta.start + 16, &u32::MAX.to_le_bytes()),
        // How long a blob is, and a table that would be right for it.
        3 if flags & FLAG_BLOB != 0 => {
            let pieces = draw.below(len) as u64 / 4;
            let number = if draw.below(2) == 0 { number } else { pieces * PIECE_BYTES as u64 };
            put(bytes, meta.end - 8, &number.to_le_bytes());
            let table = u32::try_from(number.div_ceil(PIECE_BYTES as u64).saturating_mul(4)).unwrap_or(u32::MAX);
            put(bytes, at + 56, &table.to_le_bytes());
        }
        // Any field of the meta.
        _ => {
            let width = [1, 2, 4, 8][draw.below(4)];
            let place = meta.start + draw.below(meta.len().min(len - meta.start));
            put(bytes, place, &number.to_le_bytes()[..width]);
        }
    }
    forge(bytes, at);
}

fn spoil_page(bytes: &mut [u8], draw: &mut Draw) {
    let number = draw.number(bytes.len());
    put(
        bytes,
        [40, 56, 64, 72, 80, 88, 92, 100, 108, 116, 124, 156][draw.below(if bytes[8] == 1 { 6 } else { 12 })],
        &number.to_le_bytes(),
    );
    forge_page(bytes);
}

#[test]
fn no_length_or_count_that_rots_or_is_forged_makes_a_reader_allocate_beyond_the_file() {
    let _alone = alone();
    let journals = Journal::golden_ones();
    assert_eq!(journals.len(), 24);
    for journal in &journals {
        assert!(peak(&journal.storage) <= journal.bytes() + SPARE_BYTES, "{}", journal.directory.path().display());
    }
    let good = journals.iter().max_by_key(|journal| journal.bytes()).unwrap();
    for seed in 0..SPOILINGS {
        // If the heap is asked for more than there is, the process ends without a word: `--nocapture` shows where.
        println!("seed {seed}");
        let mut draw = Draw(seed);
        let journal = if seed % 2 == 0 { good } else { &journals[draw.below(journals.len())] };
        // Each kind of frame is as likely: of some there is one in the whole journal.
        let kinds = [1, 2, 3, 4, SUCCESSION, CARRIED, MARK, 17];
        let kind = kinds[draw.below(kinds.len())];
        let frames: Vec<_> = journal.frames().filter(|(nth, at)| journal.segments[*nth].1[*at + 8] == kind).collect();
        let what = draw.below(8);
        let (nth, at) = if frames.is_empty() { (0, 0) } else { frames[draw.below(frames.len())] };
        let peak = journal.peak_with(nth, |bytes| match what {
            0 => spoil_page(bytes, &mut draw),
            1..7 if at > 0 => spoil_frame(bytes, at, &mut draw),
            _ => (0..1 + draw.below(16)).for_each(|_| {
                let at = draw.below(bytes.len());
                bytes[at] ^= 1 << draw.below(8);
            }),
        });
        let limit = journal.bytes() + SPARE_BYTES;
        assert!(peak <= limit, "seed {seed}: {peak} bytes, and the limit is {limit}");
    }
}

/// A segment with one frame of `kind`, which says that its parts have these lengths, whatever is there.
fn one_frame(len: usize, kind: u8, meta: &[u8], meta_len: usize, content_len: usize) -> Journal {
    let mut bytes = Journal::golden_ones()[0].segments[0].1[..PAGE_BYTES].to_vec();
    bytes.resize(len, 0);
    let at = PAGE_BYTES;
    let tag: [u8; 4] = bytes[12..16].try_into().unwrap();
    put(&mut bytes, 88, &[0; 4]);
    forge_page(&mut bytes);
    put(&mut bytes, at, b"RJF1");
    put(&mut bytes, at + 8, &[kind, FLAG_IGNORABLE]);
    put(&mut bytes, at + 12, &tag);
    put(&mut bytes, at + 16, &1_u64.to_le_bytes());
    put(&mut bytes, at + 24, &(at as u64).to_le_bytes());
    put(&mut bytes, at + 48, &(meta_len as u32).to_le_bytes());
    put(&mut bytes, at + 56, &(content_len as u32).to_le_bytes());
    put(&mut bytes, at + HEADER_BYTES, meta);
    forge(&mut bytes, at);
    Journal::of(vec![bytes])
}

#[test]
fn a_meta_longer_than_the_format_allows_is_not_read_and_a_content_never_whole() {
    let _alone = alone();
    let len = META_BYTES_MAX + (8 << 20);
    let large = u32::MAX as usize;
    for (meta_len, content_len, limit) in [
        // Once in the window and once apart.
        (META_BYTES_MAX, 0, 2 * META_BYTES_MAX + WINDOW_BYTES),
        (META_BYTES_MAX + 1, 0, WINDOW_BYTES),
        (large, large, WINDOW_BYTES),
        (0, large, WINDOW_BYTES),
        (0, META_BYTES_MAX, WINDOW_BYTES),
    ] {
        let journal = one_frame(len, 99, &[], meta_len, content_len);
        let peak = peak(&journal.storage);
        assert!(peak <= limit + SPARE_BYTES, "meta {meta_len}, content {content_len}: {peak} bytes");
    }
}

#[test]
fn a_list_of_nothings_unfolds_to_a_bounded_multiple_of_its_meta() {
    let _alone = alone();
    let (accepted, attempted) = ([&[0; 10], [4, 0, 0, 0, 0].as_slice(), &[0; 18]].concat(), [0; 29]);
    let one_route = [accepted.as_slice(), &[1, 0, 1, 0, b'a']].concat();
    let recipient = [0, 0, 3, 0, b'a', b'@', b'b'];
    // Kind, what stands in front of the list, and one entry of it.
    let lists: [(&str, u8, &[u8], &[u8]); 6] = [
        ("routes of a message", 1, &accepted, &[0, 0]),
        ("recipients", 1, &one_route, &recipient),
        ("results", 2, &attempted, &[0, 0, 3, 1, 0, 0]),
        ("recipients operated on", 3, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[0, 0]),
        ("routes of a daemon", 4, &[0; 10], &[0; 6]),
        ("domains of a route", 4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[0, 0]),
    ];
    for (what, kind, front, entry) in lists {
        let meta = [front, &[0xff, 0xff], &entry.repeat(usize::from(u16::MAX)), &[0; 4]].concat();
        let journal = one_frame(PAGE_BYTES + HEADER_BYTES + meta.len() + 8, kind, &meta, meta.len(), 0);
        let told = replay(&journal.storage, Depth::Everything, &mut Told::default()).unwrap();
        assert_eq!(told.report.state(), State::Clean, "{what}: was not read to its end");
        let peak = peak(&journal.storage);
        assert!(peak <= UNFOLDED_BYTES_MAX * meta.len(), "{what}: {peak} bytes of {}", meta.len());
    }
}
