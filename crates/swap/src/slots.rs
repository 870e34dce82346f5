//! Which slots are in use.

use alloc::boxed::Box;

use dirigible_frames::sync::{AtomicU32, AtomicU64, Ordering};

const BITS: u64 = 64;
/// Slots of a cluster. What goes to swap together is to lie in one, as in Linux.
const CLUSTER: u64 = 256;
const WORDS: u64 = CLUSTER / BITS;

/// A bit for each slot, and counts.
///
/// Slots are taken from one cluster of 256 until it has no more; the next is one that is wholly free, or else the next
/// that has room. The count of slots in use is raised before their bits are set, and lowered after bits are cleared:
/// so who has raised it finds as many clear bits. No lock is taken.
pub struct Slots {
    size: u64,
    /// Bit set: in use.
    words: Box<[AtomicU64]>,
    /// By cluster: free slots, or more for a moment, never fewer.
    free: Box<[AtomicU32]>,
    /// Clusters that are wholly free. A hint.
    whole: AtomicU64,
    used: AtomicU64,
    /// The cluster from which slots are taken. A hint.
    hand: AtomicU64,
}

impl Slots {
    /// `size` free slots. Allocates from the heap, 9 bits for 8 slots.
    pub fn new(size: u64) -> Self {
        let clusters = size.div_ceil(CLUSTER);
        let words = (0..clusters * WORDS).map(|word| {
            // What lies behind the end is in use for good.
            let left = size.saturating_sub(word * BITS).min(BITS);
            AtomicU64::new(u64::MAX.checked_shl(left as u32).unwrap_or(0))
        });
        let free = (0..clusters).map(|cluster| AtomicU32::new(room_of(size, cluster)));
        Self {
            size,
            words: words.collect(),
            free: free.collect(),
            whole: AtomicU64::new(size / CLUSTER),
            used: AtomicU64::new(0),
            hand: AtomicU64::new(0),
        }
    }

    /// How many there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many are in use.
    pub fn used(&self) -> u64 {
        // Relaxed: a number on its own.
        self.used.load(Ordering::Relaxed)
    }

    /// Whether `slot` is in use.
    pub fn is_used(&self, slot: u64) -> bool {
        let bit = 1 << (slot % BITS);
        slot < self.size && self.words[(slot / BITS) as usize].load(Ordering::Acquire) & bit != 0
    }

    /// Takes free slots and writes their numbers to the front of `out`; gives how many. Fewer than asked for if no more
    /// are free, or if others take and free meanwhile just where this call does not look.
    pub fn take(&self, out: &mut [u64]) -> usize {
        let wanted = out.len() as u64;
        let booked = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let more = wanted.min(self.size - used.min(self.size));
                (more > 0).then_some(used + more)
            });
        let Ok(used) = booked else {
            return 0;
        };
        let wanted = wanted.min(self.size - used) as usize;
        let mut taken = 0;
        let first = self.hand.load(Ordering::Relaxed) % self.clusters();
        let mut cluster = first;
        // Once around, and the first cluster again: its slots may have become free behind us.
        for _ in 0..=self.clusters() {
            taken += self.take_from(cluster, &mut out[taken..wanted]);
            if taken == wanted {
                break;
            }
            cluster = self.next_cluster(cluster);
        }
        if cluster != first {
            self.hand.store(cluster, Ordering::Relaxed);
        }
        if taken < wanted {
            self.used
                .fetch_sub((wanted - taken) as u64, Ordering::Relaxed);
        }
        taken
    }

    /// Frees `slot`; gives whether it was in use.
    pub fn free(&self, slot: u64) -> bool {
        if !self.is_used(slot) {
            return false;
        }
        // Before the bit: the count of free slots is never too low.
        let free = &self.free[(slot / CLUSTER) as usize];
        if free.fetch_add(1, Ordering::Relaxed) == CLUSTER as u32 - 1 {
            self.whole.fetch_add(1, Ordering::Relaxed);
        }
        let bit = 1 << (slot % BITS);
        // Release: whoever takes the slot next sees what became of it before.
        let before = self.words[(slot / BITS) as usize].fetch_and(!bit, Ordering::AcqRel);
        if before & bit == 0 {
            // Freed twice at once.
            self.less_free(slot / CLUSTER, 1);
            return false;
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Whether the counts agree with the bits. For tests, and the end of a run: nobody takes or frees meanwhile.
    pub fn agrees(&self) -> bool {
        let mut used = 0;
        let mut whole = 0;
        for (cluster, free) in self.free.iter().enumerate() {
            let words = &self.words[cluster * WORDS as usize..][..WORDS as usize];
            let clear = words.iter().map(|word| {
                // Acquire: pairs with those who took and freed.
                word.load(Ordering::Acquire).count_zeros()
            });
            let clear = clear.sum::<u32>();
            if free.load(Ordering::Relaxed) != clear {
                return false;
            }
            used += u64::from(room_of(self.size, cluster as u64) - clear);
            whole += u64::from(clear == CLUSTER as u32);
        }
        used == self.used() && whole == self.whole.load(Ordering::Relaxed)
    }

    fn clusters(&self) -> u64 {
        self.free.len() as u64
    }

    fn take_from(&self, cluster: u64, out: &mut [u64]) -> usize {
        if self.free[cluster as usize].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut taken = 0;
        for word in cluster * WORDS..(cluster + 1) * WORDS {
            let wanted = out.len() - taken;
            let mut mask = 0;
            // Acquire: pairs with the release in `free`.
            let _ = self.words[word as usize].fetch_update(
                Ordering::AcqRel,
                Ordering::Relaxed,
                |used| {
                    mask = lowest(!used, wanted);
                    (mask != 0).then_some(used | mask)
                },
            );
            while mask != 0 {
                out[taken] = word * BITS + u64::from(mask.trailing_zeros());
                mask &= mask - 1;
                taken += 1;
            }
            if taken == out.len() {
                break;
            }
        }
        self.less_free(cluster, taken as u32);
        taken
    }

    fn less_free(&self, cluster: u64, slots: u32) {
        let before = self.free[cluster as usize].fetch_sub(slots, Ordering::Relaxed);
        let full = CLUSTER as u32;
        if before >= full && before - slots < full {
            self.whole.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where to look after `cluster`: the next that is wholly free, if there is one, or the next with room.
    fn next_cluster(&self, cluster: u64) -> u64 {
        let after = |at: u64| (at + 1) % self.clusters();
        let find = |least: u32| {
            let mut at = after(cluster);
            while at != cluster && self.free[at as usize].load(Ordering::Relaxed) < least {
                at = after(at);
            }
            (at != cluster).then_some(at)
        };
        let whole = self.whole.load(Ordering::Relaxed) > 0;
        let found = whole.then(|| find(CLUSTER as u32)).flatten();
        found.or_else(|| find(1)).unwrap_or_else(|| after(cluster))
    }
}

/// How many slots `cluster` has.
fn room_of(size: u64, cluster: u64) -> u32 {
    size.saturating_sub(cluster * CLUSTER).min(CLUSTER) as u32
}

/// The `count` lowest bits that are set in `bits`, or all.
fn lowest(bits: u64, count: usize) -> u64 {
    if count >= bits.count_ones() as usize {
        return bits;
    }
    let mut left = bits;
    for _ in 0..count {
        left &= left - 1;
    }
    bits & !left
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn slots_follow_each_other_while_there_is_a_free_cluster() {
        let slots = Slots::new(1024);
        let mut out = [0; 40];
        let mut next = 0;
        while next + 40 <= 1024 {
            assert_eq!(slots.take(&mut out), 40);
            let expected: Vec<u64> = (next..next + 40).collect();
            assert_eq!(out.as_slice(), expected);
            next += 40;
        }
        assert_eq!(slots.take(&mut out), 24, "the rest");
        assert_eq!((slots.used(), slots.take(&mut out)), (1024, 0));
        assert!(slots.agrees());
        // A hole is less wanted than a free cluster.
        for slot in [3, 900, 901].into_iter().chain(512..768) {
            assert!(slots.free(slot));
        }
        assert_eq!(slots.take(&mut out[..10]), 10);
        assert!(out[..10].iter().filter(|&&slot| slot >= 512).count() >= 8);
        assert!(slots.agrees());
    }

    #[test]
    fn pitfall_74_no_slot_is_lost_in_swap_of_any_size() {
        for size in [0, 1, 63, 64, 65, 255, 256, 257, 700, 1024] {
            let (slots, mut model) = (Slots::new(size), BTreeSet::new());
            let mut random = size + 1;
            let mut next = || {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                random >> 33
            };
            for _ in 0..4_000 {
                if next() % 3 == 0 {
                    let mut out = [u64::MAX; 48];
                    let wanted = next() as usize % 49;
                    let taken = slots.take(&mut out[..wanted]);
                    assert_eq!(taken, wanted.min(size as usize - model.len()));
                    for &slot in &out[..taken] {
                        assert!(slot < size && model.insert(slot), "{slot} of {size}");
                    }
                } else if let Some(&slot) = model.range(next() % size.max(1)..).next() {
                    assert!(slots.free(slot) && model.remove(&slot));
                    assert!(!slots.free(slot), "twice");
                }
                let used = model.len() as u64;
                assert_eq!(slots.used(), used);
            }
            assert!(slots.agrees());
            assert!((0..size + 70).all(|slot| slots.is_used(slot) == model.contains(&slot)));
            assert!(!slots.free(size) && !slots.free(u64::MAX));
        }
    }

    #[test]
    fn nobody_gets_a_slot_that_another_has() {
        let slots = Slots::new(300);
        let owners: Vec<AtomicU32> = (0..300).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for me in 1..=3u32 {
                let (slots, owners) = (&slots, &owners);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    for turn in 0..3_000usize {
                        let mut out = [0; 17];
                        let taken = slots.take(&mut out[..1 + turn % 17]);
                        for &slot in &out[..taken] {
                            assert_eq!(owners[slot as usize].swap(me, Ordering::Relaxed), 0);
                            mine.push(slot);
                        }
                        while mine.len() > turn % 120 {
                            let slot = mine.swap_remove(turn % mine.len());
                            assert_eq!(owners[slot as usize].swap(0, Ordering::Relaxed), me);
                            assert!(slots.free(slot));
                        }
                    }
                    for slot in mine {
                        owners[slot as usize].store(0, Ordering::Relaxed);
                        assert!(slots.free(slot));
                    }
                });
            }
        });
        assert_eq!(slots.used(), 0);
        assert!(slots.agrees());
    }
}
