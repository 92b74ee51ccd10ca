//! One connection in the process: the real session, and the way of its content to the journal, as `serve/intake.rs` and
//! `serve/session.rs` have it, without tasks. Decides nothing.

use crate::Broken;
use crate::seam::Seam;
use restante_envelope::{Envelope, ForwardPath, Timestamp, Trace, TransactionId};
use restante_journal::{BlobError, BlobName, BlobWriter, Prepared, is_full, remove_blob};
use restante_ledger::Accepted;
use restante_relay::{Admit, Routes, hold_for_loop};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Session, Settings, Trouble};
use std::sync::Arc;

/// What is larger becomes a blob. Much less than in the daemon: a history has few bytes, and shall have some blobs.
pub(crate) const INLINE_BYTES_MAX: usize = 4 << 10;

/// A message on its way to the journal.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) record: Prepared,
    pub(crate) accepted: Accepted,
}

/// What a session hands over, as far as it has come.
pub(crate) struct Intake {
    routes: Arc<Routes>,
    storage: Seam,
    blob_name: BlobName,
    envelope: Option<Envelope>,
    buffer: Vec<u8>,
    blob: Option<BlobWriter<Seam>>,
    trouble: Option<Trouble>,
    ended: Option<EndOfData>,
    /// The directory of blobs could not be synced: the process must end.
    pub(crate) directory_failed: bool,
}

/// A connection.
pub(crate) struct Conversation {
    pub(crate) session: Session,
    pub(crate) intake: Intake,
    /// Which of the client's connections it is.
    pub(crate) connection: u32,
    left_over: Vec<u8>,
}

/// What the process does for a connection, after something happened on it.
#[derive(Debug)]
pub(crate) enum Wants {
    /// Nothing more until something happens.
    Input,
    /// These bytes written to the client.
    Output(Vec<u8>),
    /// The message made durable; until then nothing is said.
    Commit(Box<Offer>),
    /// To be closed.
    Close,
}

impl Conversation {
    pub(crate) fn new(
        settings: Arc<Settings>,
        routes: Arc<Routes>,
        storage: Seam,
        connection: u32,
        blob: u128,
        now: Timestamp,
    ) -> Self {
        let client = ([192, 0, 2, 1], 4000).into();
        let session = Session::new(settings, client, u64::from(connection), now);
        let intake = Intake {
            routes,
            storage,
            blob_name: BlobName::from_bits(blob),
            envelope: None,
            buffer: Vec::new(),
            blob: None,
            trouble: None,
            ended: None,
            directory_failed: false,
        };
        Self { session, intake, connection, left_over: Vec::new() }
    }

    pub(crate) fn receive(&mut self, input: &[u8]) {
        self.left_over.extend_from_slice(input);
    }

    /// To be called until it wants input.
    pub(crate) fn step(&mut self, now: Timestamp) -> Wants {
        if !self.left_over.is_empty() && !self.session.awaits_commit() && !self.session.wants_close() {
            let used = self.session.receive(&self.left_over, now, &mut self.intake);
            self.left_over.drain(..used);
        }
        self.intake.make_room();
        if let Some(end) = self.intake.ended.take() {
            match self.intake.finish(end) {
                Ok(offer) => return Wants::Commit(Box::new(offer)),
                Err(trouble) => self.session.resolve(Resolution::Failed(trouble), now),
            }
        }
        if !self.session.output().is_empty() && !self.session.awaits_commit() {
            return Wants::Output(std::mem::take(self.session.output()));
        }
        if self.session.wants_close() {
            return Wants::Close;
        }
        Wants::Input
    }

    pub(crate) fn disconnected(&mut self) {
        self.session.disconnected(&mut self.intake);
    }

    pub(crate) fn shut_down(&mut self) {
        self.session.shut_down(&mut self.intake);
    }

    pub(crate) fn handle_timeout(&mut self, now: Timestamp) {
        self.session.handle_timeout(now, &mut self.intake);
    }

    /// Bytes of a content that it keeps in memory. What was not read yet is the kernel's to bound.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.intake.buffer.len()
    }
}

impl Intake {
    fn make_room(&mut self) {
        if self.storage.broken == Broken::KeepsContents {
            return;
        }
        if self.buffer.len() > INLINE_BYTES_MAX || self.blob.is_some() {
            self.write_out();
        }
    }

    /// Appends what is buffered to the blob, which is made if there is none yet.
    fn write_out(&mut self) {
        if self.trouble.is_some() || self.envelope.is_none() {
            return;
        }
        let bytes = std::mem::take(&mut self.buffer);
        let open = self.blob.take().map_or_else(|| BlobWriter::create(&self.storage, self.blob_name), Ok);
        match open.and_then(|mut blob| blob.write(&bytes).map(|()| blob)) {
            Ok(blob) => self.blob = Some(blob),
            Err(error) => self.trouble = Some(self.trouble_of(error.into())),
        }
    }

    fn trouble_of(&mut self, error: BlobError) -> Trouble {
        match error {
            BlobError::Directory(_) => {
                self.directory_failed = true;
                Trouble::Local
            }
            BlobError::File(error) if is_full(&error) => Trouble::Storage,
            BlobError::File(_) => Trouble::Local,
        }
    }

    /// The blob first, whole and synced; then the record that names it.
    fn finish(&mut self, end: EndOfData) -> Result<Offer, Trouble> {
        self.make_room();
        let Some(envelope) = self.envelope.take() else { return Err(Trouble::Local) };
        if let Some(trouble) = self.trouble.take() {
            self.blob = None;
            return Err(trouble);
        }
        let (hold, trace) = (hold_for_loop(end.own_hops), end.trace);
        let (record, content_len) = match self.blob.take() {
            None => {
                let content = std::mem::take(&mut self.buffer);
                let content_len = content.len() as u64;
                (Prepared::accepted(&envelope, &trace, content, hold.as_deref()), content_len)
            }
            Some(writer) => {
                let blob = writer.finish().map_err(|error| self.trouble_of(error))?;
                (Prepared::accepted_in_blob(&envelope, &trace, &blob, hold.as_deref()), blob.bytes())
            }
        };
        Ok(Offer { record, accepted: Accepted { id: NOT_YET, envelope, trace, content_len, hold } })
    }
}

/// The record was surely never written: its blob is of no use.
pub(crate) fn remove_blob_of(record: &Prepared, storage: &Seam) {
    if let Some(name) = record.blob() {
        let _an_orphan_is_set_aside_at_the_next_start = remove_blob(storage, name);
    }
}

/// The identifier of a message that has none yet.
const NOT_YET: TransactionId = TransactionId::from_bits(0);

impl Host for Intake {
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        match self.routes.admit(path) {
            Admit::Accept(route) => Admission::Accept(route),
            Admit::NotOurs => Admission::NotOurs,
            Admit::UnknownRecipient => Admission::UnknownRecipient,
            Admit::SenderSpecifiedRoute => Admission::SenderSpecifiedRoute,
        }
    }

    fn begin(&mut self, envelope: &Envelope, _trace: &Trace, _declared_bytes: u64) -> Result<(), Trouble> {
        self.envelope = Some(envelope.clone());
        // Each blob a name of its own.
        self.blob_name = next_name(self.blob_name);
        (self.buffer, self.blob, self.trouble) = (Vec::new(), None, None);
        Ok(())
    }

    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        match self.trouble {
            Some(trouble) => Err(trouble),
            None => {
                self.buffer.extend_from_slice(content);
                Ok(())
            }
        }
    }

    fn end(&mut self, end: EndOfData) {
        self.ended = Some(end);
    }

    fn abort(&mut self) {
        self.envelope = None;
        (self.buffer, self.blob) = (Vec::new(), None);
    }

    fn refused(&mut self, _refusal: &RefusedCommand) {}
}

fn next_name(name: BlobName) -> BlobName {
    let bits = u128::from_str_radix(&name.to_string(), 16).unwrap_or(0);
    BlobName::from_bits(bits.wrapping_add(1))
}
