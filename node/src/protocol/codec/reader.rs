//! A cursor over the bytes of one frame. Running out of bytes is a malformed packet, never "more bytes needed".

use super::Violation;
use super::topic_grammar;
use std::num::NonZeroU16;

/// Reads fields one after another; `at` is the offset in the slice it was made of.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Violation> {
        let end = self.at.checked_add(length).ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Violation> {
        let byte = *self.bytes.get(self.at).ok_or(SHORT)?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Violation> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Violation> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A Packet Identifier; never 0. [MQTT-2.2.1-3]
    pub(super) fn packet_id(&mut self) -> Result<NonZeroU16, Violation> {
        NonZeroU16::new(self.u16()?).ok_or(Violation::malformed("MQTT-2.2.1-3", "packet identifier 0"))
    }

    /// At most four bytes and no more than needed. [MQTT-1.5.5-1]
    pub(super) fn variable_byte_integer(&mut self) -> Result<u32, Violation> {
        let mut value = 0;
        for position in 0..4 {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << (7 * position);
            if byte & 0x80 == 0 {
                if byte == 0 && position > 0 {
                    return Err(Violation::malformed(
                        "MQTT-1.5.5-1",
                        "variable byte integer longer than needed",
                    ));
                }
                return Ok(value);
            }
        }
        Err(Violation::malformed(
            "1.5.5",
            "variable byte integer longer than four bytes",
        ))
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], Violation> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A UTF-8 Encoded String. [MQTT-1.5.4-1] [MQTT-1.5.4-2]
    pub(super) fn string(&mut self) -> Result<&'a str, Violation> {
        topic_grammar::check_utf8(self.binary()?)
    }

    /// No byte may follow the last field of a packet.
    pub(super) fn end(&self) -> Result<(), Violation> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(Violation::malformed("2.1.4", "bytes after the last field"))
        }
    }
}

const SHORT: Violation = Violation::malformed("2.1.4", "packet ends inside a field");
