//! Pressure on caches of objects, in proportion to that on frames.

use dirigible_frames::{
    Event, Platform,
    sync::{AtomicU64, Mutex, Ordering},
};

use crate::{Reclaimer, RegisterError, Shrinker, Who};

/// Shrinkers at most.
const PLACES: usize = 8;

/// A shrinker, and what it is owed: objects that it was not offered yet for being less than a batch.
struct Place<'a> {
    shrinker: Mutex<Option<&'a dyn Shrinker>>,
    owed: AtomicU64,
}

/// The shrinkers, in the order of their registration.
pub(crate) struct Slabs<'a>([Place<'a>; PLACES]);

impl<'a> Slabs<'a> {
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| Place {
            shrinker: Mutex::new(None),
            owed: AtomicU64::new(0),
        }))
    }

    pub fn add(&self, shrinker: &'a dyn Shrinker) -> Result<(), RegisterError> {
        for place in &self.0 {
            let mut place = place.shrinker.lock();
            if place.is_none() {
                *place = Some(shrinker);
                return Ok(());
            }
        }
        Err(RegisterError::Full)
    }

    fn each(&self) -> impl Iterator<Item = (&'a dyn Shrinker, &AtomicU64)> {
        self.0
            .iter()
            .map_while(|place| (*place.shrinker.lock()).map(|shrinker| (shrinker, &place.owed)))
    }
}

/// Of `objects`, how many are offered for `scanned` of `size` frames: twice the same share, as in Linux. Without any
/// frames the priority decides.
fn share(objects: u64, priority: u8, scanned: u64, size: u64) -> u64 {
    let wide = if size == 0 {
        2 * (u128::from(objects) >> priority)
    } else {
        u128::from(scanned).saturating_mul(2 * u128::from(objects)) / (u128::from(size) + 1)
    };
    u64::try_from(wide).unwrap_or(u64::MAX)
}

impl<P: Platform> Reclaimer<'_, P> {
    /// Offers objects to the shrinkers, after `scanned` of `size` frames were looked at. Gives the frames that became
    /// free.
    pub(crate) fn shrink_slabs(&self, who: Who, priority: u8, scanned: u64, size: u64) -> u64 {
        let batch = self.config.slab_batch.max(1);
        let mut frames = 0;
        for (shrinker, owed) in self.slabs.each() {
            let objects = shrinker.count();
            if objects == 0 {
                continue;
            }
            let more = share(objects, priority, scanned, size);
            // Relaxed: two who shrink at once may offer a batch too many.
            let mut left = owed
                .swap(0, Ordering::Relaxed)
                .saturating_add(more)
                .min(objects.saturating_mul(2));
            while left >= batch || left >= objects {
                let offered = left.min(batch);
                frames += self.offer(shrinker, offered, who).1;
                left -= offered;
                if left == 0 {
                    break;
                }
            }
            owed.fetch_add(left, Ordering::Relaxed);
        }
        frames
    }

    /// Offers each shrinker all that it has. Gives objects and frames freed.
    pub(crate) fn shrink_everything(&self) -> (u64, u64) {
        let batch = self.config.slab_batch.max(1);
        let (mut freed, mut frames) = (0, 0);
        for (shrinker, _) in self.slabs.each() {
            let mut left = shrinker.count();
            while left > 0 {
                let offered = left.min(batch);
                let (objects, more) = self.offer(shrinker, offered, Who::Operator);
                freed += objects;
                frames += more;
                left -= offered;
            }
        }
        (freed, frames)
    }

    fn offer(&self, shrinker: &dyn Shrinker, objects: u64, who: Who) -> (u64, u64) {
        let shrunk = shrinker.shrink(objects, who);
        let (cpu, events) = (self.platform.cpu(), self.generations.frames().events());
        events.add(cpu, Event::SlabsScanned, objects);
        (shrunk.freed, shrunk.frames)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn objects_are_offered_in_twice_the_share_of_frames() {
        assert_eq!(share(1000, 12, 0, 999), 0);
        assert_eq!(share(1000, 12, 100, 999), 200);
        assert_eq!(share(1000, 0, 999, 999), 1998);
        assert_eq!(share(4096, 12, 0, 0), 2, "no frames: by priority");
        assert_eq!(share(u64::MAX, 0, u64::MAX, 1), u64::MAX);
    }
}
