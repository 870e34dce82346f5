//! Which part of the old frames of each kind is taken.

use dirigible_frames::sync::{AtomicU32, Ordering};

use crate::Kind;

/// All of them: shares are parts of this.
const ONE: u32 = 1 << 16;
/// The weight of both kinds together.
const WEIGHTS: u64 = 200;
/// Costs are capped, so that no product of them wraps.
const COST_MAX: u64 = 1 << 48;

/// For each kind, how many of the frames that could be taken are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shares([u32; Kind::COUNT]);

impl Shares {
    /// Takes what it meets.
    pub const ALL: Self = Self([ONE; Kind::COUNT]);

    /// The shares when reclaiming has cost `costs` of late. A kind's weight (`swappiness` of 200 for programs' pages) is
    /// divided by its cost; each cost has that of both added, so that one kind never weighs less than half of what its
    /// weight says against the other. As Linux has it (`get_scan_count`). The larger share is all.
    pub fn new(costs: [u64; Kind::COUNT], swappiness: u8) -> Self {
        let swappiness = u64::from(swappiness).min(WEIGHTS);
        let costs = costs.map(|cost| cost.min(COST_MAX));
        let sum = costs.iter().sum::<u64>();
        let costs = costs.map(|cost| sum + cost);
        let sum = costs.iter().sum::<u64>() + 1;
        let mut parts = [0; Kind::COUNT];
        parts[Kind::Anonymous as usize] = swappiness;
        parts[Kind::File as usize] = WEIGHTS - swappiness;
        for (part, cost) in parts.iter_mut().zip(costs) {
            *part = *part * sum / (cost + 1);
        }
        let largest = parts.iter().copied().max().unwrap_or(0).max(1);
        Self(parts.map(|part| (part * u64::from(ONE) / largest) as u32))
    }
}

/// What each kind has saved up of its share: a frame is taken whenever it comes to one. So a share of a third takes each
/// third frame, without a random number.
#[derive(Debug, Default)]
pub(crate) struct Draws([AtomicU32; Kind::COUNT]);

impl Draws {
    /// Whether the next frame of `kind` is taken.
    pub fn takes(&self, shares: &Shares, kind: Kind) -> bool {
        let share = shares.0[kind as usize];
        if share == 0 || share >= ONE {
            return share > 0;
        }
        // Relaxed: a number on its own. It wraps at a multiple of `ONE`.
        let before = self.0[kind as usize].fetch_add(share, Ordering::Relaxed);
        before % ONE + share >= ONE
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// The share of a kind with `part` against `whole` of the other.
    fn of(part: u64, whole: u64) -> u32 {
        (part * u64::from(ONE) / whole) as u32
    }

    /// Costs are those of files and of programs' pages; so are the expected shares.
    #[test]
    fn shares_are_those_worked_out_by_hand() {
        let table = [
            // 140 and 60.
            ([0, 0], 60, [ONE, of(60, 140)]),
            // Sum 100; 100 and 200, sum 300: 140 * 301 / 101 = 417, 60 * 301 / 201 = 89.
            ([0, 100], 60, [ONE, of(89, 417)]),
            // 140 * 301 / 201 = 209, 60 * 301 / 101 = 178.
            ([100, 0], 60, [ONE, of(178, 209)]),
            // Sum 400; 500 and 700, sum 1200: 140 * 1201 / 501 = 335, 60 * 1201 / 701 = 102.
            ([100, 300], 60, [ONE, of(102, 335)]),
            // Equal weights: 100 * 301 / 101 = 298, 100 * 301 / 201 = 149.
            ([0, 100], 100, [ONE, of(149, 298)]),
            ([100, 0], 100, [of(149, 298), ONE]),
            ([0, 0], 100, [ONE, ONE]),
            ([0, 0], 0, [ONE, 0]),
            ([100, 0], 0, [ONE, 0]),
            ([0, 0], 200, [0, ONE]),
            ([0, 100], 200, [0, ONE]),
            // More than all is all.
            ([0, 0], 255, [0, ONE]),
        ];
        for (costs, swappiness, shares) in table {
            let found = Shares::new(costs, swappiness);
            assert_eq!(found, Shares(shares), "{costs:?}, {swappiness}");
        }
    }

    #[test]
    fn no_cost_is_too_large() {
        let [file, anonymous] = Shares::new([u64::MAX; 2], 60).0;
        assert_eq!(file, ONE);
        assert!(anonymous.abs_diff(of(60, 140)) < 300, "{anonymous}");
        let [file, anonymous] = Shares::new([0, u64::MAX], 60).0;
        assert_eq!(file, ONE);
        assert!(anonymous.abs_diff(of(30, 140)) < 300, "{anonymous}");
    }

    #[test]
    fn draws_come_to_the_share() {
        for (shares, expected) in [
            (Shares([ONE, ONE / 4]), [1000, 250]),
            (Shares([ONE / 2, 0]), [500, 0]),
            (Shares::ALL, [1000, 1000]),
        ] {
            let draws = Draws::default();
            for (kind, expected) in [Kind::File, Kind::Anonymous].into_iter().zip(expected) {
                let taken = (0..1000).filter(|_| draws.takes(&shares, kind)).count();
                assert_eq!(taken, expected, "{shares:?} {kind:?}");
            }
        }
    }
}
