//! Targets: the frames that a block's contents move to.

use dirigible_frames::{
    AllocRequest, CpuId, FRAMES_PER_BLOCK, Pfn, Platform, Watermark, Watermarks, ZoneId,
};

use crate::evacuate::Attempt;
use crate::{EvacuateError, Mobility, MovePair};

/// Targets that are reserved at once, on the stack.
const TARGETS: usize = 64;

/// What a zone with `marks` leaves at `watermark`, in frames.
const fn level(marks: Watermarks, watermark: Watermark) -> u64 {
    match watermark {
        Watermark::None => 0,
        Watermark::Min => marks.min,
        Watermark::Low => marks.low,
        Watermark::High => marks.high,
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Free frames of a zone above `watermark`.
    #[inline(never)]
    pub(crate) fn zone_spare(&self, zone: ZoneId, watermark: Watermark) -> u64 {
        let mark = level(self.frames.watermarks(zone), watermark);
        self.frames.zone_free_frames(zone).saturating_sub(mark)
    }

    /// The same of all zones together.
    pub(crate) fn spare(&self, watermark: Watermark) -> u64 {
        self.zone_ids()
            .map(|zone| self.zone_spare(zone, watermark))
            .sum()
    }

    /// Why `used` frames of isolated blocks would not find targets, if wholly free blocks may serve.
    pub(crate) fn lacks_targets(&self, used: usize, watermark: Watermark) -> Option<EvacuateError> {
        if (self.spare(watermark) as usize) < used {
            return Some(EvacuateError::Isolate(
                dirigible_frames::IsolateError::BelowWatermark,
            ));
        }
        let whole: u64 = self
            .zone_ids()
            .map(|zone| {
                let kept = u64::from(self.frames.reserve_blocks(zone));
                self.frames.zone_free_blocks(zone).saturating_sub(kept)
            })
            .sum();
        let in_whole = (whole as usize).saturating_mul(FRAMES_PER_BLOCK);
        let missing = used.saturating_sub(in_whole);
        (self.frames.target_frames(missing) < missing).then_some(EvacuateError::NoTargets)
    }

    /// Gives the pairs of an attempt their targets, outside its block; gives how many got one.
    pub(crate) fn reserve_targets(
        &self,
        cpu: CpuId,
        attempt: &Attempt,
        pairs: &mut [MovePair],
        watermark: Watermark,
    ) -> usize {
        let mut reserved = 0;
        for piece in pairs.chunks_mut(TARGETS) {
            let mut targets = [Pfn::new(0); TARGETS];
            let targets = &mut targets[..piece.len()];
            let mut got = self.frames.take_targets(attempt.block, watermark, targets);
            if got < targets.len() && attempt.breaks_whole {
                // The first of these breaks a wholly free block; `take_targets` finds room in it for the next piece.
                let request = AllocRequest {
                    fall_back: false,
                    ..AllocRequest::movable().with_watermark(watermark)
                };
                got += self.frames.alloc_bulk(cpu, request, &mut targets[got..]);
            }
            for (pair, target) in piece.iter_mut().zip(&targets[..got]) {
                pair.to = *target;
            }
            reserved += got;
            if got < piece.len() {
                break;
            }
        }
        reserved
    }
}
