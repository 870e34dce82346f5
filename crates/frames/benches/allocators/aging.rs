//! Section `aging`: how many whole 2 MiB blocks are left when memory has been freed and taken again for long.
//!
//! LLFree's workload: memory is filled, then in each round a random tenth of the held frames is freed and as many are
//! taken again. What is whole is counted from the frames that the load holds, by the same code for all allocators. One
//! thread, seeded: the same in each run.

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
/// Up to where memory is filled, and what is held of it while it ages, per cent: the rest is freed at random first.
/// LLFree's published run is half full; the last case has no whole block to begin with and little room to make one.
const CASES: [(usize, usize); 3] = [(90, 90), (90, 50), (100, 90)];

/// One run of one allocator.
struct Aging {
    frames: usize,
    filled: usize,
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
        let mut held = Vec::with_capacity(self.frames);
        let take = |held: &mut Vec<u64>, count| {
            held.extend(std::iter::from_fn(|| peer.alloc(0, 0)).take(count));
        };
        let mut give = |held: &mut Vec<u64>, count| {
            random.draw(held, count);
            held.drain(held.len() - count..)
                .for_each(|frame| peer.free(0, frame, 0));
        };
        take(&mut held, self.frames * self.filled / 100);
        let surplus = held.len().saturating_sub(self.frames * self.held / 100);
        give(&mut held, surplus);
        let before = self.whole(peer, &held);
        let start = Instant::now();
        let (mut exchanged, mut refused) = (0, 0);
        for _ in 0..ROUNDS {
            let tenth = held.len() / 10;
            give(&mut held, tenth);
            let wanted = held.len() + tenth;
            take(&mut held, tenth);
            exchanged += tenth;
            refused += wanted - held.len();
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

struct Row {
    filled: usize,
    held: usize,
    contestant: Contestant,
    outcome: Outcome,
}

/// What all allocators had left.
pub struct Aged {
    blocks: usize,
    rows: Vec<Row>,
}

/// Ages all allocators.
pub fn run(run: &Run) -> Aged {
    let frames = run.scale.aged_frames();
    let mut rows = Vec::new();
    for (filled, held) in CASES {
        for &contestant in &run.contestants {
            progress::show(&format!("aging: {held} %, {}", contestant.name()));
            let outcome = contestant.run(&Aging {
                frames,
                filled,
                held,
            });
            rows.push(Row {
                filled,
                held,
                contestant,
                outcome,
            });
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
            "aging: whole 2 MiB blocks of {}, before and after {ROUNDS} rounds in each of which a random",
            self.blocks
        )?;
        writeln!(
            f,
            "10 % of the held frames are freed and as many taken (filled, then freed at random to what is held)"
        )?;
        let per_cent =
            |after: u64, possible: u64| short(after as f64 * 100.0 / possible.max(1) as f64);
        writeln!(
            f,
            "{:6} {:5} {:36} {:>7} {:>7} {:>9} {:>8} {:>8} {:>14}",
            "filled",
            "held",
            "",
            "before",
            "after",
            "possible",
            "% of it",
            "refused",
            "ns (free+take)"
        )?;
        for row in &self.rows {
            let o = &row.outcome;
            writeln!(
                f,
                "{:6} {:5} {:36} {:>7} {:>7} {:>9} {:>8} {:>8} {:>14}",
                format!("{} %", row.filled),
                format!("{} %", row.held),
                row.contestant.name(),
                o.before,
                o.after,
                o.possible,
                per_cent(o.after as u64, o.possible as u64),
                o.refused,
                short(o.exchange),
            )?;
        }
        for (name, before, after) in llfree::AGING {
            let possible = llfree::AGING_POSSIBLE;
            writeln!(
                f,
                "{:6} {:5} {:36} {before:>7} {after:>7} {possible:>9} {:>8}",
                "",
                "50 %",
                format!("{name}, published, 128 GiB (**)"),
                per_cent(after, possible),
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
        let result = |row: &Row| {
            let o = &row.outcome;
            json!({
                "allocator": row.contestant.name(), "filled_per_cent": row.filled, "held_per_cent": row.held,
                "before": o.before, "after": o.after, "possible": o.possible,
                "refused": o.refused, "ns_per_exchange": o.exchange,
            })
        };
        let possible = llfree::AGING_POSSIBLE;
        let published = llfree::AGING.map(|(name, before, after)| {
            json!({
                "allocator": name, "held_per_cent": 50,
                "before": before, "after": after, "possible": possible,
            })
        });
        json!({
            "blocks": self.blocks, "rounds": ROUNDS, "published": published,
            "results": self.rows.iter().map(result).collect::<Vec<_>>(),
        })
    }

    fn check(&self) {
        for Outcome {
            before,
            after,
            possible,
            refused,
            ..
        } in self.rows.iter().map(|row| row.outcome)
        {
            assert!(before <= possible && after <= possible);
            assert_eq!(refused, 0, "as much is taken as was freed");
        }
    }
}
