//! Pages of programs over the page cache's mock machine and disk. What paging does with them is done by hand.
#![allow(dead_code)]

use dirigible_frames::{AllocRequest, FrameFlags, FrameState, OwnerId, PageSource, Pfn};
use dirigible_paging::{SwapError, SwapSpace};
use dirigible_swap::{Swap, SwapAudit};

use crate::support::*;

/// Whose the frames are before they go to swap.
pub const PROGRAMS: OwnerId = OwnerId::new(7).unwrap();

pub type TestSwap = Swap<'static, 'static, Machine>;

#[derive(Clone, Copy)]
pub struct Programs {
    pub w: World,
    pub swap: &'static TestSwap,
}

impl Programs {
    pub fn new(how: Build) -> Self {
        let w = build(how);
        let swap = leak(Swap::new(w.cache));
        Self { w, swap }
    }

    /// An isolated frame of a program that has these contents; `None` if there is no memory.
    pub fn isolated(&self, words: Words) -> Option<Pfn> {
        let frame = self.w.source.alloc(AllocRequest::movable()).ok()?;
        self.w.frames.set_owner(frame, PROGRAMS, 99);
        set_words(self.w.machine, frame, words);
        let used = FrameFlags::REFERENCED.union(FrameFlags::ACTIVE);
        assert!(self.w.frames.set_flags(frame, used));
        self.step(frame, FrameState::Allocated, FrameState::Listed);
        self.step(frame, FrameState::Listed, FrameState::Isolated);
        Some(frame)
    }

    pub fn step(&self, frame: Pfn, from: FrameState, to: FrameState) {
        self.w.frames.transition(frame, from, to).unwrap();
    }

    /// Keeps the promise of `frame` for `slot`.
    pub fn adopt(&self, slot: u64, frame: Pfn) {
        self.step(frame, FrameState::Isolated, FrameState::Allocated);
        self.swap.adopt(slot, frame);
    }

    /// Puts pages into swap, as many as there is room for; gives their slots.
    pub fn put(&self, pages: &[Words]) -> Vec<u64> {
        let mut slots = vec![0; pages.len()];
        let taken = self.swap.take_slots(&mut slots);
        slots.truncate(taken);
        for (&slot, &words) in slots.iter().zip(pages) {
            let frame = self.isolated(words).expect("memory");
            assert!(self.swap.promise(slot, frame));
            assert!(self.swap.take(slot).is_none(), "promised, not there");
            self.adopt(slot, frame);
        }
        slots
    }

    /// Puts as many pages as `count` into swap: the contents of slot `n` are `[base + n, n]`, if all slots are free.
    pub fn fill(&self, base: u64, count: u64) -> Vec<u64> {
        let pages: Vec<Words> = (0..count).map(|n| [base + n, n]).collect();
        self.put(&pages)
    }

    /// What a fault does; the contents are gone from swap afterwards.
    pub fn fault(&self, slot: u64) -> Result<Words, SwapError> {
        loop {
            if let Some(frame) = self.swap.take(slot) {
                let info = self.w.frames.frame(frame).unwrap();
                assert_eq!(
                    (info.state, info.owner, info.flags, info.refcount),
                    (FrameState::Allocated, OwnerId::NONE, FrameFlags::EMPTY, 0)
                );
                assert_eq!(info.generation, 0);
                let words = words_of(self.w.machine, frame);
                self.w.free(frame);
                return Ok(words);
            }
            self.swap.fetch(slot)?;
        }
    }

    pub fn block(&self, slot: u64) -> u64 {
        self.w.cache.swap_blocks().start + slot
    }

    pub fn evict(&self, slot: u64) {
        let frame = self.w.frame(self.block(slot)).unwrap();
        assert_eq!(self.w.evict(frame, 0), Ok(()));
    }

    /// Writes all of `slots` to the disk and drops their frames.
    pub fn write_and_evict(&self, slots: &[u64]) {
        self.swap.write_out(slots);
        self.w.settle();
        slots.iter().for_each(|&slot| self.evict(slot));
    }

    pub fn check(&self) -> SwapAudit {
        self.w.check();
        self.swap.audit().unwrap()
    }

    /// Frees everything and checks that nothing is left.
    pub fn end(&self, abandoned: u64) {
        let slots: Vec<u64> = (0..self.swap.size()).collect();
        self.swap.free(&slots);
        assert_eq!(self.swap.used(), 0);
        assert_eq!(self.check(), SwapAudit::default());
        self.w.end(abandoned);
    }
}
