//! Positions in the tables: of frames, of blocks, and how one follows from the other.

use crate::{BLOCK_SHIFT, BlockId, FRAMES_PER_BLOCK};

/// The position of a frame in an allocator's tables. Frames of one block follow each other, as in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(transparent)]
pub(crate) struct FrameIndex(u32);

impl FrameIndex {
    #[inline]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// For table look-ups.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The position `frames` further up.
    #[inline]
    pub const fn plus(self, frames: u32) -> Self {
        Self(self.0 + frames)
    }

    /// `count` positions from this one on.
    #[inline]
    pub fn run(self, count: usize) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..self.0 + count as u32).map(Self)
    }

    /// `count` positions from this one on, cut at the borders of blocks: where each piece begins, and its length.
    pub fn pieces(self, count: u32) -> impl Iterator<Item = (Self, u32)> {
        let (mut at, end) = (self.0, self.0 + count);
        core::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let piece = Self(at);
            at = end.min(piece.block().plus(1).first_frame().0);
            Some((piece, at - piece.0))
        })
    }

    #[inline]
    pub const fn block(self) -> BlockId {
        BlockId::new(self.0 >> BLOCK_SHIFT)
    }

    /// The position inside the block, 0 to 511.
    #[inline]
    pub const fn offset(self) -> u32 {
        self.0 % FRAMES_PER_BLOCK as u32
    }

    /// Which word of the block's field has the frame's bit.
    #[inline]
    pub const fn word(self) -> usize {
        self.offset() as usize / 64
    }

    /// Which bit of that word it is.
    #[inline]
    pub const fn bit(self) -> u32 {
        self.0 % 64
    }
}

impl BlockId {
    /// The index as the tables store it.
    #[inline]
    pub(crate) const fn get(self) -> u32 {
        self.index() as u32
    }

    /// The block `blocks` further up in the tables.
    #[inline]
    pub(crate) const fn plus(self, blocks: u32) -> Self {
        Self::new(self.get() + blocks)
    }

    /// `count` blocks from this one on.
    #[inline]
    pub(crate) fn run(self, count: u32) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (self.get()..self.get() + count).map(Self::new)
    }

    /// The position of the block's first frame.
    #[inline]
    pub(crate) const fn first_frame(self) -> FrameIndex {
        FrameIndex(self.get() << BLOCK_SHIFT)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn pieces_end_where_blocks_do() {
        let pieces = |first, count| -> Vec<(u32, u32)> {
            let pieces = FrameIndex::new(first).pieces(count);
            pieces.map(|(at, length)| (at.get(), length)).collect()
        };
        assert_eq!(pieces(7, 0), []);
        assert_eq!(pieces(512, 512), [(512, 512)]);
        assert_eq!(pieces(510, 1), [(510, 1)]);
        assert_eq!(pieces(510, 1000), [(510, 2), (512, 512), (1024, 486)]);
    }

    #[test]
    fn a_frame_knows_its_place() {
        let frame = BlockId::new(3).first_frame().plus(130);
        assert_eq!((frame.block(), frame.offset()), (BlockId::new(3), 130));
        assert_eq!((frame.word(), frame.bit()), (2, 2));
        let last = BlockId::new(crate::MAX_BLOCKS as u32 - 1);
        assert_eq!(last.first_frame().plus(511).block(), last);
        // The last piece ends where the tables do.
        let pieces = last.first_frame().plus(500).pieces(12);
        assert_eq!(pieces.map(|(_, length)| length).sum::<u32>(), 12);
    }
}
