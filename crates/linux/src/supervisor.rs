//! Begins the load, and ends it so that nothing is left.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::Stdio,
    time::{Duration, Instant},
};

use dirigible_workload::{
    calls::Failure,
    programs::{self, Program},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process_group, set_child_subreaper, wait},
    stdio,
};

use crate::{
    counters::Counters,
    process::Process,
    report::Report,
    task::{Assignment, Run, Task, begin},
    verdict::{End, faults},
};

/// From one look whether the load still runs to the next.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the load and prints what it did. Gives the status: 1 when something was wrong.
pub fn run(run: &Run) -> Result<u8, String> {
    let result = load(run);
    // Whatever happened: no file stays.
    match fs::remove_dir_all(&run.root) {
        Err(error) if fs::exists(&run.root).unwrap_or(true) => {
            let failed = format!("{} could not be deleted: {error}", run.root);
            match result {
                Ok(_) => Err(failed),
                Err(first) => Err(format!("{first}; {failed}")),
            }
        }
        _ => result,
    }
}

fn load(run: &Run) -> Result<u8, String> {
    let text = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    // Processes that lose their parent become children of this one, which can wait for them then.
    set_child_subreaper(Some(getpid())).map_err(text("the supervisor cannot adopt"))?;
    let counters = Counters::create().map_err(|error| format!("shared memory: {error}"))?;
    let assignment = Assignment {
        program: Program::Main,
        plan: run.plan,
        root: run.root.clone(),
        counters: counters.descriptor(),
        parent: getpid().as_raw_nonzero().get() as u32,
        pipe: false,
    };
    let task = Task::Program(assignment.clone());
    let begun = Instant::now();
    let child = begin(&task, Stdio::null(), |command| {
        command.process_group(0).stdout(Stdio::null());
    });
    let child = child.map_err(|error| format!("the load could not be started: {error}"))?;
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err("the load has no process number".into());
    };
    let ended = watch(Duration::from_secs(run.seconds));
    let elapsed = begun.elapsed();
    end(group)?;
    if ended == End::Front {
        return Ok(1);
    }
    let deleted = delete(assignment, counters);
    let faults = faults(ended, deleted, counters);
    for fault in &faults {
        eprintln!("error: {fault}");
    }
    let report = Report::new(run, elapsed, counters);
    report
        .print(run.json)
        .map_err(|error| format!("the report could not be printed: {error}"))?;
    Ok(u8::from(!faults.is_empty()))
}

/// Waits until the time is over, the load has ended or the front has died.
fn watch(time: Duration) -> End {
    let deadline = Instant::now() + time;
    let look = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.as_nanos() as i64,
    };
    while Instant::now() < deadline {
        let stdin = stdio::stdin();
        let mut lifeline = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut lifeline, Some(&look)) {
            Ok(0) | Err(Errno::INTR) => {}
            // Nothing is ever written: it is the end.
            _ => return End::Front,
        }
        // Adopted processes that have ended are waited for here too. The root program lives as long as there are any
        // children: the others die with it.
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return End::Load,
            }
        }
    }
    End::Time
}

/// Kills all programs and waits until none is left.
fn end(group: Pid) -> Result<(), String> {
    match kill_process_group(group, Signal::KILL) {
        // None was left.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(format!("the load could not be ended: {error}")),
    }
    loop {
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(format!("the load could not be waited for: {error}")),
        }
    }
}

/// Deletes all trees, as a program of the load.
fn delete(assignment: Assignment, counters: &'static Counters) -> Result<(), Failure> {
    let plan = assignment.plan;
    let process = Process::new(assignment, counters, None);
    (0..plan.trees).try_for_each(|tree| {
        let program = Program::Delete { tree };
        programs::run(&program, &plan, &process)
    })
}
