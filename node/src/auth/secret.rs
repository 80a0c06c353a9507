//! What must not be told: it has no text, and is compared in constant time.

use std::fmt;

use subtle::ConstantTimeEq;

/// A password, token or key.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Secret(bytes.into())
    }

    /// For whoever checks it: it may not be kept, logged or shown.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Whether both are the same, in a time that tells nothing but their lengths.
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(
            format!("{:?} {:#?}", Secret::new(*b"hunter2"), Secret::new(*b"")),
            "… …"
        );
    }

    #[test]
    fn only_equal_bytes_are_the_same() {
        assert!(is_same(b"", b"") && is_same(b"ab", b"ab"));
        assert!(!is_same(b"ab", b"aB") && !is_same(b"ab", b"abc") && !is_same(b"", b"a"));
    }
}
