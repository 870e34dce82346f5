//! What is recorded about each pass on the real machine.

use alloc::{string::ToString, vec::Vec};

use dirigible::schedule::time::{MILLISECOND, SECOND};
use dirigible_frames::{BlockState, Event, FRAMES_PER_BLOCK, FrameAllocator, FrameState, Order};

use crate::{
    report::{
        AttemptHost, BlockCensus, FailureCauses, MOST_SHORTFALL, MemoryState, OracleReport,
        PassReport, Spread, Tenths, TypeState, VmStat,
    },
    timeline::{PassPlan, PassResult},
};

const BLOCK: u64 = FRAMES_PER_BLOCK as u64;

/// How an attempt ended, derived from the events that were raised meanwhile: a hint where others run while it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// A block was free.
    Free,
    /// Compaction emptied one.
    Compaction,
    /// Compaction emptied one after reclaim.
    Reclaim,
    /// Too little free, even after reclaim.
    Watermark,
    /// Compaction was deferred.
    Deferred,
    /// Evacuation of no block could be begun.
    NoBlock,
    /// Evacuation of a block was begun and given up.
    Aborted,
}

/// The events that distinguish attempts: reclaimed frames; compaction skipped, deferred, begun; blocks given up.
pub type AttemptEvents = [u64; 5];

impl Ended {
    /// The present counts.
    pub fn events(frames: &FrameAllocator<'_>) -> AttemptEvents {
        let events = frames.events();
        [
            events.get(Event::PgReclaimed),
            events.get(Event::CompactSkipped),
            events.get(Event::CompactDeferred),
            events.get(Event::CompactStall),
            events.get(Event::CompactBlockAborted),
        ]
    }

    /// Whether it got a huge page.
    pub const fn got(self) -> bool {
        matches!(self, Self::Free | Self::Compaction | Self::Reclaim)
    }

    /// How an attempt between two readings ended. With several threads it is only a hint: others raise the same events.
    pub fn of(got: bool, before: &AttemptEvents, after: &AttemptEvents) -> Self {
        let [reclaimed, _, deferred, begun, aborted] =
            core::array::from_fn(|index| after[index] > before[index]);
        match (got, reclaimed, begun) {
            (true, true, _) => Self::Reclaim,
            (true, false, true) => Self::Compaction,
            (true, false, false) => Self::Free,
            (false, _, true) if aborted => Self::Aborted,
            (false, _, true) => Self::NoBlock,
            (false, ..) if deferred => Self::Deferred,
            (false, ..) => Self::Watermark,
        }
    }
}

/// What `actual` lacks of `target`, both summed up over time, in per cent of `target`.
fn shortfall(actual: u128, target: u128) -> Tenths {
    let lacking = target.saturating_sub(actual);
    // Both parts lose their lowest bits together where they do not fit.
    let shift = (u128::BITS - target.leading_zeros()).saturating_sub(56);
    Tenths::percent((lacking >> shift) as u64, (target >> shift) as u64)
}

/// Frames of kernel memory, reclaimable or not, page tables included, without what is reserved at boot. Walks all
/// blocks.
pub(crate) fn kernel_frames(frames: &FrameAllocator<'_>, balloon: u64) -> u64 {
    let (mut unmovable, mut movable_balloon) = (0, 0);
    for block in frames.blocks() {
        let ledger = frames.ledger(block);
        unmovable += u64::from(ledger.unmovable()) - u64::from(frames.reserved_in(block));
        movable_balloon += u64::from(ledger.balloon());
    }
    // Where the balloon's frames cannot be moved, they are of class Unmovable and none is of class Balloon.
    let pinned = if movable_balloon == 0 { balloon } else { 0 };
    unmovable.saturating_sub(pinned)
}

/// Memory in use, in frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Of the programs, and of the THP test.
    pub anonymous: u64,
    /// Kernel memory, page tables included.
    pub kernel: u64,
    /// Of pages of files.
    pub files: u64,
    /// Of the balloon.
    pub balloon: u64,
}

/// The passes of a run.
pub struct PassBook {
    /// The passes that have ended.
    pub reports: Vec<PassReport>,
    /// Time that their attempts took on the host.
    pub host: Vec<AttemptHost>,
    /// Blocks with reserved frames or holes.
    reserved: Vec<bool>,
    now: Open,
}

/// The pass under way.
struct Open {
    report: PassReport,
    /// When it began, in nanoseconds.
    start: u64,
    events: [u64; Event::COUNT],
    choice: OracleReport,
    costs: Vec<u64>,
    host_costs: Vec<u64>,
}

impl PassBook {
    /// A book without passes.
    pub fn new(frames: &FrameAllocator<'_>) -> Self {
        let is_reserved = |block| {
            let start = frames.block_start(block);
            (0..BLOCK).any(|offset| frames.state(start.plus(offset)) == FrameState::Reserved)
        };
        let reserved = frames.blocks().map(is_reserved).collect();
        let now = Open {
            report: PassReport::default(),
            start: 0,
            events: [0; Event::COUNT],
            choice: OracleReport::default(),
            costs: Vec::new(),
            host_costs: Vec::new(),
        };
        Self {
            reports: Vec::new(),
            host: Vec::new(),
            reserved,
            now,
        }
    }

    /// Records the beginning of a pass at `start` (nanoseconds of the guest's clock), when the balloon holds `balloon`
    /// frames.
    pub fn begin(
        &mut self,
        pass: &PassPlan,
        frames: &FrameAllocator<'_>,
        balloon: u64,
        start: u64,
    ) {
        let before = self.look(frames, balloon);
        let now = &mut self.now;
        now.report = PassReport {
            name: pass.name.to_string(),
            start_ms: start / MILLISECOND,
            before,
            ..PassReport::default()
        };
        now.start = start;
        now.events = frames.events().snapshot();
        now.costs.clear();
        now.host_costs.clear();
    }

    /// Samples what `unmovable` gives, the unmovable memory in frames, once a second from its begin on; to be called at least as
    /// often as that. Called more often it does nothing, and a call that is late stands for the seconds before it.
    pub fn sample(&mut self, now: u64, unmovable: impl FnOnce() -> u64) {
        let begun = now.saturating_sub(self.now.start) / SECOND;
        let samples = &mut self.now.report.unmovable;
        let due = (begun + 1).saturating_sub(samples.len() as u64);
        // A day: a clock that has jumped further is no clock of a run.
        let due = due.min(86_400) as usize;
        if due > 0 {
            samples.extend(core::iter::repeat_n(unmovable(), due));
        }
    }

    /// Records when an attempt was begun, and whether it got a huge page: for one that is a page fault, and so has no
    /// [`Ended`].
    pub fn tried(&mut self, at: u64, got: bool) {
        let at_ms = at.saturating_sub(self.now.start) / MILLISECOND;
        self.now.report.attempted.push(at_ms, got);
    }

    /// Records an attempt of the probe that was begun at `at` and took `cost`, on the host `host_cost` (nanoseconds).
    pub fn attempted(&mut self, at: u64, ended: Ended, cost: u64, host_cost: u64) {
        self.tried(at, ended.got());
        let Open {
            report,
            costs,
            host_costs,
            ..
        } = &mut self.now;
        costs.push(cost);
        host_costs.push(host_cost);
        let FailureCauses {
            watermark,
            deferred,
            no_block,
            aborted,
        } = &mut report.failed;
        *match ended {
            Ended::Free => &mut report.got_free,
            Ended::Compaction => &mut report.got_compaction,
            Ended::Reclaim => &mut report.got_reclaim,
            Ended::Watermark => watermark,
            Ended::Deferred => deferred,
            Ended::NoBlock => no_block,
            Ended::Aborted => aborted,
        } += 1;
    }

    /// What emptied blocks cost when the pass began.
    pub fn watch(&mut self, choice: OracleReport) {
        self.now.choice = choice;
    }

    /// Records the end of a pass, while its huge pages are still held, and when emptied blocks have cost `choice`.
    pub fn end(
        &mut self,
        pass: &PassPlan,
        result: &PassResult,
        frames: &FrameAllocator<'_>,
        sizes: Sizes,
        choice: OracleReport,
    ) {
        let after = self.look(frames, sizes.balloon);
        let now = &mut self.now;
        let mut report = core::mem::take(&mut now.report);
        let mean =
            |time: u128| Tenths::mib_of_frames((time / u128::from(result.length.max(1))) as u64);
        // The pages of the THP test are not part of the load.
        let probe = match pass.test {
            crate::timeline::Test::Thp { .. } => result.allocated * BLOCK,
            _ => 0,
        };
        let anonymous = sizes.anonymous.saturating_sub(probe);
        report.asked = pass.test.asked();
        report.attempts = result.attempts;
        report.allocated = result.allocated;
        report.percent_asked = Tenths::percent(result.allocated, report.asked);
        report.balloon_mean_mib = mean(result.balloon_time);
        report.balloon_target_mean_mib = mean(result.target_time);
        report.balloon_shortfall = shortfall(result.balloon_time, result.target_time);
        report.disqualified = report.balloon_shortfall > MOST_SHORTFALL;
        report.load_anonymous_mib = Tenths::mib_of_frames(anonymous);
        report.load_kernel_mib = Tenths::mib_of_frames(sizes.kernel);
        report.load_mib = Tenths::mib_of_frames(anonymous + sizes.kernel);
        report.files_mib = Tenths::mib_of_frames(sizes.files);
        report.hybrid_blocks = after.hybrid_blocks;
        report.after = after;
        report.attempt_cost_ns = Spread::of(&mut now.costs);
        let host = AttemptHost {
            pass: report.name.clone(),
            ns: Spread::of(&mut now.host_costs),
        };
        report.vmstat = VmStat::since(&now.events, &frames.events().snapshot());
        let of = |event: Event| report.vmstat.get(event.name());
        let moved = of(Event::PgmigrateSuccess);
        report.moved_background = of(Event::CompactDaemonMigrated);
        report.host_messages = of(Event::BalloonMigrateMessages);
        report.balloon_frames_moved = of(Event::BalloonMigrate);
        report.moved_direct = moved.saturating_sub(report.moved_background);
        report.moved_per_huge_page = Tenths::ratio(moved, result.allocated);
        report.choice = choice.since(&now.choice);
        self.host.push(host);
        self.reports.push(report);
    }

    fn look(&self, frames: &FrameAllocator<'_>, balloon: u64) -> MemoryState {
        let info = frames.pagetypeinfo();
        let types = dirigible_frames::Migratetype::ALL.into_iter();
        let pagetypeinfo = types
            .map(|kind| {
                let row = kind as usize;
                TypeState {
                    name: kind.name().to_string(),
                    blocks: u64::from(info.blocks[row]),
                    free: info.free[row].map(u64::from).to_vec(),
                }
            })
            .collect();
        let orders = (0..=Order::MAX.get()).filter_map(Order::new);
        MemoryState {
            free_frames: frames.free_frames(),
            free_blocks: frames.free_blocks(),
            hybrid_blocks: frames.hybrid_blocks() as u64,
            balloon_frames: balloon,
            buddyinfo: frames.buddyinfo().map(u64::from).to_vec(),
            pagetypeinfo,
            unusable_permille: orders
                .map(|order| u64::from(frames.unusable_index(order)))
                .collect(),
            census: self.census(frames),
        }
    }

    fn census(&self, frames: &FrameAllocator<'_>) -> BlockCensus {
        let mut census = BlockCensus::default();
        for (block, &reserved) in frames.blocks().zip(&self.reserved) {
            let ledger = frames.ledger(block);
            let movable = ledger.movable() + ledger.balloon() > 0;
            let kind = match ledger.state() {
                BlockState::Huge => &mut census.huge,
                BlockState::Isolated => &mut census.isolated,
                BlockState::Spare => &mut census.free,
                BlockState::Open if reserved => &mut census.reserved,
                BlockState::Open if ledger.unmovable() == 0 && !movable => &mut census.free,
                BlockState::Open if ledger.unmovable() == 0 => &mut census.movable,
                BlockState::Open if movable => &mut census.hybrid,
                BlockState::Open => &mut census.kernel,
            };
            *kind += 1;
            if ledger.state() == BlockState::Open && (reserved || ledger.unmovable() > 0) {
                census.stranded_free_frames += u64::from(ledger.free());
            }
        }
        census
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_92_a_shortfall_is_a_part_of_the_target() {
        let of = |actual, target| shortfall(actual, target).to_string();
        assert_eq!(of(0, 0), "0.0");
        assert_eq!(of(980, 1000), "2.0");
        assert_eq!(of(979, 1000), "2.1");
        assert_eq!(
            of(1001, 1000),
            "0.0",
            "a balloon that shrinks late lacks nothing"
        );
        assert_eq!(of(0, 1000), "100.0");
        // 256 GiB in frames over a day in nanoseconds.
        let day = (1u128 << 26) * 86_400_000_000_000;
        assert_eq!(of(day / 2, day), "50.0");
        assert!(shortfall(979, 1000) > MOST_SHORTFALL);
        assert!(shortfall(980, 1000) <= MOST_SHORTFALL);
    }

    #[test]
    fn the_end_of_an_attempt_is_told_by_its_events() {
        let before = [5; 5];
        let after = |raised: &[usize]| {
            let mut after = before;
            raised.iter().for_each(|&index| after[index] += 1);
            after
        };
        for (got, raised, ended) in [
            (true, &[][..], Ended::Free),
            (true, &[3], Ended::Compaction),
            (true, &[0], Ended::Reclaim),
            (true, &[0, 1, 3], Ended::Reclaim),
            (false, &[0, 1], Ended::Watermark),
            (false, &[2], Ended::Deferred),
            (false, &[3], Ended::NoBlock),
            (false, &[0, 1, 3, 4], Ended::Aborted),
        ] {
            assert_eq!(Ended::of(got, &before, &after(raised)), ended, "{raised:?}");
        }
    }
}
