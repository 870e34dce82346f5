//! Moving frames as mobility does, without mobility.

use std::sync::Mutex;

use dirigible_balloon::{BalloonConfig, Settle};
use dirigible_frames::Pfn;
use dirigible_mobility::{MovableOwner, MovePair, Outcome};

use super::host::Host;
use super::{Guest, memory};

/// Remembers what settled, for the test to free.
#[derive(Default)]
pub struct Ledger(pub Mutex<Vec<(Pfn, Pfn, Outcome)>>);

impl Settle for Ledger {
    fn settled(&self, from: Pfn, to: Pfn, outcome: Outcome) {
        self.0.lock().unwrap().push((from, to, outcome));
    }
}

pub fn settling(blocks: u64, config: BalloonConfig) -> (Guest, &'static Ledger) {
    let ledger: &'static Ledger = Box::leak(Box::default());
    (
        Guest::with(memory(&[blocks]), Host::new(), ledger, config),
        ledger,
    )
}

pub fn pairs(from: &[Pfn], to: &[Pfn]) -> Vec<MovePair> {
    from.iter()
        .zip(to)
        .map(|(&from, &to)| MovePair::base(from, to))
        .collect()
}

/// Isolates and moves, as mobility does, and frees what has moved.
pub fn relocate<const N: usize>(guest: &Guest<N>, from: &[Pfn], to: &[Pfn]) -> Vec<Outcome> {
    assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
    let mut pairs = pairs(from, to);
    guest.balloon.migrate(&mut pairs);
    let moved: Vec<_> = pairs
        .iter()
        .filter(|pair| pair.outcome == Outcome::Moved)
        .map(|pair| pair.from)
        .collect();
    guest.free(&moved);
    pairs.iter().map(|pair| pair.outcome).collect()
}
