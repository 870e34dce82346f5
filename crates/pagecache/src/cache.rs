//! The page cache: its parts, its table, and the step by which a page is held.

use alloc::boxed::Box;
use core::ops::Range;

use dirigible_disk::{BlockDevice, MAX_REQUEST_FRAMES};
use dirigible_frames::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use dirigible_frames::{
    Event, FrameAllocator, FrameContents, FrameFlags, FrameInfo, FrameState, Marks, Order, OwnerId,
    PageSource, Pfn,
};
use dirigible_reclaim::{Generations, Kind};

use crate::block_set::BlockSet;
use crate::by_kind::ByKind;
use crate::config::{CacheConfig, CacheCounts, CacheParts, MoveObserver};
use crate::pages::CacheError;
use crate::requests::Requests;
use crate::slot::Slot;
use crate::streams::Streams;
use crate::swap_window::SwapWindow;

/// Most references of a frame.
const MAX_REFS: u8 = 31;

/// A page cache; see the crate's documentation.
pub struct PageCache<'a, P> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    pub(crate) owner: OwnerId,
    pub(crate) disk: &'a dyn BlockDevice,
    pub(crate) memory: &'a dyn PageSource,
    pub(crate) generations: &'a Generations<'a>,
    pub(crate) swap: Range<u64>,
    pub(crate) observer: Option<&'a dyn MoveObserver>,
    pub(crate) config: CacheConfig,
    /// By block, as [`Slot`]s.
    slots: Box<[AtomicU32]>,
    /// Pages that are dirty or being written.
    pub(crate) unwritten: BlockSet,
    /// Pages that were dirty at the flusher's last tick and were not written since. A hint: blocks may stand in it
    /// that are clean.
    pub(crate) aged: BlockSet,
    /// Dirty pages whose last write failed.
    pub(crate) failed: BlockSet,
    /// How many these are.
    pub(crate) failed_pages: ByKind,
    /// Writes to swap that have failed since the last that was done.
    pub(crate) swap_refusals: AtomicU32,
    /// Writes that the disk had no room for, each counted before its pages are dirty again.
    pub(crate) refused: AtomicU64,
    /// Writes that a reset of the disk has interrupted.
    pub(crate) interrupted_writes: AtomicU64,
    /// Writes that have taken pages, perhaps, and that the disk has neither taken nor refused yet.
    pub(crate) open_writes: AtomicU64,
    pub(crate) requests: Requests,
    pub(crate) streams: Streams,
    pub(crate) swap_window: SwapWindow,
    pub(crate) pages: ByKind,
    pub(crate) dirty: ByKind,
    pub(crate) writeback: ByKind,
    pub(crate) abandoned: AtomicU64,
    pub(crate) read_errors: AtomicU64,
    pub(crate) write_errors: AtomicU64,
    /// Dirty pages of files above which writers are held up, and above which the flusher begins. Renewed now and then.
    pub(crate) dirty_limit: AtomicU64,
    pub(crate) background_limit: AtomicU64,
    /// Somebody wants the flusher to begin.
    pub(crate) flusher_wanted: AtomicBool,
    /// Where writing in the disk's order goes on, by kind of block.
    pub(crate) hands: [AtomicU64; Kind::COUNT],
    /// Somebody takes completions.
    pub(crate) polling: AtomicBool,
}

/// What a lookup found.
pub(crate) enum Found {
    /// A frame, with a reference for the caller.
    Held(Pfn),
    /// The slot, which has no frame.
    Absent(Slot),
    /// The page is on its way somewhere: again after a wait.
    Busy,
}

impl<'a, P: FrameContents> PageCache<'a, P> {
    /// An empty cache of all blocks of `parts.disk`. Allocates its tables from the heap: 4 bytes and 3 bits a block.
    ///
    /// Frames with numbers from 2^28 on (1 TiB) are not used: they count as if there were no memory.
    pub fn new(parts: CacheParts<'a, P>, config: CacheConfig) -> Self {
        let blocks = parts.disk.blocks();
        let places = config.requests.min(parts.disk.depth());
        let cache = Self {
            frames: parts.frames,
            platform: parts.platform,
            owner: parts.owner,
            disk: parts.disk,
            memory: parts.memory,
            generations: parts.generations,
            swap: parts.swap.start.min(blocks)..parts.swap.end.min(blocks),
            observer: None,
            config: CacheConfig {
                ahead_first: config.ahead_first.max(1),
                ahead_most: config.ahead_most.clamp(1, MAX_REQUEST_FRAMES),
                ..config
            },
            slots: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
            unwritten: BlockSet::new(blocks),
            aged: BlockSet::new(blocks),
            failed: BlockSet::new(blocks),
            failed_pages: ByKind::default(),
            swap_refusals: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            interrupted_writes: AtomicU64::new(0),
            open_writes: AtomicU64::new(0),
            requests: Requests::new(places),
            streams: Streams::new(),
            swap_window: SwapWindow::new(),
            pages: ByKind::default(),
            dirty: ByKind::default(),
            writeback: ByKind::default(),
            abandoned: AtomicU64::new(0),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            dirty_limit: AtomicU64::new(0),
            background_limit: AtomicU64::new(0),
            flusher_wanted: AtomicBool::new(false),
            hands: Default::default(),
            polling: AtomicBool::new(false),
        };
        cache.renew_limits();
        cache
    }

    /// Tells `observer` of each page that moves.
    #[must_use]
    pub fn observed_by(mut self, observer: &'a dyn MoveObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The number under which it is to be registered as an owner.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// How many pages there are. Each count is exact while nothing is under way.
    pub fn counts(&self) -> CacheCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheCounts {
            pages: self.pages.sum(),
            dirty: self.dirty.sum(),
            writeback: self.writeback.sum(),
            abandoned: get(&self.abandoned),
            read_errors: get(&self.read_errors),
            write_errors: get(&self.write_errors),
        }
    }

    /// Whether `block` is in memory, or being read.
    pub fn contains(&self, block: u64) -> bool {
        block < self.block_count() && self.slot(block).is_present()
    }

    pub(crate) fn block_count(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Whether files have the block.
    pub(crate) fn check(&self, block: u64) -> Result<(), CacheError> {
        if block < self.file_blocks() {
            Ok(())
        } else {
            Err(CacheError::Beyond { block })
        }
    }

    pub(crate) fn slot(&self, block: u64) -> Slot {
        // Acquire: pairs with the release of whoever put the frame there, so its owner and word are seen.
        Slot::from_bits(self.slots[block as usize].load(Ordering::Acquire))
    }

    /// Replaces the slot of a page that the caller has locked, or whose frame is not on the books yet: nobody else
    /// does.
    pub(crate) fn set_slot(&self, block: u64, slot: Slot) {
        // Release: pairs with `slot`.
        self.slots[block as usize].store(slot.bits(), Ordering::Release);
    }

    /// Replaces a slot without a frame, if it is still `from`.
    pub(crate) fn swap_slot(&self, block: u64, from: Slot, to: Slot) -> bool {
        self.slots[block as usize]
            .compare_exchange(from.bits(), to.bits(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether the frame is one of the cache's pages: of its owner, with its contents.
    pub(crate) fn is_page(&self, info: &FrameInfo) -> bool {
        info.owner == self.owner && matches!(info.state, FrameState::Listed | FrameState::Isolated)
    }

    /// Takes a reference to the page of `block`, for changing it (`write`) or reading it.
    pub(crate) fn hold(&self, block: u64, write: bool) -> Found {
        let slot = self.slot(block);
        let Some(frame) = slot.frame() else {
            return Found::Absent(slot);
        };
        let barred = if write {
            FrameFlags::LOCKED.union(FrameFlags::WRITEBACK)
        } else {
            FrameFlags::LOCKED
        };
        let held = self.frames.update_marks(frame, |info| {
            let free =
                self.is_page(info) && !info.flags.intersects(barred) && info.refcount < MAX_REFS;
            free.then(|| Marks {
                refcount: info.refcount + 1,
                ..info.marks()
            })
        });
        if held.is_err() {
            return Found::Busy;
        }
        // With the reference the page stays where it is; but it may be another block's by now.
        if self.slot(block) == slot {
            return Found::Held(frame);
        }
        self.drop_reference(frame);
        Found::Busy
    }

    pub(crate) fn drop_reference(&self, frame: Pfn) {
        let held = self.frames.put_ref(frame);
        debug_assert!(held, "{frame} had no reference");
    }

    /// Marks the page of `block`, which is in `frame` as far as the caller knows, with `add` in place of `remove`, in
    /// one step, if nobody uses it, it carries none of `barred`, all of `needed`, and is in one of the states that
    /// `state` allows. Gives the frame as it was before.
    ///
    /// What is added must keep others away, so that it can be taken back if the frame is not the block's any more.
    pub(crate) fn seize(
        &self,
        block: u64,
        frame: Pfn,
        how: &Seize,
    ) -> Result<FrameInfo, Option<FrameInfo>> {
        let seized = self.frames.update_marks(frame, |info| {
            let fits = self.is_page(info)
                && info.refcount == 0
                && info.flags.contains(how.needed)
                && !info.flags.intersects(how.barred)
                && (how.isolated || info.state == FrameState::Listed);
            fits.then(|| Marks {
                flags: info.flags.without(how.removed).union(how.added),
                ..info.marks()
            })
        })?;
        if self.slot(block).frame() == Some(frame) {
            return Ok(seized);
        }
        // Another block's: undone.
        let _ = self.frames.update_marks(frame, |info| {
            Some(Marks {
                flags: info.flags.without(how.added).union(FrameFlags::from_bits(
                    seized.flags.bits() & how.removed.bits(),
                )),
                ..info.marks()
            })
        });
        Err(None)
    }

    pub(crate) fn must_transition(&self, frame: Pfn, from: FrameState, to: FrameState) {
        let done = self.frames.transition(frame, from, to);
        debug_assert!(
            done.is_ok(),
            "{frame} is {done:?}, not {from:?}, on its way to {to:?}"
        );
    }

    pub(crate) fn free(&self, frame: Pfn) {
        self.memory.free(frame, Order::BASE);
    }

    /// Keeps a frame, in state `Allocated`, out of use for good.
    pub(crate) fn abandon(&self, frame: Pfn) {
        self.frames.set_flags(frame, FrameFlags::PINNED);
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, event: Event, times: u64) {
        self.frames.events().add(self.platform.cpu(), event, times);
    }

    /// Lets the disk or others make progress.
    pub(crate) fn wait(&self) {
        if !self.poll() {
            self.platform.relax();
        }
    }
}

/// What [`PageCache::seize`] asks of a page and does with it.
pub(crate) struct Seize {
    /// Marks that it must have.
    pub needed: FrameFlags,
    /// Marks that it must not have.
    pub barred: FrameFlags,
    /// Marks that it loses.
    pub removed: FrameFlags,
    /// Marks that it gets.
    pub added: FrameFlags,
    /// Whether it may be isolated.
    pub isolated: bool,
}
