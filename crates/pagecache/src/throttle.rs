//! How much may be dirty.

use dirigible_frames::FrameContents;
use dirigible_frames::sync::Ordering;
use dirigible_reclaim::Kind;

use crate::cache::PageCache;
use crate::writing::Begun;

/// The limits are renewed each time that this many pages have become dirty (a power of two).
const RENEW_EVERY: u64 = 64;
/// Runs that a writer begins in one go while it is held up.
const RUNS: usize = 4;
/// Blocks that are looked at for that, for each of the runs.
const LOOKS: usize = 64;

impl<P: FrameContents> PageCache<'_, P> {
    /// Of frames that could hold pages of files: the free ones and those that do.
    pub(crate) fn renew_limits(&self) {
        let frames = self.frames.free_frames() + self.pages.get(Kind::File);
        let share = |percent: u8| frames * u64::from(percent.min(100)) / 100;
        self.dirty_limit
            .store(share(self.config.dirty_percent).max(1), Ordering::Relaxed);
        self.background_limit
            .store(share(self.config.background_percent), Ordering::Relaxed);
    }

    /// Pages of files that may be on the disk soon: those whose write failed are not waited for.
    fn unwritten_pages(&self) -> u64 {
        let all = self.dirty.get(Kind::File) + self.writeback.get(Kind::File);
        all.saturating_sub(self.failed_pages.get(Kind::File))
    }

    /// Dirty pages of `kind` whose write has not failed.
    pub(crate) fn writable_pages(&self, kind: Kind) -> u64 {
        let dirty = self.dirty.get(kind);
        dirty.saturating_sub(self.failed_pages.get(kind))
    }

    /// The write of a page, whose mark `WRITEBACK` the caller still has to take off, has failed.
    pub(crate) fn add_failed(&self, block: u64) {
        if self.failed.insert(block) {
            self.failed_pages.add(self.kind_of(block), 1);
        }
    }

    /// A page, which the caller has alone, is on the disk or gone.
    pub(crate) fn remove_failed(&self, block: u64) {
        if self.failed.remove(block) {
            self.failed_pages.sub(self.kind_of(block), 1);
        }
    }

    /// One more page of a file is dirty, `dirty` of them now.
    pub(crate) fn watch_dirty(&self, dirty: u64) {
        if dirty.is_multiple_of(RENEW_EVERY) {
            self.renew_limits();
        }
        let failed = self.failed_pages.get(Kind::File);
        if dirty.saturating_sub(failed) > self.background_limit.load(Ordering::Relaxed)
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
            self.write_some(Kind::File, RUNS);
            self.wait();
        }
    }

    /// Writes up to `runs` runs of dirty pages of `kind` in the disk's order, from where it ended last, leaving out those that
    /// could not be written. Looks at a bounded number of blocks. Gives whether the disk has room for more.
    pub(crate) fn write_some(&self, kind: Kind, runs: usize) -> bool {
        let blocks = self.blocks_of(kind);
        let hand = &self.hands[kind as usize];
        let mut at = hand.load(Ordering::Relaxed).max(blocks.start);
        let (mut begun, mut turned) = (0, false);
        let mut room = true;
        let mut looks = runs * LOOKS;
        while begun < runs && looks > 0 {
            looks -= 1;
            let Some(block) = self.unwritten.next(at, blocks.end) else {
                if turned {
                    break;
                }
                (at, turned) = (blocks.start, true);
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
        hand.store(at, Ordering::Relaxed);
        room
    }
}
