//! Section `aging`: how many whole 2 MiB blocks are left when memory has been freed and taken again for long.
//!
//! LLFree's workload: memory is filled, then in each round a random tenth of the held frames is freed and as many are taken
//! again. What is whole is counted from the frames that the load holds, by the same code for all allocators. One thread,
//! seeded: the same in each run.

use std::fmt;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Run;
use crate::llfree;
use crate::peers::{Contestant, Peer, Scenario};
use crate::progress;
use crate::random::Random;
use crate::report::{Report, short};

const ROUNDS: usize = 100;
const BLOCK: usize = 512;
/// Up to here memory is filled in either case, per cent.
const FILLED: usize = 90;
/// What is held while memory ages, per cent: the rest is freed at random first.
const HELD: [usize; 2] = [90, 50];

/// One run of one allocator.
struct Aging {
    frames: usize,
    held: usize,
}

/// What came out of it, in blocks.
#[derive(Clone, Copy)]
struct Outcome {
    before: usize,
    after: usize,
    /// As many as there would be with all held frames together.
    possible: usize,
    /// Requests that were refused.
    refused: usize,
    /// ns for one free and one alloc.
    exchange: f64,
}

impl Scenario for Aging {
    type Outcome = Outcome;

    fn frames(&self) -> usize {
        self.frames
    }

    fn cpus(&self) -> usize {
        1
    }

    fn run<P: Peer>(&self, peer: &P) -> Outcome {
        let mut random = Random::new(0);
        let mut refused = 0;
        let mut held = Vec::with_capacity(self.frames);
        let mut take = |held: &mut Vec<u64>, count| {
            for _ in 0..count {
                match peer.alloc(0, 0) {
                    Some(frame) => held.push(frame),
                    None => refused += 1,
                }
            }
        };
        let mut give = |held: &mut Vec<u64>, count| {
            random.draw(held, count);
            held.drain(held.len() - count..)
                .for_each(|frame| peer.free(0, frame, 0));
        };
        take(&mut held, self.frames * FILLED / 100);
        let surplus = held.len().saturating_sub(self.frames * self.held / 100);
        give(&mut held, surplus);
        let before = self.whole(peer, &held);
        let start = Instant::now();
        let mut exchanged = 0;
        for _ in 0..ROUNDS {
            let tenth = held.len() / 10;
            give(&mut held, tenth);
            take(&mut held, tenth);
            exchanged += tenth;
        }
        let exchange = start.elapsed().as_nanos() as f64 / exchanged as f64;
        let after = self.whole(peer, &held);
        let possible = self.frames / BLOCK - held.len().div_ceil(BLOCK);
        held.drain(..).for_each(|frame| peer.free(0, frame, 0));
        peer.check();
        Outcome {
            before,
            after,
            possible,
            refused,
            exchange,
        }
    }
}

impl Aging {
    /// Blocks of which nothing is held.
    fn whole<P: Peer>(&self, peer: &P, held: &[u64]) -> usize {
        let mut used = vec![false; self.frames / BLOCK];
        for &frame in held {
            // A peer may manage a few frames more than it was given to.
            if let Some(used) = used.get_mut(peer.number(frame) / BLOCK) {
                *used = true;
            }
        }
        used.iter().filter(|used| !**used).count()
    }
}

/// What all allocators had left, by what was held.
pub struct Aged {
    blocks: usize,
    rows: Vec<(usize, Contestant, Outcome)>,
}

/// Ages all allocators.
pub fn run(run: &Run) -> Aged {
    let frames = run.scale.frames();
    let mut rows = Vec::new();
    for held in HELD {
        for &contestant in &run.contestants {
            progress::show(&format!("aging: {held} %, {}", contestant.name()));
            rows.push((held, contestant, contestant.run(&Aging { frames, held })));
        }
    }
    Aged {
        blocks: frames / BLOCK,
        rows,
    }
}

impl fmt::Display for Aged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "aging: whole 2 MiB blocks of {} before and after {ROUNDS} rounds in which a random 10 % of the held frames are freed and taken",
            self.blocks
        )?;
        writeln!(
            f,
            "again; filled to {FILLED} %, then a random part freed until as much is held as the first column says"
        )?;
        writeln!(
            f,
            "{:5} {:36} {:>7} {:>7} {:>9} {:>8} {:>8} {:>16}",
            "held", "", "before", "after", "possible", "% of it", "refused", "ns (free, alloc)"
        )?;
        for (held, contestant, o) in &self.rows {
            writeln!(
                f,
                "{:5} {:36} {:>7} {:>7} {:>9} {:>8} {:>8} {:>16}",
                format!("{held} %"),
                contestant.name(),
                o.before,
                o.after,
                o.possible,
                short(o.after as f64 * 100.0 / o.possible.max(1) as f64),
                o.refused,
                short(o.exchange),
            )?;
        }
        for (name, before, after) in llfree::AGING {
            let possible = llfree::AGING_POSSIBLE;
            writeln!(
                f,
                "{:5} {:36} {before:>7} {after:>7} {possible:>9} {:>8}",
                "50 %",
                format!("{name}, published, 128 GiB (**)"),
                short(after as f64 * 100.0 / possible as f64),
            )?;
        }
        writeln!(
            f,
            "(**) Wrenger et al., LLFree, USENIX ATC 2023, raw data in luhsra/llfree-bench; 8 threads, in the kernel.\n"
        )
    }
}

impl Report for Aged {
    fn json(&self) -> Value {
        let result = |(held, contestant, o): &(usize, Contestant, Outcome)| {
            json!({
                "allocator": contestant.name(), "held_per_cent": held, "before": o.before, "after": o.after,
                "possible": o.possible, "refused": o.refused, "ns_per_exchange": o.exchange,
            })
        };
        let published = |(name, before, after): (&str, u64, u64)| json!({ "allocator": name, "held_per_cent": 50, "before": before, "after": after, "possible": llfree::AGING_POSSIBLE });
        json!({
            "blocks": self.blocks, "rounds": ROUNDS,
            "results": self.rows.iter().map(result).collect::<Vec<_>>(),
            "published": llfree::AGING.map(published),
        })
    }

    fn check(&self) {
        for (_, _, o) in &self.rows {
            assert!(o.before <= o.possible && o.after <= o.possible);
            assert_eq!(o.refused, 0, "a tenth of the memory is free");
        }
    }
}
