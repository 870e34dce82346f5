//! Jobs at the transport.
//!
//! An access to the configuration space may take as long as the host takes for all requests that it knows of. No
//! other CPU waits for that: it posts its job, and the CPU that holds the transport does it.
#![forbid(unsafe_code)]

use bitflags::bitflags;
use dirigible_frames::Platform;
use dirigible_frames::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use virtio_drivers::Hal;
use virtio_drivers::transport::{InterruptStatus, Transport};

use super::VirtioBalloon;
use super::wire::Wire;
use crate::Queue;

bitflags! {
    /// Kinds of jobs; one of a kind is as good as many.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Jobs: u32 {
        /// Tell the device of the inflate queue.
        const INFLATE = 1 << 0;
        /// Tell the device of the deflate queue.
        const DEFLATE = 1 << 1;
        /// Tell the device of the statistics queue.
        const STATS = 1 << 2;
        /// Take the interrupt line down.
        const ACKNOWLEDGE = 1 << 3;
        /// Read the target.
        const TARGET = 1 << 4;
        /// Write the size.
        const SIZE = 1 << 5;
        /// Look whether the device needs a reset.
        const STATUS = 1 << 6;
        /// Those that leave the configuration space alone. Compaction does no others.
        const SWIFT = Self::INFLATE.bits() | Self::DEFLATE.bits() | Self::STATS.bits() | Self::ACKNOWLEDGE.bits();
    }
}

impl Jobs {
    /// The job that follows from a request on `queue`.
    pub(super) const fn bell(queue: Queue) -> Self {
        match queue {
            Queue::Inflate => Self::INFLATE,
            Queue::Deflate => Self::DEFLATE,
            _ => Self::STATS,
        }
    }
}

/// The jobs that are posted and not begun.
pub(super) struct Posts {
    jobs: AtomicU32,
    /// How often somebody has wanted the target read.
    asked: AtomicU64,
    /// How many of them it has been read for.
    read: AtomicU64,
    /// Jobs have been taken on and are not done.
    at_work: AtomicBool,
}

impl Posts {
    pub(super) const fn new() -> Self {
        Self {
            jobs: AtomicU32::new(0),
            asked: AtomicU64::new(0),
            read: AtomicU64::new(0),
            at_work: AtomicBool::new(false),
        }
    }

    /// Leaves jobs; [`VirtioBalloon::serve`] is to follow.
    pub(super) fn add(&self, jobs: Jobs) {
        // SeqCst, and the fence in `serve` behind it: the holder of the transport sees the job after letting go, or
        // we see the transport free. Release is part of it and pairs with `take`: if the job is a bell, its request
        // is seen.
        self.jobs.fetch_or(jobs.bits(), Ordering::SeqCst);
    }

    /// Wants the target read.
    pub(super) fn ask_target(&self) {
        // Before the job, and both SeqCst: the CPU that reads the target for us counts us in.
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.add(Jobs::TARGET);
    }

    /// Whether somebody has asked for the target and it has not been read since.
    pub(super) fn is_target_awaited(&self) -> bool {
        // Acquire pairs with the release in `target_read`: with the count comes the target.
        self.read.load(Ordering::Acquire) < self.asked.load(Ordering::SeqCst)
    }

    /// How often the target has been asked for: to be noted before it is read. With the transport in hand.
    fn asked(&self) -> u64 {
        // Pairs with `ask_target`.
        self.asked.load(Ordering::SeqCst)
    }

    /// The target is in the state: `asked` requests for it are served. With the transport in hand.
    fn target_read(&self, asked: u64) {
        // Release pairs with `is_target_awaited`.
        self.read.store(asked, Ordering::Release);
    }

    /// Takes the jobs among `kinds` off the board. With the transport in hand.
    pub(super) fn take(&self, kinds: Jobs) -> Jobs {
        // Pairs with `add`.
        let found = self.jobs.fetch_and(!kinds.bits(), Ordering::SeqCst);
        Jobs::from_bits_truncate(found) & kinds
    }

    /// The holder of the transport begins to take jobs, or has done what it took.
    pub(super) fn set_at_work(&self, at_work: bool) {
        // Pairs with `is_unfinished`: before the jobs are taken, and after what follows from them is posted.
        self.at_work.store(at_work, Ordering::SeqCst);
    }

    /// Whether any job is posted, or is being done by somebody who may post another.
    pub(super) fn is_unfinished(&self) -> bool {
        // Pairs with `set_at_work`. A job that the first look misses was taken before it. Then either its taker is
        // seen at work, or what followed from it was posted before the second look.
        let any = || self.any(Jobs::all());
        any() || self.at_work.load(Ordering::SeqCst) || any()
    }

    /// Whether there is a job among `kinds`.
    pub(super) fn any(&self, kinds: Jobs) -> bool {
        // Pairs with `add`.
        Jobs::from_bits_truncate(self.jobs.load(Ordering::SeqCst)).intersects(kinds)
    }
}

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// Does the posted jobs among `kinds`, other CPUs' too, and says which it did. If the transport is taken (perhaps
    /// by ourselves, further up in `notify`), they stay posted, and its holder looks again after letting go.
    ///
    /// A caller that serves only `SWIFT` leaves the others posted. The next interrupt does them, or the next step,
    /// and a step that finds some at its end asks to be called again soon.
    pub(super) fn serve(&self, kinds: Jobs) -> Jobs {
        let mut done = Jobs::empty();
        loop {
            // Pairs with itself on another CPU. One CPU posts and then tries the transport; the other lets go of the
            // transport and then looks for jobs. At least one of them sees what the other did.
            fence(Ordering::SeqCst);
            if !self.posts.any(kinds) {
                return done;
            }
            let Some(mut wire) = self.wire.try_lock() else {
                return done;
            };
            self.posts.set_at_work(true);
            let jobs = self.posts.take(kinds);
            self.work(&mut wire, jobs);
            self.posts.set_at_work(false);
            drop(wire);
            done |= jobs;
        }
    }

    fn work(&self, wire: &mut Wire<'_, T, P>, jobs: Jobs) {
        if jobs.contains(Jobs::ACKNOWLEDGE) {
            self.note_interrupt(wire.acknowledge());
        }
        for (which, bell) in [Jobs::INFLATE, Jobs::DEFLATE, Jobs::STATS]
            .into_iter()
            .enumerate()
        {
            if jobs.contains(bell) {
                wire.ring(which);
            }
        }
        if jobs.contains(Jobs::STATUS) && wire.needs_reset() {
            self.state.lock().balloon.needs_reset();
        }
        // With the transport in hand, so the later of two reads or writes is the one that counts.
        if jobs.contains(Jobs::TARGET) {
            let asked = self.posts.asked();
            if wire.is_live() {
                let target = wire.read_target().ok();
                let mut state = self.state.lock();
                (state.target, state.read_at) = (target, Some(self.platform.now()));
            }
            self.posts.target_read(asked);
        }
        if jobs.contains(Jobs::SIZE) {
            let actual = {
                let mut state = self.state.lock();
                (state.unwritten, state.written_at) = (false, self.platform.now());
                state.balloon.actual()
            };
            wire.write_actual(actual as u32);
        }
    }

    /// Notes what the interrupt status says.
    pub(super) fn note_interrupt(&self, status: InterruptStatus) {
        if status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            // Pairs with the swap in `read_target`.
            self.reconfigured.store(true, Ordering::SeqCst);
            self.posts.add(Jobs::STATUS);
        } else if status.is_empty() {
            // Under MSI-X the status says nothing, ever. Pairs with the swap in `read_target`.
            self.unsure.store(true, Ordering::SeqCst);
        }
    }
}
