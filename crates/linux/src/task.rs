//! What a process that the command begins is to do: its only argument.

use std::{
    io,
    process::{Child, Command, Stdio},
};

use dirigible_workload::programs::{LoadPlan, Program};
use serde::{Deserialize, Serialize};

use crate::{process, supervisor};

/// An argument of the command, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Task {
    /// To supervise a run.
    Supervise(Run),
    /// To run a program.
    Program(Assignment),
}

/// A run, as the supervisor gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The memory that the load is made for, in bytes.
    pub memory: u64,
    /// The load.
    pub plan: LoadPlan,
    /// The directory of all files; it is there, empty, and is deleted at the end.
    pub root: String,
    /// How long the load runs.
    pub seconds: u64,
    /// Prints JSON.
    pub json: bool,
}

/// A program, as its process gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The program.
    pub program: Program,
    /// The load.
    pub plan: LoadPlan,
    /// The directory of all files.
    pub root: String,
    /// The file descriptor of the counters.
    pub counters: i32,
    /// Which process begins it.
    pub parent: u32,
    /// Its standard input is the end of a pipe.
    pub pipe: bool,
}

/// Does what `text` says. Gives the status of the process.
pub fn run(text: &str) -> Result<u8, String> {
    match serde_json::from_str(text) {
        Ok(Task::Supervise(run)) => supervisor::run(&run),
        Ok(Task::Program(assignment)) => process::run_program(assignment),
        Err(error) => Err(format!("this is no task: {error}")),
    }
}

/// Begins a process that does `task`.
pub fn begin(task: &Task, stdin: Stdio, change: impl FnOnce(&mut Command)) -> io::Result<Child> {
    let text = serde_json::to_string(task)?;
    // The name of the file may have changed, or be another's by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg("--task").arg(text).stdin(stdin);
    change(&mut command);
    command.spawn()
}
