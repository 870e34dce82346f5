//! Recounting everything, for tests and for shutdown.

use dirigible_frames::{BlockId, FRAMES_PER_BLOCK, FrameFlags, FrameState};

use crate::{Generations, Tally};

/// What a recount found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Frames by age, from the oldest generation to the youngest.
    pub sizes: [u64; 4],
    /// Frames among them that are marked dirty.
    pub dirty: u64,
    /// Frames among them that are marked as being written.
    pub writeback: u64,
}

/// What is wrong with the books of reclaim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A count is not the number of frames.
    #[error("generation {generation} counts {counted} frames and has {found}")]
    Count {
        /// 1 to 4.
        generation: u8,
        /// What is counted.
        counted: u64,
        /// What was found.
        found: u64,
    },
    /// A block's tally is wrong.
    #[error("{block:?} counts {counted} frames of generation {generation} and has {found}")]
    Tally {
        /// The block.
        block: BlockId,
        /// 1 to 4.
        generation: u8,
        /// What is counted.
        counted: u32,
        /// What was found.
        found: u32,
    },
    /// A block has frames of a generation, and no bit: they would never be reclaimed.
    #[error("{block:?} has frames of generation {generation} and is not in its index")]
    Lost {
        /// The block.
        block: BlockId,
        /// 1 to 4.
        generation: u8,
    },
    /// A free frame, or one inside a larger allocation, has a generation.
    #[error("{block:?} has a frame in state {state:?} with a generation")]
    Stray {
        /// Its block.
        block: BlockId,
        /// Its state.
        state: FrameState,
    },
}

impl Generations<'_> {
    /// Looks at every frame, and compares with the counts, the tallies and the index. Nothing may be under way. Dirty
    /// frames in the tallies are what owners report and are not compared.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<Audit, VerifyError> {
        let frames = self.frames();
        let mut found = [0u64; 4];
        let mut audit = Audit::default();
        for block in frames.blocks() {
            let first = frames.block_start(block);
            let mut here = [0u32; 4];
            for at in 0..FRAMES_PER_BLOCK as u64 {
                let frame = first.plus(at);
                let generation = frames.generation(frame);
                if !(1..=4).contains(&generation) {
                    continue;
                }
                let Some(info) = frames.frame(frame) else {
                    continue;
                };
                use FrameState::{Cached, Free, Reserved, Tail};
                if let state @ (Free | Cached | Reserved | Tail) = info.state {
                    return Err(VerifyError::Stray { block, state });
                }
                here[generation as usize - 1] += 1;
                audit.dirty += u64::from(info.flags.contains(FrameFlags::DIRTY));
                audit.writeback += u64::from(info.flags.contains(FrameFlags::WRITEBACK));
            }
            let tally = Tally::from_bits(frames.block_tally(block));
            for (generation, &found) in (1..).zip(&here) {
                let counted = tally.generation(generation);
                if counted != found {
                    return Err(VerifyError::Tally {
                        block,
                        generation,
                        counted,
                        found,
                    });
                }
                if found > 0 && !self.blocks(generation).finds(block) {
                    return Err(VerifyError::Lost { block, generation });
                }
            }
            for (sum, here) in found.iter_mut().zip(here) {
                *sum += u64::from(here);
            }
        }
        for (generation, &found) in (1..).zip(&found) {
            let counted = self.count(generation);
            if counted != found {
                return Err(VerifyError::Count {
                    generation,
                    counted,
                    found,
                });
            }
        }
        audit.sizes = self.sizes();
        Ok(audit)
    }
}
