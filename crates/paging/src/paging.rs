//! [`Paging`]: all address spaces of a guest.

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, Page},
    space::{Slot, SpaceId, Spaces},
};
use dirigible_frames::{
    FrameAllocator, FrameFlags, FrameState, Order, OwnerId, PageTables, Pfn, sync::Mutex,
};

/// All address spaces of a guest, and the owner of their anonymous memory.
///
/// It is a [`MovableOwner`](dirigible_mobility::MovableOwner): register it with `Mobility` under the owner id that it
/// was made with.
///
/// Locks: one for each space, held for a few page-table words at a time; never while allocating, copying, or waiting.
pub struct Paging<'a, P> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    pub(crate) owner: OwnerId,
    pub(crate) spaces: Spaces,
    pub(crate) observer: Option<&'a dyn MoveObserver>,
    /// The table whose upper half every root table shares.
    pub(crate) kernel_half: Option<Pfn>,
    /// Makes one step of dropping a reference to an unmapped frame and looking for others.
    pub(crate) last_pin: Mutex<()>,
}

/// Sees every migration at the moment at which the contents can be compared.
pub trait MoveObserver: Sync {
    /// `frame` (head of 2^`order`) has the contents of the pages from `page` on; nobody else can reach it yet. Called
    /// with no lock held, but whoever touches the pages waits: the observer must not fault, unmap, or access them.
    fn moved(&self, space: SpaceId, page: Page, frame: Pfn, order: Order);
}

/// One page's mapping, as [`Paging::lookup`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The base frame that holds the page.
    pub frame: Pfn,
    /// Mapped by a huge page.
    pub huge: bool,
    /// Has been read or written since it was mapped.
    pub accessed: bool,
    /// Has been written since it was mapped.
    pub dirty: bool,
    /// Is on its way to another frame, or being split: `frame` is the old one.
    pub migrating: bool,
}

/// What an address space holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Base pages mapped.
    pub base: u64,
    /// Huge pages mapped (512 frames each).
    pub huge: u64,
    /// Page-table frames, with those kept for splitting huge pages.
    pub tables: u64,
}

impl Usage {
    /// Frames of anonymous memory.
    pub const fn frames(&self) -> u64 {
        self.base + self.huge * ENTRIES
    }
}

impl<'a, P: PageTables> Paging<'a, P> {
    /// Paging without a space yet, whose frames carry owner id `owner`.
    ///
    /// This is the only place that uses the heap: for the table of `max_spaces` slots.
    ///
    /// # Panics
    ///
    /// When `max_spaces` is 0 or above [`MAX_SPACES`](crate::MAX_SPACES).
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
            kernel_half: None,
            last_pin: Mutex::new(()),
        }
    }

    /// Shows every migration to `observer`.
    pub fn observed_by(mut self, observer: &'a dyn MoveObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Gives every space made from now on the upper half of table `template`, the kernel's own: entries 256 to 511 of
    /// its root are copied once, when the space is made.
    ///
    /// The tables below them are the kernel's and nothing here counts, changes or frees them. Pages from
    /// [`Page::KERNEL_HALF`] on are then no pages of any space: faults are refused, accesses and look-ups find nothing.
    pub fn with_kernel_half(mut self, template: Pfn) -> Self {
        self.kernel_half = Some(template);
        self
    }

    /// The owner id that the frames carry.
    pub fn owner_id(&self) -> OwnerId {
        self.owner
    }

    /// The root table of living space `space`, for a CPU to walk from (CR3 on x86-64).
    ///
    /// Valid until the space is destroyed, and the frame is free then: whoever destroys a space sees to it that no CPU
    /// runs in it any more.
    pub fn root(&self, space: SpaceId) -> Option<Pfn> {
        self.slot(space)?.root(space)
    }

    /// What `space` holds, or `None` if it is no more.
    pub fn usage(&self, space: SpaceId) -> Option<Usage> {
        let state = self.spaces.slot(space)?.state.lock();
        (state.id == space.get()).then(|| Usage {
            base: state.base,
            huge: state.huge,
            tables: state.tables,
        })
    }

    /// What all living spaces hold together. Takes one lock after the other; for a figure that is sure to be
    /// consistent, and compared with the tables, see [`Paging::audit`].
    pub fn totals(&self) -> Usage {
        self.spaces.iter().fold(Usage::default(), |sum, slot| {
            let state = slot.state.lock();
            Usage {
                base: sum.base + state.base,
                huge: sum.huge + state.huge,
                tables: sum.tables + state.tables,
            }
        })
    }

    /// The base frame that holds `page`, the old one while it is being moved.
    pub fn translate(&self, space: SpaceId, page: Page) -> Option<Pfn> {
        self.lookup(space, page).map(|mapping| mapping.frame)
    }

    /// The mapping of `page`.
    pub fn lookup(&self, space: SpaceId, page: Page) -> Option<Mapping> {
        let slot = self.spaces.slot(space)?;
        let state = slot.state.lock();
        if state.id != space.get() || !self.may_map(page) {
            return None;
        }
        let place = self.peek(&state, page);
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

    /// Entries of a root table that are the space's own.
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

    /// Slot of `space`, whether or not it lives.
    pub(crate) fn slot(&self, space: SpaceId) -> Option<&Slot> {
        self.spaces.slot(space)
    }

    /// Gives a frame back that is `Allocated` and unreachable.
    pub(crate) fn free(&self, frame: Pfn, order: Order) {
        let freed = self.frames.free(self.platform.cpu(), frame, order);
        debug_assert!(freed.is_ok(), "{frame}: {freed:?}");
    }

    /// Moves a frame's state along an edge that nobody else can take at this moment.
    pub(crate) fn must_transition(&self, frame: Pfn, from: FrameState, to: FrameState) {
        let moved = self.frames.transition(frame, from, to);
        debug_assert!(moved.is_ok(), "{frame} is {moved:?}, not {from:?}");
    }

    /// Whether somebody besides the page tables uses the frame, so that it cannot move.
    pub(crate) fn is_pinned(&self, frame: Pfn) -> bool {
        self.frames
            .frame(frame)
            .is_some_and(|info| info.flags.contains(FrameFlags::PINNED) || info.refcount > 0)
    }
}

/// The base frame behind `page` when `entry` at `depth` maps it.
pub(crate) fn frame_of(entry: Entry, depth: usize, page: Page) -> Pfn {
    if depth == HUGE_DEPTH {
        entry.frame().plus(page.offset())
    } else {
        entry.frame()
    }
}
