#![allow(missing_docs)]
use core::sync::atomic::*;
use dirigible_paging::{Page, SpaceId};
pub struct AccessSection(AtomicU64);
impl AccessSection {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    pub fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    pub fn leave(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    pub fn observe(&self) -> Option<u64> {
        let e = self.0.load(Ordering::SeqCst);
        (e % 2 == 1).then_some(e)
    }
    pub fn has_left(&self, e: u64) -> bool {
        self.0.load(Ordering::Acquire) != e
    }
}
pub trait UserMemory: Sync {
    fn store(
        &self,
        space: SpaceId,
        page: Page,
        value: u64,
        fault: &mut dyn FnMut() -> bool,
    ) -> bool;
    fn load(
        &self,
        space: SpaceId,
        page: Page,
        lines: &mut [u64; 64],
        fault: &mut dyn FnMut() -> bool,
    ) -> bool;
    fn load_line(
        &self,
        space: SpaceId,
        page: Page,
        line: usize,
        fault: &mut dyn FnMut() -> bool,
    ) -> Option<u64>;
}
