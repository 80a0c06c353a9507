//! Bytes of everything that reaches disk or a peer: little writers and readers, no serde.
//!
//! Integers are big endian where they are keys (`Writer::u64`), variable length (LEB128, `Writer::var`) elsewhere.
//! A decoder never panics and never allocates more than its input is long.
//!
//! Invariant `readable-forever`: each top-level encoding begins with a version byte; golden files pin the bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes that do not decode: torn, foreign or of a later version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} does not decode at byte {at}")]
pub struct DecodeError {
    pub what: &'static str,
    pub at: usize,
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Appends values to a buffer.
#[derive(Default)]
pub struct Writer {
    buffer: BytesMut,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_capacity(capacity: usize) -> Self {
        Writer {
            buffer: BytesMut::with_capacity(capacity),
        }
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.buffer.put_u8(value);
        self
    }

    /// Fixed four bytes, big endian: sorts as a key.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.buffer.put_u32(value);
        self
    }

    /// Fixed eight bytes, big endian: sorts as a key.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.buffer.put_u64(value);
        self
    }

    /// Variable length, one byte below 128.
    pub fn var(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.buffer.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
        self
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value as u8)
    }

    /// Length and bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.var(value.len() as u64);
        self.buffer.put_slice(value);
        self
    }

    pub fn str(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    /// Bytes without their length: the last field, or of known size.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.buffer.put_slice(value);
        self
    }

    /// 0, or 1 and the value.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        match value {
            None => {
                self.u8(0);
            }
            Some(value) => {
                self.u8(1);
                write(self, value);
            }
        }
        self
    }

    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub fn finish(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Reads what [`Writer`] wrote. Cheap to make; slices share the input's memory.
pub struct Reader<'a> {
    input: &'a Bytes,
    at: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the thing in errors.
    pub fn new(what: &'static str, input: &'a Bytes) -> Self {
        Reader { input, at: 0, what }
    }

    pub fn error(&self) -> DecodeError {
        DecodeError {
            what: self.what,
            at: self.at,
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).ok_or_else(|| self.error())?;
        let slice = self.input.get(self.at..end).ok_or_else(|| self.error())?;
        self.at = end;
        Ok(slice)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let high = self.u32()? as u64;
        Ok(high << 32 | self.u32()? as u64)
    }

    pub fn var(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= ((byte & 0x7f) as u64) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error())
    }

    /// A `var` that must fit in 32 bits.
    pub fn var32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.var()?).map_err(|_| self.error())
    }

    /// A `var` that must fit in 16 bits.
    pub fn var16(&mut self) -> Result<u16, DecodeError> {
        u16::try_from(self.var()?).map_err(|_| self.error())
    }

    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.error()),
        }
    }

    /// Shares the input's memory: copy what outlives it.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let count = usize::try_from(self.var()?).map_err(|_| self.error())?;
        let start = self.at;
        self.take(count)?;
        Ok(self.input.slice(start..start + count))
    }

    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        let count = usize::try_from(self.var()?).map_err(|_| self.error())?;
        let slice = self.take(count)?;
        std::str::from_utf8(slice).map_err(|_| self.error())
    }

    /// A count of items of which each takes at least one byte: bounded by what is left.
    pub fn count(&mut self) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.var()?).map_err(|_| self.error())?;
        if count > self.input.len() - self.at {
            return Err(self.error());
        }
        Ok(count)
    }

    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// What is left, sharing the input's memory.
    pub fn rest(&mut self) -> Bytes {
        let rest = self.input.slice(self.at..);
        self.at = self.input.len();
        rest
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.input.len()
    }

    /// Nothing may follow.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.is_at_end() { Ok(()) } else { Err(self.error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut writer = Writer::new();
        writer
            .u8(7)
            .u32(1 << 31)
            .u64(u64::MAX - 1)
            .var(0)
            .var(127)
            .var(128)
            .var(u64::MAX)
            .bool(true);
        writer.bytes(b"abc").str("é").option(Some(5u64), |w, v| {
            w.var(v);
        });
        writer.option(None::<u64>, |w, v| {
            w.var(v);
        });
        let bytes = writer.finish();
        let mut reader = Reader::new("test", &bytes);
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.u32(), Ok(1 << 31));
        assert_eq!(reader.u64(), Ok(u64::MAX - 1));
        for expected in [0, 127, 128, u64::MAX] {
            assert_eq!(reader.var(), Ok(expected));
        }
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.bytes().unwrap(), &b"abc"[..]);
        assert_eq!(reader.str(), Ok("é"));
        assert_eq!(reader.option(|r| r.var()), Ok(Some(5)));
        assert_eq!(reader.option(|r| r.var()), Ok(None));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn no_prefix_decodes_and_none_panics() {
        let mut writer = Writer::new();
        writer.u64(1).bytes(&[9; 300]).str("abc");
        let bytes = writer.finish();
        for length in 0..bytes.len() {
            let cut = bytes.slice(..length);
            let mut reader = Reader::new("test", &cut);
            let read = reader
                .u64()
                .and_then(|_| reader.bytes())
                .and_then(|_| reader.str().map(str::len));
            assert!(read.is_err(), "prefix of {length} bytes");
        }
    }

    #[test]
    fn a_count_beyond_the_input_is_refused() {
        let bytes = Bytes::from_static(&[0xff, 0xff, 0xff, 0x7f, 1]);
        assert!(Reader::new("test", &bytes).count().is_err());
    }
}
