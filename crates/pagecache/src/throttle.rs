//! How much may be dirty.

use dirigible_frames::FrameContents;
use dirigible_frames::sync::Ordering;

use crate::cache::PageCache;
use crate::writing::Begun;

/// The limits are renewed each time that this many pages have become dirty (a power of two).
const RENEW_EVERY: u64 = 64;
/// Runs that a writer begins in one go while it is held up.
const RUNS: usize = 4;

impl<P: FrameContents> PageCache<'_, P> {
    /// Frames that could hold pages: the free ones and those that do.
    pub(crate) fn renew_limits(&self) {
        let frames = self.frames.free_frames() + self.pages.load(Ordering::Relaxed);
        let share = |percent: u8| frames * u64::from(percent.min(100)) / 100;
        self.dirty_limit
            .store(share(self.config.dirty_percent).max(1), Ordering::Relaxed);
        self.background_limit
            .store(share(self.config.background_percent), Ordering::Relaxed);
    }

    fn unwritten_pages(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed) + self.writeback.load(Ordering::Relaxed)
    }

    /// One more page is dirty, `dirty` of them now.
    pub(crate) fn watch_dirty(&self, dirty: u64) {
        if dirty.is_multiple_of(RENEW_EVERY) {
            self.renew_limits();
        }
        if dirty > self.background_limit.load(Ordering::Relaxed)
            && !self.flusher_wanted.load(Ordering::Relaxed)
        {
            self.flusher_wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Holds up whoever is about to make a page dirty while too many are: writes some itself, waits, until there are
    /// fewer or its time is over. Called without a reference.
    pub(crate) fn throttle(&self) {
        let over = || self.unwritten_pages() > self.dirty_limit.load(Ordering::Relaxed);
        if !over() {
            return;
        }
        self.renew_limits();
        let end = self.platform.now().saturating_add(self.config.throttle_ns);
        while over() && self.platform.now() < end {
            self.write_some(RUNS);
            self.wait();
        }
    }

    /// Writes up to `runs` runs of dirty pages in the disk's order, from where it ended last, leaving out those that
    /// could not be written. Gives whether the disk has room for more.
    pub(crate) fn write_some(&self, runs: usize) -> bool {
        let blocks = self.block_count();
        let (mut at, mut begun, mut turned) = (self.hand.load(Ordering::Relaxed), 0, false);
        let mut room = true;
        while begun < runs {
            let Some(block) = self.unwritten.next(at, blocks) else {
                if turned {
                    break;
                }
                (at, turned) = (0, true);
                continue;
            };
            at = block + 1;
            if self.failed.contains(block) {
                continue;
            }
            match self.begin_write_of(block) {
                Begun::Pages(pages) => {
                    begun += 1;
                    at = block + pages as u64;
                }
                Begun::Not => {}
                Begun::NoRoom => {
                    (at, room) = (block, false);
                    break;
                }
                Begun::Failed => break,
            }
        }
        self.hand.store(at, Ordering::Relaxed);
        room
    }
}
