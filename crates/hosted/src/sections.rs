//! Access sections: the hosted machine's stand-in for the TLB.
//!
//! A thread walks page tables and touches what it finds only inside a section; `shoot_down` waits until every CPU that was
//! inside one has left it. What was found before the entry was replaced is then used no more.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::{thread, time::Duration};

use dirigible_frames::CpuId;

/// Looks at another CPU's section before giving the processor away: a section takes well under a microsecond unless its
/// thread lost the processor.
const LOOKS: u32 = 64;
/// Turns given away before sleeping.
const YIELDS: u32 = 8;
/// Sleep between later looks.
const NAP: Duration = Duration::from_micros(20);

/// One CPU's counter, alone in its cache lines (128: the prefetcher takes them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Section {
    /// Odd while the CPU is inside. Only the CPU's thread writes it.
    epoch: AtomicU64,
}

/// The sections of all CPUs.
#[derive(Debug)]
pub(crate) struct Sections(Box<[Section]>);

impl Sections {
    /// All CPUs outside.
    pub(crate) fn new(cpus: u16) -> Self {
        Self((0..cpus).map(|_| Section::default()).collect())
    }

    /// `cpu` enters.
    #[inline]
    pub(crate) fn enter(&self, cpu: CpuId) {
        let epoch = &self.0[cpu.index()].epoch;
        // Relaxed: written by this thread alone.
        let value = epoch.load(Ordering::Relaxed);
        debug_assert!(value.is_multiple_of(2), "access sections do not nest");
        epoch.store(value + 1, Ordering::Relaxed);
        // Dekker, with the fence in `wait_for_others`: this side stores its epoch, then reads page-table entries; the other
        // has stored an entry, then reads epochs. With a SeqCst fence between both pairs at least one side sees the other's
        // store: either we find the new entry, or the other finds us inside and waits.
        fence(Ordering::SeqCst);
    }

    /// `cpu` leaves.
    #[inline]
    pub(crate) fn leave(&self, cpu: CpuId) {
        let epoch = &self.0[cpu.index()].epoch;
        let value = epoch.load(Ordering::Relaxed);
        debug_assert!(
            !value.is_multiple_of(2),
            "left an access section that was not entered"
        );
        // Release pairs with the acquire loads in `wait_for_others`: all that was done inside comes before what the waiter
        // does next, e.g. copying the frame.
        epoch.store(value + 1, Ordering::Release);
    }

    /// Returns when every other CPU that is inside a section now has left it.
    pub(crate) fn wait_for_others(&self, own: CpuId) {
        // See `enter`.
        fence(Ordering::SeqCst);
        for (index, section) in self.0.iter().enumerate() {
            if index == own.index() {
                debug_assert!(
                    section.epoch.load(Ordering::Relaxed).is_multiple_of(2),
                    "shoot_down inside an access section"
                );
                continue;
            }
            let seen = section.epoch.load(Ordering::Acquire);
            if seen.is_multiple_of(2) {
                continue;
            }
            let mut looks = 0;
            // Any change will do: a section entered later finds the new entry.
            while section.epoch.load(Ordering::Acquire) == seen {
                looks += 1;
                if looks < LOOKS {
                    core::hint::spin_loop();
                } else if looks < LOOKS + YIELDS {
                    thread::yield_now();
                } else {
                    thread::sleep(NAP);
                }
            }
        }
    }
}
