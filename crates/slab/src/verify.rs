//! Checking a cache's books.

use dirigible_frames::{FrameContents, FrameState, Pfn};

use crate::{
    SlabCache,
    books::{BEFORE, NEXT, TAG, from_link},
};

/// How a cache's books contradict its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VerifyError {
    /// A slab in the books is not an allocated frame of the cache.
    #[error("{0} is no slab of this cache")]
    NotASlab(Pfn),
    /// A slab has as many objects as none in its place has.
    #[error("the slab in {frame} has the objects {used:#x} and stands where it does not belong")]
    Misplaced {
        /// The slab.
        frame: Pfn,
        /// Its objects.
        used: u64,
    },
    /// The list of partial slabs does not lead back, or goes on for ever.
    #[error("the partial slabs are not a list at {0}")]
    Links(Pfn),
    /// The counts are wrong.
    #[error(
        "{objects} objects are counted in {frames} frames, of which {listed} are in the list with {in_listed}"
    )]
    Counts {
        /// Objects that are counted.
        objects: u64,
        /// Frames that are counted.
        frames: u64,
        /// Partial slabs.
        listed: u64,
        /// Objects in these.
        in_listed: u64,
    },
}

impl<P: FrameContents> SlabCache<'_, P> {
    /// Recounts everything. Walks the partial slabs under the lock: for tests and for the end of a run.
    ///
    /// # Errors
    ///
    /// The first contradiction.
    pub fn verify(&self) -> Result<(), VerifyError> {
        let books = self.books();
        let (mut listed, mut in_listed) = (0, 0);
        let (mut before, mut at) = (None, books.partial);
        while let Some(frame) = at {
            let used = self.slab(frame)?;
            if used == 0 || used == self.full {
                return Err(VerifyError::Misplaced { frame, used });
            }
            listed += 1;
            in_listed += u64::from(used.count_ones());
            let back = from_link(self.platform.read_word(frame, BEFORE));
            if back != before || listed > books.frames {
                return Err(VerifyError::Links(frame));
            }
            before = Some(frame);
            at = from_link(self.platform.read_word(frame, NEXT));
        }
        if let Some(frame) = books.spare {
            let used = self.slab(frame)?;
            if used != 0 {
                return Err(VerifyError::Misplaced { frame, used });
            }
        }
        // Full slabs are in no list; they have what is left.
        let (objects, frames) = (books.objects, books.frames);
        let full = frames.checked_sub(listed + u64::from(books.spare.is_some()));
        if full.map(|full| full * self.slots as u64 + in_listed) != Some(objects) {
            return Err(VerifyError::Counts {
                objects,
                frames,
                listed,
                in_listed,
            });
        }
        Ok(())
    }

    /// The used slots of a slab.
    fn slab(&self, frame: Pfn) -> Result<u64, VerifyError> {
        let used = self.frames.owner_word(frame);
        let ours = self.frames.state(frame) == FrameState::Allocated
            && self.frames.class(frame) == self.config().class
            && self.platform.read_word(frame, TAG) == self.tag_for(frame);
        if !ours || used & !self.full != 0 {
            return Err(VerifyError::NotASlab(frame));
        }
        Ok(used)
    }
}
