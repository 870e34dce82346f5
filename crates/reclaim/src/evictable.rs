//! What an owner of frames that can be reclaimed implements.

use dirigible_frames::Pfn;

use crate::stamp::Stamp;

/// What the contents of frames are. Reclaim takes from both kinds, in proportion to what it costs when they are wanted
/// again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of a file: clean ones can be dropped.
    File,
    /// Of a program, and nowhere else: they must go into swap first.
    Anonymous,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 2;
}

/// Why an owner keeps a frame that reclaim wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// It is in use at this moment (it has references or is locked).
    InUse,
    /// It is dirty, or became so.
    Dirty,
    /// It is being written.
    Writeback,
}

/// An owner whose frames can be given back, because their contents are somewhere else or can be put there.
///
/// Reclaim isolates a frame (`FrameAllocator::try_isolate`) before it asks the owner, as compaction does. The calls come
/// from any CPU, several at once, with no lock held. None allocates, and none waits.
pub trait Evictable: Sync {
    /// Takes an isolated frame off the books for good, if it is clean and nobody uses it: it is `Allocated` then, still
    /// carries the owner's number, and reclaim frees it. The owner remembers `stamp` in its place, and gives it to
    /// [`Generations::refault`](crate::Generations::refault) if the contents are wanted again.
    ///
    /// # Errors
    ///
    /// Why not. Nothing was changed: the frame is isolated.
    fn drop_clean(&self, frame: Pfn, stamp: Stamp) -> Result<(), Kept>;

    /// Begins to write an isolated, dirty frame, perhaps together with its neighbours on the disk. Gives how many frames
    /// are being written now; 0 if there is no room for the request at the moment. The frame stays isolated until the
    /// caller has put it back, and has the mark `WRITEBACK`.
    fn begin_write(&self, frame: Pfn) -> usize;

    /// What its frames are.
    fn kind(&self) -> Kind {
        Kind::File
    }

    /// Whether [`swap_out`](Self::swap_out) can do anything: there is swap, and it has room. One load.
    fn has_swap(&self) -> bool {
        false
    }

    /// Gives isolated frames of [`Kind::Anonymous`] to swap: heads of base frames, or of huge pages, which are split and
    /// put back. None is isolated on the caller's behalf afterwards. Each was put back, with its generation as it was,
    /// or younger if it has been used meanwhile; or it belongs to the page cache, which has begun to write it and makes
    /// it one of the oldest when it is written (`RECLAIM`). Gives how many are the page cache's now.
    ///
    /// The owner takes frames of the kind [`Kind::Anonymous`] off their generation when it gives them away.
    fn swap_out(&self, frames: &[Pfn]) -> usize {
        frames.iter().for_each(|&frame| self.put_back(frame));
        0
    }

    /// Puts an isolated frame back onto the books: `Isolated` to `Listed`. Cannot fail.
    fn put_back(&self, frame: Pfn);

    /// Reclaim has met dirty frames that it may not write: the flusher should begin.
    fn wake_flusher(&self);

    /// Frames that are dirty, without those whose last write failed, and frames that are being written.
    fn dirty_and_writeback(&self) -> (u64, u64);

    /// Takes what the disk has finished, if the owner is not told of it otherwise: who waits for writes asks again and
    /// again. Does not wait itself.
    fn poll(&self) {}

    /// Looks which frames were used since the last call (accessed bits in page tables), and makes these young. Owners
    /// that are told of each use keep this default.
    fn harvest(&self) {}
}
