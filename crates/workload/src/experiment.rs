//! One column of the experiment on any machine: its actors, and its report.
//!
//! A machine builds the parts, asks an [`Experiment`] for the actors, puts them into as many [`Engine`]s as it has CPUs
//! for them, lets the engine with the director [`lead`](Experiment::lead), and takes the report. What differs from
//! machine to machine (devices, threads, what the host measures) stays with the machine.

use alloc::{format, string::String};
use core::sync::atomic::{AtomicU64, Ordering};

use dirigible_balloon::{BalloonDriver, BalloonStats};
use dirigible_frames::{Event, OwnerId, PageTables, Pfn};
use dirigible_paging::{Page, SpaceId};
use spin::Mutex;

use crate::{
    balloon::{BalloonMeans, MeasuredWorker},
    calls::Failure,
    control::Control,
    director::{Director, Targets},
    ending,
    mover::{Mover, MoverParts},
    operations::Operations,
    params::{Column, Params},
    processes::{MAX_PROGRAMS, Processes},
    programs::Program,
    report::{
        ColumnReport, DiskReport, LoadReport, Observer, Progress, TenThousandths, Tenths, VmStat,
    },
    system::{self, Parts, System},
    timeline::{TargetsHash, Timeline, column_mem_total_frames},
    tuning::ColumnPolicy,
};
use dirigible::{
    MemoryManager,
    balloon_worker::BalloonWorker,
    kcompactd::Kcompactd,
    khugepaged::{Fill, Khugepaged, KhugepagedConfig},
    schedule::{Clock, Engine, time},
};

/// The owner id of anonymous memory.
pub const PAGING: OwnerId = OwnerId::new(1).unwrap();
/// The owner id of the balloon.
pub const BALLOON: OwnerId = OwnerId::new(2).unwrap();
/// The owner id of pages of files.
pub const FILES: OwnerId = OwnerId::new(3).unwrap();
/// More address spaces than there can be programs, the operator's among them.
pub const SPACES: usize = MAX_PROGRAMS + 8;

/// What an experiment runs on.
pub struct ExperimentParts<'e, 'a, 'm, P: PageTables> {
    /// The machine.
    pub system: &'e System<'a, P>,
    /// The programs on it.
    pub processes: &'e Processes<'e, 'a, P>,
    /// Their operator.
    pub operations: &'e Operations<'e, 'a, P>,
    /// What the director tells the others.
    pub control: &'e Control,
    /// The machine's memory manager.
    pub manager: &'e MemoryManager<'m, P>,
}

/// A column under way.
pub struct Experiment<'e, 'a, 'm, P: PageTables> {
    column: Column,
    params: &'e Params,
    on: ExperimentParts<'e, 'a, 'm, P>,
    timeline: Timeline,
    hash: Mutex<TargetsHash>,
    means: BalloonMeans,
    /// The events before the run: of formatting the disk, say.
    before: [u64; Event::COUNT],
}

impl<'e, 'a, 'm, P: PageTables> Experiment<'e, 'a, 'm, P> {
    /// The `column` of the run `params`.
    pub fn new(column: Column, params: &'e Params, on: ExperimentParts<'e, 'a, 'm, P>) -> Self {
        let before = on.system.parts().frames.events().snapshot();
        Self {
            column,
            params,
            on,
            timeline: Timeline::of_column(column, params),
            hash: Mutex::new(TargetsHash::default()),
            means: BalloonMeans::default(),
            before,
        }
    }

    /// The plan of the run.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What the director tells the others: all engines run until [`Control::ended`].
    pub fn control(&self) -> &Control {
        self.on.control
    }

    /// Begins the load: the first program waits for its engine then.
    ///
    /// # Errors
    ///
    /// There is no place for it.
    pub fn begin(&self) -> Result<(), Failure> {
        self.on.processes.begin(&Program::Main).map(|_| ())
    }

    /// Makes `engine` run the programs that begin on CPU `cpu` of those that have engines.
    pub fn accept_programs<'p>(&'p self, engine: &mut Engine<'p>, cpu: usize) {
        let processes = self.on.processes;
        engine.accept_from(move || processes.arrive(cpu));
    }

    /// The director.
    pub fn director(&self) -> Director<'_, Operations<'e, 'a, P>> {
        Director::new(self.on.operations, self.on.control, &self.timeline)
    }

    /// Sets the balloon's targets; for a machine that is its own host. Otherwise whoever is the host keeps to
    /// [`timeline`](Self::timeline), and knows the hash of what it set.
    pub fn targets(&self) -> Targets<'_, Operations<'e, 'a, P>> {
        Targets::new(self.on.operations, &self.timeline, &self.hash)
    }

    /// The balloon's worker: `worker`, and what the experiment measures at it.
    pub fn balloon_worker<'w>(&'w self, worker: BalloonWorker<'w>) -> MeasuredWorker<'w> {
        let balloon = self.on.system.parts().balloon;
        MeasuredWorker::new(worker, balloon, self.on.control, &self.means)
    }

    /// Moves every frame of the full balloon `moves` times; `None` where there is nothing to move.
    pub fn mover(&self, moves: u64) -> Option<Mover<'_, 'm, P>> {
        let full = self.params.column_balloon_frames(self.column);
        let movable = ColumnPolicy::new(self.column, self.params).balloon_movable;
        if moves == 0 || full == 0 || !movable {
            return None;
        }
        let parts = MoverParts {
            balloon: self.on.system.parts().balloon,
            owner: BALLOON,
            mobility: self.on.manager.mobility(),
            memory: self.on.system.parts().memory,
            control: self.on.control,
        };
        Some(Mover::new(parts, full, moves))
    }

    /// Background compaction.
    pub fn kcompactd(&self) -> Kcompactd<'m, 'm, P> {
        self.on.manager.kcompactd()
    }

    /// The daemon that collapses programs' pages into huge pages, to be run as a program. `fill` is
    /// [`fill_page`](Self::fill_page).
    pub fn khugepaged<'k>(&'k self, fill: Fill<'k>) -> Khugepaged<'k, 'a, P>
    where
        'm: 'k,
    {
        let paging = self.on.system.parts().paging;
        Khugepaged::new(
            paging,
            self.on.system.parts().memory,
            fill,
            KhugepagedConfig::default(),
        )
    }

    /// Writes what a fault writes into a new page of a program.
    pub fn fill_page(&self, space: SpaceId, page: Page, frame: Pfn) {
        let pattern = system::pattern_of(space, page.get());
        pattern.write(self.on.system.parts().platform, frame);
    }

    /// Runs the engine that the director is in until the run has ended, and tells how far it has come.
    pub fn lead(&self, engine: &mut Engine<'_>, clock: &dyn Clock, observer: &mut dyn Observer) {
        let mut next = 0;
        engine.run(clock, self.on.control.ended(), |now, _| {
            if now >= next {
                next = now + time::SECOND;
                observer.progress(self.progress(now));
            }
        });
    }

    /// How far the run has come at `now`.
    pub fn progress(&self, now: u64) -> Progress {
        Progress {
            phase: self.on.control.phase(),
            now_ms: now / time::MILLISECOND,
            end_ms: self.timeline.end() / time::MILLISECOND,
        }
    }

    /// Waits until nothing is under way any more, a bounded time. To be called when all engines have ended, before the
    /// [`report`](Self::report): the counts of a move that the host has not answered do not add up.
    pub fn settle(&self) {
        self.on.manager.settle();
    }

    /// What the guest knows when all engines have ended: everything but `host`. `balloon` and `largest` (frames) are
    /// the balloon's, `device_errors` the device's if the guest can see them.
    pub fn report(
        &self,
        policy: &ColumnPolicy,
        balloon: BalloonStats,
        largest: u64,
        device_errors: u64,
    ) -> ColumnReport {
        let parts = self.on.system.parts();
        let events = parts.frames.events();
        let of = |event| events.get(event);
        let (balloon_mean, target_mean) = self.means.means();
        let (messages, moved) = (of(Event::BalloonMigrateMessages), of(Event::BalloonMigrate));
        let pages_moved = of(Event::PgmigrateSuccess);
        let (passes, _) = self.on.system.passes();
        let huge_pages = passes.iter().map(|pass| pass.allocated).sum();
        let control = self.on.control;
        // All engines have ended: Relaxed.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ColumnReport {
            name: self.column.name().into(),
            policy: policy.report(),
            mem_total_mib: Tenths::mib_of_frames(column_mem_total_frames(self.column, self.params)),
            elapsed_ms: parts.platform.now() / time::MILLISECOND,
            passes,
            vmstat: VmStat::since(&self.before, &events.snapshot()),
            content_errors: parts.contents.errors(),
            pages_checked: parts.contents.checked_whole(),
            host_messages: messages,
            balloon_frames_moved: moved,
            messages_per_frame_moved: TenThousandths::ratio(messages, moved),
            balloon_rounds: count(&control.balloon_rounds),
            host_messages_total: of(Event::BalloonMessages),
            balloon_lock_refusals: balloon.refused,
            pages_moved,
            huge_pages,
            moved_per_huge_page: Tenths::ratio(pages_moved, huge_pages),
            choice: parts.choice(),
            targets_hash: self.hash.lock().text(),
            balloon_mean_mib: Tenths::mib_of_frames(balloon_mean),
            balloon_target_mean_mib: Tenths::mib_of_frames(target_mean),
            balloon_max_mib: Tenths::mib_of_frames(largest),
            oom_deflated: balloon.oom_deflated,
            device_errors,
            disk: disk_report(parts),
            stalls: parts.stalls.report(),
            load: LoadReport {
                waits: count(&control.waits),
                waited_ms: count(&control.waited) / time::MILLISECOND,
                failures: control.failures(),
                compiled: control.compiled(),
            },
        }
    }

    /// Gives everything back that is still held and balances all books, and brings the report's checks of contents up
    /// to date: giving back checks once more.
    ///
    /// # Errors
    ///
    /// The first book that does not balance, or contents that were wrong: the report cannot be trusted.
    pub fn end(
        &self,
        balloon: &dyn BalloonDriver,
        report: &mut ColumnReport,
    ) -> Result<(), String> {
        let parts = self.on.system.parts();
        let managed = column_mem_total_frames(self.column, self.params);
        let balanced = ending::give_all_back(self.on.manager, parts, balloon, managed);
        report.content_errors = parts.contents.errors();
        report.pages_checked = parts.contents.checked_whole();
        // A disk that fails excuses no wrong contents.
        match (balanced, ending::content_verdict(parts.contents)) {
            (Err(books), Err(contents)) => Err(format!("{contents}; {books}")),
            (books, contents) => books.and(contents),
        }
    }
}

/// What went wrong at the disk so far.
fn disk_report<P: PageTables>(parts: &Parts<'_, P>) -> DiskReport {
    let (counts, usage) = (parts.cache.counts(), parts.files.usage());
    DiskReport {
        read_errors: counts.read_errors,
        write_errors: counts.write_errors,
        abandoned_frames: counts.abandoned,
        lost_blocks: usage.lost_blocks,
        lost_inodes: usage.lost_inodes,
    }
}
