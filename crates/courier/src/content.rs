//! Where the content of a message comes from, how it is cut for lettre, or put into one piece. No I/O of its own; looks at line
//! ends alone.

use std::mem;

/// One chunk of content in memory: system calls cost nothing, and the copies that are made of it do not count.
const CHUNK_BYTES: usize = 64 * 1024;
const CRLF: &[u8] = b"\r\n";
const TOO_LONG: &str = "it is longer than it was when accepted";

/// The content of a message, read piece by piece: exactly as accepted, so empty, or lines that end in CRLF without other
/// CR or LF. Not checked here.
pub trait Content: Send {
    /// The next bytes, cut anywhere, at most 256 KiB; `None` when that was all. Called from async code, never again after
    /// the end or an error.
    ///
    /// # Errors
    ///
    /// Our own copy cannot be read, in words for an operator. The transaction is then broken off so that the server cannot
    /// take what came before for the whole.
    fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String>;
}

/// Content that is in memory already.
#[derive(Debug)]
pub struct InMemory<'a>(pub &'a [u8]);

impl Content for InMemory<'_> {
    fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let (chunk, rest) = self.0.split_at(self.0.len().min(CHUNK_BYTES));
        self.0 = rest;
        Ok(Some(chunk.to_vec()).filter(|chunk| !chunk.is_empty()))
    }
}

/// `header` and then `size_bytes` of `content`, all in memory. An error, too, where the source gives more or less than was
/// announced: that is not the message that was accepted.
pub(crate) fn whole(header: &[u8], content: &mut dyn Content, size_bytes: u64) -> Result<Vec<u8>, String> {
    let size = usize::try_from(size_bytes).unwrap_or_default();
    let mut message = Vec::with_capacity(header.len() + size);
    message.extend_from_slice(header);
    let mut missing = size_bytes;
    while let Some(chunk) = content.next_chunk()? {
        missing = missing.checked_sub(chunk.len() as u64).ok_or(TOO_LONG)?;
        message.extend_from_slice(&chunk);
    }
    if missing > 0 { Err(too_short(missing)) } else { Ok(message) }
}

fn too_short(missing: u64) -> String {
    format!("it ends {missing} bytes too early")
}

/// Header and content in one, without the last CRLF: lettre ends what it sends with `CRLF . CRLF` in any case.
pub(crate) struct Unended<'a> {
    content: &'a mut dyn Content,
    /// Octets that the source has yet to give.
    missing: u64,
    /// Read and not yet given: the header at first, so that a small message is one segment; then what may be the last
    /// CRLF or the half of it.
    held: Vec<u8>,
}

impl<'a> Unended<'a> {
    /// `header` and then `size_bytes` of `content`.
    pub(crate) fn new(header: &[u8], content: &'a mut dyn Content, size_bytes: u64) -> Self {
        Self { content, missing: size_bytes, held: header.to_vec() }
    }

    /// The next bytes, never none; `None` when that was all. An error, too, where the source gives more or less than was
    /// announced: that is not the message that was accepted.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        while let Some(chunk) = self.content.next_chunk()? {
            let left = self.missing.checked_sub(chunk.len() as u64);
            self.missing = left.ok_or(TOO_LONG)?;
            if self.held.is_empty() {
                self.held = chunk;
            } else {
                self.held.extend_from_slice(&chunk);
            }
            let kept = if self.held.ends_with(CRLF) { CRLF.len() } else { usize::from(self.held.ends_with(b"\r")) };
            let end = self.held.split_off(self.held.len().saturating_sub(kept));
            let chunk = mem::replace(&mut self.held, end);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        if self.missing > 0 {
            return Err(too_short(self.missing));
        }
        let last = mem::take(&mut self.held);
        let last = last.strip_suffix(CRLF).unwrap_or(&last);
        Ok(Some(last.to_vec()).filter(|last| !last.is_empty()))
    }
}
