//! What may happen to the model's guest and host, at random.

use proptest::prelude::*;

use super::table::FRAMES;

/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;

/// What may happen next.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    SetTarget(u32),
    /// One piece of work; the source has at most so many frames.
    Work(usize),
    Isolate(usize),
    /// Moves up to so many isolated frames; with the host answering at once or not.
    Migrate(usize, bool),
    Putback(usize),
    /// Takes up to so many settled pairs.
    Take(usize),
    /// The host answers one of its requests, any of them.
    Answer(usize),
    /// The host answers a request that it does not have.
    Nonsense(u8, bool),
    OutOfMemory(usize),
    Pass(u64),
    /// The device is reset and started again; isolated frames are put back in between, or not.
    Reset(bool),
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => prop_oneof![0..FRAMES as u32, Just(0), Just(u32::MAX)].prop_map(Op::SetTarget),
        8 => prop_oneof![Just(0), 1..300_usize].prop_map(Op::Work),
        5 => any::<usize>().prop_map(Op::Isolate),
        4 => (1..40_usize, any::<bool>()).prop_map(|(n, at_once)| Op::Migrate(n, at_once)),
        2 => any::<usize>().prop_map(Op::Putback),
        2 => prop_oneof![1..20_usize, Just(300)].prop_map(Op::Take),
        9 => any::<usize>().prop_map(Op::Answer),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(id, queue)| Op::Nonsense(id, queue)),
        1 => (1..40_usize).prop_map(Op::OutOfMemory),
        2 => (0..400 * MS).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Reset),
    ]
}
