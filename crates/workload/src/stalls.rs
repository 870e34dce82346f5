//! How long requests were kept waiting, and which of them failed for no good reason.

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

/// Keeps the times of requests that were not served at once, and judges those that failed.
///
/// A request for one frame that leaves `min` may fail: the guest's memory is at its end. It must not fail because
/// compaction holds frames aside, the targets of its moves and what is free in the block that it empties: they are free
/// memory. So a failure counts as one that must not be if with these frames more than `min` would have been free, in blocks
/// that the request may use.
pub struct Stalls<'a, P: Platform> {
    mobility: &'a Mobility<'a, P>,
    fallback: Fallback,
    base: Times,
    huge: Times,
    // Relaxed: a sum for the report.
    min_failed: AtomicU64,
}

/// Times of one kind of requests.
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
    /// Nothing so far, of requests to the allocator below `mobility`, which does `fallback`.
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

    /// Whether `request`, which has just failed, would have been served if compaction held nothing. It is a look at counts
    /// that others change meanwhile.
    fn was_starved(&self, request: AllocRequest) -> bool {
        // Frames that compaction holds lie in movable blocks.
        let may_use = request.class == FrameClass::Movable || self.fallback == Fallback::Steal;
        if request.order != Order::BASE || request.watermark != Watermark::Min || !may_use {
            return false;
        }
        // Each isolated frame has a target, in use by nobody until it is moved there.
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
