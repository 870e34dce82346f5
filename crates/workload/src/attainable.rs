//! How many huge pages could be had: one reference for all columns, computed when they have run.
//!
//! An attempt can succeed if, beside the huge pages got so far, one more block is left of MemTotal when these are
//! subtracted: the balloon's *target*, the memory that cannot be moved (rounded up to whole blocks) and the min
//! watermark. All other memory can be moved, reclaimed or written out, so it is not subtracted. A huge page stays held
//! to the end of the pass, also when the balloon grows.
//!
//! - Memory that cannot be moved is the least that any column had at that time: no policy needs more.
//! - Attempts are those of the columns. Each column's attempts are followed, at their own times, and the largest result
//!   is the reference: in profile `paper` all columns have the same attempts; in `quick` one that gets less makes other
//!   ones.
//! - In a test of the pool (profile `quick`) a write for several blocks ends at its first failure. There a failed
//!   attempt counts as all blocks of the write that were not got before it: those that were not tried might have been
//!   got.
//! - The column `smaller` is compared with the same reference: what the large guest could have with the balloon at its
//!   target.

use alloc::{format, string::String, vec::Vec};

use dirigible::schedule::time::{MILLISECOND, SECOND};
use dirigible_frames::FRAMES_PER_BLOCK;

use crate::{
    params::{Column, Params},
    report::{Attempts, ColumnReport, PassReport, Tenths},
    timeline::{Test, Timeline, mem_total_frames},
    tuning::{QUICK_WRITE_BLOCKS, rested_watermarks, watermarks},
};

const BLOCK: u64 = FRAMES_PER_BLOCK as u64;

/// What the totals of memory are in one pass, beside the balloon.
struct Totals<'a> {
    /// MemTotal less the min watermark, in frames.
    managed: u64,
    timeline: &'a Timeline,
    /// The least unmovable memory of any column in each second of the pass, in frames.
    unmovable: Vec<u64>,
}

impl Totals<'_> {
    /// Huge pages that may be held at most, `at_ms` milliseconds after a pass that began at `start_ms`.
    fn blocks(&self, start_ms: u64, at_ms: u64) -> u64 {
        let second = (at_ms * MILLISECOND / SECOND) as usize;
        let known = self.unmovable.get(second).or(self.unmovable.last());
        let unmovable = known.map_or(0, |frames| frames.next_multiple_of(BLOCK));
        let now = start_ms.saturating_add(at_ms).saturating_mul(MILLISECOND);
        let used = unmovable + self.timeline.target_at(now);
        self.managed.saturating_sub(used) / BLOCK
    }

    /// Huge pages that these attempts get, of those that `test` asks for.
    fn follow(&self, test: Test, start_ms: u64, attempts: &Attempts) -> u64 {
        let mut got = 0;
        // Blocks that the write under way has got: it ends with its last block or its first failure.
        let mut written = 0;
        for attempt in attempts.iter() {
            let tries = match test {
                Test::Pool { .. } if !attempt.got => QUICK_WRITE_BLOCKS - written,
                Test::Pool { .. } | Test::Probe { .. } | Test::Thp { .. } => 1,
            };
            written = if attempt.got {
                (written + 1) % QUICK_WRITE_BLOCKS
            } else {
                0
            };
            let most = self.blocks(start_ms, attempt.at_ms).min(test.asked());
            got = most.min(got + tries).max(got);
        }
        got
    }
}

/// The least of each second. A column that has fewer seconds keeps its last value.
fn least_of_each_second(columns: &[&PassReport]) -> Vec<u64> {
    let seconds = columns.iter().map(|pass| pass.unmovable.len()).max();
    let least = |second: usize| {
        let of = |pass: &&PassReport| {
            let known = pass.unmovable.get(second).or(pass.unmovable.last());
            known.copied()
        };
        columns.iter().filter_map(of).min().unwrap_or(0)
    };
    (0..seconds.unwrap_or(0)).map(least).collect()
}

/// Computes what was attainable in each pass of the run `params`, and sets `attainable` and `percent_attainable` in all
/// of its `columns`.
///
/// # Errors
///
/// Names the column whose balloon was given other targets than the plan has, or whose passes are not those of the plan.
pub fn set_attainable(params: &Params, columns: &mut [ColumnReport]) -> Result<(), String> {
    let timeline = Timeline::new(params);
    let plans: Vec<_> = timeline.passes().collect();
    for column in &*columns {
        check(
            params,
            column,
            &plans.iter().map(|(plan, _)| plan.name).collect::<Vec<_>>(),
        )?;
    }
    for (index, &(plan, rested)) in plans.iter().enumerate() {
        let passes: Vec<&PassReport> = columns
            .iter()
            .filter_map(|column| column.passes.get(index))
            .collect();
        let min = if rested {
            rested_watermarks(params).min
        } else {
            watermarks(params).min
        };
        let totals = Totals {
            managed: mem_total_frames(params).saturating_sub(min),
            timeline: &timeline,
            unmovable: least_of_each_second(&passes),
        };
        let of = |pass: &&PassReport| totals.follow(plan.test, pass.start_ms, &pass.attempted);
        let attainable = passes.iter().map(of).max().unwrap_or(0);
        for column in &mut *columns {
            let Some(pass) = column.passes.get_mut(index) else {
                continue;
            };
            pass.attainable = attainable;
            pass.percent_attainable = Tenths::percent(pass.allocated, attainable);
        }
    }
    Ok(())
}

/// Whether `column` ran by the plan.
fn check(params: &Params, column: &ColumnReport, passes: &[&str]) -> Result<(), String> {
    let name = &column.name;
    let known = Column::ALL.into_iter().find(|known| known.name() == name);
    let Some(known) = known else {
        return Err(format!("there is no column {name}"));
    };
    let planned = Timeline::of_column(known, params).targets_hash().text();
    if column.targets_hash != planned {
        return Err(format!(
            "column {name}: the balloon's targets differ from the plan (hash {} against {planned})",
            column.targets_hash
        ));
    }
    let ran = column.passes.iter().map(|pass| pass.name.as_str());
    if !ran.clone().eq(passes.iter().copied()) {
        let ran: Vec<_> = ran.collect();
        return Err(format!(
            "column {name}: its passes are {ran:?}, not {passes:?}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Profile, Schedule};
    use alloc::vec;

    /// 64 MiB: 31 blocks of MemTotal (15,872 frames), min watermark 32 frames.
    fn params() -> Params {
        Params {
            memory: 64 << 20,
            balloon: 16 << 20,
            step: 4 << 20,
            schedule: Schedule::Held,
            ..Params::new(Profile::Paper)
        }
    }

    fn probe(count: u64) -> Test {
        Test::Probe {
            count,
            period: 125 * MILLISECOND,
        }
    }

    /// `count` attempts, one each `period` milliseconds.
    fn attempts(count: u64, period: u64) -> Attempts {
        let mut attempts = Attempts::default();
        (0..count).for_each(|k| attempts.push(k * period, k % 2 == 0));
        attempts
    }

    fn timeline(targets: &[(u64, u64)]) -> Timeline {
        let mut timeline = Timeline::new(&params());
        timeline.targets = targets
            .iter()
            .map(|&(ms, frames)| (ms * MILLISECOND, frames))
            .collect();
        timeline
    }

    fn totals<'a>(timeline: &'a Timeline, unmovable: &[u64]) -> Totals<'a> {
        Totals {
            managed: 15_872 - 32,
            timeline,
            unmovable: unmovable.to_vec(),
        }
    }

    #[test]
    fn an_empty_machine_gives_all_but_the_watermark() {
        let timeline = timeline(&[]);
        let all = totals(&timeline, &[]).follow(probe(40), 0, &attempts(40, 125));
        // 31 blocks; the watermark needs a part of the last.
        assert_eq!(all, 30);
    }

    #[test]
    fn no_more_than_is_asked_and_no_more_than_is_tried() {
        let timeline = timeline(&[]);
        let totals = totals(&timeline, &[]);
        assert_eq!(totals.follow(probe(7), 0, &attempts(40, 125)), 7);
        assert_eq!(totals.follow(probe(40), 0, &attempts(9, 125)), 9);
    }

    #[test]
    fn unmovable_memory_counts_in_whole_blocks_and_at_its_time() {
        let timeline = timeline(&[]);
        let follow = |unmovable: &[u64], count| {
            totals(&timeline, unmovable).follow(probe(40), 0, &attempts(count, 1000))
        };
        // One frame takes a block, 513 take two.
        assert_eq!(follow(&[1], 40), 29);
        assert_eq!(follow(&[513], 40), 28);
        // 28 blocks are unmovable in the first ten seconds: 2 are left.
        let mut fallen = vec![28 * 512; 10];
        assert_eq!(follow(&fallen, 10), 2);
        fallen.push(0);
        assert_eq!(follow(&fallen, 20), 2 + 10, "one each second after that");
    }

    #[test]
    fn huge_pages_stay_held_when_the_balloon_grows() {
        // The balloon grows by 8 blocks after a second, and by 20 more after two; it is empty after four.
        let timeline = timeline(&[(0, 0), (1000, 8 * 512), (2000, 28 * 512), (4000, 0)]);
        let follow = |count| totals(&timeline, &[]).follow(probe(60), 0, &attempts(count, 100));
        assert_eq!(follow(10), 10);
        // 30 - 8 = 22: at 1.9 s 20 are held.
        assert_eq!(follow(20), 20);
        // Room for 2 only, but what is held stays.
        assert_eq!(follow(40), 20);
        assert_eq!(follow(60), 30);
    }

    #[test]
    fn targets_are_those_at_the_time_of_the_attempt_not_of_the_pass() {
        let timeline = timeline(&[(0, 30 * 512), (300_000, 0)]);
        let all = totals(&timeline, &[]);
        assert_eq!(all.follow(probe(5), 299_000, &attempts(5, 100)), 0);
        assert_eq!(all.follow(probe(5), 299_800, &attempts(5, 100)), 3);
        assert_eq!(all.follow(probe(5), 300_000, &attempts(5, 100)), 5);
    }

    #[test]
    fn a_failed_write_to_the_pool_counts_as_all_its_blocks() {
        let timeline = timeline(&[]);
        let totals = totals(&timeline, &[]);
        let mut failed = Attempts::default();
        failed.push(0, false);
        let limit = 30 * SECOND;
        let pool = Test::Pool { goal: 40, limit };
        assert_eq!(totals.follow(pool, 0, &failed), 16);
        let thp = Test::Thp { goal: 40, limit };
        assert_eq!(totals.follow(thp, 0, &failed), 1);
        failed.push(100, false);
        assert_eq!(totals.follow(pool, 0, &failed), 30);
    }

    /// A column of a run whose passes are 29 attempts, of which it got `got`.
    fn column(column: Column, params: &Params, got: u64, unmovable: &[u64]) -> ColumnReport {
        let timeline = Timeline::of_column(column, params);
        let mut attempted = Attempts::default();
        (0..29).for_each(|k| attempted.push(k * 125, k < got));
        let pass = |name: &str, start_ms| PassReport {
            name: name.into(),
            start_ms,
            asked: 29,
            attempts: 29,
            allocated: got,
            attempted: attempted.clone(),
            unmovable: unmovable.to_vec(),
            ..PassReport::default()
        };
        // The balloon is full from about 800 s on.
        ColumnReport {
            name: column.name().into(),
            targets_hash: timeline.targets_hash().text(),
            passes: vec![
                pass("pass1", 1_000_000),
                pass("pass2", 1_010_000),
                pass("rested", 1_200_000),
            ],
            ..ColumnReport::default()
        }
    }

    #[test]
    fn all_columns_have_the_reference_of_the_least_unmovable_memory() {
        let params = params();
        let mut columns = [
            column(Column::Pinned, &params, 3, &[3 * 512 + 1]),
            column(Column::Steered, &params, 20, &[2 * 512 + 1]),
            column(Column::Smaller, &params, 21, &[3 * 512]),
        ];
        set_attainable(&params, &mut columns).unwrap();
        for column in &columns {
            // 15,872 frames - 4,096 of the target - 3 blocks - 32 (or, at rest, the same) = 10,208: 19 blocks.
            let attainable: Vec<_> = column.passes.iter().map(|pass| pass.attainable).collect();
            assert_eq!(attainable, [19, 19, 19], "{}", column.name);
        }
        let percent = |index: usize| columns[index].passes[0].percent_attainable.value();
        assert_eq!((percent(0), percent(1)), (15.8, 105.3));
    }

    #[test]
    fn a_column_that_did_not_run_by_the_plan_is_named() {
        let params = params();
        let good = column(Column::Movable, &params, 3, &[0]);
        let refused = |changed: ColumnReport| {
            set_attainable(&params, &mut [good.clone(), changed]).unwrap_err()
        };
        let mut other = good.clone();
        other.targets_hash = "other".into();
        assert!(refused(other).contains("column movable: the balloon's targets differ"));
        let mut other = good.clone();
        other.passes.pop();
        assert!(refused(other).contains("column movable: its passes are"));
        let mut other = good.clone();
        other.name = "loose".into();
        assert!(refused(other).contains("no column loose"));
        // The smaller guest's balloon stays empty.
        let mut other = good.clone();
        other.name = "smaller".into();
        assert!(refused(other).contains("column smaller: the balloon's targets differ"));
    }
}
