//! Requests, and why they are refused.

use crate::{FrameClass, Order, Pfn};

/// How many free frames a request must leave in a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Watermark {
    /// None.
    None,
    /// Leaves `min`.
    #[default]
    Min,
    /// Leaves `low`.
    Low,
    /// Leaves `high`.
    High,
}

/// A request for 2^order frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocRequest {
    /// How many.
    pub order: Order,
    /// What for.
    pub class: FrameClass,
    /// What it must leave. Tested when frames leave their blocks; frames from a CPU's cache were tested before.
    pub watermark: Watermark,
    /// Whether a movable request may take blocks of the whole-block reserve.
    pub break_reserve: bool,
    /// Whether it may take from blocks of other types (under [`Fallback::Steal`](crate::Fallback::Steal)).
    pub fall_back: bool,
    /// Whether it may take from blocks of other types though the policy is [`Fallback::Evacuate`](crate::Fallback::Evacuate):
    /// the last means, since it leaves hybrid blocks.
    pub any_block: bool,
}

impl AllocRequest {
    /// An ordinary request: leaves `min`, spares the reserve, may fall back.
    pub const fn new(order: Order, class: FrameClass) -> Self {
        Self {
            order,
            class,
            watermark: Watermark::Min,
            break_reserve: false,
            fall_back: true,
            any_block: false,
        }
    }

    /// One movable frame.
    pub const fn movable() -> Self {
        Self::new(Order::BASE, FrameClass::Movable)
    }

    /// One unmovable frame.
    pub const fn unmovable() -> Self {
        Self::new(Order::BASE, FrameClass::Unmovable)
    }

    /// One reclaimable frame.
    pub const fn reclaimable() -> Self {
        Self::new(Order::BASE, FrameClass::Reclaimable)
    }

    /// A movable huge page.
    pub const fn huge() -> Self {
        Self::new(Order::HUGE, FrameClass::Movable)
    }

    /// Whether it leaves the whole-block reserve alone.
    pub(crate) const fn spares_reserve(&self) -> bool {
        self.class.is_movable() && !self.break_reserve
    }

    /// The same, leaving `watermark`.
    pub const fn with_watermark(mut self, watermark: Watermark) -> Self {
        self.watermark = watermark;
        self
    }

    /// The same, allowed to take from blocks of other types whatever the policy.
    pub const fn from_any_block(mut self) -> Self {
        self.any_block = true;
        self
    }

    /// The same, allowed to take blocks of the whole-block reserve.
    pub const fn breaking_reserve(mut self) -> Self {
        self.break_reserve = true;
        self
    }
}

/// Why there is no frame. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocError {
    /// Free memory would fall below the watermark: reclaim first.
    #[error("free memory is at the watermark; reclaim some")]
    BelowWatermark,
    /// Frames are free, but in no block that this request may use: compact, evacuate or reclaim. A search looks a bounded
    /// number of times, so a request may be told so as well while another CPU is stopped in the middle of moving the
    /// block in the index.
    #[error("free memory is in no block that this request may use; compact or reclaim")]
    Fragmented,
}

/// Why a frame was not freed: always an error of the caller. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// The allocator has no such frame.
    #[error("frame {0} is outside this allocator's memory")]
    Unknown(Pfn),
    /// The frame is not in state *Allocated*: freed twice, reserved, on an owner's books, or inside a larger
    /// allocation.
    #[error("frame {0} is not owned by the caller, or was freed before")]
    NotAllocated(Pfn),
    /// The frame was allocated with another order.
    #[error("frame {0} was allocated with another order")]
    WrongOrder(Pfn),
    /// The frame is pinned and may still be in use. Remove the mark first.
    #[error("frame {0} is pinned; unpin it before it is freed")]
    Pinned(Pfn),
    /// The frame has references and may still be in use. Drop them first.
    #[error("frame {0} has references; drop them before it is freed")]
    Referenced(Pfn),
}
