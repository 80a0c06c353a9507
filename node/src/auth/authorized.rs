//! The proof that something may be published.

use std::ops::Deref;

use bytes::Bytes;
use lontra_storage::message::Message;

/// Made by [`super::access::Access::authorize`] and nowhere else. [`super::publisher::CheckedPublisher`] takes nothing else, and
/// it alone takes what is in it out: no path leads around the check.
#[derive(Debug)]
#[must_use]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    pub(super) fn new(authorized: T) -> Self {
        Authorized(authorized)
    }

    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

impl Authorized<Message> {
    /// As it is stored.
    pub fn encode(&self) -> Authorized<Bytes> {
        Authorized(self.0.encode())
    }
}

impl<T> Deref for Authorized<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
