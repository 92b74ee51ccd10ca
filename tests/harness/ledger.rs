//! The client's own memory of what it was promised: one line per 250, synced, so that it would survive the client too.
//! It refuses to hold anything that did not get its 250.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// One acknowledged message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The transaction id out of the reply.
    pub id: String,
    pub message_id: String,
    /// Of the content as it was sent, lower-case hexadecimal.
    pub sha256: String,
}

/// Entries by Message-ID, in memory and in an fsynced file.
pub struct Ledger {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    queue: Option<Sender<Entry>>,
    writer: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Writes to a new file.
    pub fn create(path: &Path) -> Self {
        let mut file = File::create_new(path).unwrap();
        let (queue, incoming) = channel::<Entry>();
        let entries = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = Arc::clone(&entries);
        let writer = std::thread::spawn(move || {
            // What came during the last sync shares the next one, as in the journal under test.
            while let Ok(first) = incoming.recv() {
                let batch: Vec<Entry> = std::iter::once(first).chain(incoming.try_iter()).collect();
                for entry in &batch {
                    writeln!(file, "{}\t{}\t{}", entry.id, entry.message_id, entry.sha256).unwrap();
                }
                file.sync_data().unwrap();
                for entry in batch {
                    let before = shared.lock().unwrap().insert(entry.message_id.clone(), entry);
                    assert!(before.is_none(), "a Message-ID was acknowledged twice: {before:?}");
                }
            }
        });
        Self { entries, queue: Some(queue), writer: Some(writer) }
    }

    /// Call it when the 250 has arrived, not before.
    pub fn acknowledged(&self, entry: Entry) {
        self.queue.as_ref().unwrap().send(entry).unwrap();
    }

    /// How many are on disk.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    /// Closes the file and returns all entries.
    pub fn close(mut self) -> BTreeMap<String, Entry> {
        drop(self.queue.take());
        self.writer.take().unwrap().join().unwrap();
        std::mem::take(&mut self.entries.lock().unwrap())
    }
}
