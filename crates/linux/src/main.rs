//! `dirigible-load`: the load of stress-highalloc on the Linux that it runs on.
//!
//! The programs are those of `dirigible-workload`; each is a process. Three kinds of processes work together:
//!
//! - [`front`]: what the user starts. It begins the supervisor and waits for it, no more. When it dies, however it
//!   does, the supervisor sees it and ends the load.
//! - [`supervisor`]: begins the load's root program in a process group of its own, adopts whoever loses its parent, and
//!   at the end kills all, waits for all, deletes the files and prints what was done.
//! - [`process`]: one program. It dies with its parent.
//!
//! They share their [`counters`]. Whatever they write, in [`memory`] and files, are patterns, and is compared.

#![deny(unsafe_code)]

mod args;
mod counters;
mod front;
mod memory;
mod page_set;
mod pages;
mod process;
mod report;
mod supervisor;
mod task;
mod verdict;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Exits with status 2 if the command line is wrong.
    let args = args::Args::parse();
    let result = match &args.task {
        Some(task) => task::run(task),
        None => front::run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
