//! Comparing the slots with the page cache.

use dirigible_frames::FrameContents;

use crate::swap::Swap;

/// What an audit found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SwapAudit {
    /// Slots in use.
    pub used: u64,
    /// Of these, those whose contents are in memory, or on their way there.
    pub in_memory: u64,
    /// Of these, those that have no contents: they were taken, and nothing was promised for them yet.
    pub empty: u64,
}

/// What is wrong with swap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapAuditError {
    /// A slot is free, and the page cache has contents for it.
    #[error("slot {slot} is free, and has contents")]
    Free {
        /// The slot.
        slot: u64,
    },
    /// The counts do not agree with the bits.
    #[error("{used} slots count as in use, and their bits say otherwise")]
    Counts {
        /// What the count says.
        used: u64,
    },
}

impl<P: FrameContents> Swap<'_, '_, P> {
    /// Walks all slots and compares them with the counts and with the page cache. For the end of a run, and for tests:
    /// nobody uses swap meanwhile.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn audit(&self) -> Result<SwapAudit, SwapAuditError> {
        let mut audit = SwapAudit::default();
        for slot in 0..self.size() {
            let block = self.block(slot).unwrap_or_default();
            let full = self.cache.has_contents(block);
            if self.slots.is_used(slot) {
                audit.used += 1;
                audit.in_memory += u64::from(self.cache.contains(block));
                audit.empty += u64::from(!full);
            } else if full {
                return Err(SwapAuditError::Free { slot });
            }
        }
        if !self.slots.agrees() {
            return Err(SwapAuditError::Counts { used: self.used() });
        }
        Ok(audit)
    }
}
