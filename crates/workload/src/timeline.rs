//! The timeline of a run: its phases and the balloon's targets, both fixed before it begins.
//!
//! The timeline is a function of the parameters and the seed. A slow column cannot shift a phase or a target, so all
//! columns have the same balloon schedule (`smaller` has the same phases and targets of 0).

use alloc::vec::Vec;

use dirigible_frames::{FRAME_SIZE, FRAMES_PER_BLOCK};

use crate::{
    params::{Column, Params, Profile, Schedule},
    rng::{Rng, Source},
    tuning::{
        HELD_FILL, PAPER_GAP, PAPER_SETTLE, PAPER_WARM_UP, PROBE_PERCENT, PROBE_PERIOD, QUICK_FILL,
        QUICK_GOAL_PERCENT, QUICK_SETTLE, QUICK_SLOT_MARGIN, QUICK_TEST_TIME, RESERVED_SHARE,
        REST_GAP,
    },
};

/// Huge pages that the probe requests in one pass: 95 % of MemTotal at boot, each step rounded down.
pub const fn probe_count(mem_total_frames: u64) -> u64 {
    let bytes = mem_total_frames * FRAME_SIZE as u64;
    bytes / (FRAME_SIZE * FRAMES_PER_BLOCK) as u64 * PROBE_PERCENT / 100
}

/// Frames that the guest's allocator manages at boot: all but the reserved ones.
///
/// One frame in [`RESERVED_SHARE`] is reserved, rounded up to whole blocks.
pub const fn mem_total_frames(params: &Params) -> u64 {
    let frames = params.memory_frames();
    let block = FRAMES_PER_BLOCK as u64;
    let share = frames / RESERVED_SHARE;
    let reserved = if share < block {
        block
    } else {
        share.next_multiple_of(block)
    };
    frames - reserved
}

/// Frames that the allocator of `column` manages at boot. What is reserved comes from the full size in every column.
pub const fn column_mem_total_frames(column: Column, params: &Params) -> u64 {
    let less = params.memory - params.column_memory(column);
    mem_total_frames(params).saturating_sub(less / FRAME_SIZE as u64)
}

/// How a pass requests huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    /// `count` attempts, one every `period`, from start to start.
    Probe {
        /// Attempts.
        count: u64,
        /// From start to start.
        period: u64,
    },
    /// Writes to the hugetlb pool, each for some blocks, up to `goal`.
    Pool {
        /// Blocks wanted.
        goal: u64,
        /// It ends after this time.
        limit: u64,
    },
    /// Faults on ranges of 2 MiB.
    Thp {
        /// Ranges.
        goal: u64,
        /// It ends after this time.
        limit: u64,
    },
}

impl Test {
    /// Huge pages that it requests.
    pub const fn asked(self) -> u64 {
        match self {
            Self::Probe { count, .. } => count,
            Self::Pool { goal, .. } | Self::Thp { goal, .. } => goal,
        }
    }
}

/// A pass: its name and what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PassPlan {
    /// The name in the report.
    pub name: &'static str,
    /// What it does.
    pub test: Test,
}

/// The result of a pass, as the director records it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PassResult {
    /// Attempts made.
    pub attempts: u64,
    /// Huge pages got.
    pub allocated: u64,
    /// The balloon's size in frames, integrated over the nanoseconds of the pass.
    pub balloon_time: u128,
    /// The balloon's target, likewise.
    pub target_time: u128,
    /// Length of the pass in nanoseconds.
    pub length: u64,
}

/// What a phase does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Lets time pass.
    Wait,
    /// A pass.
    Pass(PassPlan),
    /// Ends the load, deletes its files, drops the caches, lowers the watermark.
    Kill,
    /// Gives everything back.
    End,
}

/// One phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Phase {
    /// For the phase log and the progress bar.
    pub name: &'static str,
    /// When it begins, unless the phase before lasts longer.
    pub at: u64,
    /// What it does.
    pub what: What,
}

/// The plan of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeline {
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// The balloon's targets in frames, each with its time, in order.
    pub targets: Vec<(u64, u64)>,
    end: u64,
}

impl Timeline {
    /// The plan for `params`.
    pub fn new(params: &Params) -> Self {
        match params.profile {
            Profile::Paper => Self::paper(params),
            Profile::Quick => Self::quick(params),
        }
    }

    /// The plan for `column` of `params`: as for the others, but the balloon of the column `smaller` stays empty.
    pub fn of_column(column: Column, params: &Params) -> Self {
        let mut timeline = Self::new(params);
        if column == Column::Smaller {
            timeline.targets.iter_mut().for_each(|target| target.1 = 0);
        }
        timeline
    }

    /// The balloon's target at `time`, in frames.
    pub fn target_at(&self, time: u64) -> u64 {
        let set = self.targets.partition_point(|&(at, _)| at <= time);
        set.checked_sub(1).map_or(0, |last| self.targets[last].1)
    }

    /// The hash of all targets, for comparison with those that a column was given.
    pub fn targets_hash(&self) -> TargetsHash {
        let mut hash = TargetsHash::default();
        for &(time, frames) in &self.targets {
            hash.add(time, frames);
        }
        hash
    }

    /// The passes, in order, each with whether the load has been killed before it.
    pub fn passes(&self) -> impl Iterator<Item = (PassPlan, bool)> + '_ {
        let mut rested = false;
        self.phases
            .iter()
            .filter_map(move |phase| match phase.what {
                What::Pass(plan) => Some((plan, rested)),
                What::Kill => {
                    rested = true;
                    None
                }
                What::Wait | What::End => None,
            })
    }

    /// When the run ends at the latest, if nothing is late.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn paper(params: &Params) -> Self {
        let scaled = |time| params.scaled_time(time);
        let swing = Swing::new(params);
        let mut rng = Rng::stream(params.seed, Source::Schedule);
        let period = scaled(params.period());
        let offset = rng.below(period);
        let start = rng.below(swing.round());

        let mut targets = Vec::new();
        let mut warm_up = scaled(PAPER_WARM_UP);
        if params.schedule == Schedule::Held && swing.steps > 0 {
            // The drawn offset shifts all steps. Pass 1 begins at least one period after the last of them.
            let first = scaled(HELD_FILL) + offset;
            targets.push((0, 0));
            targets.extend((0..3 * swing.steps).map(|n| (first + n * period, swing.level(n + 1))));
            warm_up = warm_up.max(first + 3 * swing.steps * period);
        }

        let count = probe_count(mem_total_frames(params));
        let attempt = scaled(PROBE_PERIOD);
        let probe = |name| {
            What::Pass(PassPlan {
                name,
                test: Test::Probe {
                    count,
                    period: attempt,
                },
            })
        };
        let (length, gap) = (count * attempt, scaled(PAPER_GAP));
        let (pass1, pass2) = (warm_up, warm_up + length + gap);
        let settle = pass2 + length;
        let kill = settle + gap + scaled(PAPER_SETTLE);
        let rested = kill + REST_GAP;
        let phase = |name, at, what| Phase { name, at, what };
        let phases = alloc::vec![
            phase("warm-up", 0, What::Wait),
            phase("pass1", pass1, probe("pass1")),
            phase("gap", pass1 + length, What::Wait),
            phase("pass2", pass2, probe("pass2")),
            phase("settle", settle, What::Wait),
            phase("kill", kill, What::Kill),
            phase("rested", rested, probe("rested")),
            phase("end", rested + length, What::End),
        ];

        if params.schedule == Schedule::Cycle {
            targets.push((0, swing.level(start)));
            let changes = (0u64..).map(|n| (offset + n * period, swing.level(start + n + 1)));
            targets.extend(changes.take_while(|&(time, _)| time < kill));
            targets.push((kill, 0));
        }
        Self {
            phases,
            targets,
            end: rested + length,
        }
    }

    fn quick(params: &Params) -> Self {
        let scaled = |time| params.scaled_time(time);
        let swing = Swing::new(params);
        // Twice the pace before pass 1, as in the measurement of Linux: 2.5 s and 5 s.
        let (climb, period) = (scaled(params.period()) / 2, scaled(params.period()));
        let first = scaled(QUICK_FILL);
        let mut targets = alloc::vec![(0, 0)];
        targets.extend((0..3 * swing.steps).map(|n| (first + n * climb, swing.level(n + 1))));
        let pass1 = first + 3 * swing.steps * climb + scaled(QUICK_SETTLE);

        let blocks = params.memory_frames() / FRAMES_PER_BLOCK as u64;
        let goal = blocks * QUICK_GOAL_PERCENT / 100;
        let limit = scaled(QUICK_TEST_TIME);
        let slot = limit + QUICK_SLOT_MARGIN;
        let (pool, thp) = (Test::Pool { goal, limit }, Test::Thp { goal, limit });
        let mut phases = alloc::vec![Phase {
            name: "warm-up",
            at: 0,
            what: What::Wait
        }];
        let mut at = pass1;
        let mut pass = |name, test| {
            phases.push(Phase {
                name,
                at,
                what: What::Pass(PassPlan { name, test }),
            });
            at += slot;
        };
        pass("pass1", pool);
        pass("pass1-thp", thp);
        pass("pass2", pool);
        pass("pass2-thp", thp);
        let kill = at;
        phases.push(Phase {
            name: "kill",
            at: kill,
            what: What::Kill,
        });
        // The balloon no longer moves, so the tests need no slots: each begins when the one before has ended.
        let rested = kill + REST_GAP;
        for (name, test) in [("rested", pool), ("rested-thp", thp)] {
            phases.push(Phase {
                name,
                at: rested,
                what: What::Pass(PassPlan { name, test }),
            });
        }
        phases.push(Phase {
            name: "end",
            at: rested,
            what: What::End,
        });

        if params.schedule == Schedule::Cycle {
            let changes =
                (0u64..).map(|n| (pass1 + n * period, swing.level(3 * swing.steps + n + 1)));
            targets.extend(changes.take_while(|&(time, _)| time < kill));
            targets.push((kill, 0));
        }
        Self {
            phases,
            targets,
            end: rested + 2 * slot,
        }
    }
}

/// The balloon's movement between 0 and full, up and down.
struct Swing {
    full: u64,
    step: u64,
    /// Steps from empty to full.
    steps: u64,
}

impl Swing {
    fn new(params: &Params) -> Self {
        let (full, step) = (params.balloon_frames(), params.step_frames().max(1));
        Self {
            full,
            step,
            steps: full.div_ceil(step),
        }
    }

    /// Steps from empty to full and back; 1 if there is no balloon.
    fn round(&self) -> u64 {
        (2 * self.steps).max(1)
    }

    /// The target after `n` steps, beginning empty.
    fn level(&self, n: u64) -> u64 {
        let n = n % self.round();
        let up = if n <= self.steps { n } else { self.round() - n };
        (up * self.step).min(self.full)
    }
}

/// FNV-1a hash of the balloon's targets as they are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetsHash(u64);

impl Default for TargetsHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl TargetsHash {
    /// Adds one target and its planned time.
    pub fn add(&mut self, time: u64, frames: u64) {
        for byte in time.to_le_bytes().into_iter().chain(frames.to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// The hash in hexadecimal.
    pub fn text(self) -> alloc::string::String {
        alloc::format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dirigible::schedule::time::SECOND;

    fn paper(seed: u64) -> Params {
        Params {
            seed,
            ..Params::new(Profile::Paper)
        }
    }

    #[test]
    fn pitfall_85_count_is_taken_from_mem_total_at_boot_rounding_each_step() {
        assert_eq!(mem_total_frames(&paper(1)), (1 << 20) - 8192);
        // 4,064 MiB: 2,032 blocks, 1,930.4 of them.
        assert_eq!(probe_count((1 << 20) - 8192), 1930);
        // 2,032 blocks and 511 frames: the frames do not count, though with them the product would round to one block
        // more.
        assert_eq!(probe_count(2032 * 512 + 511), 1930);
        assert_eq!(probe_count(20 * 512), 19);
        assert_eq!(probe_count(511), 0);
        let Test::Probe { count, .. } = passes(&Timeline::new(&paper(1)))[0].test else {
            panic!("a paper pass is a probe")
        };
        assert_eq!(count, 1930);
    }

    fn passes(timeline: &Timeline) -> Vec<PassPlan> {
        let pass = |phase: &Phase| match phase.what {
            What::Pass(plan) => Some(plan),
            _ => None,
        };
        timeline.phases.iter().filter_map(pass).collect()
    }

    #[test]
    fn the_papers_times() {
        let timeline = Timeline::new(&paper(1));
        let at = |name| {
            timeline
                .phases
                .iter()
                .find(|phase| phase.name == name)
                .unwrap()
                .at
        };
        assert_eq!(at("pass1"), 300 * SECOND);
        assert_eq!(at("gap"), 300 * SECOND + 1930 * 125_000_000);
        assert_eq!(at("pass2") - at("gap"), 5 * SECOND);
        assert_eq!(at("kill") - at("settle"), 190 * SECOND);
        assert!(
            timeline
                .phases
                .windows(2)
                .all(|pair| pair[0].at < pair[1].at)
        );
    }

    #[test]
    fn the_cycle_moves_one_step_each_period() {
        for seed in 0..50 {
            let timeline = Timeline::new(&paper(seed));
            let (last, cycle) = timeline.targets.split_last().unwrap();
            assert_eq!(last.1, 0, "emptied before the rested pass");
            for pair in cycle.windows(2).skip(1) {
                assert_eq!(pair[1].0 - pair[0].0, 60 * SECOND);
                assert_eq!(pair[1].1.abs_diff(pair[0].1), 256 * 256);
            }
            assert!(cycle[1].0 < 60 * SECOND);
            assert!(cycle.iter().any(|&(_, target)| target == 0));
            assert!(cycle.iter().any(|&(_, target)| target == 1024 * 256));
        }
    }

    #[test]
    fn seeds_draw_the_phase() {
        let first = |seed| Timeline::new(&paper(seed)).targets[..2].to_vec();
        let mut starts: Vec<_> = (0..40).map(|seed| first(seed)[0].1).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 5, "every level is some seed's first");
        assert_ne!(first(1)[1].0, first(2)[1].0);
    }

    #[test]
    fn held_is_full_before_pass_1_and_to_the_end() {
        for seed in 0..20 {
            let params = Params {
                schedule: Schedule::Held,
                ..paper(seed)
            };
            let timeline = Timeline::new(&params);
            let pass1 = timeline
                .phases
                .iter()
                .find(|phase| phase.name == "pass1")
                .unwrap()
                .at;
            let levels: Vec<_> = timeline
                .targets
                .iter()
                .map(|&(_, t)| t / (256 * 256))
                .collect();
            assert_eq!(levels, [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]);
            assert!(pass1 >= timeline.targets.last().unwrap().0 + 60 * SECOND);
        }
    }

    #[test]
    fn quick_has_two_tests_a_pass_and_no_drawn_phase() {
        let params = Params::new(Profile::Quick);
        let timeline = Timeline::new(&params);
        let names: Vec<_> = passes(&timeline).iter().map(|pass| pass.name).collect();
        assert_eq!(
            names,
            [
                "pass1",
                "pass1-thp",
                "pass2",
                "pass2-thp",
                "rested",
                "rested-thp"
            ]
        );
        assert_eq!(
            passes(&timeline)[0].test,
            Test::Pool {
                goal: 1843,
                limit: 30 * SECOND
            }
        );
        assert_eq!(Timeline::new(&Params { seed: 9, ..params }), timeline);
        let levels: Vec<_> = timeline
            .targets
            .iter()
            .map(|&(_, t)| t / (256 * 256))
            .collect();
        assert_eq!(levels[..13], [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]);
        assert_eq!(levels[13..15], [3, 2]);
        let last: Vec<_> = timeline.phases.iter().rev().take(4).collect();
        let [end, thp, rested, kill] = last[..] else {
            panic!("there are more than four phases")
        };
        assert_eq!(rested.at, kill.at + 10 * SECOND);
        assert_eq!(
            (thp.at, end.at),
            (rested.at, rested.at),
            "one after the other"
        );
        assert_eq!(timeline.end(), rested.at + 62 * SECOND);
        assert_eq!(*levels.last().unwrap(), 0);
    }

    #[test]
    fn no_balloon_has_no_targets_but_zero() {
        for profile in [Profile::Paper, Profile::Quick] {
            for schedule in [Schedule::Cycle, Schedule::Held] {
                let params = Params {
                    balloon: 0,
                    schedule,
                    ..Params::new(profile)
                };
                let timeline = Timeline::new(&params);
                assert!(timeline.targets.iter().all(|&(_, target)| target == 0));
            }
        }
    }

    #[test]
    fn the_smaller_guest_keeps_phases_ask_and_reserved_frames() {
        let params = Params {
            schedule: Schedule::Held,
            ..paper(1)
        };
        let (full, smaller) = (
            Timeline::new(&params),
            Timeline::of_column(Column::Smaller, &params),
        );
        assert_eq!(full, Timeline::of_column(Column::Steered, &params));
        assert_eq!(full.phases, smaller.phases);
        assert_eq!(full.end(), smaller.end());
        assert!(smaller.targets.iter().all(|&(_, target)| target == 0));
        assert_ne!(full.targets_hash(), smaller.targets_hash());
        // 3 GiB less the 32 MiB that 4 GiB reserve, not the 24 MiB of a guest of 3 GiB.
        assert_eq!(
            column_mem_total_frames(Column::Smaller, &params),
            (3 << 18) - 8192
        );
        assert_eq!(
            column_mem_total_frames(Column::Steered, &params),
            mem_total_frames(&params)
        );
    }

    #[test]
    fn targets_hold_from_their_time_to_the_next() {
        let mut timeline = Timeline::new(&paper(1));
        timeline.targets = alloc::vec![(5, 100), (9, 0)];
        let at: Vec<_> = [0, 4, 5, 8, 9, 100]
            .map(|time| timeline.target_at(time))
            .into();
        assert_eq!(at, [0, 0, 100, 100, 0, 0]);
    }

    #[test]
    fn passes_after_the_kill_are_at_rest() {
        for profile in [Profile::Paper, Profile::Quick] {
            let timeline = Timeline::new(&Params::new(profile));
            for (plan, rested) in timeline.passes() {
                assert_eq!(rested, plan.name.starts_with("rested"));
            }
        }
    }

    #[test]
    fn uneven_steps_end_at_the_full_balloon() {
        let swing = Swing {
            full: 1000,
            step: 300,
            steps: 4,
        };
        let levels: Vec<_> = (0..9).map(|n| swing.level(n)).collect();
        assert_eq!(levels, [0, 300, 600, 900, 1000, 900, 600, 300, 0]);
    }

    #[test]
    fn pitfall_90_the_hash_tells_targets_and_times_apart() {
        let hash = |targets: &[(u64, u64)]| {
            let mut hash = TargetsHash::default();
            targets
                .iter()
                .for_each(|&(time, target)| hash.add(time, target));
            hash.text()
        };
        let base = hash(&[(0, 5), (9, 0)]);
        assert_eq!(base, hash(&[(0, 5), (9, 0)]));
        assert_ne!(base, hash(&[(0, 5), (8, 0)]));
        assert_ne!(base, hash(&[(0, 4), (9, 0)]));
        assert_eq!(base.len(), 16);
    }
}
