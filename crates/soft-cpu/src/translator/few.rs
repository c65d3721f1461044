//! A list of a few values without memory of its own: translating an instruction makes several.

/// Up to `N` values.
#[derive(Clone, Copy)]
pub(super) struct Few<T, const N: usize> {
    values: [Option<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Default for Few<T, N> {
    fn default() -> Few<T, N> {
        Few { values: [None; N], len: 0 }
    }
}

impl<T: Copy, const N: usize> Few<T, N> {
    /// Appends a value; `None` if there is no room.
    pub fn push(&mut self, value: T) -> Option<()> {
        *self.values.get_mut(self.len)? = Some(value);
        self.len += 1;
        Some(())
    }

    /// Takes the last value.
    pub fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        self.values[self.len].take()
    }

    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.values[..self.len].iter().flatten().copied()
    }
}

impl<T: Copy + PartialEq, const N: usize> Few<T, N> {
    pub fn contains(&self, value: T) -> bool {
        self.iter().any(|other| other == value)
    }

    /// Removes every `value`.
    pub fn remove(&mut self, value: T) {
        let mut kept = Few::default();
        for other in self.iter().filter(|other| *other != value) {
            // As many as there are fit.
            let _ = kept.push(other);
        }
        *self = kept;
    }
}
