//! Access sections: when a CPU may be using what it found in page tables.

use crate::sync::{AtomicU64, Ordering, fence};

/// One CPU's counter, alone in its cache lines (128 bytes: the prefetcher takes lines in pairs).
///
/// A CPU walks page tables, or lets its hardware walk them, only inside a section; a shoot-down replaces an entry and
/// then waits until every CPU that was inside one has left it. After that nobody uses what was found before the entry
/// was replaced.
///
/// ```
/// use dirigible_frames::AccessSection;
///
/// let section = AccessSection::new();
/// assert_eq!(section.observe(), None);
/// section.enter();
/// let epoch = section.observe().expect("inside");
/// assert!(!section.has_left(epoch));
/// section.leave();
/// section.enter();
/// assert!(section.has_left(epoch), "a section entered later is another one");
/// ```
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct AccessSection {
    /// Odd while the CPU is inside. Only the CPU itself writes it.
    epoch: AtomicU64,
}

impl AccessSection {
    /// Outside.
    pub const fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
        }
    }

    /// The CPU enters. Sections do not nest.
    #[inline]
    pub fn enter(&self) {
        // Relaxed: written by this CPU alone.
        let value = self.epoch.load(Ordering::Relaxed);
        debug_assert!(value.is_multiple_of(2), "access sections do not nest");
        // Release: a waiter that reads this epoch, and not that of the `leave` before, must see what came before that,
        // too; a store of the same CPU does not continue the release sequence of an earlier one.
        self.epoch.store(value + 1, Ordering::Release);
        // Dekker, with the fence in `observe`: this side stores its epoch, then reads page-table entries; the other has
        // stored an entry, then reads epochs. With a SeqCst fence between both pairs at least one side sees the other's
        // store: either we find the new entry, or the other finds us inside and waits.
        fence(Ordering::SeqCst);
    }

    /// The CPU leaves.
    #[inline]
    pub fn leave(&self) {
        let value = self.epoch.load(Ordering::Relaxed);
        debug_assert!(
            !value.is_multiple_of(2),
            "left an access section that was not entered"
        );
        // Release pairs with the acquire loads in `observe` and `has_left`: all that was done inside comes before what
        // the waiter does next, e.g. copying the frame.
        self.epoch.store(value + 1, Ordering::Release);
    }

    /// The epoch if the CPU is inside a section now. For another CPU, after it has replaced entries.
    #[inline]
    pub fn observe(&self) -> Option<u64> {
        // See `enter`.
        fence(Ordering::SeqCst);
        let seen = self.epoch.load(Ordering::Acquire);
        (!seen.is_multiple_of(2)).then_some(seen)
    }

    /// Whether the section that [`observe`](Self::observe) saw has ended. Any change will do: a section entered later
    /// finds the new entry.
    #[inline]
    pub fn has_left(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Acquire) != epoch
    }
}
