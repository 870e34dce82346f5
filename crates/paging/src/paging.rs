//! [`Paging`]: all address spaces of a guest.

use dirigible_reclaim::Generations;

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, Page},
    space::{Slot, SpaceId, Spaces},
    swap::SwapSpace,
};
use dirigible_frames::{
    FrameAllocator, FrameFlags, FrameState, Order, OwnerId, PageTables, Pfn, sync::Mutex,
};

/// All address spaces of a guest, and the owner of their anonymous memory.
///
/// It is a [`MovableOwner`](dirigible_mobility::MovableOwner): register it with `Mobility` under the owner id that it
/// was made with.
///
/// There is one lock for each space. It is held while a few page-table entries change, and never while frames are
/// allocated or copied, or while waiting.
pub struct Paging<'a, P> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    pub(crate) owner: OwnerId,
    pub(crate) spaces: Spaces,
    pub(crate) observer: Option<&'a dyn MoveObserver>,
    /// The ages of its frames; `None`: they cannot be reclaimed.
    pub(crate) generations: Option<&'a Generations<'a>>,
    /// Where pages go whose frames are wanted.
    pub(crate) swap: Option<&'a dyn SwapSpace>,
    /// The table whose upper half every root table shares.
    pub(crate) kernel_half: Option<Pfn>,
    /// Makes dropping a reference to an unmapped frame, and reading how many are left, one step.
    pub(crate) last_pin: Mutex<()>,
}

/// Is called at each migration, when the contents can be compared.
pub trait MoveObserver: Sync {
    /// `frame` (the head of 2^`order` frames) holds the contents of the pages from `page` on, and nothing else can
    /// access it yet. Called with no lock held. Faults, unmaps and accesses of these pages wait meanwhile, so the
    /// observer must not make any.
    fn moved(&self, space: SpaceId, page: Page, frame: Pfn, order: Order);
}

/// The mapping of a page, as [`Paging::lookup`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The base frame that holds the page.
    pub frame: Pfn,
    /// The page is part of a huge page.
    pub huge: bool,
    /// The page was read or written since it was mapped.
    pub accessed: bool,
    /// The page was written since it was mapped.
    pub dirty: bool,
    /// The page is being moved, and `frame` is its old frame; or it is being split.
    pub migrating: bool,
}

/// What an address space holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Base pages mapped.
    pub base: u64,
    /// Huge pages mapped (512 frames each).
    pub huge: u64,
    /// Base pages in swap, or on their way there. They have no frame of this space.
    pub swapped: u64,
    /// Page-table frames, including those kept for splitting huge pages.
    pub tables: u64,
}

impl Usage {
    /// Frames of anonymous memory. Pages in swap have none.
    pub const fn frames(&self) -> u64 {
        self.base + self.huge * ENTRIES
    }
}

impl<'a, P: PageTables> Paging<'a, P> {
    /// Paging without any space, whose frames carry owner id `owner`.
    ///
    /// Allocates the table of `max_spaces` slots from the heap. Nothing else in this crate uses the heap.
    ///
    /// # Panics
    ///
    /// If `max_spaces` is 0 or above [`MAX_SPACES`](crate::MAX_SPACES).
    pub fn new(
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        owner: OwnerId,
        max_spaces: usize,
    ) -> Self {
        Self {
            frames,
            platform,
            owner,
            spaces: Spaces::new(max_spaces),
            observer: None,
            generations: None,
            swap: None,
            kernel_half: None,
            last_pin: Mutex::new(()),
        }
    }

    /// Lets `observer` see every migration.
    pub fn observed_by(mut self, observer: &'a dyn MoveObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Lets reclaim put pages into `swap`, the oldest first; `generations` has their ages. Register it with reclaim as an
    /// [`Evictable`](dirigible_reclaim::Evictable) under its owner id.
    pub fn with_swap(mut self, generations: &'a Generations<'a>, swap: &'a dyn SwapSpace) -> Self {
        self.generations = Some(generations);
        self.swap = Some(swap);
        self
    }

    /// Shares the kernel's upper half with every space that is created from now on: entries 256 to 511 of table
    /// `template` are copied into the space's root, once, when it is created.
    ///
    /// The tables below these entries belong to the kernel: `Paging` does not count, change or free them. Pages from
    /// [`Page::KERNEL_HALF`] on do not belong to any space then: faults are refused, accesses and look-ups find
    /// nothing.
    pub fn with_kernel_half(mut self, template: Pfn) -> Self {
        self.kernel_half = Some(template);
        self
    }

    /// The owner id that the frames carry.
    pub fn owner_id(&self) -> OwnerId {
        self.owner
    }

    /// The root table of `space`, for a CPU's page walks (CR3 on x86-64); `None` if the space does not exist.
    ///
    /// The table is valid until the space is destroyed; then its frame is freed. Whoever destroys a space must make
    /// sure that no CPU runs in it.
    pub fn root(&self, space: SpaceId) -> Option<Pfn> {
        self.slot(space)?.root(space)
    }

    /// What `space` holds; `None` if it does not exist.
    pub fn usage(&self, space: SpaceId) -> Option<Usage> {
        let state = self.spaces.slot(space)?.state.lock();
        (state.id == space.get()).then(|| Usage {
            base: state.base,
            huge: state.huge,
            swapped: state.swapped,
            tables: state.tables,
        })
    }

    /// The sum of what all spaces hold. Takes the spaces' locks one after the other. [`Paging::audit`] counts the
    /// tables' entries as well.
    pub fn totals(&self) -> Usage {
        self.spaces.iter().fold(Usage::default(), |sum, slot| {
            let state = slot.state.lock();
            Usage {
                base: sum.base + state.base,
                huge: sum.huge + state.huge,
                swapped: sum.swapped + state.swapped,
                tables: sum.tables + state.tables,
            }
        })
    }

    /// The base frame that holds `page`: the old one while the page is being moved. `None` if the page is not mapped, or
    /// in swap.
    pub fn translate(&self, space: SpaceId, page: Page) -> Option<Pfn> {
        self.lookup(space, page).map(|mapping| mapping.frame)
    }

    /// The mapping of `page`; `None` if it is not mapped, or in swap.
    pub fn lookup(&self, space: SpaceId, page: Page) -> Option<Mapping> {
        let slot = self.spaces.slot(space)?;
        let state = slot.state.lock();
        if state.id != space.get() || !self.may_map(page) {
            return None;
        }
        let place = self.behind(self.peek(&state, page), page);
        let kind = place.kind();
        matches!(kind, Kind::Leaf | Kind::Migration).then(|| Mapping {
            frame: frame_of(place.entry, place.depth, page),
            huge: place.depth == HUGE_DEPTH,
            accessed: place.entry.is_accessed(),
            dirty: place.entry.is_dirty(),
            migrating: kind == Kind::Migration,
        })
    }

    /// The first page that no space can map.
    pub(crate) const fn limit(&self) -> Page {
        match self.kernel_half {
            Some(_) => Page::KERNEL_HALF,
            None => Page::LIMIT,
        }
    }

    /// Number of entries in a root table that belong to the space.
    pub(crate) const fn root_entries(&self) -> usize {
        match self.kernel_half {
            Some(_) => ENTRIES as usize / 2,
            None => ENTRIES as usize,
        }
    }

    /// Whether a space can map `page`.
    pub(crate) fn may_map(&self, page: Page) -> bool {
        page < self.limit()
    }

    /// The slot of `space`, whether or not the space exists.
    pub(crate) fn slot(&self, space: SpaceId) -> Option<&Slot> {
        self.spaces.slot(space)
    }

    /// Frees a frame that is `Allocated` and that nothing refers to.
    pub(crate) fn free(&self, frame: Pfn, order: Order) {
        let freed = self.frames.free(self.platform.cpu(), frame, order);
        debug_assert!(freed.is_ok(), "{frame}: {freed:?}");
    }

    /// Makes a transition that cannot fail, as nothing else can change the frame's state now.
    pub(crate) fn must_transition(&self, frame: Pfn, from: FrameState, to: FrameState) {
        let moved = self.frames.transition(frame, from, to);
        debug_assert!(moved.is_ok(), "{frame} is {moved:?}, not {from:?}");
    }

    /// Whether the frame is in use outside the page tables, so that it must not move.
    pub(crate) fn is_pinned(&self, frame: Pfn) -> bool {
        self.frames
            .frame(frame)
            .is_some_and(|info| info.flags.contains(FrameFlags::PINNED) || info.refcount > 0)
    }
}

/// The base frame that holds `page`, if `entry` at `depth` maps it.
pub(crate) fn frame_of(entry: Entry, depth: usize, page: Page) -> Pfn {
    if depth == HUGE_DEPTH {
        entry.frame().plus(page.offset())
    } else {
        entry.frame()
    }
}
