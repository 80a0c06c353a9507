//! The first bytes of a payload: which message this is, and when it was due.
//!
//! ```text
//!   run 8 │ publisher 4 │ sequence 8 │ nanoseconds since the run began 8
//! ```

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells messages of an earlier run, or of others, from this run's.
    pub run: u64,
    pub publisher: u32,
    pub sequence: u64,
    pub due: u64,
}

impl Stamp {
    /// Over the first bytes of `payload`, which has at least [`STAMP_BYTES`].
    pub fn write(&self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.run.to_be_bytes());
        payload[8..12].copy_from_slice(&self.publisher.to_be_bytes());
        payload[12..20].copy_from_slice(&self.sequence.to_be_bytes());
        payload[20..STAMP_BYTES].copy_from_slice(&self.due.to_be_bytes());
    }

    /// `None` if the payload is too short to be one of ours.
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let (run, rest) = payload.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (due, _) = rest.split_first_chunk()?;
        Some(Stamp {
            run: u64::from_be_bytes(*run),
            publisher: u32::from_be_bytes(*publisher),
            sequence: u64::from_be_bytes(*sequence),
            due: u64::from_be_bytes(*due),
        })
    }
}

pub const STAMP_BYTES: usize = 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_as_it_was_written() {
        let stamp = Stamp {
            run: u64::MAX - 1,
            publisher: 7,
            sequence: 1 << 40,
            due: 12_345,
        };
        let mut payload = [0; 64];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(Stamp::read(&payload[..STAMP_BYTES]), Some(stamp));
        assert_eq!(Stamp::read(&payload[..STAMP_BYTES - 1]), None);
    }
}
