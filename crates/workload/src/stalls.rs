//! How long requests stalled, and which of them failed although memory was free.

use core::sync::atomic::{AtomicU64, Ordering};

use dirigible_frames::{
    AllocRequest, BlockState, Fallback, FrameClass, Order, Platform, Watermark,
};
use dirigible_mobility::Mobility;
use dirigible_paging::StallObserver;

use crate::{
    histogram::Histogram,
    report::{StallFigures, StallReport},
};

/// Records how long requests stalled that were not served at once, and classifies those that failed.
///
/// A request for one frame with the watermark `min` may fail if the guest has no memory left. It must not fail because
/// compaction has set frames aside: the targets of its moves and the free frames of the block that it empties. Such
/// frames are free memory. So a failure is counted in `min_failed` if, with these frames, more than `min` would have
/// been free in blocks that the request may use.
pub struct Stalls<'a, P: Platform> {
    mobility: &'a Mobility<'a, P>,
    fallback: Fallback,
    base: Times,
    huge: Times,
    // Relaxed: a sum for the report.
    min_failed: AtomicU64,
}

/// Times of one kind of request.
#[derive(Default)]
struct Times {
    all: Histogram,
    // Relaxed: a sum for the report.
    failed: AtomicU64,
}

impl Times {
    fn figures(&self) -> StallFigures {
        StallFigures {
            count: self.all.count(),
            failed: self.failed.load(Ordering::Relaxed),
            p999_ns: self.all.quantile(999),
            max_ns: self.all.longest(),
        }
    }
}

impl<'a, P: Platform> Stalls<'a, P> {
    /// No stalls yet. They will be those of requests to the allocator of `mobility`, whose fallback is `fallback`.
    pub fn new(mobility: &'a Mobility<'a, P>, fallback: Fallback) -> Self {
        Self {
            mobility,
            fallback,
            base: Times::default(),
            huge: Times::default(),
            min_failed: AtomicU64::new(0),
        }
    }

    /// All figures.
    pub fn report(&self) -> StallReport {
        StallReport {
            base: self.base.figures(),
            huge: self.huge.figures(),
            min_failed: self.min_failed.load(Ordering::Relaxed),
        }
    }

    /// Whether `request`, which has just failed, would have been served if compaction had set nothing aside. An
    /// estimate: other CPUs change the counts meanwhile.
    fn was_starved(&self, request: AllocRequest) -> bool {
        // The frames that compaction has set aside lie in movable blocks.
        let may_use = request.class == FrameClass::Movable || self.fallback == Fallback::Steal;
        if request.order != Order::BASE || request.watermark != Watermark::Min || !may_use {
            return false;
        }
        // Each isolated frame has a target, which is unused until the frame is moved.
        let targets = self.mobility.isolated_frames();
        let frames = self.mobility.frames();
        frames.zones().any(|zone| {
            let isolated = frames
                .blocks()
                .filter(|&block| frames.zone_of_block(block) == zone)
                .map(|block| frames.ledger(block))
                .filter(|ledger| ledger.state() == BlockState::Isolated);
            let aside = targets + isolated.map(|ledger| u64::from(ledger.free())).sum::<u64>();
            let free = frames.zone_free_frames(zone);
            aside > 0 && free + aside > frames.watermarks(zone).min
        })
    }
}

impl<P: Platform> StallObserver for Stalls<'_, P> {
    fn stalled(&self, request: AllocRequest, ns: u64, served: bool) {
        let times = match request.order {
            Order::HUGE => &self.huge,
            _ => &self.base,
        };
        times.all.add(ns);
        if served {
            return;
        }
        times.failed.fetch_add(1, Ordering::Relaxed);
        if self.was_starved(request) {
            self.min_failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
