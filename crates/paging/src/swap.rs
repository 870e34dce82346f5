//! Where contents of anonymous pages are while they have no frame.

use dirigible_frames::Pfn;

/// Why a page did not come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SwapError {
    /// There is no frame for it.
    #[error("out of memory")]
    OutOfMemory,
    /// The disk could not read it: its contents are lost.
    #[error("the disk cannot read slot {slot} of swap")]
    Io {
        /// The slot.
        slot: u64,
    },
}

/// Swap, as address spaces see it: slots with room for a page each. A slot's number has at most 40 bits.
///
/// A page goes there in this order: a slot is taken; [`promise`](Self::promise) says that the slot's contents are in a
/// frame; the mapping is replaced by an entry that names the slot, and shot down; [`adopt`](Self::adopt) gives the frame
/// away. Who wants the slot between promise and adopt waits. So contents are never in two places, and never in none.
pub trait SwapSpace: Sync {
    /// Whether there is a free slot, and what is given to swap gets onto the disk at the moment. A hint.
    fn has_room(&self) -> bool;

    /// Takes free slots, if possible such as follow each other, and writes their numbers to the front of `slots`. Gives how
    /// many: fewer than asked for if swap is full. Does not wait.
    fn take_slots(&self, slots: &mut [u64]) -> usize;

    /// The contents of `slot`, which was just taken, are in `frame`, which the caller has isolated. Gives whether that can
    /// be; else nothing has changed. Does not wait.
    fn promise(&self, slot: u64, frame: Pfn) -> bool;

    /// Takes a promise back.
    fn withdraw(&self, slot: u64, frame: Pfn);

    /// Keeps a promise: `frame` is `Allocated`, nothing maps it, it is in no generation, and it is not the caller's any
    /// more. Does not wait.
    fn adopt(&self, slot: u64, frame: Pfn);

    /// Begins to write what was adopted for these slots, in as few requests as possible. Does not wait: what the disk has
    /// no room for is written later.
    fn write_out(&self, slots: &[u64]);

    /// Brings the contents of `slot` into memory, and perhaps those of its neighbours. Waits for the disk and for memory:
    /// the caller holds no lock.
    ///
    /// # Errors
    ///
    /// See [`SwapError`].
    fn fetch(&self, slot: u64) -> Result<(), SwapError>;

    /// Takes the contents of `slot` out of swap, if they are in memory and nobody else has them in hand at this moment, and
    /// frees the slot. Gives their frame, which is the caller's: `Allocated`, with no owner, in no generation, not dirty.
    /// Does not wait: the caller may hold the lock of a space.
    fn take(&self, slot: u64) -> Option<Pfn>;

    /// Frees slots whose contents are not wanted any more. Waits for what is being read or written, and between promise
    /// and adopt: the caller holds no lock. A slot that was taken and never promised, or whose promise was taken back, is
    /// freed at once.
    fn free(&self, slots: &[u64]);
}
