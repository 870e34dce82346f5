//! Access sections: the hosted machine's stand-in for the TLB.
//!
//! A thread walks page tables and touches what it finds only inside a section; `shoot_down` waits until every CPU that
//! was inside one has left it. What was found before the entry was replaced is then used no more.

use std::{thread, time::Duration};

use dirigible_frames::{AccessSection, CpuId};

/// Looks at another CPU's section before giving the processor away: a section takes well under a microsecond unless its
/// thread lost the processor.
const LOOKS: u32 = 64;
/// Turns given away before sleeping.
const YIELDS: u32 = 8;
/// Sleep between later looks.
const NAP: Duration = Duration::from_micros(20);

/// The sections of all CPUs.
#[derive(Debug)]
pub(crate) struct Sections(Box<[AccessSection]>);

impl Sections {
    /// All CPUs outside.
    pub(crate) fn new(cpus: u16) -> Self {
        Self((0..cpus).map(|_| AccessSection::new()).collect())
    }

    /// `cpu` enters.
    #[inline]
    pub(crate) fn enter(&self, cpu: CpuId) {
        self.0[cpu.index()].enter();
    }

    /// `cpu` leaves.
    #[inline]
    pub(crate) fn leave(&self, cpu: CpuId) {
        self.0[cpu.index()].leave();
    }

    /// Returns when every other CPU that is inside a section now has left it.
    pub(crate) fn wait_for_others(&self, own: CpuId) {
        for (index, section) in self.0.iter().enumerate() {
            let Some(seen) = section.observe() else {
                continue;
            };
            if index == own.index() {
                debug_assert!(false, "shoot_down inside an access section");
                continue;
            }
            let mut looks = 0;
            while !section.has_left(seen) {
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
