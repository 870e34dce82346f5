//! Ranges of frames in a row, of any length: what Linux's `alloc_contig_range` and `alloc_contig_pages` give.
//!
//! What happens to one stretch of blocks is in `range.rs`, the choice of one in `window.rs`.

use arrayvec::ArrayVec;
use dirigible_frames::{
    BlockId, CpuId, FRAMES_PER_BLOCK, FrameClass, IsolateError, Order, Pfn, Platform, Watermark,
    ZoneId,
};

use crate::config::MAX_LOOK;
use crate::place::Lease;
use crate::range::{Obstacle, Range};
use crate::{EvacuateError, Mobility};

/// A request for frames in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContiguousRequest {
    /// How many frames, from 1 to what a zone has.
    pub frames: usize,
    /// The first frame's number is a multiple of 2^align.
    pub align: Order,
    /// What for: the class of all frames of the range.
    pub class: FrameClass,
    /// What the blocks of the range and the targets of what is in them leave in their zones.
    pub watermark: Watermark,
}

impl ContiguousRequest {
    /// `frames` frames of `class`, wherever they are, leaving `min`.
    pub const fn new(frames: usize, class: FrameClass) -> Self {
        Self {
            frames,
            align: Order::BASE,
            class,
            watermark: Watermark::Min,
        }
    }

    /// `frames` frames for a device, a stack or whatever else never moves.
    pub const fn unmovable(frames: usize) -> Self {
        Self::new(frames, FrameClass::Unmovable)
    }

    /// The same, with a first frame that is a multiple of 2^`align`.
    pub const fn aligned(mut self, align: Order) -> Self {
        self.align = align;
        self
    }

    /// The same, leaving `watermark`.
    pub const fn with_watermark(mut self, watermark: Watermark) -> Self {
        self.watermark = watermark;
        self
    }
}

/// Why there is no range. All blocks are open again, and no frame is lost; frames that had moved by then stay where
/// they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContiguousError {
    /// The request is for no frame at all.
    #[error("a range has at least one frame")]
    Empty,
    /// No zone has so many frames in a row, whoever uses them; or the named place is not memory of one zone, or
    /// shares a block with a hole or a reserved frame. The same request fails again. Memory that was added later and
    /// not right behind its zone's last is in no row with what was there.
    #[error("no zone has so many frames in a row, or not at this place")]
    NoMemory,
    /// In each window there is a frame that cannot move, a huge allocation, a block that somebody else is emptying, or
    /// more partly used blocks than [`MAX_RANGE_USED`](crate::MAX_RANGE_USED).
    #[error("no stretch of blocks can be emptied")]
    NoWindow,
    /// Too little is free to set the blocks of the range aside, and the targets of what is in them: reclaim first.
    #[error("the blocks of the range are needed above the watermark; reclaim some")]
    BelowWatermark,
    /// What stood in the way in the window that was tried last.
    #[error(transparent)]
    Evacuate(#[from] EvacuateError),
}

impl ContiguousError {
    /// Of several zones' errors the one with the largest weight is reported.
    const fn weight(self) -> u8 {
        match self {
            Self::Empty | Self::NoMemory => 0,
            Self::NoWindow => 1,
            _ => 2,
        }
    }
}

impl Obstacle {
    fn reported(&self) -> ContiguousError {
        match self.error {
            EvacuateError::Isolate(IsolateError::BelowWatermark) => ContiguousError::BelowWatermark,
            error => ContiguousError::Evacuate(error),
        }
    }

    /// Whether another window would meet it too: the host is slow, or all places are taken.
    const fn ends_the_call(&self) -> bool {
        matches!(self.error, EvacuateError::TimedOut | EvacuateError::Busy)
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Finds `request.frames` frames in a row whose blocks can be emptied, empties them, and gives the first frame.
    /// All are single frames (order 0) in state *Allocated* without an owner, of class `request.class`, and the
    /// caller's: they may be freed one by one and in any order.
    ///
    /// Windows of blocks are tried in each zone from the cheapest to the dearest, the lowest among equals. A wholly
    /// free block costs nothing, so a free stretch is taken without moving anything; a moved frame costs 1, a balloon
    /// frame an eighth; windows with a block that was refused lately come last. A window is passed over if a block of
    /// it has a frame that cannot move (reserved and pinned ones too), or is a huge page. A range always begins at
    /// the first frame of a block, and of its last block what is left over is freed; so a request for a few frames
    /// needs a whole block as well.
    ///
    /// What is set aside meanwhile is [`FRAMES_PER_BLOCK`] frames for each block of the window: its own free frames
    /// and the targets of the others. It leaves `request.watermark`. Targets come from partly used blocks outside of
    /// the window, and where these are full from wholly free ones.
    ///
    /// It tries [`budget_blocks`](crate::CompactionConfig::budget_blocks) windows and looks at
    /// [`look`](crate::CompactionConfig::look) in each zone. Owners are asked to isolate and to migrate, and are
    /// polled, as by [`evacuate`](Self::evacuate): `migrate` and `poll` with no lock held. The call waits, with
    /// bounds, for a workspace and the zone's lock, and for the host up to
    /// [`pending_timeout_ns`](crate::CompactionConfig::pending_timeout_ns) for each batch of up to
    /// [`WORKSPACE_FRAMES`](crate::WORKSPACE_FRAMES) frames; when that time is over once, no other window is begun. A
    /// call from inside compaction on the same CPU does not wait ([`EvacuateError::Busy`]). All CPUs' caches are
    /// emptied at the beginning.
    ///
    /// # Errors
    ///
    /// See [`ContiguousError`]: where several windows were tried, the reason of the last one.
    ///
    /// # Panics
    ///
    /// If the allocator was not made for `cpu`.
    pub fn alloc_contiguous(
        &self,
        cpu: CpuId,
        request: ContiguousRequest,
    ) -> Result<Pfn, ContiguousError> {
        if request.frames == 0 {
            return Err(ContiguousError::Empty);
        }
        let blocks = request.frames.div_ceil(FRAMES_PER_BLOCK);
        let fits = |zone: &ZoneId| self.has_place(*zone, blocks, request.align);
        if !self.zone_ids().any(|zone| fits(&zone)) {
            return Err(ContiguousError::NoMemory);
        }
        let mut lease = self.lease(cpu).ok_or(EvacuateError::Busy)?;
        if !self.can_set_aside(blocks, request.watermark) {
            return Err(ContiguousError::BelowWatermark);
        }
        let mut budget = self.config.budget_blocks;
        let mut last = ContiguousError::NoMemory;
        for zone in self.zone_ids().filter(fits) {
            match self.range_in_zone(cpu, zone, request, &mut budget, &mut lease) {
                Ok(first) => return Ok(first),
                Err((error, ends)) => {
                    if error.weight() >= last.weight() {
                        last = error;
                    }
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Takes the `frames` frames from `first` on, and whatever else uses their blocks moves elsewhere. They come as
    /// by [`alloc_contiguous`](Self::alloc_contiguous), which also describes what is set aside, what may wait and
    /// which owners are called.
    ///
    /// The blocks of the range must be movable to the last frame, also outside of the range; what they have beside it
    /// is freed, and they serve requests of `class` from then on. That a block was refused lately does not matter.
    ///
    /// # Errors
    ///
    /// [`ContiguousError::NoMemory`] where this is not memory of one zone or shares a block with reserved frames, else
    /// [`ContiguousError::BelowWatermark`] or the reason why a block was not emptied.
    ///
    /// # Panics
    ///
    /// If the allocator was not made for `cpu`.
    pub fn alloc_at(
        &self,
        cpu: CpuId,
        first: Pfn,
        frames: usize,
        class: FrameClass,
        watermark: Watermark,
    ) -> Result<(), ContiguousError> {
        if frames == 0 {
            return Err(ContiguousError::Empty);
        }
        let window = self
            .window_at(first, frames)
            .ok_or(ContiguousError::NoMemory)?;
        let mut lease = self.lease(cpu).ok_or(EvacuateError::Busy)?;
        if !self.can_set_aside(window.blocks, watermark) {
            return Err(ContiguousError::BelowWatermark);
        }
        let mut range = Range::new(cpu, class, watermark, window);
        let zone = self.frames.zone_of_block(window.first);
        let isolated = match self.zone_state(zone) {
            Some(_state) => self.isolate_window(&mut range, &mut lease),
            None => Err(Obstacle {
                block: window.first,
                error: EvacuateError::Busy,
            }),
        };
        isolated
            .and_then(|()| self.empty_window(&mut range, &mut lease))
            .map_err(|obstacle| {
                self.put_window_back(&range, &mut lease);
                obstacle.reported()
            })?;
        self.carve(&range, first, frames);
        Ok(())
    }

    /// Whether all zones together can lose so many blocks and stay at `watermark`. All CPU caches are emptied before:
    /// what lies in them is free memory, and with it blocks look used, or as if they held what cannot move.
    fn can_set_aside(&self, blocks: usize, watermark: Watermark) -> bool {
        let wanted = (blocks as u64).saturating_mul(FRAMES_PER_BLOCK as u64);
        // Not for a request that cannot be served either way.
        if self
            .spare(watermark)
            .saturating_add(self.frames.cached_frames())
            < wanted
        {
            return false;
        }
        self.frames.drain_cpu_caches();
        self.spare(watermark) >= wanted
    }

    /// Tries the windows of one zone. An error comes with whether it concerns the other zones too.
    fn range_in_zone(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        request: ContiguousRequest,
        budget: &mut usize,
        lease: &mut Lease<'_>,
    ) -> Result<Pfn, (ContiguousError, bool)> {
        let blocks = request.frames.div_ceil(FRAMES_PER_BLOCK);
        // Blocks that stood in the way of the windows before, sorted.
        let mut avoid = ArrayVec::<BlockId, MAX_LOOK>::new();
        let mut last = ContiguousError::NoWindow;
        for _ in 0..self.config.look {
            if *budget == 0 {
                break;
            }
            // Chosen and isolated under one lock, so that two CPUs do not take each other's.
            let (mut range, isolated) = {
                let Some(mut state) = self.zone_state(zone) else {
                    return Err((EvacuateError::Busy.into(), true));
                };
                self.forgive(zone, &mut state);
                let Some(window) = self.cheapest_window(zone, blocks, request.align, &avoid) else {
                    break;
                };
                let mut range = Range::new(cpu, request.class, request.watermark, window);
                let isolated = self.isolate_window(&mut range, lease);
                (range, isolated)
            };
            // A window in which the first look finds an obstacle costs a look and no more.
            *budget -= usize::from(range.taken > 0);
            let emptied = isolated.and_then(|()| self.empty_window(&mut range, lease));
            let Err(obstacle) = emptied else {
                let first = self.frames.block_start(range.window.first);
                self.carve(&range, first, request.frames);
                return Ok(first);
            };
            self.put_window_back(&range, lease);
            last = obstacle.reported();
            if obstacle.ends_the_call() {
                return Err((last, true));
            }
            if obstacle.error.wants_room() {
                // All windows need the same room.
                break;
            }
            match avoid.binary_search(&obstacle.block) {
                Err(at) if !avoid.is_full() => avoid.insert(at, obstacle.block),
                _ => break,
            }
        }
        Err((last, false))
    }
}
