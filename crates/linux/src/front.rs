//! What the user starts: checks what was asked for, begins the supervisor and waits for it.

use std::{
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use dirigible_workload::{
    params::{Params, Profile},
    programs::{LoadPlan, tree::Tree},
};
use rustix::{fs::statvfs, process::getpid, system::sysinfo};

use crate::{
    args::Args,
    task::{Run, Task, begin},
};

const PAGE: u64 = 4096;
/// How long the front waits for processes that die with the supervisor.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the load and gives the status.
pub fn run(args: &Args) -> Result<u8, String> {
    let directory = args.directory.as_deref().ok_or("a directory is missing")?;
    let memory = match args.memory {
        Some(memory) => memory,
        None => this_memory(),
    };
    let params = Params {
        memory,
        balloon: 0,
        seed: args.seed,
        ..Params::new(Profile::Paper)
    };
    params.check().map_err(|error| error.to_string())?;
    let plan = LoadPlan::new(&params).hastened(args.speed);
    check_space(directory, &plan)?;
    let root = make_root(directory)?;
    let run = Run {
        memory,
        plan,
        root: root.clone(),
        seconds: args.seconds,
        json: args.json,
    };
    let result = supervise(run);
    if result.is_err() {
        remove(&root);
    }
    result
}

/// The machine's memory, as whole MiB.
fn this_memory() -> u64 {
    let info = sysinfo();
    let bytes = info.totalram as u64 * u64::from(info.mem_unit);
    bytes & !((1 << 20) - 1)
}

/// Whether the trees have room.
fn check_space(directory: &Path, plan: &LoadPlan) -> Result<(), String> {
    let named = |error: io::Error| format!("{}: {error}", directory.display());
    if !fs::metadata(directory).map_err(named)?.is_dir() {
        return Err(format!("{} is no directory", directory.display()));
    }
    let space = statvfs(directory).map_err(|error| named(error.into()))?;
    let available = u128::from(space.f_bavail) * u128::from(space.f_frsize);
    let trees = Tree::new(plan, 0).pages() * u64::from(plan.trees) * PAGE;
    // Objects, images and the file system's own.
    let needed = trees + trees / 4;
    if available < u128::from(needed) {
        let (needed, available) = (needed >> 20, available >> 20);
        return Err(format!(
            "the files need about {needed} MiB; {} has {available} MiB left: use another directory or less memory",
            directory.display()
        ));
    }
    Ok(())
}

/// Makes the directory of all files.
fn make_root(directory: &Path) -> Result<String, String> {
    let name = format!("dirigible-load-{}", getpid().as_raw_nonzero());
    let root = directory.join(name);
    let shown = root.display().to_string();
    fs::create_dir(&root).map_err(|error| format!("{shown}: {error}"))?;
    // An absolute path: it stands in the arguments of processes.
    let absolute = fs::canonicalize(&root).ok();
    let text = absolute.and_then(|path| path.into_os_string().into_string().ok());
    text.ok_or_else(|| {
        let _ = fs::remove_dir(&root);
        format!("{shown}: the name is not UTF-8")
    })
}

/// Begins the supervisor and waits for it.
fn supervise(run: Run) -> Result<u8, String> {
    let task = Task::Supervise(run);
    // A group of its own: what a terminal sends to the front ends the front alone, which the supervisor sees.
    let begun = begin(&task, Stdio::piped(), |command| {
        command.process_group(0);
    });
    let mut child =
        begun.map_err(|error| format!("the supervisor could not be started: {error}"))?;
    // The supervisor reads the other end: while this one is open, the front lives.
    let lifeline = child.stdin.take();
    let status = child
        .wait()
        .map_err(|error| format!("the supervisor could not be waited for: {error}"))?;
    drop(lifeline);
    match status.code() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(2)),
        None => {
            let signal = status.signal().unwrap_or(0);
            Err(format!("the supervisor was ended by signal {signal}"))
        }
    }
}

/// Removes what a supervisor has left that was killed. Its processes die with it and may need a moment.
fn remove(root: &str) {
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(root) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if begun.elapsed() > PATIENCE => {
                eprintln!("error: {root} could not be deleted: {error}");
                return;
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
