//! The records that hold a segment together: what is torn before it, the marks of its batches, its seal (FORMAT.md sections 4.5
//! to 4.7). They say nothing of any message but where it is and that it was safe.

use crate::codec::{Malformed, Put, Take};
use crate::frame::Kind;
use restante_envelope::TransactionId;

/// Ranges of the segment before that were torn and are dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Succession {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) torn: Vec<(u64, u64)>,
}

impl Succession {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut put = Put::default();
        put.u64(self.number);
        put.u64(self.bytes);
        put.u32(u32::try_from(self.torn.len()).unwrap_or(u32::MAX));
        for (offset, bytes) in &self.torn {
            put.u64(*offset);
            put.u64(*bytes);
        }
        put.0
    }

    pub(crate) fn decode(meta: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(meta);
        let (number, bytes, n) = (take.u64()?, take.u64()?, take.u32()?);
        let torn = (0..n).map(|_| Ok((take.u64()?, take.u64()?))).collect::<Result<_, _>>()?;
        Ok(Self { number, bytes, torn })
    }
}

/// One frame, as the mark of its batch remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: TransactionId,
    pub(crate) offset: u64,
    pub(crate) header_crc: u32,
    pub(crate) recipients: u16,
    pub(crate) kind: Kind,
}

/// The end of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) batch_start: u64,
    pub(crate) transactions: u64,
    pub(crate) recipients: u64,
    pub(crate) named: Vec<Named>,
}

impl Mark {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut put = Put(Vec::with_capacity(28 + 32 * self.named.len()));
        put.u64(self.batch_start);
        put.u64(self.transactions);
        put.u64(self.recipients);
        put.u32(u32::try_from(self.named.len()).unwrap_or(u32::MAX));
        for named in &self.named {
            put.u128(named.id.to_bits());
            put.u64(named.offset);
            put.u32(named.header_crc);
            put.u16(named.recipients);
            put.u8(named.kind.code());
            put.u8(0);
        }
        put.0
    }

    pub(crate) fn decode(meta: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(meta);
        let (batch_start, transactions, recipients, n) = (take.u64()?, take.u64()?, take.u64()?, take.u32()?);
        let mut one = || -> Result<Named, Malformed> {
            let (id, offset, header_crc) = (TransactionId::from_bits(take.u128()?), take.u64()?, take.u32()?);
            let (recipients, kind) = (take.u16()?, Kind::from_code(take.u8()?));
            take.u8()?;
            Ok(Named { id, offset, header_crc, recipients, kind })
        };
        let named = (0..n).map(|_| one()).collect::<Result<_, _>>()?;
        Ok(Self { batch_start, transactions, recipients, named })
    }
}

/// The end of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) frames: u64,
    pub(crate) transactions: u64,
    pub(crate) recipients: u64,
}

impl Seal {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut put = Put::default();
        put.u64(self.frames);
        put.u64(self.transactions);
        put.u64(self.recipients);
        put.0
    }

    pub(crate) fn decode(meta: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(meta);
        Ok(Self { frames: take.u64()?, transactions: take.u64()?, recipients: take.u64()? })
    }
}
