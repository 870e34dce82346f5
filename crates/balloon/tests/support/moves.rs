//! Moving frames as mobility does, without mobility.

use dirigible_frames::Pfn;
use dirigible_mobility::{MovableOwner, MovePair, Outcome};

use super::Guest;

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
