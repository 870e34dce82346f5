//! Pages of programs on the part of the disk that is swap.

use core::ops::Range;

use dirigible_frames::FrameContents;
use dirigible_reclaim::Kind;

use crate::cache::PageCache;

impl<P: FrameContents> PageCache<'_, P> {
    /// The blocks that are swap.
    pub fn swap_blocks(&self) -> Range<u64> {
        self.swap.clone()
    }

    pub(crate) fn kind_of(&self, block: u64) -> Kind {
        if self.swap.contains(&block) {
            Kind::Anonymous
        } else {
            Kind::File
        }
    }
}
