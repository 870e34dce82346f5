//! Giving up inodes and names.

use dirigible_frames::{Event, FrameContents};
use dirigible_reclaim::{Shrinker, Shrunk, Who};

use crate::{
    record::{Extent, INLINE, Record},
    store::FileStore,
};

/// The inodes in memory, as what reclaim can give up.
pub struct InodeShrinker<'s, 'a, P: FrameContents>(&'s FileStore<'a, P>);

/// The names in memory, as what reclaim can give up.
pub struct NameShrinker<'s, 'a, P: FrameContents>(&'s FileStore<'a, P>);

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// The shrinker of inodes that are not open. A clean page of a file whose inode goes is dropped with it; dirty ones
    /// stay. For the operator it gives up inodes that were just used as well.
    pub fn inode_shrinker(&self) -> InodeShrinker<'_, 'a, P> {
        InodeShrinker(self)
    }

    /// The shrinker of names. For the operator it gives up all.
    pub fn name_shrinker(&self) -> NameShrinker<'_, 'a, P> {
        NameShrinker(self)
    }

    /// Drops the clean pages of the extents that stand in the inode itself: more could not be found without waiting.
    fn drop_pages(&self, record: &Record) -> u64 {
        let mut left = record.size();
        let mut dropped = 0;
        for index in 0..record.extents().min(INLINE) {
            let Ok(extent) = Extent::from_bits(record.inline(index), &self.geometry) else {
                break;
            };
            let len = extent.len.min(left);
            left -= len;
            if len != 0 {
                dropped += self.disk.pages.drop_clean(extent.start..extent.start + len);
            }
        }
        dropped
    }
}

impl<P: FrameContents> Shrinker for InodeShrinker<'_, '_, P> {
    fn count(&self) -> u64 {
        let (all, open) = self.0.inodes.counts();
        all.saturating_sub(open)
    }

    fn shrink(&self, objects: u64, who: Who) -> Shrunk {
        let store = self.0;
        let slab = store.inodes.slab();
        let frames = slab.frames();
        // Once around at most: a mark that is cleared here counts at the next call.
        let objects = objects.min(store.inodes.counts().0);
        let (mut left, mut freed, mut pages) = (objects, 0, 0);
        let all = who == Who::Operator;
        while let Some((object, record)) = store.inodes.sweep(&mut left, all) {
            freed += 1;
            store.inodes.release(object);
            pages += store.drop_pages(&record);
        }
        slab.shrink();
        let event = match who {
            Who::Direct => Some(Event::PgInodeSteal),
            Who::Kswapd => Some(Event::KswapdInodeSteal),
            Who::Operator => None,
        };
        if let Some(event) = event {
            let cpu = store.disk.platform.cpu();
            store.frames.events().add(cpu, event, pages);
        }
        Shrunk {
            scanned: objects - left,
            freed,
            frames: pages + frames.saturating_sub(slab.frames()),
        }
    }
}

impl<P: FrameContents> Shrinker for NameShrinker<'_, '_, P> {
    fn count(&self) -> u64 {
        self.0.names.len()
    }

    fn shrink(&self, objects: u64, who: Who) -> Shrunk {
        let names = &self.0.names;
        let frames = names.slab().frames();
        let objects = objects.min(names.len());
        let (mut left, mut freed) = (objects, 0);
        while names.sweep(&mut left, who == Who::Operator) {
            freed += 1;
        }
        names.slab().shrink();
        Shrunk {
            scanned: objects - left,
            freed,
            frames: frames.saturating_sub(names.slab().frames()),
        }
    }
}
