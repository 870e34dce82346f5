//! Reading the counters of vm events: each CPU has its own, which are summed when read.

use core::fmt;

use crate::{CpuId, Event, FrameAllocator, cpu::CpuSlot, sync::Ordering};

/// The vm events of one allocator.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    cpus: &'a [CpuSlot],
}

impl Events<'_> {
    /// Counts `event` `times` times on `cpu`.
    ///
    /// [`Event::PgAlloc`] and [`Event::PgFree`] are counted by the allocator alone.
    #[inline]
    pub fn add(&self, cpu: CpuId, event: Event, times: u64) {
        // Relaxed: counters order nothing.
        self.cpus[cpu.index()].events[event as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// The count of `event` over all CPUs.
    #[inline(never)]
    pub fn get(&self, event: Event) -> u64 {
        self.cpus.iter().fold(0, |sum, cpu| {
            sum.wrapping_add(cpu.events[event as usize].load(Ordering::Relaxed))
        })
    }

    /// All counts, in the order of [`Event::ALL`].
    pub fn snapshot(&self) -> [u64; Event::COUNT] {
        let mut all = [0; Event::COUNT];
        for (count, event) in all.iter_mut().zip(Event::ALL) {
            *count = self.get(*event);
        }
        all
    }

    /// Writes `name count` lines, as `/proc/vmstat` prints them.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_vmstat(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for event in Event::ALL {
            writeln!(out, "{} {}", event.name(), self.get(*event))?;
        }
        Ok(())
    }
}

impl FrameAllocator<'_> {
    /// The counters.
    pub fn events(&self) -> Events<'_> {
        Events { cpus: self.cpus }
    }

    /// Counts frames that were allocated or freed past the CPU's cache. Under its lock, as the fast paths count them.
    #[inline(never)]
    pub(crate) fn count_frames(&self, cpu: CpuId, event: Event, frames: usize) {
        self.lock(cpu).count(event, frames as u64);
    }
}
