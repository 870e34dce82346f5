//! Feature bits, queue numbers and the layout of the configuration space.
#![forbid(unsafe_code)]

use bitflags::bitflags;

bitflags! {
    /// Feature bits of a virtio balloon, and the one transport feature that matters to it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct Features: u64 {
        /// The host must be told of a deflation before the frames are used. We always do so.
        const MUST_TELL_HOST = 1 << 0;
        /// There is a statistics queue.
        const STATS_VQ = 1 << 1;
        /// The guest may deflate when it is out of memory, though the target has not changed.
        const DEFLATE_ON_OOM = 1 << 2;
        /// There is a queue for hints of free pages during migration of the guest.
        const FREE_PAGE_HINT = 1 << 3;
        /// The guest fills free pages with a value, and tells the host which.
        const PAGE_POISON = 1 << 4;
        /// There is a queue on which free pages are lent to the host.
        const PAGE_REPORTING = 1 << 5;
        /// The device speaks virtio 1; must be accepted when offered.
        const VERSION_1 = 1 << 32;
    }
}

impl Features {
    /// What this driver accepts when it is offered.
    ///
    /// `STATS_VQ` and `FREE_PAGE_HINT` are accepted always: devices number their queues without gaps, some over the
    /// features they offer and some over those negotiated, and only then do both ways give the same numbers.
    /// `PAGE_POISON` is refused because we do not poison, `PAGE_REPORTING` until reporting exists. `EVENT_IDX` and
    /// `INDIRECT_DESC` are not needed, `ACCESS_PLATFORM` makes no sense for a device that deals in physical frame
    /// numbers.
    pub fn accepted(deflate_on_oom: bool) -> Self {
        let always = Self::MUST_TELL_HOST | Self::STATS_VQ | Self::FREE_PAGE_HINT | Self::VERSION_1;
        if deflate_on_oom {
            always | Self::DEFLATE_ON_OOM
        } else {
            always
        }
    }
}

/// The queues of a balloon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Queue {
    /// Frame numbers that the guest gives to the host.
    Inflate,
    /// Frame numbers that the guest takes back.
    Deflate,
    /// Statistics, on the host's request.
    Stats,
    /// Hints of free pages.
    FreePageHint,
    /// Free pages lent to the host.
    Reporting,
}

/// How a device numbers its queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum QueueNumbering {
    /// Without gaps over the negotiated features: what QEMU, Firecracker, crosvm and Linux do.
    Dense,
    /// The numbers that the specification prints, 0 to 4: the fallback.
    Fixed,
}

impl Queue {
    /// All queues, in the order in which they are numbered.
    pub const ALL: [Self; 5] = [
        Self::Inflate,
        Self::Deflate,
        Self::Stats,
        Self::FreePageHint,
        Self::Reporting,
    ];

    /// The feature that brings the queue; nothing for the two that are always there.
    pub const fn feature(self) -> Features {
        match self {
            Self::Inflate | Self::Deflate => Features::empty(),
            Self::Stats => Features::STATS_VQ,
            Self::FreePageHint => Features::FREE_PAGE_HINT,
            Self::Reporting => Features::PAGE_REPORTING,
        }
    }

    /// The queue's number under `negotiated`, or `None` when its feature is not among them.
    pub fn number(self, negotiated: Features, numbering: QueueNumbering) -> Option<u16> {
        if !negotiated.contains(self.feature()) {
            return None;
        }
        let before = Self::ALL.iter().take_while(|&&queue| queue != self);
        Some(match numbering {
            QueueNumbering::Fixed => before.count() as u16,
            QueueNumbering::Dense => before
                .filter(|queue| negotiated.contains(queue.feature()))
                .count() as u16,
        })
    }
}

/// Offsets in the configuration space. All fields are 32 bits, little-endian, on legacy devices too.
pub mod config_space {
    /// The host's target in frames; read only.
    pub const NUM_PAGES: usize = 0;
    /// The balloon's size in frames, which the driver writes.
    pub const ACTUAL: usize = 4;
    /// Command id of free page hinting; exists with `FREE_PAGE_HINT` only, read only.
    pub const FREE_PAGE_HINT_CMD_ID: usize = 8;
    /// Poison value; exists with `PAGE_POISON` only.
    pub const POISON_VAL: usize = 12;

    /// The value of a field that was read as the machine's own 32-bit word.
    pub const fn decode(field: u32) -> u32 {
        u32::from_le(field)
    }

    /// The machine word to write so that the device sees `value`.
    pub const fn encode(value: u32) -> u32 {
        value.to_le()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of stats, hint and reporting there are, and the dense number of each.
    type Row = ((bool, bool, bool), [Option<u16>; 3]);

    /// Written out by hand, not computed.
    const DENSE: [Row; 8] = [
        ((false, false, false), [None, None, None]),
        ((true, false, false), [Some(2), None, None]),
        ((false, true, false), [None, Some(2), None]),
        ((false, false, true), [None, None, Some(2)]),
        ((true, true, false), [Some(2), Some(3), None]),
        ((true, false, true), [Some(2), None, Some(3)]),
        ((false, true, true), [None, Some(2), Some(3)]),
        ((true, true, true), [Some(2), Some(3), Some(4)]),
    ];

    #[test]
    fn pitfall_33_queue_numbers() {
        let late = [Queue::Stats, Queue::FreePageHint, Queue::Reporting];
        // Bits 0 to 5: all 64 subsets, each against the row of the table that its three queue features choose.
        for bits in 0..64_u64 {
            let negotiated = Features::from_bits_truncate(bits) | Features::VERSION_1;
            let key = (bits & 2 != 0, bits & 8 != 0, bits & 32 != 0);
            let (_, dense) = DENSE.iter().find(|(row, _)| *row == key).unwrap();
            for numbering in [QueueNumbering::Dense, QueueNumbering::Fixed] {
                assert_eq!(Queue::Inflate.number(negotiated, numbering), Some(0));
                assert_eq!(Queue::Deflate.number(negotiated, numbering), Some(1));
            }
            for (at, queue) in late.into_iter().enumerate() {
                assert_eq!(
                    queue.number(negotiated, QueueNumbering::Dense),
                    dense[at],
                    "{bits:#b}"
                );
                let fixed = dense[at].map(|_| at as u16 + 2);
                assert_eq!(
                    queue.number(negotiated, QueueNumbering::Fixed),
                    fixed,
                    "{bits:#b}"
                );
            }
        }
    }

    /// With the features that we accept, both ways of dense numbering agree.
    #[test]
    fn dense_over_offered_is_dense_over_negotiated() {
        for bits in 0..64_u64 {
            let offered = Features::from_bits_truncate(bits) | Features::VERSION_1;
            let negotiated = offered & Features::accepted(true);
            for queue in Queue::ALL {
                if let Some(number) = queue.number(negotiated, QueueNumbering::Dense) {
                    assert_eq!(queue.number(offered, QueueNumbering::Dense), Some(number));
                }
            }
        }
    }

    #[test]
    fn pitfall_32_config_is_little_endian() {
        assert_eq!(
            config_space::encode(0x0102_0304).to_ne_bytes(),
            [4, 3, 2, 1]
        );
        assert_eq!(
            config_space::decode(u32::from_ne_bytes([4, 3, 2, 1])),
            0x0102_0304
        );
    }
}
