//! Deferral: after failures, try less often, until there is a reason to try again.

use crate::CompactionConfig;

/// What a failure left behind, and what the next request finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prospect {
    /// Free frames.
    pub(crate) free: u64,
    /// Used frames of a block of the cheapest kind, or where there is none of one on probation; `u32::MAX` without
    /// either.
    pub(crate) used: u32,
    /// Whether some candidate's used frames would all have targets.
    pub(crate) targets: bool,
}

/// The deferral state of one kind of compaction. Direct and background each have their own: what one fails at does not
/// hold up the other.
pub(crate) struct Defer {
    /// 2^shift - 1 requests are deferred after a failure.
    shift: u8,
    considered: u32,
    at_failure: Prospect,
}

impl Defer {
    pub(crate) const fn new() -> Self {
        Self {
            shift: 0,
            considered: 0,
            at_failure: Prospect {
                free: 0,
                used: 0,
                targets: false,
            },
        }
    }

    /// Whether a request may go on. `prospect` is asked only while a deferral stands.
    ///
    /// The deferral is dropped whole (the next failure begins with the shortest again) when `defer_free_growth` more
    /// frames are free than at the failure, or when the candidates changed for the better: one without a remembered
    /// refusal is there that has `defer_cheaper_by` fewer used frames than the best that the failure left, or there
    /// was none and now is one; or when the failure left no candidate with enough targets and now there is one.
    pub(crate) fn may_try(
        &mut self,
        config: &CompactionConfig,
        prospect: impl FnOnce() -> Prospect,
    ) -> bool {
        if self.shift == 0 {
            return true;
        }
        let now = prospect();
        let grown = now.free
            >= self
                .at_failure
                .free
                .saturating_add(config.defer_free_growth);
        let saved = self.at_failure.used.saturating_sub(now.used);
        let cheaper = saved >= config.defer_cheaper_by.max(1);
        let room = now.targets && !self.at_failure.targets;
        if grown || cheaper || room {
            self.succeeded();
            return true;
        }
        self.considered += 1;
        self.considered >= 1 << self.shift
    }

    /// A success ends all deferral.
    pub(crate) fn succeeded(&mut self) {
        self.shift = 0;
        self.considered = 0;
    }

    /// A failure doubles the wait, up to the limit.
    pub(crate) fn failed(&mut self, config: &CompactionConfig, left: Prospect) {
        self.shift = (self.shift + 1).min(config.defer_max_shift);
        self.considered = 0;
        self.at_failure = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CompactionConfig = CompactionConfig {
        budget_blocks: 1,
        look: 1,
        defer_max_shift: 3,
        defer_free_growth: 512,
        defer_cheaper_by: 64,
        reserve_low: 0,
        reserve_high: 0,
        background_max_used: 512,
        blocks_per_batch: 1,
        exchange_batch: 1,
        pending_timeout_ns: 0,
        idle_polls: 1,
        lock_relaxes: 0,
        drops_cold: false,
        retry_ns: 0,
        refusal_memory_ns: 0,
    };
    const SAME: Prospect = prospect(1000, 300, false);

    const fn prospect(free: u64, used: u32, targets: bool) -> Prospect {
        Prospect {
            free,
            used,
            targets,
        }
    }

    /// Requests turned down before one may go on.
    fn deferred(defer: &mut Defer) -> u32 {
        let mut count = 0;
        while !defer.may_try(&CONFIG, || SAME) {
            count += 1;
            assert!(count < 100, "a deferral ends");
        }
        count
    }

    #[test]
    fn pitfall_47_defer_state_table() {
        let mut defer = Defer::new();
        assert_eq!(deferred(&mut defer), 0, "nothing failed yet");
        for wait in [1, 3, 7, 7, 7] {
            defer.failed(&CONFIG, SAME);
            assert_eq!(deferred(&mut defer), wait);
        }
        defer.failed(&CONFIG, SAME);
        defer.succeeded();
        assert_eq!(deferred(&mut defer), 0, "a success resets");
        defer.failed(&CONFIG, SAME);
        assert_eq!(
            deferred(&mut defer),
            1,
            "and the next failure begins again with the shortest"
        );
    }

    #[test]
    fn pitfall_47_a_deferral_is_dropped_when_there_is_reason_to_try() {
        let none = prospect(1000, u32::MAX, false);
        let cases = [
            (SAME, prospect(1511, 300, false), false),
            (SAME, prospect(1512, 300, false), true),
            (SAME, prospect(1000, 237, false), false),
            (SAME, prospect(1000, 236, false), true),
            (SAME, prospect(0, u32::MAX, false), false),
            (SAME, prospect(1000, 300, true), true),
            (prospect(1000, 300, true), prospect(1000, 300, true), false),
            (none, none, false),
            (none, prospect(1000, 512, false), true),
        ];
        for (left, now, goes) in cases {
            let mut defer = Defer::new();
            defer.failed(&CONFIG, left);
            assert_eq!(defer.may_try(&CONFIG, || now), goes, "{left:?} {now:?}");
        }
    }

    #[test]
    fn pitfall_47_room_for_a_candidate_drops_the_deferral() {
        let mut defer = Defer::new();
        defer.failed(&CONFIG, SAME);
        defer.failed(&CONFIG, SAME);
        let room = Prospect {
            targets: true,
            ..SAME
        };
        assert!(!defer.may_try(&CONFIG, || SAME));
        assert!(defer.may_try(&CONFIG, || room));
        // A failure in spite of room is no reason to hurry.
        defer.failed(&CONFIG, room);
        assert!(!defer.may_try(&CONFIG, || room));
    }
}
