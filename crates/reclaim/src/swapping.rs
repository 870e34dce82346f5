//! Frames on their way to swap.

use dirigible_frames::{FrameAllocator, OwnerId, Pfn};

use crate::{Evictable, hand::Pass};

/// Frames that are given away together.
const BATCH: usize = 32;

/// Isolated frames of one owner, which gets them all at once: their slots follow each other then.
pub(crate) struct Leaving<'e> {
    heads: [Pfn; BATCH],
    count: usize,
    /// Base frames that they have.
    frames: u64,
    owner: Option<(OwnerId, &'e dyn Evictable)>,
}

impl<'e> Leaving<'e> {
    pub fn new() -> Self {
        Self {
            heads: [Pfn::default(); BATCH],
            count: 0,
            frames: 0,
            owner: None,
        }
    }

    /// Base frames that wait here.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Adds a frame that was isolated for `owner`, whose number is `id`.
    pub fn add(
        &mut self,
        frame: Pfn,
        (id, owner): (OwnerId, &'e dyn Evictable),
        frames: &FrameAllocator<'_>,
        pass: &mut Pass,
    ) {
        if self.owner.is_some_and(|(known, _)| known != id) {
            self.give(pass);
        }
        self.owner = Some((id, owner));
        self.heads[self.count] = frame;
        self.count += 1;
        self.frames += frames.order(frame).frames() as u64;
        if self.count == BATCH {
            self.give(pass);
        }
    }

    /// Gives all to their owner.
    pub fn give(&mut self, pass: &mut Pass) {
        if let Some((_, owner)) = self.owner.take() {
            pass.swapped += owner.swap_out(&self.heads[..self.count]) as u64;
        }
        (self.count, self.frames) = (0, 0);
    }
}
