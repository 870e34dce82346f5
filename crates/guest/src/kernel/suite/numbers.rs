//! Random numbers for the tests.

/// A small generator of numbers (xorshift). The seed must not be 0.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number, below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
