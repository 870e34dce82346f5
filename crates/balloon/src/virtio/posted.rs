//! Work at the transport that is posted for whoever holds it.
//!
//! An access to the configuration space may take as long as the host takes for all requests that it knows of. No
//! other CPU waits for that: it posts what it wants, and the CPU that holds the transport does it (`serve.rs`).
#![forbid(unsafe_code)]

use bitflags::bitflags;
use dirigible_frames::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::Queue;

bitflags! {
    /// Kinds of work; a kind that is posted twice is done once.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct TransportWork: u32 {
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
        /// What leaves the configuration space alone. Compaction does nothing else.
        const SWIFT = Self::INFLATE.bits() | Self::DEFLATE.bits() | Self::STATS.bits() | Self::ACKNOWLEDGE.bits();
    }
}

impl TransportWork {
    /// What follows from a request on `queue`.
    pub(super) const fn bell(queue: Queue) -> Self {
        match queue {
            Queue::Inflate => Self::INFLATE,
            Queue::Deflate => Self::DEFLATE,
            _ => Self::STATS,
        }
    }
}

/// What is posted and not begun.
pub(super) struct Posted {
    work: AtomicU32,
    /// How often somebody has wanted the target read.
    asked: AtomicU64,
    /// How many of them it has been read for.
    read: AtomicU64,
    /// TransportWork have been taken on and are not done.
    at_work: AtomicBool,
}

impl Posted {
    pub(super) const fn new() -> Self {
        Self {
            work: AtomicU32::new(0),
            asked: AtomicU64::new(0),
            read: AtomicU64::new(0),
            at_work: AtomicBool::new(false),
        }
    }

    /// Posts work; `serve` is to follow.
    pub(super) fn add(&self, work: TransportWork) {
        // SeqCst, and the fence in `serve` behind it: the holder of the transport sees the work after letting go, or
        // we see the transport free. Release is part of it and pairs with `take`: with a bell its request is seen.
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }

    /// Wants the target read.
    pub(super) fn ask_target(&self) {
        // Before the work, and both SeqCst: the CPU that reads the target for us counts us in.
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.add(TransportWork::TARGET);
    }

    /// Whether somebody has asked for the target and it has not been read since.
    pub(super) fn is_target_awaited(&self) -> bool {
        // Acquire pairs with the release in `target_read`: with the count comes the target.
        self.read.load(Ordering::Acquire) < self.asked.load(Ordering::SeqCst)
    }

    /// How often the target has been asked for: to be noted before it is read. With the transport in hand.
    pub(super) fn asked(&self) -> u64 {
        // Pairs with `ask_target`.
        self.asked.load(Ordering::SeqCst)
    }

    /// The target is in the state: `asked` requests for it are served. With the transport in hand.
    pub(super) fn target_read(&self, asked: u64) {
        // Release pairs with `is_target_awaited`.
        self.read.store(asked, Ordering::Release);
    }

    /// Takes what is posted of `kinds`. With the transport in hand.
    pub(super) fn take(&self, kinds: TransportWork) -> TransportWork {
        // Pairs with `add`.
        let found = self.work.fetch_and(!kinds.bits(), Ordering::SeqCst);
        TransportWork::from_bits_truncate(found) & kinds
    }

    /// The holder of the transport begins to take work, or has done what it took.
    pub(super) fn set_at_work(&self, at_work: bool) {
        // Pairs with `is_unfinished`: before the work is taken, and after what follows from them is posted.
        self.at_work.store(at_work, Ordering::SeqCst);
    }

    /// Whether any work is posted, or is being done by somebody who may post more.
    pub(super) fn is_unfinished(&self) -> bool {
        // Pairs with `set_at_work`. What the first look misses was taken before it. Then either its taker is
        // seen at work, or what followed from it was posted before the second look.
        let any = || self.any(TransportWork::all());
        any() || self.at_work.load(Ordering::SeqCst) || any()
    }

    /// Whether anything of `kinds` is posted.
    pub(super) fn any(&self, kinds: TransportWork) -> bool {
        // Pairs with `add`.
        TransportWork::from_bits_truncate(self.work.load(Ordering::SeqCst)).intersects(kinds)
    }
}
