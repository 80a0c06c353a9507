//! The proof that something may be published.

use std::ops::Deref;

/// Made by [`super::access::Access::authorize`] and nowhere else: what hands messages to the cluster takes nothing else,
/// so that no path leads around the check.
#[derive(Debug)]
#[must_use]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    pub(super) fn new(authorized: T) -> Self {
        Authorized(authorized)
    }

    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Authorized<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
