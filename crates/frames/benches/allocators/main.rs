//! What an allocation costs: this crate beside the frame allocators of the registry, in one interleaved run.
//!
//! ```text
//! cargo bench -p dirigible-frames [-- [--only SECTIONS] [--quick] [--json] [--passes N] [--list] [NAME]]
//! ```
//!
//! | section | what it prints |
//! |---|---|
//! | `speed` | ns per operation, order 0 and 9, 1, 2 and 4 threads ([`speed`], its load in [`scenario`]) |
//! | `latency` | percentiles of single calls ([`latency`]) |
//! | `refused` | what a requester that cannot be served costs the one beside it ([`refused`]) |
//! | `aging` | whole 2 MiB blocks left when memory has aged ([`aging`]) |
//! | `boot` | how long `FrameAllocator::new` takes ([`boot`]) |
//! | `metadata` | bytes per GiB ([`metadata`]) |
//!
//! `--only speed,boot` runs these two; without it all run, in under four minutes. `NAME` leaves only the allocators
//! whose name contains it. Progress is shown on stderr if that is a terminal. How to read the output:
//! `docs/allocator-bench.md`.
//!
//! 2^20 frames (4 GiB) are managed as numbers, with no memory behind them, so a figure is the allocator's own work and
//! the cache misses on its metadata. Each pass sets every allocator up anew; the allocators take turns inside the pass
//! and the order rotates, so that a disturbance of the machine hits all of them alike. Figures are medians over the
//! passes, and ratios between rows mean more than the rows.
//!
//! This crate is called as the machines call it: [`FrameAllocator::alloc`](dirigible_frames::FrameAllocator::alloc) and
//! `free` with descriptors, ledgers, the index, watermarks and vm events on, under the default policy. None of the
//! peers has descriptors, types of blocks or a second lock level; they run behind the spin lock with which their users
//! run them. LLFree is quoted, see [`llfree`].
//!
//! Without `--bench` (that is under `cargo test`) all sections run on 32 MiB and are checked, not timed.

mod aging;
mod args;
mod boot;
mod checks;
mod clock;
mod gate;
mod heap;
mod histogram;
mod latency;
mod llfree;
mod metadata;
mod peers;
mod progress;
mod random;
mod refused;
mod report;
mod scenario;
mod speed;

use serde_json::json;

use args::{Args, Section};
use peers::Contestant;
use report::Report;
use scenario::Scale;

/// What all sections are run with.
pub struct Run {
    scale: Scale,
    passes: usize,
    contestants: Vec<Contestant>,
}

impl Section {
    fn run(self, run: &Run) -> Box<dyn Report> {
        match self {
            Self::Speed => Box::new(speed::run(run)),
            Self::Latency => Box::new(latency::run(run)),
            Self::Refused => Box::new(refused::run(run)),
            Self::Aging => Box::new(aging::run(run)),
            Self::Boot => Box::new(boot::run(run)),
            Self::Metadata => Box::new(metadata::run(run)),
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Asked before any thread is pinned.
    let cores = gate::cores();
    if !args.iter().any(|arg| arg == "--bench") {
        smoke();
        return;
    }
    let args = Args::parse(&args).unwrap_or_else(|message| {
        eprintln!("error: {message}");
        std::process::exit(2);
    });
    let run = args.run();
    if args.list {
        let names = run.contestants.iter().map(|c| c.name());
        names.for_each(|name| println!("{name}: benchmark"));
        return;
    }
    let mut all = json!({ "schema": 2, "frames": run.scale.frames(), "cores": cores });
    if !args.json {
        println!("{} frames managed, {cores} cores\n", run.scale.frames());
    }
    for section in args.sections {
        let report = section.run(&run);
        progress::show("");
        if args.json {
            all[section.name()] = report.json();
        } else {
            print!("{report}");
        }
    }
    if args.json {
        println!("{all}");
    }
}

/// All sections, small, with each one's own check at the end.
fn smoke() {
    checks::all();
    let run = Run {
        scale: Scale::SMOKE,
        passes: 1,
        contestants: Contestant::ALL.to_vec(),
    };
    for section in Section::ALL {
        let report = section.run(&run);
        report.check();
        assert!(!report.to_string().is_empty() && report.json().is_object());
    }
}
