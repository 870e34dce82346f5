//! Allocation under the fallback policy `evacuate`: where a request's own blocks are full, a movable block is emptied
//! for it.

use dirigible_frames::{AllocError, AllocRequest, CpuId, FrameClass, Order, Pfn, Platform};

use crate::Mobility;

/// Whether [`Mobility::alloc`] may empty a block for such a request: one below a huge page, of class Unmovable or
/// Reclaimable. Movable requests and balloons have nothing to gain from it, and for a huge page there is
/// [`compact_direct`](Mobility::compact_direct).
pub const fn evacuates(request: &AllocRequest) -> bool {
    matches!(
        request.class,
        FrameClass::Unmovable | FrameClass::Reclaimable
    ) && request.order.get() < Order::HUGE.get()
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Allocates as `FrameAllocator::alloc`; where the blocks of the request's type are full
    /// ([`AllocError::Fragmented`], under [`Fallback::Evacuate`](dirigible_frames::Fallback::Evacuate)), empties a
    /// movable block for it ([`evacuate_for`](Self::evacuate_for)) and tries again, for as long as that helps.
    ///
    /// Each attempt to empty a block takes one off `evacuations`; with 0 left, this is the allocator's call. Give 0
    /// where the allocator's fallback policy is [`Fallback::Steal`](dirigible_frames::Fallback::Steal). Requests for
    /// which [`evacuates`] does not hold are the allocator's call as well.
    ///
    /// # Errors
    ///
    /// The allocator's. After [`AllocError::Fragmented`] with `evacuations` left, a block could not be emptied, most
    /// likely for want of targets: after some reclaim, the same call may do better.
    pub fn alloc(
        &self,
        cpu: CpuId,
        request: AllocRequest,
        evacuations: &mut u32,
    ) -> Result<Pfn, AllocError> {
        self.frames
            .alloc(cpu, request)
            .or_else(|why| self.alloc_after(cpu, request, why, evacuations))
    }

    /// The same after an attempt that the allocator refused for `why`: for a slow path that begins where the fast one
    /// ended.
    ///
    /// # Errors
    ///
    /// As [`alloc`](Self::alloc): `why` itself, if emptying a block is no remedy.
    #[cold]
    pub fn alloc_after(
        &self,
        cpu: CpuId,
        request: AllocRequest,
        mut why: AllocError,
        evacuations: &mut u32,
    ) -> Result<Pfn, AllocError> {
        let mut cpu = cpu;
        while why == AllocError::Fragmented && evacuates(&request) {
            let Some(left) = evacuations.checked_sub(1) else {
                break;
            };
            *evacuations = left;
            if self.evacuate_for(cpu, request.class).is_err() {
                break;
            }
            // It may have waited, and the caller may be elsewhere now.
            cpu = self.platform.cpu();
            match self.frames.alloc(cpu, request) {
                Ok(frame) => return Ok(frame),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}
