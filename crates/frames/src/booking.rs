//! What all requests do alike: try the zones in order, book frames at a zone's sums, look for them, and return what was
//! not taken.

use crate::{AllocError, FrameAllocator, ZoneId, cpu::CpuGuard, sums::Booking};

impl FrameAllocator<'_> {
    /// The zones in the order in which requests try them.
    pub(crate) fn zone_order(&self) -> impl Iterator<Item = ZoneId> + use<> {
        (0..self.zone_count as u8).rev().map(ZoneId::new)
    }

    /// The zone that requests try first.
    #[inline]
    pub(crate) fn first_choice(&self) -> ZoneId {
        ZoneId::new(self.zone_count as u8 - 1)
    }

    /// Makes an attempt in one zone after another until one succeeds.
    ///
    /// # Errors
    ///
    /// *Fragmented* if one of the zones had enough frames above the watermark.
    #[inline]
    pub(crate) fn try_zones<T>(
        &self,
        mut attempt: impl FnMut(ZoneId) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        let mut error = AllocError::BelowWatermark;
        for zone in self.zone_order() {
            match attempt(zone) {
                Ok(done) => return Ok(done),
                Err(AllocError::BelowWatermark) => {}
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    /// Books frames, lets `take` take up to as many (it gives how many), and returns the rest. Gives how many were
    /// taken.
    ///
    /// # Errors
    ///
    /// *`BelowWatermark`* if nothing could be booked, *Fragmented* if nothing was taken.
    #[inline]
    pub(crate) fn take_booked(
        &self,
        zone: ZoneId,
        guard: Option<&CpuGuard<'_>>,
        booking: Booking,
        take: impl FnOnce(usize) -> usize,
    ) -> Result<usize, AllocError> {
        let booked = self.book(zone, guard, booking);
        if booked == 0 {
            return Err(AllocError::BelowWatermark);
        }
        let taken = take(booked);
        if taken < booked {
            self.pay_in(zone, guard, (booked - taken) as i64);
        }
        if taken == 0 {
            return Err(AllocError::Fragmented);
        }
        Ok(taken)
    }

    /// The same by `look`, a search of the zone's index, which is repeated while blocks move in it.
    pub(crate) fn search_booked(
        &self,
        zone: ZoneId,
        guard: Option<&CpuGuard<'_>>,
        booking: Booking,
        look: &mut dyn FnMut(usize) -> usize,
    ) -> Result<usize, AllocError> {
        self.take_booked(zone, guard, booking, |booked| {
            let mut taken = 0;
            self.look_until_still(zone, &mut || {
                taken = look(booked);
                taken > 0
            });
            taken
        })
    }
}
