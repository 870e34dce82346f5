//! Deferral: after failures, try less often, until there is a reason to try again.

use crate::CompactionConfig;

/// What a failure left behind, and what the next request finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prospect {
    /// Free frames.
    pub(crate) free: u64,
    /// Used frames of the cheapest candidate that has no remembered refusal; `u32::MAX` without one.
    pub(crate) used: u32,
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
            at_failure: Prospect { free: 0, used: 0 },
        }
    }

    /// Whether a request may go on. `prospect` is asked only while a deferral stands.
    ///
    /// The deferral is dropped whole (the next failure begins with the shortest again) when
    /// `defer_free_growth` more frames are free than at the failure, or when the candidates changed for the better:
    /// one without a remembered refusal is there that has `defer_cheaper_by` fewer used frames than the best that the
    /// failure left, or there was none and now is one.
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
        if grown || cheaper {
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
        refusal_memory_ns: 0,
    };
    const SAME: Prospect = Prospect {
        free: 1000,
        used: 300,
    };

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
        let cases = [
            (
                Prospect {
                    free: 1511,
                    used: 300,
                },
                false,
            ),
            (
                Prospect {
                    free: 1512,
                    used: 300,
                },
                true,
            ),
            (
                Prospect {
                    free: 1000,
                    used: 237,
                },
                false,
            ),
            (
                Prospect {
                    free: 1000,
                    used: 236,
                },
                true,
            ),
            (
                Prospect {
                    free: 0,
                    used: u32::MAX,
                },
                false,
            ),
        ];
        for (now, goes) in cases {
            let mut defer = Defer::new();
            defer.failed(&CONFIG, SAME);
            assert_eq!(defer.may_try(&CONFIG, || now), goes, "{now:?}");
        }
        let mut none_left = Defer::new();
        none_left.failed(
            &CONFIG,
            Prospect {
                free: 1000,
                used: u32::MAX,
            },
        );
        assert!(none_left.may_try(&CONFIG, || Prospect {
            free: 1000,
            used: 512
        }));
        let mut still_none = Defer::new();
        still_none.failed(
            &CONFIG,
            Prospect {
                free: 1000,
                used: u32::MAX,
            },
        );
        assert!(!still_none.may_try(&CONFIG, || Prospect {
            free: 1000,
            used: u32::MAX
        }));
    }
}
