//! The balloon's frames in the allocator's ledger: movable while the device answers, unmovable while it does not.
#![forbid(unsafe_code)]

use dirigible_frames::{BlockId, FrameClass, FrameState, Pfn, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::{State, VirtioBalloon};

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// Brings the ledger up to date after a fault has begun or ended: a block with frames that cannot be moved is no
    /// candidate of compaction. Walks all blocks then, and costs one look at the state otherwise. Not for `isolate`,
    /// which others wait for.
    #[inline(never)]
    pub(super) fn keep_ledger(&self) {
        let (unmovable, adrift) = {
            let mut state = self.state.lock();
            state.balloon.tick(self.platform.now());
            let has_frames = !state.balloon.is_down();
            let unmovable = state.balloon.fault().is_some() && has_frames;
            if state.unmovable == Some(unmovable) {
                return;
            }
            state.unmovable = Some(unmovable);
            (unmovable, state.adrift)
        };
        // Without mobility they are unmovable anyway.
        if !self.config.mobility && !adrift {
            return;
        }
        for block in self.frames.blocks() {
            if !self.keep_block(block, unmovable, adrift) {
                return;
            }
        }
    }

    /// One block's frames, under the lock; `false` when a later walk has begun, which knows better.
    fn keep_block(&self, block: BlockId, unmovable: bool, adrift: bool) -> bool {
        let ledger = self.frames.ledger(block);
        let concerned = match unmovable {
            true => ledger.balloon(),
            false => ledger.unmovable(),
        };
        if concerned == 0 && !adrift {
            return true;
        }
        let mut state = self.state.lock();
        if state.unmovable != Some(unmovable) || state.adrift != adrift {
            return false;
        }
        for frame in self.frames.used_frames(block) {
            if self.frames.owner(frame) == self.id && self.frames.state(frame) == FrameState::Listed
            {
                self.keep_frame(&mut state, frame);
            }
        }
        true
    }

    /// Gives a listed frame the class that it should have now.
    pub(super) fn keep_frame(&self, state: &mut State<'a, H, N>, frame: Pfn) {
        if self.config.mobility {
            let class = match state.unmovable {
                Some(true) => FrameClass::Unmovable,
                // `None`: the walk that is due comes to it.
                Some(false) | None => FrameClass::Balloon,
            };
            if self.frames.class(frame) != class {
                self.frames.reclass(frame, class);
            }
        }
        if state.adrift {
            state.balloon.withhold(frame);
        }
    }

    /// Gives frames on their way to the allocator the class that they came with.
    pub(super) fn count_as_balloon(&self, frames: &[Pfn]) {
        if self.config.mobility {
            for &frame in frames {
                if self.frames.class(frame) == FrameClass::Unmovable {
                    self.frames.reclass(frame, FrameClass::Balloon);
                }
            }
        }
    }
}
