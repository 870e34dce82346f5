//! Lists of those who are asked when memory runs out, in the order of their registration.

use dirigible_frames::{AllocRequest, Order, sync::Mutex};
use dirigible_paging::{Reclaim, StallObserver};

/// The most entries of one list: as many as there can be owners.
pub const MAX_REGISTERED: usize = 15;

/// The list is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{MAX_REGISTERED} of this kind are registered already")]
pub struct Full;

/// A list in the order of registration. Its locks are leaves, each held for the copy of one entry.
pub(crate) struct Chain<T>([Mutex<Option<T>>; MAX_REGISTERED]);

impl<T: Copy> Chain<T> {
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| Mutex::new(None)))
    }

    /// Adds `entry` behind the others.
    pub fn add(&self, entry: T) -> Result<(), Full> {
        for place in &self.0 {
            let mut place = place.lock();
            if place.is_none() {
                *place = Some(entry);
                return Ok(());
            }
        }
        Err(Full)
    }

    /// The entries, first one first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = T> {
        self.0.iter().filter_map(|place| *place.lock())
    }

    /// Takes those out for which `is_gone`. The others keep their order; new ones may come before them.
    pub fn remove(&self, is_gone: impl Fn(&T) -> bool) {
        for place in &self.0 {
            place.lock().take_if(|entry| is_gone(entry));
        }
    }
}

impl Reclaim for Chain<&dyn Reclaim> {
    /// Asks one after the other until enough is free.
    fn reclaim(&self, frames: usize, order: Order) -> usize {
        ask(self.iter(), frames, |who, frames| {
            who.reclaim(frames, order)
        })
    }

    fn wake(&self) {
        self.iter().for_each(|who| who.wake());
    }
}

impl StallObserver for Chain<&dyn StallObserver> {
    fn stalled(&self, request: AllocRequest, ns: u64, served: bool) {
        self.iter().for_each(|who| who.stalled(request, ns, served));
    }
}

/// Asks one after the other until `wanted` frames were given; gives how many.
pub(crate) fn ask<T>(
    all: impl Iterator<Item = T>,
    wanted: usize,
    one: impl Fn(T, usize) -> usize,
) -> usize {
    let mut freed = 0usize;
    for who in all {
        if freed >= wanted {
            break;
        }
        freed = freed.saturating_add(one(who, wanted - freed));
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicUsize, Ordering};

    struct Hoard(AtomicUsize);

    impl Reclaim for Hoard {
        fn reclaim(&self, frames: usize, _: Order) -> usize {
            let given = self.0.load(Ordering::Relaxed).min(frames);
            self.0.fetch_sub(given, Ordering::Relaxed);
            given
        }
    }

    #[test]
    fn the_next_one_is_asked_for_what_the_first_ones_did_not_give() {
        let (first, second) = (Hoard(AtomicUsize::new(3)), Hoard(AtomicUsize::new(100)));
        let chain: Chain<&dyn Reclaim> = Chain::new();
        assert_eq!(chain.reclaim(5, Order::BASE), 0);
        chain.add(&first).unwrap();
        chain.add(&second).unwrap();
        assert_eq!(chain.reclaim(2, Order::BASE), 2);
        assert_eq!(second.0.load(Ordering::Relaxed), 100);
        assert_eq!(chain.reclaim(5, Order::BASE), 5);
        assert_eq!(second.0.load(Ordering::Relaxed), 96);
    }

    #[test]
    fn a_full_list_refuses() {
        let chain = Chain::new();
        for number in 0..MAX_REGISTERED {
            chain.add(number).unwrap();
        }
        assert_eq!(chain.add(MAX_REGISTERED), Err(Full));
        assert!(chain.iter().eq(0..MAX_REGISTERED));
        chain.remove(|number| *number == 1);
        assert!(
            chain
                .iter()
                .eq((0..MAX_REGISTERED).filter(|number| *number != 1))
        );
        chain.remove(|_| true);
        assert_eq!(chain.iter().next(), None);
    }
}
