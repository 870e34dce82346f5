//! The command: `dirigible stress-highalloc` runs the experiment and prints its table; the other commands need QEMU and
//! measure one thing each ([`guest_hello`], [`guest_test`], [`balloon_speed`], [`balloon_moves`]).
//!
//! Each column runs in a process of its own ([`children`] starts them, [`mod@column`] is what they do); what they print is
//! put together into one report ([`stress`]), which [`show`] prints as a table and [`json_file`] writes as JSON.

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
mod show;
mod stress;
mod summary;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A wrong command line ends here, with status 2.
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
