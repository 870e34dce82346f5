//! The books of a kernel that has no allocator of ours.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use dirigible_balloon::Books;
use dirigible_frames::{FrameState, OwnerId, Pfn};

pub const FRAMES: u64 = 600;
pub const BASE: u64 = 0x1234;

/// A table. Two zones, the border in the middle.
pub struct Table {
    frames: Mutex<Vec<(FrameState, Option<OwnerId>, u64)>>,
    pub managed: Mutex<[i64; 2]>,
    pub managed_calls: AtomicU64,
}

pub fn zone(frame: Pfn) -> usize {
    usize::from(frame.get() - BASE >= FRAMES / 2)
}

impl Table {
    pub fn new() -> Self {
        Self {
            frames: Mutex::new(vec![(FrameState::Free, None, 0); FRAMES as usize]),
            managed: Mutex::new([0; 2]),
            managed_calls: AtomicU64::new(0),
        }
    }

    pub fn with<R>(
        &self,
        frame: Pfn,
        f: impl FnOnce(&mut (FrameState, Option<OwnerId>, u64)) -> R,
    ) -> R {
        f(&mut self.frames.lock().unwrap()[(frame.get() - BASE) as usize])
    }
}

impl Books for Table {
    fn base(&self) -> Pfn {
        Pfn::new(BASE)
    }
    fn span(&self) -> u64 {
        FRAMES
    }
    fn state(&self, frame: Pfn) -> FrameState {
        self.with(frame, |entry| entry.0)
    }
    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        assert!(from.may_become(to), "{from:?} to {to:?}");
        self.with(frame, |entry| {
            if entry.0 == from {
                entry.0 = to;
                Ok(())
            } else {
                Err(entry.0)
            }
        })
    }
    fn owner(&self, frame: Pfn) -> Option<OwnerId> {
        self.with(frame, |entry| entry.1)
    }
    fn claim(&self, frame: Pfn, owner: OwnerId, word: u64) {
        self.with(frame, |entry| (entry.1, entry.2) = (Some(owner), word));
    }
    fn disown(&self, frame: Pfn) {
        self.with(frame, |entry| (entry.1, entry.2) = (None, 0));
    }
    fn word(&self, frame: Pfn) -> u64 {
        self.with(frame, |entry| entry.2)
    }
    fn set_word(&self, frame: Pfn, word: u64) {
        self.with(frame, |entry| entry.2 = word);
    }
    fn adjust_managed(&self, frames: &mut dyn Iterator<Item = Pfn>, delta: i64) {
        let mut managed = self.managed.lock().unwrap();
        self.managed_calls.fetch_add(1, Ordering::SeqCst);
        frames.for_each(|frame| managed[zone(frame)] += delta);
    }
}
