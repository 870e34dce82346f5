//! The project's tasks: `cargo xtask test` and others.

#![forbid(unsafe_code)]

mod calls;
mod experiment;
mod no_std;
mod pitfalls;
mod qemu;
mod rust_version;
mod size;
mod soak;
mod step;
mod suite;
mod totals;
mod verdict;

use std::process::ExitCode;

use step::{Step, cargo};

const USAGE: &str = "\
Usage: cargo xtask <task>

  test [--quick]          everything that a change must pass: format, lints, docs, all tests, model checks, no_std, a run
                          of the command, a short soak, and under QEMU a boot, the guest's tests and two runs; --quick
                          leaves out the model checks, the runs and QEMU
  guest                   builds the guest kernel
  qemu COMMAND …          builds it and runs one of the command's commands on it: guest-hello, guest-test, balloon-speed,
                          balloon-moves, stress-highalloc
  size [--json] [--functions N]
                          builds it, prints how many bytes of text frames, mobility and balloon have in it, and fails above
                          the limit; with --functions the N largest functions and the N in most copies, too
  bench [-- OPTIONS]      the allocator beside its peers, and what compaction's choice of a block costs; with options only the
                          former: `-- --only LIST` runs some of speed, latency, refused, aging, boot, metadata, for more see
                          docs/allocator-bench.md
  soak [--seconds N] [--columns LIST] [--answer-ms LIST] [--schedule LIST] [--hour] [--fresh]
       [--out DIR]
                          two threads of load in real time, memory full, the columns steered and movable, the balloon held (or
                          cycle), the host answering after 0, 1 and 20 ms, and once a balloon that deflates when memory ends;
                          N + 15 seconds each (default 180): longest stalls, and what must be 0; into DIR (default
                          target/soak); --hour runs an hour of virtual time instead, each column and both schedules; parts
                          that this build has run already are not run again, --fresh runs them
  experiment [--runs K] [--variant-runs K] [--out DIR] [--only NAME]
                          all figures of docs/experiment.md: both schedules and the variants, K seeds each (default 10 and
                          3), into DIR (default target/experiment); what is there already is not run again
  calls                   checks that docs/calls.md names each public call of the memory manager and no others
  pitfalls [--write]      checks that docs/pitfalls.md names each test called pitfall_NN_… and no others; --write corrects it";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test"] => suite::run(false),
        ["test", "--quick"] => suite::run(true),
        ["guest"] => qemu::build_guest(),
        ["qemu", command, ..] if !command.starts_with('-') => qemu::run(&words[1..]),
        ["size", rest @ ..] => size::run(rest),
        ["bench", rest @ ..] => bench(rest),
        ["soak", rest @ ..] => soak::run(rest),
        ["experiment", rest @ ..] => experiment::run(rest),
        ["calls"] => calls::check(),
        ["pitfalls"] => pitfalls::check(),
        ["pitfalls", "--write"] => pitfalls::write(),
        ["-h" | "--help" | "help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn bench(rest: &[&str]) -> Result<(), String> {
    let of = |package| cargo(&["bench", "-p", package]);
    let mut allocator = of("dirigible-frames");
    Step::new("benchmarks of the allocator", allocator.args(rest)).run()?;
    // Options belong to the allocator's bench; the other has none. With options only the former runs.
    if rest.is_empty() {
        let mut compaction = of("dirigible-mobility");
        Step::new("benchmarks of compaction", &mut compaction).run()?;
    }
    Ok(())
}
