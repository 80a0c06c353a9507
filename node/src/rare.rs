//! State that most connections never need: an idle one costs a pointer for it.

/// Made when it is first changed, and kept from then on until the connection ends.
#[derive(Debug)]
pub struct Rare<T>(Option<Box<T>>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Rare(None)
    }
}

impl<T> Rare<T> {
    /// None: nothing was changed yet.
    pub fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    /// None: nothing was changed yet, and need not be.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// Whether it is there, and `is` of it.
    pub fn is_some_and(&self, is: impl FnOnce(&T) -> bool) -> bool {
        self.get().is_some_and(is)
    }
}

impl<T: Default> Rare<T> {
    /// To change it.
    pub fn make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}
