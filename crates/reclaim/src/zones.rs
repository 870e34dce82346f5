//! A set of zones.

use dirigible_frames::ZoneId;

/// Which zones: a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Zones(u64);

impl Zones {
    /// Whatever zones there are.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether `zone` is one of them.
    pub fn has(self, zone: ZoneId) -> bool {
        self.0 & Self::bit(zone) != 0
    }

    /// Whether it is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and those.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without those.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// An allocator has fewer zones than there are bits.
    fn bit(zone: ZoneId) -> u64 {
        1u64.checked_shl(zone.index() as u32).unwrap_or(0)
    }
}

impl FromIterator<ZoneId> for Zones {
    fn from_iter<I: IntoIterator<Item = ZoneId>>(zones: I) -> Self {
        Self(
            zones
                .into_iter()
                .fold(0, |bits, zone| bits | Self::bit(zone)),
        )
    }
}
