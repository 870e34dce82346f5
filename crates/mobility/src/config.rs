//! The constants of compaction, all in one place.

/// Frames that one evacuation can hold in its workspace: a full pageblock, or more blocks that are partly used.
pub const WORKSPACE_FRAMES: usize = 512;
/// Most blocks that one evacuation takes on together.
pub const MAX_BATCH_BLOCKS: usize = 8;
/// Most blocks of a contiguous range that may be partly used; wholly free ones come on top. 1 GiB.
pub const MAX_RANGE_USED: usize = 512;
/// Most candidates that one look at the index gives.
pub const MAX_LOOK: usize = 64;

/// How compaction chooses, how long it tries and when it gives up.
///
/// Values out of range are brought into range by [`Mobility::new`](crate::Mobility::new).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompactionConfig {
    /// Direct compaction and `evacuate_for`: how many blocks they try to empty before they give up.
    /// `alloc_contiguous`: how many windows it begins to empty. Default 8.
    pub budget_blocks: usize,
    /// How many candidates one call looks at in each zone (`alloc_contiguous`: windows), 1 to [`MAX_LOOK`].
    /// Default 32.
    pub look: usize,
    /// After n failures in a row the next 2^n - 1 requests are deferred, with n at most this. Default 6, at most 16.
    pub defer_max_shift: u8,
    /// A deferral is dropped when this many more frames are free than at the failure. Default 512.
    pub defer_free_growth: u64,
    /// A deferral is dropped when a candidate without a remembered refusal has this many fewer used frames than the
    /// best one that the failure left. Default 64.
    pub defer_cheaper_by: u32,
    /// Background compaction begins below this many wholly free blocks. 0 (default): the reserve is off, and it runs
    /// only while a zone is above its high watermark and has no wholly free block, as Linux's does when reclaim is
    /// done.
    pub reserve_low: u64,
    /// Background compaction, once begun, goes on until this many blocks are wholly free. Default 0.
    pub reserve_high: u64,
    /// Background compaction leaves blocks alone that have more used frames than this. Default 512: none.
    pub background_max_used: u16,
    /// Blocks that background compaction empties together, so that their balloon frames share an exchange with the
    /// host. 1 to [`MAX_BATCH_BLOCKS`]. Default 4.
    pub blocks_per_batch: usize,
    /// Most balloon frames that are handed to their owner in one call, and so travel in one exchange. 1 to
    /// [`WORKSPACE_FRAMES`]. Default 256, what one virtio-balloon message holds.
    pub exchange_batch: usize,
    /// How long one call waits for pending pairs in all, in nanoseconds. Default 50 ms.
    pub pending_timeout_ns: u64,
    /// How many times in a row it asks in vain while it waits: the bound for clocks that stand still while nothing
    /// is charged. Default 65,536.
    pub idle_polls: u32,
    /// How many times a caller lets others run while it waits for a workspace or for a zone. Default 1,024.
    pub lock_relaxes: u32,
    /// Whether compaction for a request or for the reserve drops frames that reclaim would take next, instead of moving
    /// them ([`MovableOwner::plan`](crate::MovableOwner::plan)): no more than are missing to the high watermark, a
    /// request's huge page counted in, and for a request as many as it lacks targets. Wants a
    /// [`Config::cost`](dirigible_frames::Config::cost) that knows which frames are so. Default false: all move.
    pub drops_cold: bool,
    /// How long a block is left alone in which a frame was under way, in nanoseconds. Doubled each time in a row, up to
    /// `refusal_memory_ns`. Default 1 ms.
    pub retry_ns: u64,
    /// How long a block is left alone of which an owner refused a frame, in nanoseconds. A refusal ends when that
    /// frame is freed, unpinned or counted in another class, and after this long, since not everything that ends one
    /// shows in the block; up to eight times as long if it comes again. Default 1 s.
    pub refusal_memory_ns: u64,
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self {
            budget_blocks: 8,
            look: 32,
            defer_max_shift: 6,
            defer_free_growth: 512,
            defer_cheaper_by: 64,
            reserve_low: 0,
            reserve_high: 0,
            background_max_used: 512,
            blocks_per_batch: 4,
            exchange_batch: 256,
            pending_timeout_ns: 50_000_000,
            idle_polls: 65_536,
            lock_relaxes: 1_024,
            drops_cold: false,
            retry_ns: 1_000_000,
            refusal_memory_ns: 1_000_000_000,
        }
    }
}

impl CompactionConfig {
    /// The same with every value in range.
    pub(crate) fn in_range(self) -> Self {
        Self {
            budget_blocks: self.budget_blocks.max(1),
            look: self.look.clamp(1, MAX_LOOK),
            defer_max_shift: self.defer_max_shift.min(16),
            reserve_high: self.reserve_high.max(self.reserve_low),
            blocks_per_batch: self.blocks_per_batch.clamp(1, MAX_BATCH_BLOCKS),
            exchange_batch: self.exchange_batch.clamp(1, WORKSPACE_FRAMES),
            idle_polls: self.idle_polls.max(1),
            ..self
        }
    }
}
