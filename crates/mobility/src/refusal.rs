//! Blocks that an owner refused to give up, remembered until something in them changes.

use dirigible_frames::BlockId;

/// Entries of the table. A block has one place, by its index; a newer refusal drives out an older one there.
const ENTRIES: usize = 256;

#[derive(Clone, Copy)]
struct Entry {
    block: BlockId,
    changes: u32,
    until: u64,
}

/// The remembered refusals. To forget one costs a vain attempt, never a wrong one.
pub(crate) struct Refusals {
    entries: [Option<Entry>; ENTRIES],
}

impl Refusals {
    pub(crate) const fn new() -> Self {
        Self {
            entries: [None; ENTRIES],
        }
    }

    /// Remembers that `block` refused when its change counter stood at `changes`, until the time `until`.
    pub(crate) fn remember(&mut self, block: BlockId, changes: u32, until: u64) {
        self.entries[block.index() % ENTRIES] = Some(Entry {
            block,
            changes,
            until,
        });
    }

    /// Whether `block` is known to refuse; drops what has become stale.
    pub(crate) fn holds(&mut self, block: BlockId, changes: u32, now: u64) -> bool {
        let place = &mut self.entries[block.index() % ENTRIES];
        match place {
            Some(entry) if entry.block == block => {
                let holds = entry.changes == changes && now < entry.until;
                if !holds {
                    *place = None;
                }
                holds
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_45_a_refusal_is_dropped_when_the_block_changes() {
        let mut refusals = Refusals::new();
        let block = BlockId::new(3);
        refusals.remember(block, 7, 100);
        assert!(refusals.holds(block, 7, 0));
        assert!(!refusals.holds(block, 8, 0), "the block changed");
        assert!(
            !refusals.holds(block, 7, 0),
            "and a dropped refusal stays dropped"
        );
        refusals.remember(block, 8, 100);
        assert!(!refusals.holds(block, 8, 100), "or its time is over");
    }

    #[test]
    fn blocks_that_share_a_place_are_told_apart() {
        let mut refusals = Refusals::new();
        let (low, high) = (BlockId::new(1), BlockId::new(1 + ENTRIES as u32));
        refusals.remember(low, 0, 10);
        assert!(!refusals.holds(high, 0, 0));
        assert!(refusals.holds(low, 0, 0));
        refusals.remember(high, 0, 10);
        assert!(refusals.holds(high, 0, 0));
        assert!(!refusals.holds(low, 0, 0));
    }
}
