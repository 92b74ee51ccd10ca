//! Little-endian fields in and out of byte strings. Knows nothing of records; never reads past the end.

use std::net::IpAddr;

/// The bytes end before the field does, or a field holds what its kind does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends fields to a byte string.
#[derive(Debug, Default)]
pub(crate) struct Put(pub(crate) Vec<u8>);

impl Put {
    pub(crate) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(crate) fn u16(&mut self, v: u16) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn u128(&mut self, v: u128) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    /// A count of at most 65,535; a list longer than that is cut by its writer's own limits long before.
    pub(crate) fn count(&mut self, n: usize) {
        self.u16(u16::try_from(n).unwrap_or(u16::MAX));
    }
    /// A text of at most 65,535 bytes; longer ones are cut at a character.
    pub(crate) fn text16(&mut self, text: &str) {
        let mut end = text.len().min(usize::from(u16::MAX));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.count(end);
        self.0.extend_from_slice(text.as_bytes().get(..end).unwrap_or_default());
    }
    pub(crate) fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => {
                self.u8(4);
                self.0.extend_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.u8(6);
                self.0.extend_from_slice(&v6.octets());
            }
        }
    }
}

/// Takes fields from the front of a byte string.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }
    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_le_bytes)
    }
    pub(crate) fn text16(&mut self) -> Result<&'a str, Malformed> {
        let n = self.u16()?;
        std::str::from_utf8(self.bytes(usize::from(n))?).map_err(|_| Malformed)
    }
    /// A text of which an empty one is none.
    pub(crate) fn optional16(&mut self) -> Result<Option<String>, Malformed> {
        Ok(Some(self.text16()?).filter(|text| !text.is_empty()).map(str::to_owned))
    }
    pub(crate) fn ip(&mut self) -> Result<IpAddr, Malformed> {
        match self.u8()? {
            4 => Ok(IpAddr::from(self.array::<4>()?)),
            6 => Ok(IpAddr::from(self.array::<16>()?)),
            _ => Err(Malformed),
        }
    }
    /// `n` things, `n` being a u16. The list is not reserved ahead: a rotten count must not allocate.
    pub(crate) fn list16<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let n = self.u16()?;
        (0..n).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_beyond_its_length_field_is_cut_at_a_character_and_what_follows_is_read() {
        let mut put = Put::default();
        put.text16(&("x".repeat(65_534) + "\u{e9}"));
        put.u8(7);
        let mut take = Take(&put.0);
        assert_eq!((take.text16().map(str::len), take.u8()), (Ok(65_534), Ok(7)));
    }

    #[test]
    fn an_address_of_a_family_that_does_not_exist_is_malformed() {
        for family in [0, 5, 255] {
            assert_eq!(Take(&[family; 20]).ip(), Err(Malformed));
        }
    }
}
