//! How much of swap to read around a page that is wanted: as much as was worth it lately, as in Linux
//! (`swapin_nr_pages` in `mm/swap_state.c`).

use dirigible_frames::sync::{AtomicU64, Ordering};

/// Most slots that are read together: an aligned group of so many.
pub(crate) const MOST: u64 = 8;

/// The window. Relaxed throughout: a hint, races between readers cost a window.
pub(crate) struct SwapWindow {
    /// Pages that were wanted and lay in memory already, since the last read.
    hits: AtomicU64,
    /// The last window.
    last: AtomicU64,
    /// The last block that was read in vain beside what lies around it.
    block: AtomicU64,
}

impl SwapWindow {
    pub fn new() -> Self {
        Self {
            hits: AtomicU64::new(0),
            // So that the first is the largest.
            last: AtomicU64::new(2 * MOST),
            block: AtomicU64::new(0),
        }
    }

    /// A page that was wanted lay in memory already.
    pub fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// How many slots, a power of two, to read together around `block`, which is wanted and not in memory. Doubles while
    /// what was read around others is used, and halves while it is not.
    pub fn next(&self, block: u64) -> u64 {
        let hits = self.hits.swap(0, Ordering::Relaxed);
        let window = if hits > 0 {
            (hits + 2).next_power_of_two()
        } else if self.block.swap(block, Ordering::Relaxed).abs_diff(block) == 1 {
            // One after the other: they may belong together.
            2
        } else {
            1
        };
        // It shrinks slowly.
        let window = window.min(MOST).max(self.last.load(Ordering::Relaxed) / 2);
        self.last.store(window, Ordering::Relaxed);
        window
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_what_was_worth_it() {
        let window = SwapWindow::new();
        let mut at = 0;
        let mut next = |hits: u64| {
            (0..hits).for_each(|_| window.hit());
            at += 100;
            window.next(at)
        };
        assert_eq!([0; 5].map(&mut next), [8, 4, 2, 1, 1]);
        assert_eq!([1, 2, 3, 6, 50].map(&mut next), [4, 4, 8, 8, 8]);
        assert_eq!([0, 0, 1].map(&mut next), [4, 2, 4]);
    }

    #[test]
    fn neighbours_are_read_together_without_a_hit() {
        let window = SwapWindow::new();
        (0..5).for_each(|turn| _ = window.next(turn * 10));
        assert_eq!(
            [41, 42, 41, 50].map(|block| window.next(block)),
            [2, 2, 2, 1]
        );
    }
}
