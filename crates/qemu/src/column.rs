//! One column of the experiment in a virtual machine, from boot to report.

use std::time::{Duration, Instant};

use dirigible_workload::{
    params::{Column, Params},
    protocol::{GuestTask, Message},
    report::{AttemptHost, ColumnHost, ColumnReport, ColumnRun, Observer, Progress, Residency},
    timeline::{TargetsHash, Timeline},
};

use crate::{
    command_line::Shape,
    diagnosis::unexpected,
    error::{Cause, RunError},
    host_facts,
    options::QemuMachine,
    residency::{self, Full, Look, mib},
    vm::Vm,
};

/// The balloon's target may change just after the guest reports a full balloon, and the books are read one after the
/// other. A mismatch that is younger than this when the target changes is dropped.
const TOO_RECENT: Duration = Duration::from_millis(200);
/// Time between two comparisons of the books.
const LOOK: Duration = Duration::from_millis(10);

/// Runs `column` of the run `params` and reports. When the balloon is full for the first time, each of its frames is
/// moved `moves` times.
///
/// `params.threads` is the number of the guest's CPUs. The run takes as long as its timeline says, in real time.
///
/// # Errors
///
/// Bad parameters, a guest that fails, hangs or dies, a balloon whose size guest, QEMU and host report differently.
pub fn run_column(
    column: Column,
    params: &Params,
    machine: &QemuMachine,
    moves: u64,
    observer: &mut dyn Observer,
) -> Result<ColumnRun, RunError> {
    params
        .check()
        .and_then(|()| params.check_column(column))
        .map_err(|error| RunError::before_start(error.into()))?;
    let shape = Shape {
        memory: params.column_memory(column),
        cpus: params.threads.max(1) as u64,
        touched: true,
        control: true,
        disk_bytes: params.device_bytes(),
        base_pages: true,
    };
    let task = GuestTask::Column {
        column,
        params: params.clone(),
        moves,
    };
    observer.progress(Progress {
        phase: "boot",
        now_ms: 0,
        end_ms: Timeline::new(params).end() / 1_000_000,
    });
    let mut vm = Vm::start(machine, shape, &task, column.name())?;
    let result = follow(&mut vm, column, params, machine, observer);
    vm.conclude(result)
}

fn follow(
    vm: &mut Vm<'_>,
    column: Column,
    params: &Params,
    machine: &QemuMachine,
    observer: &mut dyn Observer,
) -> Result<ColumnRun, Cause> {
    vm.hello()?;
    let start = wait_for_start(vm)?;
    let mut run = Run {
        timeline: Timeline::of_column(column, params),
        start,
        next: 0,
        hash: TargetsHash::default(),
        empty: vm.resident()?,
        spare: residency::spare(column, params),
        has_been_full: false,
        may_shrink: params.deflate_on_oom,
        mismatch: None,
        residency: None,
    };
    let (mut report, attempts) = run.follow(vm, observer)?;
    if report.name != column.name() {
        let (name, asked) = (&report.name, column.name());
        let what = format!("is of column {name:?}, not of {asked}");
        return Err(Cause::Report { what });
    }
    if run.next < run.timeline.targets.len() {
        let what = "came before the balloon had all its targets".into();
        return Err(Cause::Report { what });
    }
    let (user_ms, system_ms) = vm.finish()?;
    report.targets_hash = run.hash.text();
    let host = ColumnHost {
        name: report.name.clone(),
        wall_ms: vm.started().elapsed().as_millis() as u64,
        user_ms,
        system_ms,
        residency: run.residency.unwrap_or(Residency {
            empty_balloon_mib: mib(run.empty),
            ..Residency::default()
        }),
        // QEMU does not count its calls.
        discard_calls: 0,
        attempts,
    };
    Ok(ColumnRun {
        report,
        host,
        facts: host_facts::gather(machine),
    })
}

/// Waits until the guest's clock starts, and returns when that was.
fn wait_for_start(vm: &mut Vm<'_>) -> Result<Instant, Cause> {
    let limit = vm.limits().boot;
    let until = Instant::now() + limit;
    loop {
        match vm.next(until)? {
            Some((at, Message::Start)) => return Ok(at),
            Some((_, Message::Ready { .. } | Message::Progress { .. })) => {}
            Some((_, other)) => return Err(unexpected(&other, "start")),
            None => return Err(Cause::NotReady { limit }),
        }
    }
}

/// Reads the books of QEMU and of the host; `None` if QEMU has ended. Then the guest's last messages, which are still
/// to be read, tell how the run ended.
fn look(vm: &mut Vm<'_>) -> Result<Option<Look>, Cause> {
    let frames = vm.balloon();
    let look = frames.and_then(|frames| {
        let resident = vm.resident()?;
        Ok(Look { frames, resident })
    });
    match look {
        Ok(look) => Ok(Some(look)),
        Err(_) if vm.has_ended() => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// A column under way.
struct Run {
    timeline: Timeline,
    /// When the guest's clock started.
    start: Instant,
    /// The next of the timeline's targets.
    next: usize,
    hash: TargetsHash,
    /// Resident bytes before any balloon.
    empty: u64,
    spare: u64,
    has_been_full: bool,
    /// Whether a full balloon may shrink without a new target. If it has shrunk, a mismatch is no failure.
    may_shrink: bool,
    /// The guest reports a full balloon, and the books do not agree yet.
    mismatch: Option<Mismatch>,
    residency: Option<Residency>,
}

/// What the guest reports about its full balloon, and how the host's books differ.
struct Mismatch {
    full: Full,
    since: Instant,
    /// After this it is a failure.
    until: Instant,
    /// What the balloon held in QEMU's books when they were read last.
    actual: u64,
    what: String,
}

impl Mismatch {
    /// Whether it is a failure, for a balloon that has this target.
    fn is_failure(&self, may_shrink: bool, target: u64) -> bool {
        // Frames that the balloon gave back because the guest was out of memory leave the books one after the other.
        let has_shrunk = may_shrink && self.actual < target;
        !has_shrunk
    }
}

impl Run {
    /// Sets the balloon's targets at their times and handles the guest's messages, up to its report.
    fn follow(
        &mut self,
        vm: &mut Vm<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(ColumnReport, Vec<AttemptHost>), Cause> {
        let limits = vm.limits();
        let longest = Duration::from_nanos(self.timeline.end()) + limits.slack;
        let late = self.start + longest;
        loop {
            self.compare_books(vm)?;
            self.set_due_targets(vm)?;
            let hangs = vm.last().0 + limits.silence;
            let now = Instant::now();
            let looks = self.mismatch.as_ref().map(|_| now + LOOK);
            let until = [self.due(), looks, Some(late)]
                .into_iter()
                .flatten()
                .fold(hangs, Instant::min);
            match vm.next(until)? {
                Some((_, Message::Column { report, attempts })) => {
                    self.fail_on_mismatch()?;
                    return Ok((*report, attempts));
                }
                Some((_, Message::BalloonFull { frames })) if !self.has_been_full => {
                    self.has_been_full = true;
                    let full = Full {
                        frames,
                        before: self.empty,
                        spare: self.spare,
                    };
                    let since = Instant::now();
                    self.mismatch = Some(Mismatch {
                        full,
                        since,
                        until: since + limits.agree,
                        actual: frames,
                        what: "QEMU ended before its books were read".into(),
                    });
                }
                // One full balloon has been judged already.
                Some((_, Message::BalloonFull { .. })) => {}
                Some((
                    _,
                    Message::Progress {
                        phase,
                        now_ms,
                        end_ms,
                    },
                )) => observer.progress(Progress {
                    phase: self.phase(&phase),
                    now_ms,
                    end_ms,
                }),
                Some((_, other)) => return Err(unexpected(&other, "progress or a report")),
                None if Instant::now() >= late => return Err(Cause::Late { limit: longest }),
                None if Instant::now() >= hangs => {
                    return Err(Cause::Silent {
                        limit: limits.silence,
                        last: vm.last().1.into(),
                    });
                }
                None => {}
            }
        }
    }

    /// When the next target is due.
    fn due(&self) -> Option<Instant> {
        let (time, _) = self.timeline.targets.get(self.next)?;
        Some(self.start + Duration::from_nanos(*time))
    }

    fn set_due_targets(&mut self, vm: &mut Vm<'_>) -> Result<(), Cause> {
        while self.due().is_some_and(|due| due <= Instant::now()) {
            let (time, frames) = self.timeline.targets[self.next];
            self.drop_recent_mismatch();
            self.fail_on_mismatch()?;
            vm.set_balloon(frames)?;
            self.hash.add(time, frames);
            self.next += 1;
        }
        Ok(())
    }

    /// Compares the books while the balloon is full, until they agree once.
    fn compare_books(&mut self, vm: &mut Vm<'_>) -> Result<(), Cause> {
        let Some(mismatch) = &mut self.mismatch else {
            return Ok(());
        };
        let Some(look) = look(vm)? else {
            return Ok(());
        };
        match mismatch.full.judge(look) {
            Ok(found) => {
                self.residency = Some(found);
                self.mismatch = None;
                Ok(())
            }
            Err(what) => {
                mismatch.actual = look.frames;
                mismatch.what = what;
                if Instant::now() < mismatch.until {
                    return Ok(());
                }
                let judged = self.fail_on_mismatch();
                self.mismatch = None;
                judged
            }
        }
    }

    /// Drops a mismatch that is too recent to be judged, before the target changes. The next full balloon is judged
    /// then.
    fn drop_recent_mismatch(&mut self) {
        let recent = |mismatch: &mut Mismatch| mismatch.since.elapsed() < TOO_RECENT;
        if self.mismatch.take_if(recent).is_some() {
            self.has_been_full = false;
        }
    }

    /// Fails if there is still a mismatch: the target is to change, or the run is over.
    fn fail_on_mismatch(&self) -> Result<(), Cause> {
        match &self.mismatch {
            Some(mismatch) if mismatch.is_failure(self.may_shrink, self.target()) => {
                let what = mismatch.what.clone();
                Err(Cause::Balloon { what })
            }
            _ => Ok(()),
        }
    }

    /// The balloon's current target.
    fn target(&self) -> u64 {
        let set = &self.timeline.targets[..self.next];
        set.last().map_or(0, |&(_, frames)| frames)
    }

    /// The phase's name, as the timeline has it.
    fn phase(&self, name: &str) -> &'static str {
        let phases = self.timeline.phases.iter();
        let known = phases.map(|phase| phase.name).find(|known| *known == name);
        known.unwrap_or("running")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_no_failure_only_if_the_balloon_may_shrink_and_has() {
        let failure = |may_shrink, actual| {
            let now = Instant::now();
            let full = Full {
                frames: 1000,
                before: 0,
                spare: 0,
            };
            let mismatch = Mismatch {
                full,
                since: now,
                until: now,
                actual,
                what: String::new(),
            };
            mismatch.is_failure(may_shrink, 1000)
        };
        assert!(failure(false, 999));
        assert!(failure(false, 1000));
        assert!(!failure(true, 999));
        assert!(failure(true, 1000));
        assert!(failure(true, 1001));
    }
}
