//! The command: `dirigible stress-highalloc` runs the experiment and prints its table. The other commands need QEMU and
//! measure or test one thing each ([`guest_hello`], [`guest_test`], [`balloon_speed`], [`balloon_moves`]).
//!
//! Each column runs in a process of its own: [`children`] starts them, [`mod@column`] is what they run. [`stress`]
//! joins what they print into one report, [`screen`] prints the result, [`show`] all figures, and [`json_file`] writes it as JSON.

#![forbid(unsafe_code)]

mod args;
mod balloon_moves;
mod balloon_speed;
mod checks;
mod children;
mod column;
mod failure;
mod figures;
#[cfg(test)]
mod fixture;
mod guest_hello;
mod guest_test;
mod headline;
mod json_file;
mod names;
mod plan;
mod print;
mod progress;
mod qemu_args;
mod screen;
mod series_table;
mod show;
mod stress;
mod summary;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Exits with status 2 if the command line is wrong.
    let cli = args::Cli::parse();
    let result = match cli.command {
        args::Command::StressHighalloc(args) => stress::run(&args),
        args::Command::BalloonSpeed(args) => balloon_speed::run(&args),
        args::Command::BalloonMoves(args) => balloon_moves::run(&args),
        args::Command::GuestTest(args) => guest_test::run(&args),
        args::Command::GuestHello(args) => guest_hello::run(&args),
        args::Command::RunColumn => column::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.status()
        }
    }
}
