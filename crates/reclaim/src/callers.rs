//! Who is inside of reclaim: a request that reclaim itself makes does not reclaim.

use dirigible_frames::sync::{AtomicU64, Ordering};

/// Callers that may reclaim at a time.
const PLACES: usize = 64;

/// The callers inside, by [`Platform::caller`](dirigible_frames::Platform::caller); 0 is nobody.
#[derive(Debug)]
pub(crate) struct Callers([AtomicU64; PLACES]);

/// Why a caller is turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TurnedAway {
    /// It is inside already.
    Inside,
    /// Too many others are.
    Full,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'c>(&'c AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // Relaxed: only this caller looks for its own number.
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Callers {
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Lets `caller` in, or says why not.
    pub fn enter(&self, caller: u64) -> Result<Inside<'_>, TurnedAway> {
        // Relaxed throughout: a caller finds what it wrote itself, and a place is nothing but its number.
        let is_inside = |place: &AtomicU64| place.load(Ordering::Relaxed) == caller;
        if self.0.iter().any(is_inside) {
            return Err(TurnedAway::Inside);
        }
        let taken = self.0.iter().find(|place| {
            place.load(Ordering::Relaxed) == 0
                && place
                    .compare_exchange(0, caller, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        });
        taken.map(Inside).ok_or(TurnedAway::Full)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_inside_twice() {
        let callers = Callers::new();
        let first = callers.enter(7);
        assert!(first.is_ok());
        assert_eq!(callers.enter(7).unwrap_err(), TurnedAway::Inside);
        assert!(callers.enter(8).is_ok());
        drop(first);
        assert!(callers.enter(7).is_ok());
    }

    #[test]
    fn one_too_many_is_turned_away() {
        let callers = Callers::new();
        let all: alloc::vec::Vec<_> = (1..=PLACES as u64).map(|c| callers.enter(c)).collect();
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(callers.enter(1000).unwrap_err(), TurnedAway::Full);
        assert_eq!(callers.enter(64).unwrap_err(), TurnedAway::Inside);
        drop(all);
        assert!(callers.enter(1000).is_ok());
    }
}
