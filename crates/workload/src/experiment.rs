//! One column of the experiment on any machine: its actors, and its report.
//!
//! A machine builds the parts, asks an [`Experiment`] for the actors, puts them into as many [`Engine`]s as it has CPUs
//! for them, lets the engine with the director [`lead`](Experiment::lead), and takes the report. What differs from
//! machine to machine (devices, threads, what the host measures) stays with the machine.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use dirigible_balloon::{BalloonDriver, BalloonStats};
use dirigible_frames::{Event, OwnerId, PageTables};
use spin::Mutex;

use crate::{
    balloon::{BalloonMeans, MeasuredWorker},
    control::Control,
    director::{Director, Targets},
    ending,
    filler::FillerLoad,
    load,
    mover::{Mover, MoverParts},
    params::{Column, Params},
    report::{ColumnReport, LoadReport, Observer, Progress, TenThousandths, Tenths, VmStat},
    system::System,
    timeline::{TargetsHash, Timeline, column_mem_total_frames},
    tuning::{ColumnPolicy, LoadTuning},
};
use dirigible::{
    MemoryManager,
    balloon_worker::BalloonWorker,
    kcompactd::Kcompactd,
    schedule::{Actor, Clock, Engine, time},
};

/// The owner id of anonymous memory.
pub const PAGING: OwnerId = OwnerId::new(1).unwrap();
/// The owner id of the balloon.
pub const BALLOON: OwnerId = OwnerId::new(2).unwrap();
/// The owner id of the filler.
pub const FILLER: OwnerId = OwnerId::new(3).unwrap();
/// More address spaces than jobs can ever have.
pub const SPACES: usize = 64;

/// A column under way.
pub struct Experiment<'e, 'a, 'm, P: PageTables> {
    column: Column,
    params: &'e Params,
    system: &'e System<'a, P>,
    manager: &'e MemoryManager<'m, P>,
    timeline: Timeline,
    control: Control,
    hash: Mutex<TargetsHash>,
    means: BalloonMeans,
}

impl<'e, 'a, 'm, P: PageTables> Experiment<'e, 'a, 'm, P> {
    /// The `column` of the run `params` on `system`, whose memory is `manager`'s.
    pub fn new(
        column: Column,
        params: &'e Params,
        system: &'e System<'a, P>,
        manager: &'e MemoryManager<'m, P>,
    ) -> Self {
        Self {
            column,
            params,
            system,
            manager,
            timeline: Timeline::of_column(column, params),
            control: Control::new(),
            hash: Mutex::new(TargetsHash::default()),
            means: BalloonMeans::default(),
        }
    }

    /// The plan of the run.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What the director tells the others: all engines run until [`Control::ended`].
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The load's actors, the filler's among them: they all answer the director.
    pub fn load(&self) -> Vec<Box<dyn Actor + '_>> {
        let mut actors: Vec<Box<dyn Actor + '_>> = Vec::new();
        if self.params.filler {
            let filler = self.system.parts().filler;
            let tuning = LoadTuning::new(self.params).filler;
            let seed = self.params.seed;
            actors.push(Box::new(FillerLoad::new(
                filler,
                &self.control,
                tuning,
                seed,
            )));
        }
        actors.extend(load::actors(self.system, &self.control, self.params));
        actors
    }

    /// The director of a run with so many actors of load.
    pub fn director(&self, load: usize) -> Director<'_, System<'a, P>> {
        Director::new(self.system, &self.control, &self.timeline, load as u64)
    }

    /// Sets the balloon's targets; for a machine that is its own host. Otherwise whoever is the host keeps to
    /// [`timeline`](Self::timeline), and knows the hash of what it set.
    pub fn targets(&self) -> Targets<'_, System<'a, P>> {
        Targets::new(self.system, &self.timeline, &self.hash)
    }

    /// The balloon's worker: `worker`, and what the experiment measures at it.
    pub fn balloon_worker<'w>(&'w self, worker: BalloonWorker<'w>) -> MeasuredWorker<'w> {
        let balloon = self.system.parts().balloon;
        MeasuredWorker::new(worker, balloon, &self.control, &self.means)
    }

    /// Moves every frame of the full balloon `moves` times; `None` where there is nothing to move.
    pub fn mover(&self, moves: u64) -> Option<Mover<'_, 'm, P>> {
        let full = self.params.column_balloon_frames(self.column);
        let movable = ColumnPolicy::new(self.column, self.params).balloon_movable;
        if moves == 0 || full == 0 || !movable {
            return None;
        }
        let parts = MoverParts {
            balloon: self.system.parts().balloon,
            owner: BALLOON,
            mobility: self.manager.mobility(),
            memory: self.system.parts().memory,
            control: &self.control,
        };
        Some(Mover::new(parts, full, moves))
    }

    /// Background compaction.
    pub fn kcompactd(&self) -> Kcompactd<'m, 'm, P> {
        self.manager.kcompactd()
    }

    /// Runs the engine that the director is in until the run has ended, and tells how far it has come.
    pub fn lead(&self, engine: &mut Engine<'_>, clock: &dyn Clock, observer: &mut dyn Observer) {
        let mut next = 0;
        engine.run(clock, self.control.ended(), |now, _| {
            if now >= next {
                next = now + time::SECOND;
                observer.progress(self.progress(now));
            }
        });
    }

    /// How far the run has come at `now`.
    pub fn progress(&self, now: u64) -> Progress {
        Progress {
            phase: self.control.phase(),
            now_ms: now / time::MILLISECOND,
            end_ms: self.timeline.end() / time::MILLISECOND,
        }
    }

    /// Waits until nothing is under way any more, a bounded time. To be called when all engines have ended, before the
    /// [`report`](Self::report): the counts of a move that the host has not answered do not add up.
    pub fn settle(&self) {
        self.manager.settle();
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
        let parts = self.system.parts();
        let events = parts.frames.events();
        let of = |event| events.get(event);
        let (balloon_mean, target_mean) = self.means.means();
        let (messages, moved) = (of(Event::BalloonMigrateMessages), of(Event::BalloonMigrate));
        let pages_moved = of(Event::PgmigrateSuccess);
        let (passes, _) = self.system.passes();
        let huge_pages = passes.iter().map(|pass| pass.allocated).sum();
        let control = &self.control;
        // All engines have ended: Relaxed.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ColumnReport {
            name: self.column.name().into(),
            policy: policy.report(),
            mem_total_mib: Tenths::mib_of_frames(column_mem_total_frames(self.column, self.params)),
            elapsed_ms: parts.platform.now() / time::MILLISECOND,
            passes,
            vmstat: VmStat::since(&[0; Event::COUNT], &events.snapshot()),
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
            targets_hash: self.hash.lock().text(),
            balloon_mean_mib: Tenths::mib_of_frames(balloon_mean),
            balloon_target_mean_mib: Tenths::mib_of_frames(target_mean),
            balloon_max_mib: Tenths::mib_of_frames(largest),
            oom_deflated: balloon.oom_deflated,
            device_errors,
            stalls: parts.stalls.report(),
            load: LoadReport {
                jobs_started: count(&control.jobs_started),
                jobs_finished: count(&control.jobs_finished),
                waits: count(&control.waits),
                waited_ms: count(&control.waited) / time::MILLISECOND,
                filler_taken: parts.filler.taken(),
                filler_given: parts.filler.given(),
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
        let parts = self.system.parts();
        let managed = column_mem_total_frames(self.column, self.params);
        let balanced = ending::give_all_back(self.manager, parts.filler, balloon, managed);
        report.content_errors = parts.contents.errors();
        report.pages_checked = parts.contents.checked_whole();
        balanced.and_then(|()| ending::content_verdict(parts.contents))
    }
}
