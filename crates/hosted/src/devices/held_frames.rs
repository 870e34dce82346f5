//! The host's books about a balloon: which frames it holds, and what the driver did wrong.

use dirigible_frames::Pfn;

/// Violations of the protocol by the driver. None of them harms the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolErrors {
    /// Frames inflated while the host held them.
    pub already_held: u64,
    /// Frames deflated while the host did not hold them.
    pub not_held: u64,
    /// Frames that are not managed memory: holes, reserved, beyond the end.
    pub out_of_range: u64,
    /// Requests of the wrong form: device-writable buffers, a length that is not a multiple of 4, buffers outside
    /// memory, more frame numbers than there are frames.
    pub malformed: u64,
    /// Invalid rings; the device then needs a reset.
    pub rings: u64,
    /// Writes to configuration fields that are the device's.
    pub config_writes: u64,
    /// Frames that were touched while the host held them (counted with
    /// [`BalloonOptions::audit`](crate::BalloonOptions::audit) only).
    pub touched: u64,
}

impl ProtocolErrors {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.already_held
            + self.not_held
            + self.out_of_range
            + self.malformed
            + self.rings
            + self.config_writes
            + self.touched
    }
}

/// One bit a frame: set while the host holds it.
#[derive(Debug)]
pub(crate) struct HeldFrames {
    bits: Vec<u64>,
    count: u64,
}

impl HeldFrames {
    /// Room for the frames below `end`; none is held.
    pub(crate) fn new(end: Pfn) -> Self {
        Self {
            bits: vec![0; end.get().div_ceil(64) as usize],
            count: 0,
        }
    }

    /// The host takes the frame; `false` if it held it. The frame is below the end.
    pub(crate) fn take(&mut self, frame: Pfn) -> bool {
        let (word, bit) = place(frame);
        let taken = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        self.count += u64::from(taken);
        taken
    }

    /// The host gives the frame back; `false` if it did not hold it.
    pub(crate) fn give_back(&mut self, frame: Pfn) -> bool {
        let (word, bit) = place(frame);
        let Some(found) = self.bits.get_mut(word) else {
            return false;
        };
        let held = *found & bit != 0;
        *found &= !bit;
        self.count -= u64::from(held);
        held
    }

    /// Whether the host holds the frame.
    pub(crate) fn holds(&self, frame: Pfn) -> bool {
        let (word, bit) = place(frame);
        self.bits.get(word).is_some_and(|found| found & bit != 0)
    }

    /// Frames held.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The driver is gone: nothing is held.
    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
        self.count = 0;
    }
}

/// Word and bit of a frame.
fn place(frame: Pfn) -> (usize, u64) {
    (
        usize::try_from(frame.get() / 64).unwrap_or(usize::MAX),
        1 << (frame.get() % 64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_is_held_once() {
        let mut held = HeldFrames::new(Pfn::new(130));
        assert!(held.take(Pfn::new(129)));
        assert!(!held.take(Pfn::new(129)));
        assert!(held.holds(Pfn::new(129)) && !held.holds(Pfn::new(128)));
        assert_eq!(held.count(), 1);
        assert!(held.give_back(Pfn::new(129)));
        assert!(!held.give_back(Pfn::new(129)));
        assert!(!held.give_back(Pfn::new(1 << 40)));
        assert_eq!(held.count(), 0);
    }
}
