//! Which blocks and which inodes are free: bitmaps on the disk, and sums of them in memory.

use alloc::boxed::Box;
use core::ops::Range;

use dirigible_frames::{
    FrameContents,
    sync::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    bitmap::{find_run, masks},
    disk::Disk,
    error::Error,
    geometry::BLOCK_BITS,
    patience::Patience,
    sleep::{SleepLock, Sleeping},
};

/// A bitmap on the disk.
///
/// The lock is held over the pages of the bitmap. The sums are changed under it only, so all accesses are relaxed.
pub(crate) struct Space {
    /// Its first block.
    first: u64,
    /// The bits that can be handed out.
    bits: Range<u64>,
    /// Clear bits in each block of it.
    clear: Box<[AtomicU32]>,
    total: AtomicU64,
    /// Where the next search begins.
    hand: AtomicU64,
    lock: SleepLock,
}

impl Space {
    /// Reads the bitmap that begins in block `first`, of which `bits` can be handed out.
    pub fn load<P: FrameContents>(
        disk: &Disk<'_, P>,
        first: u64,
        bits: Range<u64>,
    ) -> Result<Self, Error> {
        let blocks = bits.end.div_ceil(BLOCK_BITS);
        let clear: Box<[AtomicU32]> = (0..blocks).map(|_| AtomicU32::new(0)).collect();
        let space = Self {
            first,
            clear,
            total: AtomicU64::new(0),
            hand: AtomicU64::new(bits.start),
            bits,
            lock: SleepLock::new(),
        };
        for index in 0..blocks {
            let within = space.within(index);
            let ahead = first + index + 1..first + blocks;
            let clear = disk.view(first + index, ahead, |platform, frame| {
                masks(within.clone()).fold(0, |sum, (word, mask)| {
                    sum + (!platform.read_word(frame, word) & mask).count_ones()
                })
            })?;
            space.clear[index as usize].store(clear, Ordering::Relaxed);
            space.total.fetch_add(clear.into(), Ordering::Relaxed);
        }
        Ok(space)
    }

    /// The bits of block `index` of the bitmap that can be handed out, by their place in it.
    fn within(&self, index: u64) -> Range<usize> {
        let base = index * BLOCK_BITS;
        let start = self.bits.start.clamp(base, base + BLOCK_BITS) - base;
        let end = self.bits.end.clamp(base, base + BLOCK_BITS) - base;
        start as usize..end as usize
    }

    /// How many bits are clear.
    pub fn free(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn lock<P: FrameContents>(&self, disk: &Disk<'_, P>) -> Sleeping<'_> {
        self.lock.lock(disk.platform)
    }

    /// Sets up to `want` clear bits in a row, the ones from `after` on if that one is clear. `None` if no bit is clear.
    pub fn take<P: FrameContents>(
        &self,
        disk: &Disk<'_, P>,
        after: Option<u64>,
        want: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        let _held = self.lock(disk);
        let from = match after {
            Some(after) if self.bits.contains(&after) => after,
            _ => self.hand.load(Ordering::Relaxed),
        };
        let adjacent = after == Some(from);
        let blocks = self.clear.len() as u64;
        let home = from / BLOCK_BITS;
        for step in 0..blocks {
            let index = (home + step) % blocks;
            if self.clear[index as usize].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let within = self.within(index);
            let start = match step {
                0 => (from % BLOCK_BITS) as usize,
                _ => within.start,
            };
            let want = want.min(BLOCK_BITS) as usize;
            let found = disk.change(self.first + index, |platform, frame| {
                let word = |word| platform.read_word(frame, word);
                let run = find_run(word, within.clone(), start, want, adjacent && step == 0)?;
                for (word, mask) in masks(run.clone()) {
                    let value = platform.read_word(frame, word);
                    platform.write_word(frame, word, value | mask);
                }
                Some(run)
            })?;
            let Some(run) = found else {
                return Err(Error::Damaged {
                    what: "a bitmap has changed since it was counted",
                });
            };
            self.count(index, -(run.len() as i64));
            let base = index * BLOCK_BITS;
            let run = base + run.start as u64..base + run.end as u64;
            if after.is_none() {
                self.hand.store(run.end, Ordering::Relaxed);
            }
            return Ok(Some(run));
        }
        Ok(None)
    }

    /// Clears bits that are set. Gives how many could not be cleared.
    pub fn put<P: FrameContents>(
        &self,
        disk: &Disk<'_, P>,
        bits: Range<u64>,
        patience: &mut Patience<'_, P>,
    ) -> u64 {
        let (mut at, mut left) = (bits.start, 0);
        while at < bits.end {
            let index = at / BLOCK_BITS;
            let base = index * BLOCK_BITS;
            let end = bits.end.min(base + BLOCK_BITS);
            let run = (at - base) as usize..(end - base) as usize;
            // The lock is free while it is waited for memory: those who wait for it may be the ones to give some back.
            if patience
                .insist(|| self.clear_run(disk, index, run.clone()))
                .is_err()
            {
                left += end - at;
            }
            at = end;
        }
        left
    }

    /// Clears bits of block `index` of the bitmap, which are set.
    fn clear_run<P: FrameContents>(
        &self,
        disk: &Disk<'_, P>,
        index: u64,
        run: Range<usize>,
    ) -> Result<(), Error> {
        let _held = self.lock(disk);
        let were_set = disk.change(self.first + index, |platform, frame| {
            let were_set = masks(run.clone())
                .all(|(word, mask)| platform.read_word(frame, word) & mask == mask);
            if were_set {
                for (word, mask) in masks(run.clone()) {
                    let value = platform.read_word(frame, word);
                    platform.write_word(frame, word, value & !mask);
                }
            }
            were_set
        })?;
        if !were_set {
            return Err(Error::Damaged {
                what: "what is freed was not in use",
            });
        }
        self.count(index, run.len() as i64);
        Ok(())
    }

    fn count(&self, index: u64, more: i64) {
        let clear = &self.clear[index as usize];
        let before = i64::from(clear.load(Ordering::Relaxed));
        clear.store((before + more).max(0) as u32, Ordering::Relaxed);
        self.total.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Clear bits as the disk has them; each set bit that can be handed out goes to `used`.
    pub fn recount<P: FrameContents>(
        &self,
        disk: &Disk<'_, P>,
        used: &mut dyn FnMut(u64),
    ) -> Result<u64, Error> {
        let _held = self.lock(disk);
        let mut total = 0;
        for index in 0..self.clear.len() as u64 {
            let within = self.within(index);
            total += disk.view(self.first + index, 0..0, |platform, frame| {
                masks(within.clone()).fold(0, |sum, (word, mask)| {
                    let value = platform.read_word(frame, word);
                    let mut set = value & mask;
                    while set != 0 {
                        used(
                            index * BLOCK_BITS + word as u64 * 64 + u64::from(set.trailing_zeros()),
                        );
                        set &= set - 1;
                    }
                    sum + u64::from((!value & mask).count_ones())
                })
            })?;
        }
        Ok(total)
    }
}
