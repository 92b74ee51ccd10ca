//! A bad sector in a segment that is larger than what is read at once: it costs what stands in it, and no neighbour.

use super::fixtures::{Told, frames};
use super::*;
use crate::frame::{FrameHeader, Kind};
use crate::header::file_name;
use std::collections::BTreeSet;

/// What a scan reads at once.
const WINDOW_BYTES: u64 = 1 << 20;
/// So far around the edge of a window every sector is tried.
const EDGE_BYTES: u64 = 6 << 10;

/// One sealed segment of three windows: many small messages, some large ones, one larger than a window.
fn journal() -> SimStorage {
    let storage = SimStorage::default();
    let (replay, _) = fold(&storage, Depth::Records);
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    let mut bytes = 0;
    for n in 0.. {
        let size = match n % 40 {
            7 if n < 40 => (1 << 20) + 777,
            7 => 150_000,
            20 => 40_000,
            _ => n * 131 % 1900,
        };
        writer.stage(&message(&vec![b'a' + (n % 26) as u8; size], 1), now()).unwrap();
        bytes += size;
        if n % 6 == 5 {
            writer.commit(now()).unwrap();
        }
        if bytes > 3 << 20 {
            break;
        }
    }
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    storage
}

/// Every `step`th sector, and all of those around the edges of what a scan reads at once.
fn places(storage: &SimStorage, sector: u64, step: usize) -> BTreeSet<u64> {
    let len = storage.bytes(&file_name(1)).len() as u64;
    storage.take_long_reads();
    fold(storage, Depth::Everything);
    let starts = storage.take_long_reads();
    assert!(starts.len() > 3, "{starts:?}");
    let edges = starts.iter().flat_map(|start| [*start, *start + WINDOW_BYTES]);
    let around = edges.flat_map(|edge| (edge.saturating_sub(EDGE_BYTES)..edge + EDGE_BYTES).step_by(512));
    around
        .chain((0..len).step_by(sector as usize * step))
        .filter(|at| *at < len)
        .map(|at| at / sector * sector)
        .collect()
}

fn each_costs_what_stands_in_it(sector: u64, step: usize) {
    let whole = journal();
    let name = file_name(1);
    let mail: Vec<FrameHeader> =
        frames(&whole.bytes(&name)).into_iter().filter(|frame| frame.kind == Kind::Accepted).collect();
    let places = places(&whole, sector, step);
    println!("{} messages, {} sectors of {sector} bytes", mail.len(), places.len());
    for at in places {
        let storage = whole.fork();
        storage.make_unreadable(&name, at..at + sector);
        let mut told = Told::default();
        let replay = replay(&storage, Depth::Everything, &mut told).unwrap();
        assert_eq!(replay.report.state(), State::Damaged, "sector at {at}");
        let balance = told.ledger.balance();
        let is_in_it = |frame: &&FrameHeader| frame.offset < at + sector && at < frame.padding_offset();
        let hit = mail.iter().filter(is_in_it).count() as u64;
        assert_eq!(balance.accepted, mail.len() as u64, "sector at {at}");
        assert!(balance.quarantined <= hit, "sector at {at}: {} lost of {hit}", balance.quarantined);
        let intact: BTreeSet<_> = told.intact.iter().collect();
        let mut reader = Reader::new(storage);
        for frame in mail.iter().filter(|frame| !is_in_it(frame)) {
            assert!(intact.contains(&frame.id), "sector at {at}: its neighbour at {} is lost", frame.offset);
            if frame.offset.abs_diff(at) < 16 << 10 || frame.end().abs_diff(at) < 16 << 10 {
                let position = restante_ledger::Position { segment: 1, offset: frame.offset };
                let read = reader.message(position).and_then(|stored| stored.content.read_all());
                assert_eq!(read.unwrap().len(), frame.content_len as usize, "sector at {at}");
                let head = reader.head(position, frame.id, 100);
                assert!(head.is_ok(), "sector at {at}: the headers of its neighbour at {}", frame.offset);
            }
        }
    }
}

#[test]
fn a_sector_of_512_bytes_costs_what_stands_in_it_and_no_neighbour() {
    each_costs_what_stands_in_it(512, 3);
}

#[test]
fn a_sector_of_4096_bytes_costs_what_stands_in_it_and_no_neighbour() {
    each_costs_what_stands_in_it(4096, 1);
}
