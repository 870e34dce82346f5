//! Interleavings of those who take and free slots, tried at random:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p dirigible-swap --features shuttle --test shuttle`.
#![cfg(shuttle)]

use std::sync::Arc;

use dirigible_frames::sync::{AtomicU32, Ordering};
use dirigible_swap::Slots;
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread;

const RUNS: usize = 1_000;

/// Slots, and who has each: 0 for nobody.
struct World {
    slots: Slots,
    owners: Vec<AtomicU32>,
}

impl World {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            slots: Slots::new(size),
            owners: (0..size).map(|_| AtomicU32::new(0)).collect(),
        })
    }

    /// Takes up to `count` slots, which are nobody's until then.
    fn take(&self, me: u32, count: usize) -> Vec<u64> {
        let mut out = vec![u64::MAX; count];
        let taken = self.slots.take(&mut out);
        out.truncate(taken);
        for &slot in &out {
            let before = self.owners[slot as usize].swap(me, Ordering::Relaxed);
            assert_eq!(before, 0, "slot {slot} has two owners");
            assert!(self.slots.is_used(slot));
        }
        out
    }

    fn free(&self, me: u32, slots: Vec<u64>) {
        for slot in slots {
            let before = self.owners[slot as usize].swap(0, Ordering::Relaxed);
            assert_eq!(before, me);
            assert!(self.slots.free(slot));
        }
    }

    fn used(&self) -> u64 {
        let owned = |owner: &&AtomicU32| owner.load(Ordering::Relaxed) != 0;
        self.owners.iter().filter(owned).count() as u64
    }

    /// Nobody takes or frees: all counts are right, and each free slot can be taken.
    fn check(&self) {
        assert_eq!(self.slots.used(), self.used());
        assert!(self.slots.agrees());
        let free = self.slots.size() - self.used();
        let rest = self.take(99, self.slots.size() as usize);
        assert_eq!(rest.len() as u64, free, "a slot is lost");
        self.free(99, rest);
        assert!(self.slots.agrees());
    }
}

/// Threads take turns at random; and few turns, in which one stands still while another does much.
fn check(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::Runner::new(RandomScheduler::new(RUNS), shuttle::Config::new()).run(test.clone());
    shuttle::Runner::new(PctScheduler::new(2, RUNS), shuttle::Config::new()).run(test);
}

/// Runs `work` on `threads` threads at the same time, each with its number from 1 on.
fn together(world: &Arc<World>, threads: u32, work: impl Fn(&World, u32) + Copy + Send + 'static) {
    let all: Vec<_> = (1..=threads)
        .map(|me| {
            let world = Arc::clone(world);
            thread::spawn(move || work(&world, me))
        })
        .collect();
    all.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Two clusters, the second with few slots: those who take pass from one to the other, and the hint where to begin changes
/// under them.
#[test]
fn pitfall_74_no_slot_has_two_owners_and_none_is_lost() {
    check(|| {
        let world = World::new(260);
        // So full that each of them meets the others.
        let held = world.take(50, 250);
        together(&world, 3, |world, me| {
            for _ in 0..3 {
                let count = shuttle::rand::thread_rng().gen_range(1..6);
                let mine = world.take(me, count);
                world.free(me, mine);
            }
        });
        world.check();
        world.free(50, held);
        world.check();
        assert_eq!(world.slots.used(), 0);
    });
}

/// Who takes while others free gets what was free before, at least; and never more than he wants.
#[test]
fn what_is_free_all_the_time_can_be_taken() {
    check(|| {
        let world = World::new(70);
        let given = world.take(1, 30);
        let freer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.free(1, given))
        };
        // 40 are free whatever the other does, and nobody else takes any.
        let mine = world.take(2, 40);
        assert_eq!(mine.len(), 40);
        freer.join().unwrap();
        world.check();
    });
}

/// Whoever takes alone gets as many as were said to be free before he looked.
#[test]
fn what_counts_as_free_can_be_taken() {
    check(|| {
        let world = World::new(66);
        let held = world.take(1, 66);
        let freer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.free(1, held[60..].to_vec()))
        };
        for _ in 0..3 {
            let free = world.slots.size() - world.slots.used();
            assert!(world.take(2, 6).len() as u64 >= free);
        }
        freer.join().unwrap();
        world.check();
    });
}

/// Of those who free the same slot at once one does it. The counts of its cluster, which becomes wholly free, are right
/// afterwards.
#[test]
fn pitfall_74_a_slot_is_freed_once() {
    check(|| {
        let world = World::new(256);
        let all = world.take(1, 256);
        world.free(1, all[2..].to_vec());
        world.owners[all[0] as usize].store(0, Ordering::Relaxed);
        world.owners[all[1] as usize].store(0, Ordering::Relaxed);
        let freed = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..3)
            .map(|me| {
                let (world, freed) = (Arc::clone(&world), Arc::clone(&freed));
                let slot = all[usize::from(me == 2)];
                thread::spawn(move || {
                    let done = world.slots.free(slot);
                    freed.fetch_add(u32::from(done), Ordering::Relaxed);
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(freed.load(Ordering::Relaxed), 2);
        world.check();
        assert_eq!(world.slots.used(), 0);
    });
}

/// While a cluster is emptied and another is filled, nobody misses the room that there is.
#[test]
fn clusters_that_change_under_those_who_look_lose_no_slot() {
    check(|| {
        let world = World::new(512 + 3);
        let held = world.take(50, 256);
        let more = world.take(50, 250);
        let freer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.free(50, held[200..].to_vec()))
        };
        together(&world, 2, |world, me| {
            let mine = world.take(me, 4);
            assert_eq!(mine.len(), 4);
            world.free(me, mine[..2].to_vec());
        });
        freer.join().unwrap();
        world.check();
        world.free(50, more);
        world.check();
    });
}
