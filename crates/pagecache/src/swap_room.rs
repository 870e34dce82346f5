//! Whether swap is to be given more pages. Not while its part of the disk refuses them: they would only go from one book
//! to the other, and back when they are wanted.

use dirigible_frames::FrameContents;
use dirigible_frames::sync::Ordering;
use dirigible_reclaim::Kind;

use crate::cache::PageCache;
use crate::requests::Run;

/// Writes to swap that fail one after the other before it is given no more.
const REFUSALS: u32 = 8;

impl<P: FrameContents> PageCache<'_, P> {
    /// Whether what is given to swap gets onto the disk, as far as is known: not after eight writes that failed, with none
    /// in between that was done. Pages that had failed before do not count. A hint; one load.
    ///
    /// The [flusher](crate::Flusher) finds out when it is otherwise. Each time that what is dirty has aged, it writes those
    /// pages again that could not be written, and lets one more write of others be tried.
    pub fn takes_swap(&self) -> bool {
        // Relaxed, here and below: a number on its own.
        self.swap_refusals.load(Ordering::Relaxed) < REFUSALS
    }

    /// A write of `kind` was done.
    pub(crate) fn write_done(&self, kind: Kind) {
        if kind == Kind::Anonymous && self.swap_refusals.load(Ordering::Relaxed) > 0 {
            self.swap_refusals.store(0, Ordering::Relaxed);
        }
    }

    /// The write `run` has failed; its pages are not marked as such yet. One that had failed before went alone, and says
    /// nothing new of the others.
    pub(crate) fn count_refusal(&self, run: &Run) {
        let is_new = !self.failed.contains(run.block);
        if is_new && self.kind_of(run.block) == Kind::Anonymous && self.takes_swap() {
            // Several at a time may pass the border by a few.
            self.swap_refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets one more write show whether swap can be written again.
    pub(crate) fn try_swap_again(&self) {
        if !self.takes_swap() {
            self.swap_refusals.store(REFUSALS - 1, Ordering::Relaxed);
        }
    }

    /// Whether a page that could not be written is left to the flusher: swap refuses everything at the moment.
    pub(crate) fn is_left(&self, block: u64) -> bool {
        !self.takes_swap() && self.kind_of(block) == Kind::Anonymous && self.failed.contains(block)
    }
}
