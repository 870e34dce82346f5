//! Random sequences of all operations of the cache, against a model: what each block holds, and what the disk holds.

mod support;

use std::ops::Range;
use std::sync::atomic::Ordering;

use dirigible_disk::DiskError;
use dirigible_frames::{AllocRequest, FrameFlags, Pfn, Platform};
use dirigible_mobility::{MovePair, Outcome};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheError, Flusher};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::*;

/// Blocks of the disk: a few words of the sets.
const BLOCKS: u64 = 300;

#[derive(Clone, Debug)]
enum Step {
    Read {
        block: u64,
        ahead: u64,
    },
    Write {
        block: u64,
        count: u64,
        whole: bool,
    },
    Forget {
        block: u64,
        count: u64,
    },
    DropClean {
        block: u64,
        count: u64,
    },
    DropAll,
    Sync {
        block: u64,
        count: u64,
    },
    /// Reclaim meets a page.
    Reclaim {
        nth: usize,
        mark: bool,
    },
    Migrate {
        nth: usize,
    },
    /// Isolates a page, forgets it, and then moves it, evicts it or puts it back.
    MoveAgainstForget {
        nth: usize,
        then: u8,
    },
    /// Begins to write a page and forgets, changes, moves or syncs it before the disk answers.
    WriteAgainst {
        nth: usize,
        act: u8,
    },
    /// The flusher at work for so many milliseconds.
    Flush {
        ms: u64,
        wake: bool,
    },
    Answer {
        count: usize,
    },
    FailNext {
        lost: bool,
    },
    BadRead {
        block: u64,
    },
    BadWrite {
        block: u64,
    },
    Repair,
    /// Whether there is memory for demanded blocks.
    Memory {
        empty: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let at = || (0..BLOCKS, 1..60u64);
    prop_oneof![
        6 => (0..BLOCKS, 0..64u64).prop_map(|(block, ahead)| Step::Read { block, ahead }),
        6 => (0..BLOCKS, 1..20u64, any::<bool>())
            .prop_map(|(block, count, whole)| Step::Write { block, count, whole }),
        2 => at().prop_map(|(block, count)| Step::Forget { block, count }),
        1 => at().prop_map(|(block, count)| Step::DropClean { block, count }),
        1 => Just(Step::DropAll),
        2 => at().prop_map(|(block, count)| Step::Sync { block, count }),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(nth, mark)| Step::Reclaim { nth, mark }),
        4 => any::<usize>().prop_map(|nth| Step::Migrate { nth }),
        3 => (any::<usize>(), 0..4u8).prop_map(|(nth, then)| Step::MoveAgainstForget { nth, then }),
        3 => (any::<usize>(), 0..4u8).prop_map(|(nth, act)| Step::WriteAgainst { nth, act }),
        2 => (1..20_000u64, any::<bool>()).prop_map(|(ms, wake)| Step::Flush { ms, wake }),
        2 => (0..8usize).prop_map(|count| Step::Answer { count }),
        1 => any::<bool>().prop_map(|lost| Step::FailNext { lost }),
        1 => (0..BLOCKS).prop_map(|block| Step::BadRead { block }),
        1 => (0..BLOCKS).prop_map(|block| Step::BadWrite { block }),
        1 => Just(Step::Repair),
        1 => any::<bool>().prop_map(|empty| Step::Memory { empty }),
    ]
}

struct Pair {
    w: World,
    flusher: Flusher<'static, 'static, Machine>,
    /// What a read of each block gives.
    model: Vec<Words>,
    version: u64,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let w = build(Build {
            memory: 1,
            disk: BLOCKS,
            depth: 4,
            config: CacheConfig {
                requests: 4,
                throttle_ns: 1_000_000,
                ..Default::default()
            },
            ..Default::default()
        });
        Self {
            w,
            flusher: Flusher::new(w.cache, 0),
            model: (0..BLOCKS).map(factory).collect(),
            version: 0,
            now: 1,
        }
    }

    fn range(block: u64, count: u64) -> Range<u64> {
        block..(block + count).min(BLOCKS)
    }

    /// The blocks that have pages, and the frame of one of them.
    fn page(&self, nth: usize) -> Option<(u64, Pfn)> {
        let present: Vec<u64> = (0..BLOCKS).filter(|&b| self.w.cache.contains(b)).collect();
        let block = *present.get(nth % present.len().max(1))?;
        Some((block, self.w.frame(block)?))
    }

    fn target(&self) -> Option<Pfn> {
        let w = &self.w;
        w.frames
            .alloc(w.machine.cpu(), AllocRequest::movable())
            .ok()
    }

    fn has_memory(&self) -> bool {
        !self.w.source.empty.load(Ordering::Relaxed)
    }

    /// Whatever was not written is gone.
    fn forgotten(&mut self, blocks: Range<u64>) {
        for block in blocks {
            self.model[block as usize] = self.w.disk.contents(block);
        }
    }

    fn is_bad(&self, write: bool, block: u64) -> bool {
        let state = self.w.disk.state.lock().unwrap();
        if write {
            state.bad_writes.contains(&block)
        } else {
            state.bad_reads.contains(&block)
        }
    }

    fn write(&mut self, block: u64, whole: bool) {
        self.version += 1;
        let words = [self.version, block];
        let present = self.w.cache.contains(block);
        match self.w.put(block, words, whole) {
            Ok(()) => self.model[block as usize] = words,
            Err(CacheError::Io { block: bad }) => {
                assert!(bad == block && !whole && !present && self.is_bad(false, block));
            }
            Err(error) => {
                assert!(!present && !self.has_memory(), "{error:?}");
            }
        }
    }

    fn sync(&mut self, blocks: Range<u64>) {
        let result = self.w.cache.sync(blocks.clone());
        let bad = blocks
            .clone()
            .find(|&block| self.is_bad(true, block) && self.w.has(block, FrameFlags::DIRTY));
        match result {
            Ok(()) => assert_eq!(bad, None),
            Err(error) => assert_eq!(Some(error), bad.map(|block| CacheError::Io { block })),
        }
        for block in blocks {
            if !self.is_bad(true, block) {
                assert_eq!(self.w.disk.contents(block), self.model[block as usize]);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let w = self.w;
        match *step {
            Step::Read { block, ahead } => {
                let present = w.cache.contains(block);
                match w.read_ahead(block, ahead) {
                    Ok(words) => assert_eq!(words, self.model[block as usize]),
                    Err(CacheError::Io { block: bad }) => {
                        assert!(bad == block && !present && self.is_bad(false, block));
                    }
                    Err(_) => assert!(!present && !self.has_memory()),
                }
            }
            Step::Write {
                block,
                count,
                whole,
            } => {
                Self::range(block, count).for_each(|block| self.write(block, whole));
            }
            Step::Forget { block, count } => {
                let blocks = Self::range(block, count);
                let there = blocks.clone().filter(|&b| w.cache.contains(b)).count() as u64;
                assert_eq!(w.cache.forget(blocks.clone()), there);
                self.forgotten(blocks);
            }
            Step::DropClean { block, count } => {
                BlockPages::drop_clean(w.cache, Self::range(block, count));
            }
            Step::DropAll => {
                w.settle();
                let counts = w.cache.counts();
                assert_eq!(w.cache.drop_all_clean(), counts.pages - counts.dirty);
            }
            Step::Sync { block, count } => self.sync(Self::range(block, count)),
            Step::Reclaim { nth, mark } => {
                let Some((block, frame)) = self.page(nth) else {
                    return;
                };
                if mark {
                    w.frames.set_flags(frame, FrameFlags::RECLAIM);
                }
                if w.has(block, FrameFlags::DIRTY) {
                    w.write_out(frame);
                } else {
                    let _ = w.evict(frame, nth as u32);
                }
            }
            Step::Migrate { nth } => {
                let Some((block, frame)) = self.page(nth) else {
                    return;
                };
                let writeback = w.has(block, FrameFlags::WRITEBACK);
                let dirty = w.has(block, FrameFlags::DIRTY);
                let target = self.target();
                let room = target.map(|frame| w.free(frame)).is_some();
                let moved = w.move_frame(frame);
                if writeback || !room {
                    assert_eq!(moved, None);
                } else {
                    assert_eq!(moved, Some(Outcome::Moved));
                    assert_eq!(w.has(block, FrameFlags::DIRTY), dirty);
                    assert_eq!(w.read(block), Ok(self.model[block as usize]));
                }
            }
            Step::MoveAgainstForget { nth, then } => self.move_against_forget(nth, then),
            Step::WriteAgainst { nth, act } => self.write_against(nth, act),
            Step::Flush { ms, wake } => {
                if wake {
                    dirigible_reclaim::Evictable::wake_flusher(w.cache);
                }
                let end = self.now + ms * 1_000_000;
                while self.now < end {
                    self.now = self.flusher.step(self.now);
                }
            }
            Step::Answer { count } => {
                w.disk.answer(count);
                w.cache.poll();
            }
            Step::FailNext { lost } => {
                let error = if lost { DiskError::Lost } else { DiskError::Io };
                w.disk.fail(error);
                w.cache.poll();
            }
            Step::BadRead { block } => {
                w.disk.state.lock().unwrap().bad_reads.insert(block);
            }
            Step::BadWrite { block } => {
                w.disk.state.lock().unwrap().bad_writes.insert(block);
            }
            Step::Repair => {
                let mut state = w.disk.state.lock().unwrap();
                state.bad_reads.clear();
                state.bad_writes.clear();
            }
            Step::Memory { empty } => w.source.empty.store(empty, Ordering::Relaxed),
        }
    }

    fn move_against_forget(&mut self, nth: usize, then: u8) {
        let w = self.w;
        let Some((block, frame)) = self.page(nth) else {
            return;
        };
        let Some(to) = self.target() else {
            return;
        };
        if !w.isolate(frame) {
            w.free(to);
            return;
        }
        assert_eq!(w.cache.forget(block..block + 1), 1);
        self.forgotten(block..block + 1);
        self.write(block, true);
        match then {
            0 => w.cache.put_back_isolated(frame),
            1 => match w.cache_as_evictable().drop_clean(frame, Default::default()) {
                Ok(()) => w.free(frame),
                Err(kept) => panic!("{kept:?}"),
            },
            _ => {
                let mut pairs = [MovePair::base(frame, to)];
                dirigible_mobility::MovableOwner::migrate(w.cache, &mut pairs);
                assert_eq!(pairs[0].outcome, Outcome::Released);
                w.free(frame);
            }
        }
        w.free(to);
    }

    fn write_against(&mut self, nth: usize, act: u8) {
        let w = self.w;
        let Some((block, frame)) = self.page(nth) else {
            return;
        };
        w.disk.set_auto(false);
        w.write_out(frame);
        if act == 2 {
            let _ = w.move_frame(frame);
        }
        // The disk answers only when somebody waits for it.
        w.machine.at_relax(move || w.disk.set_auto(true));
        match act {
            0 => {
                assert_eq!(w.cache.forget(block..block + 1), 1);
                self.forgotten(block..block + 1);
            }
            1 => self.write(block, false),
            2 => {}
            _ => self.sync(block..block + 1),
        }
        *w.machine.on_relax.lock().unwrap() = None;
        w.disk.set_auto(true);
    }
}

trait PutBack {
    fn put_back_isolated(&self, frame: Pfn);
}

impl PutBack for Cache {
    fn put_back_isolated(&self, frame: Pfn) {
        dirigible_mobility::MovableOwner::putback(self, frame);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_cache_is_what_the_model_is(steps in prop::collection::vec(steps(), 1..120)) {
        run_on(0);
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
            pair.w.check();
        }
        let w = pair.w;
        w.source.empty.store(false, Ordering::Relaxed);
        pair.step(&Step::Repair);
        pair.sync(0..BLOCKS);
        for block in 0..BLOCKS {
            assert_eq!(w.read_ahead(block, 31), Ok(pair.model[block as usize]));
        }
        w.end(0);
    }
}
