//! Random sequences of what programs, reclaim, compaction, files and the disk do with swap, against a model: what each
//! slot holds.

#[path = "../../pagecache/tests/support/mod.rs"]
mod support;

mod programs;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use dirigible_disk::DiskError;
use dirigible_frames::{FrameState, Pfn};
use dirigible_pagecache::{CacheConfig, Flusher};
use dirigible_paging::{SwapError, SwapSpace};
use programs::Programs;
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::*;

/// Slots. Fewer than frames, so that swap is full at times.
const SLOTS: u64 = 150;
const BLOCKS: u64 = 200;

#[derive(Clone, Debug)]
enum Step {
    /// Reclaim takes pages from programs, and begins to write them or not.
    Out {
        count: usize,
        write: bool,
    },
    /// A promise that is broken.
    Withdraw,
    WriteOut {
        nth: usize,
        count: usize,
    },
    /// A program wants a page.
    Fault {
        nth: usize,
    },
    /// What is in memory is read, or was, and stays in swap.
    Fetch {
        nth: usize,
    },
    /// A program ends.
    Free {
        nth: usize,
        count: usize,
    },
    /// Reclaim meets a page of the cache.
    Reclaim {
        nth: usize,
    },
    Migrate {
        nth: usize,
    },
    /// A page is isolated while somebody wants or frees it, and moved or put back then.
    Isolated {
        nth: usize,
        free: bool,
        moves: bool,
    },
    FileWrite {
        block: u64,
    },
    FileRead {
        block: u64,
    },
    DropAll,
    Sync,
    Flush {
        ms: u64,
    },
    Answer {
        count: usize,
    },
    FailNext {
        lost: bool,
    },
    BadRead {
        nth: u64,
    },
    BadWrite {
        nth: u64,
    },
    Repair,
    Memory {
        empty: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let nth = any::<usize>;
    prop_oneof![
        8 => (1..40usize, any::<bool>()).prop_map(|(count, write)| Step::Out { count, write }),
        1 => Just(Step::Withdraw),
        3 => (nth(), 1..40usize).prop_map(|(nth, count)| Step::WriteOut { nth, count }),
        8 => nth().prop_map(|nth| Step::Fault { nth }),
        2 => nth().prop_map(|nth| Step::Fetch { nth }),
        3 => (nth(), 1..20usize).prop_map(|(nth, count)| Step::Free { nth, count }),
        12 => nth().prop_map(|nth| Step::Reclaim { nth }),
        4 => nth().prop_map(|nth| Step::Migrate { nth }),
        3 => (nth(), any::<bool>(), any::<bool>())
            .prop_map(|(nth, free, moves)| Step::Isolated { nth, free, moves }),
        2 => (0..BLOCKS - SLOTS).prop_map(|block| Step::FileWrite { block }),
        2 => (0..BLOCKS - SLOTS).prop_map(|block| Step::FileRead { block }),
        1 => Just(Step::DropAll),
        1 => Just(Step::Sync),
        2 => (1..20_000u64).prop_map(|ms| Step::Flush { ms }),
        3 => (1..8usize).prop_map(|count| Step::Answer { count }),
        1 => any::<bool>().prop_map(|lost| Step::FailNext { lost }),
        1 => (0..SLOTS).prop_map(|nth| Step::BadRead { nth }),
        1 => (0..SLOTS).prop_map(|nth| Step::BadWrite { nth }),
        1 => Just(Step::Repair),
        1 => any::<bool>().prop_map(|empty| Step::Memory { empty }),
    ]
}

struct Pair {
    p: Programs,
    flusher: Flusher<'static, 'static, Machine>,
    /// What the slots in use hold.
    slots: BTreeMap<u64, Words>,
    files: Vec<Words>,
    version: u64,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let p = Programs::new(Build {
            memory: 1,
            disk: BLOCKS,
            swap: SLOTS,
            depth: 4,
            config: CacheConfig {
                requests: 4,
                throttle_ns: 1_000_000,
                ..Default::default()
            },
            ..Default::default()
        });
        Self {
            p,
            flusher: Flusher::new(p.w.cache, 0),
            slots: BTreeMap::new(),
            files: (0..BLOCKS).map(factory).collect(),
            version: 0,
            now: 1,
        }
    }

    fn new_words(&mut self) -> Words {
        self.version += 1;
        [self.version, !self.version]
    }

    /// A slot in use.
    fn slot(&self, nth: usize) -> Option<u64> {
        let at = nth % self.slots.len().max(1);
        self.slots.keys().nth(at).copied()
    }

    fn slots_from(&self, nth: usize, count: usize) -> Vec<u64> {
        let first = self.slot(nth).unwrap_or(0);
        self.slots
            .range(first..)
            .map(|(&slot, _)| slot)
            .take(count)
            .collect()
    }

    /// A slot in memory at this moment, with its frame.
    fn page(&self, nth: usize) -> Option<(u64, Pfn)> {
        let present = self.slots.keys().copied();
        let present: Vec<u64> = present
            .filter(|&slot| self.p.w.cache.contains(self.p.block(slot)))
            .collect();
        let slot = *present.get(nth % present.len().max(1))?;
        Some((slot, self.p.w.frame(self.p.block(slot))?))
    }

    fn is_lost(&self, slot: u64) -> bool {
        let state = self.p.w.disk.state.lock().unwrap();
        state.bad_reads.contains(&self.p.block(slot))
    }

    /// What may keep a fault from its page.
    fn expect(&self, slot: u64, error: SwapError) {
        match error {
            SwapError::OutOfMemory => assert!(self.p.w.source.empty.load(Ordering::Relaxed)),
            SwapError::Io { slot: named } => assert!(named == slot && self.is_lost(slot)),
        }
    }

    fn fault(&mut self, slot: u64) {
        match self.p.fault(slot) {
            Ok(words) => assert_eq!(self.slots.remove(&slot), Some(words), "slot {slot}"),
            Err(error) => self.expect(slot, error),
        }
    }

    fn free(&mut self, slots: &[u64]) {
        self.p.swap.free(slots);
        for slot in slots {
            self.slots.remove(slot);
            assert!(self.p.swap.take(*slot).is_none());
            assert_eq!(self.p.swap.fetch(*slot), Ok(()), "nothing is there");
        }
    }

    fn run(&mut self, step: Step) {
        let (p, w) = (self.p, self.p.w);
        match step {
            Step::Out { count, write } => {
                let frames = w.frames.free_frames() as usize;
                let room = (SLOTS - p.swap.used()) as usize;
                if w.source.empty.load(Ordering::Relaxed) {
                    return;
                }
                let pages: Vec<Words> = (0..count.min(frames)).map(|_| self.new_words()).collect();
                let slots = p.put(&pages);
                assert_eq!(slots.len(), pages.len().min(room));
                for (&slot, words) in slots.iter().zip(pages) {
                    assert_eq!(
                        self.slots.insert(slot, words),
                        None,
                        "slot {slot} is in use"
                    );
                }
                if write {
                    p.swap.write_out(&slots);
                }
            }
            Step::Withdraw => {
                let mut slot = [0];
                let Some(frame) = p.isolated([1, 1]) else {
                    return;
                };
                if p.swap.take_slots(&mut slot) == 1 {
                    assert!(p.swap.promise(slot[0], frame));
                    p.swap.withdraw(slot[0], frame);
                    p.swap.free(&slot);
                }
                p.step(frame, FrameState::Isolated, FrameState::Allocated);
                w.free(frame);
            }
            Step::WriteOut { nth, count } => p.swap.write_out(&self.slots_from(nth, count)),
            Step::Fault { nth } => {
                if let Some(slot) = self.slot(nth) {
                    self.fault(slot);
                }
            }
            Step::Fetch { nth } => {
                let Some(slot) = self.slot(nth) else { return };
                match p.swap.fetch(slot) {
                    Ok(()) => assert!(w.cache.contains(p.block(slot))),
                    Err(error) => self.expect(slot, error),
                }
            }
            Step::Free { nth, count } => self.free(&self.slots_from(nth, count)),
            Step::Reclaim { nth } => {
                if let Some((_, frame)) = self.page(nth)
                    && w.isolate(frame)
                {
                    w.cache_as_evictable().put_back(frame);
                    if w.evict(frame, nth as u32).is_err() && w.isolate(frame) {
                        w.cache_as_evictable().begin_write(frame);
                        w.cache_as_evictable().put_back(frame);
                    }
                }
            }
            Step::Migrate { nth } => {
                if let Some((_, frame)) = self.page(nth) {
                    w.move_frame(frame);
                }
            }
            Step::Isolated { nth, free, moves } => {
                let Some((slot, frame)) = self.page(nth) else {
                    return;
                };
                if !w.isolate(frame) {
                    return;
                }
                assert!(p.swap.take(slot).is_none());
                if free {
                    self.free(&[slot]);
                    w.cache_as_evictable().put_back(frame);
                } else {
                    w.machine.at_relax(move || {
                        w.cache_as_evictable().put_back(frame);
                        if moves {
                            w.move_frame(frame);
                        }
                    });
                    self.fault(slot);
                    // A page whose contents are lost was not waited for.
                    if let Some(mut hook) = w.machine.on_relax.lock().unwrap().take() {
                        hook();
                    }
                }
            }
            Step::FileWrite { block } => {
                let words = self.new_words();
                if w.write(block, words).is_ok() {
                    self.files[block as usize] = words;
                }
            }
            Step::FileRead { block } => {
                if let Ok(words) = w.read_ahead(block, BLOCKS) {
                    assert_eq!(words, self.files[block as usize]);
                }
            }
            Step::DropAll => {
                let before = w.cache.swap_pages();
                w.cache.drop_all_clean();
                assert_eq!(w.cache.swap_pages(), before);
            }
            Step::Sync => {
                let _ = dirigible_pagecache::BlockPages::sync(w.cache, 0..BLOCKS);
            }
            Step::Flush { ms } => {
                let end = self.now + ms * 1_000_000;
                while self.now < end {
                    self.now = self.flusher.step(self.now).min(end);
                }
            }
            Step::Answer { count } => {
                w.disk.answer(count);
                w.cache.poll();
            }
            Step::FailNext { lost } => {
                let error = if lost {
                    DiskError::Abandoned
                } else {
                    DiskError::Io
                };
                w.disk.fail(error);
                w.cache.poll();
            }
            Step::BadRead { nth } => {
                w.disk.state.lock().unwrap().bad_reads.insert(p.block(nth));
            }
            Step::BadWrite { nth } => {
                w.disk.state.lock().unwrap().bad_writes.insert(p.block(nth));
            }
            Step::Repair => {
                let mut state = w.disk.state.lock().unwrap();
                state.bad_reads.clear();
                state.bad_writes.clear();
            }
            Step::Memory { empty } => w.source.empty.store(empty, Ordering::Relaxed),
        }
    }

    fn check(&self) {
        let found = self.p.check();
        let used = self.slots.len() as u64;
        assert_eq!(
            (found.used, found.empty, self.p.swap.used()),
            (used, 0, used)
        );
    }

    /// All that can still be had comes back as it was.
    fn end(mut self) {
        let w = self.p.w;
        self.run(Step::Repair);
        self.run(Step::Memory { empty: false });
        w.settle();
        for slot in self.slots_from(0, SLOTS as usize) {
            self.fault(slot);
        }
        self.check();
        assert!(self.slots.is_empty(), "lost: {:?}", self.slots);
        dirigible_pagecache::BlockPages::forget(w.cache, 0..BLOCKS);
        self.p.end(w.cache.counts().abandoned);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn pitfall_74_no_slot_is_lost_in_swap(steps in prop::collection::vec(steps(), 1..150)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.run(step);
            pair.check();
        }
        pair.end();
    }
}
