//! What the allocators are asked to do.
//!
//! - *bulk*: each thread takes its share of half the memory, one piece at a time, then frees it last in, first out.
//! - *pair*: with half of the memory taken, the threads allocate one piece each and free it, over and over.
//! - *random*: all held pieces are shuffled across the threads and freed in that order.
//!
//! Each is a number of rounds, begun together behind a [`Gate`]; a round in which the threads did not overlap enough is thrown
//! away, the median of the others is the pass's sample, and with fewer than half of the rounds left there is no sample.

use std::sync::Mutex;
use std::thread;

use crate::gate::{self, Gate, Span};

/// One allocator under test, shared by the threads.
pub trait Peer: Sync {
    /// Takes 2^order frames for CPU `cpu`; the number of the first.
    fn alloc(&self, cpu: usize, order: u8) -> Option<u64>;
    /// Gives them back.
    fn free(&self, cpu: usize, frame: u64, order: u8);
    /// Panics if the allocator, with everything given back, is not what it was at the beginning.
    fn check(&self) {}
}

/// How big a run is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    frames: usize,
    /// Rounds of bulk at order 0 and order 9.
    bulk: [usize; 2],
    /// Rounds of pair; the pairs of one round, all threads together, at order 0 and order 9.
    pair: (usize, [usize; 2]),
    random: [usize; 2],
}

impl Scale {
    /// What `cargo bench` does.
    pub const FULL: Self = Self {
        frames: 1 << 20,
        bulk: [6, 200],
        pair: (10, [100_000, 3_000]),
        random: [2, 20],
    };
    /// The same on the same memory with fewer rounds.
    pub const QUICK: Self = Self {
        frames: 1 << 20,
        bulk: [2, 20],
        pair: (4, [20_000, 500]),
        random: [1, 5],
    };
    /// Enough to see that everything runs.
    pub const SMOKE: Self = Self {
        frames: 1 << 13,
        bulk: [2, 2],
        pair: (2, [100, 10]),
        random: [1, 1],
    };

    /// Every combination of order and threads that is measured.
    pub fn configs(self) -> Vec<Config> {
        let size = |order, threads| Config {
            order,
            threads,
            scale: self,
        };
        vec![size(0, 1), size(0, 2), size(9, 1), size(9, 2)]
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
    /// The frames to manage.
    pub fn frames(&self) -> usize {
        self.scale.frames
    }

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

/// Runs `peer`, which is fresh, through all scenarios.
pub fn run<P: Peer>(peer: &P, config: &Config) -> Sample {
    let gate = Gate::new(config.threads);
    let hands: Vec<Mutex<Vec<u64>>> = (0..config.threads).map(|_| Mutex::default()).collect();
    let times: Vec<[Vec<Span>; 4]> = thread::scope(|scope| {
        let workers: Vec<_> = (0..config.threads)
            .map(|cpu| {
                let (gate, hands) = (&gate, &hands[..]);
                scope.spawn(move || {
                    gate::pin(cpu);
                    Worker {
                        peer,
                        config,
                        cpu,
                        gate,
                        hands,
                        held: Vec::with_capacity(config.share()),
                    }
                    .run()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker panicked"))
            .collect()
    });
    peer.check();
    std::array::from_fn(|measure| {
        let rounds = times[0][measure].len();
        let mut kept: Vec<f64> = (0..rounds)
            .filter_map(|round| {
                gate::round(&times.iter().map(|t| t[measure][round]).collect::<Vec<_>>())
            })
            .collect();
        (kept.len() * 2 >= rounds)
            .then(|| median(&mut kept))
            .flatten()
    })
}

/// The middle value, `None` of nothing. Sorts `values`.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
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
            times[0].push(self.take());
            times[1].push(self.give_back());
        }
        self.take();
        let (rounds, pairs) = config.scale.pair;
        for _ in 0..rounds {
            times[2].push(self.pairs(config.of_order(pairs) / config.threads));
        }
        for round in 0..config.of_order(config.scale.random) {
            self.exchange(round as u64);
            times[3].push(self.give_back());
            self.take();
        }
        self.give_back();
        times
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
            shuffle(&mut all, seed);
            for cpu in 0..self.hands.len() {
                *hand(cpu) = all.split_off(all.len() - self.config.share());
            }
        }
        self.gate.wait();
        self.held.append(&mut *hand(self.cpu));
    }
}

/// Fisher and Yates, with splitmix64.
pub fn shuffle(values: &mut [u64], seed: u64) {
    let mut state = seed;
    for last in (1..values.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        values.swap(
            last,
            ((u128::from(word) * (last as u128 + 1)) >> 64) as usize,
        );
    }
}
