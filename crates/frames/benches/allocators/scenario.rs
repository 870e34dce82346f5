//! What the allocators are asked to do.
//!
//! - *bulk*: each thread takes its share of half the memory, one piece at a time, then frees it last in, first out.
//! - *pair*: with half of the memory taken, the threads allocate one piece each and free it, over and over.
//! - *random*: all held pieces are shuffled across the threads and freed in that order.
//!
//! Each is a number of rounds, begun together behind a [`Gate`]; a round in which the cores did not overlap enough is
//! thrown away, the median of the others is the pass's sample, and with fewer than half of the rounds left there is no
//! sample.

use std::sync::Mutex;
use std::thread;

use crate::gate::{self, Gate, Span};
use crate::peers::{Peer, Scenario};
use crate::random::Random;
use crate::report::median;

/// How big a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    frames: usize,
    /// Rounds of bulk at order 0 and order 9.
    bulk: [usize; 2],
    /// Rounds of pair; the pairs of one round, all threads together, at order 0 and order 9.
    pair: (usize, [usize; 2]),
    random: [usize; 2],
    /// Frames to age, see [`aging`](crate::aging).
    aged: usize,
}

impl Scale {
    /// What `cargo bench` does.
    pub const FULL: Self = Self {
        frames: 1 << 20,
        bulk: [3, 80],
        pair: (6, [100_000, 3_000]),
        random: [1, 10],
        aged: 1 << 20,
    };
    /// The same on the same memory with fewer rounds.
    pub const QUICK: Self = Self {
        frames: 1 << 20,
        bulk: [2, 20],
        pair: (4, [20_000, 500]),
        random: [1, 5],
        aged: 1 << 18,
    };
    /// Enough to see that everything runs.
    pub const SMOKE: Self = Self {
        frames: 1 << 13,
        bulk: [2, 2],
        pair: (2, [100, 10]),
        random: [1, 1],
        aged: 1 << 13,
    };

    /// The frames to manage.
    pub fn frames(self) -> usize {
        self.frames
    }

    /// The frames to age: many more operations for each.
    pub fn aged_frames(self) -> usize {
        self.aged
    }

    /// Whether this is the whole of it.
    pub fn is_full(self) -> bool {
        self == Self::FULL
    }

    /// Whether this is only a look whether everything runs.
    pub fn is_smoke(self) -> bool {
        self == Self::SMOKE
    }

    /// Order 0 and order 9 with each number of threads.
    pub fn configs(self, threads: &[usize]) -> Vec<Config> {
        let config = |order| {
            threads.iter().map(move |&threads| Config {
                order,
                threads,
                scale: self,
            })
        };
        [0, 9].into_iter().flat_map(config).collect()
    }
}

/// One run of one allocator.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// 0 or 9.
    pub order: u8,
    /// How many threads share the allocator.
    pub threads: usize,
    scale: Scale,
}

impl Config {
    /// Pieces that one thread takes: its share of half the memory.
    fn share(&self) -> usize {
        (self.scale.frames >> self.order) / 2 / self.threads
    }

    fn of_order<T: Copy>(&self, both: [T; 2]) -> T {
        both[usize::from(self.order != 0)]
    }
}

/// What is timed, in the order of [`Sample`].
pub const MEASURES: [&str; 4] = ["alloc", "free", "pair", "random_free"];

/// ns per operation of one pass: bulk alloc, bulk free, alloc and free together, free in random order.
pub type Sample = [Option<f64>; 4];

impl Scenario for Config {
    type Outcome = Sample;

    fn frames(&self) -> usize {
        self.scale.frames
    }

    fn cpus(&self) -> usize {
        self.threads
    }

    fn run<P: Peer>(&self, peer: &P) -> Sample {
        let times = self.times(peer);
        peer.check();
        std::array::from_fn(|measure| {
            let rounds = times[0][measure].len();
            let of_round = |round| {
                let spans: Vec<Span> = times.iter().map(|t| t[measure][round]).collect();
                gate::round(&spans, gate::cores())
            };
            let mut kept: Vec<f64> = (0..rounds).filter_map(of_round).collect();
            (kept.len() * 2 >= rounds)
                .then(|| median(&mut kept))
                .flatten()
        })
    }
}

impl Config {
    /// When each thread did what, by measure and round. `peer` must be fresh.
    pub fn times<P: Peer>(&self, peer: &P) -> Vec<[Vec<Span>; 4]> {
        let gate = Gate::new(self.threads);
        let hands: Vec<Mutex<Vec<u64>>> = (0..self.threads).map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|cpu| {
                    let (gate, hands) = (&gate, &hands[..]);
                    scope.spawn(move || {
                        gate::pin(cpu);
                        Worker {
                            peer,
                            config: self,
                            cpu,
                            gate,
                            hands,
                            held: Vec::with_capacity(self.share()),
                        }
                        .run()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("a worker panicked"))
                .collect()
        })
    }
}

struct Worker<'a, P> {
    peer: &'a P,
    config: &'a Config,
    cpu: usize,
    gate: &'a Gate,
    /// Where the threads exchange what they hold.
    hands: &'a [Mutex<Vec<u64>>],
    held: Vec<u64>,
}

impl<P: Peer> Worker<'_, P> {
    fn run(mut self) -> [Vec<Span>; 4] {
        let config = *self.config;
        let mut times: [Vec<Span>; 4] = std::array::from_fn(|_| Vec::new());
        // The first round meets cold metadata and is not counted.
        self.take();
        self.give_back();
        for _ in 0..config.of_order(config.scale.bulk) {
            times[0].push(self.counted(0, Self::take));
            times[1].push(self.counted(1, Self::give_back));
        }
        self.take();
        let (rounds, pairs) = config.scale.pair;
        for _ in 0..rounds {
            let pairs = config.of_order(pairs) / config.threads;
            times[2].push(self.counted(2, |worker| worker.pairs(pairs)));
        }
        for round in 0..config.of_order(config.scale.random) {
            self.exchange(round as u64);
            times[3].push(self.counted(3, Self::give_back));
            self.take();
        }
        self.give_back();
        times
    }

    /// Does `work` and notifies the peer for which measure.
    fn counted(&mut self, measure: usize, work: impl FnOnce(&mut Self) -> Span) -> Span {
        self.peer.begins(self.cpu, Some(measure));
        let span = work(self);
        self.peer.begins(self.cpu, None);
        span
    }

    /// Fills `held`.
    fn take(&mut self) -> Span {
        let Self {
            peer,
            cpu,
            gate,
            held,
            config,
            ..
        } = self;
        let share = config.share();
        Span::time(gate, share, || {
            for _ in 0..share {
                held.push(
                    peer.alloc(*cpu, config.order)
                        .expect("half of the memory is free"),
                );
            }
        })
    }

    /// Frees `held` from its end.
    fn give_back(&mut self) -> Span {
        let Self {
            peer,
            cpu,
            gate,
            held,
            config,
            ..
        } = self;
        Span::time(gate, held.len(), || {
            while let Some(frame) = held.pop() {
                peer.free(*cpu, frame, config.order);
            }
        })
    }

    fn pairs(&mut self, count: usize) -> Span {
        let Self {
            peer,
            cpu,
            gate,
            config,
            ..
        } = self;
        Span::time(gate, count, || {
            for _ in 0..count {
                let frame = peer
                    .alloc(*cpu, config.order)
                    .expect("half of the memory is free");
                peer.free(*cpu, frame, config.order);
            }
        })
    }

    /// Deals what all threads hold out anew, at random.
    fn exchange(&mut self, seed: u64) {
        let hand = |cpu: usize| self.hands[cpu].lock().expect("no thread panics here");
        hand(self.cpu).append(&mut self.held);
        self.gate.wait();
        if self.cpu == 0 {
            let mut all: Vec<u64> = (0..self.hands.len())
                .flat_map(|cpu| std::mem::take(&mut *hand(cpu)))
                .collect();
            Random::new(seed).shuffle(&mut all);
            for cpu in 0..self.hands.len() {
                *hand(cpu) = all.split_off(all.len() - self.config.share());
            }
        }
        self.gate.wait();
        self.held.append(&mut *hand(self.cpu));
    }
}
