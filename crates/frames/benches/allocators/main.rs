//! What an allocation costs: this crate beside the frame allocators of the registry, in one interleaved run.
//!
//! ```text
//! cargo bench -p dirigible-frames [-- [--quick] [--json] [--passes N] [--list] [NAME]]
//! ```
//!
//! 2^20 frames (4 GiB) are managed as numbers, with no memory behind them, so a figure is the allocator's own work and
//! the cache misses on its metadata. Each pass sets every allocator up anew and lets it do the same four things
//! (see [`scenario`]) at order 0 and order 9, with one thread and with two; the allocators take turns inside the pass
//! and the order rotates, so that a disturbance of the machine hits all of them alike. Figures are medians over the
//! passes, and ratios between rows mean more than the rows.
//!
//! This crate is called as the machines call it: [`FrameAllocator::alloc`](dirigible_frames::FrameAllocator::alloc) and
//! `free` with descriptors, ledgers, the index, watermarks and vm events on, under the default policy. None of the
//! peers has descriptors, types of blocks or a second lock level; they run behind the spin lock with which their users run them.
//!
//! LLFree (luhsra/llfree-rs) is in no registry. Its figures were taken in another run beside the same two peers, so only its
//! ratio to `buddy_system_allocator` is quoted, see [`report`].
//!
//! Without `--bench` (that is under `cargo test`) each allocator does a few rounds on 32 MiB and is checked, not timed.

mod gate;
mod heap;
mod peers;
mod report;
mod scenario;

use std::time::{Duration, Instant};

use peers::Contestant;
use scenario::Scale;

/// A full run ends after this time even when passes are left: the machine may be busy.
const BUDGET: Duration = Duration::from_secs(150);

struct Args {
    passes: usize,
    json: bool,
    quick: bool,
    list: bool,
    filter: Option<String>,
}

fn parse(args: &[String]) -> Result<Args, String> {
    let mut parsed = Args {
        passes: 12,
        json: false,
        quick: false,
        list: false,
        filter: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--json" => parsed.json = true,
            "--list" => parsed.list = true,
            "--quick" => {
                parsed.quick = true;
                parsed.passes = 2;
            }
            "--passes" => {
                let number = args.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                parsed.passes = number.ok_or("--passes needs a number above 0")?;
            }
            name if !name.starts_with('-') => parsed.filter = Some(name.to_owned()),
            other => {
                return Err(format!(
                    "unknown option {other}; known: --quick --json --passes N --list NAME"
                ));
            }
        }
    }
    Ok(parsed)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        smoke();
        return;
    }
    let args = parse(&args).unwrap_or_else(|message| {
        eprintln!("error: {message}");
        std::process::exit(2);
    });
    let contestants: Vec<&dyn Contestant> = peers::all()
        .into_iter()
        .filter(|c| args.filter.as_ref().is_none_or(|f| c.name().contains(f)))
        .collect();
    if args.list {
        contestants
            .iter()
            .for_each(|c| println!("{}: benchmark", c.name()));
        return;
    }

    let scale = if args.quick {
        Scale::QUICK
    } else {
        Scale::FULL
    };
    let mut table = report::Table::new(&contestants);
    let start = Instant::now();
    for pass in 0..args.passes {
        if pass >= 3 && start.elapsed() > BUDGET {
            eprintln!(
                "the machine is slow today: ending after {pass} of {} passes",
                args.passes
            );
            break;
        }
        eprint!("\rpass {} of {} ", pass + 1, args.passes);
        for config in scale.configs() {
            for turn in 0..contestants.len() {
                let which = (pass + turn) % contestants.len();
                table.add(which, &config, contestants[which].run(&config));
            }
        }
    }
    eprint!("\r{:30}\r", "");
    table.measure_metadata(&contestants);
    if args.json {
        println!("{}", table.json());
    } else {
        print!("{table}");
    }
}

/// All allocators through all scenarios, small, with each one's own consistency check at the end.
fn smoke() {
    for config in Scale::SMOKE.configs() {
        for contestant in peers::all() {
            contestant.run(&config);
        }
    }
}
