//! Page faults: map anonymous memory, in base and huge pages.

use crate::{
    entry::{Entry, Kind},
    page::{HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::{Paging, frame_of},
    source::{OutOfMemory, PageSource},
    space::{OwnerWord, SpaceId, SpaceState},
    swap::SwapError,
    tables::{Place, new_table},
};
use arrayvec::ArrayVec;
use dirigible_frames::{AllocRequest, Cost, Event, FrameClass, FrameState, Order, PageTables, Pfn};
use dirigible_reclaim::Age;

/// What a fault may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A base page.
    Base,
    /// A huge page, if nothing else is mapped in the aligned 2 MiB range and there is a free huge page; a base page
    /// otherwise.
    HugeIfPossible,
}

/// The mapping that a fault found or made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The base frame that holds the page.
    pub frame: Pfn,
    /// The page is part of a huge page.
    pub huge: bool,
    /// The page was mapped by this fault, not before, and is new. Pages that come back from swap are not.
    pub fresh: bool,
}

/// Why a fault could not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    /// No memory for the page or for a table.
    #[error("out of memory")]
    OutOfMemory,
    /// The address space does not exist.
    #[error("no such address space")]
    NoSuchSpace,
    /// The page number has more than 36 bits, or lies in the kernel's half.
    #[error("no such page")]
    NoSuchPage,
    /// The disk could not read the page from swap: its contents are lost, and the program cannot go on. The page stays in
    /// swap until it is unmapped.
    #[error("the page cannot be read from swap")]
    SwapRead,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<SwapError> for FaultError {
    fn from(error: SwapError) -> Self {
        match error {
            SwapError::OutOfMemory => Self::OutOfMemory,
            SwapError::Io { .. } => Self::SwapRead,
        }
    }
}

/// Frames that were allocated before the lock is taken.
struct Prepared {
    tables: ArrayVec<Pfn, LEAF_DEPTH>,
    leaf: Option<(Pfn, Order)>,
    try_huge: bool,
    /// The caller has said that the whole range is its memory.
    eligible: bool,
}

/// What a fault lacks, as found in the page tables.
enum Need {
    /// Frames.
    Frames { tables: usize, huge: bool },
    /// The contents of a slot, which are in swap.
    Contents(u64),
    /// That somebody else is done.
    Time,
}

impl<P: PageTables> Paging<'_, P> {
    /// Maps `page`, zeroed, unless it is mapped. A page that is in swap comes back with its contents.
    ///
    /// Charges the fault, and the filling of each new frame.
    ///
    /// # Errors
    ///
    /// See [`FaultError`].
    pub fn fault(
        &self,
        space: SpaceId,
        page: Page,
        kind: FaultKind,
        memory: &dyn PageSource,
    ) -> Result<Fault, FaultError> {
        self.fault_filled(space, page, kind, memory, |frame, order| {
            self.platform.zero_frames(frame, order.frames());
        })
    }

    /// As [`Paging::fault`], but `fill` writes the contents.
    ///
    /// `fill` gets the head and the order of the new frame or huge page, and writes all of it, before anything else can
    /// access it. A huge page holds the whole aligned range around `page`. No lock is held. If another CPU maps the
    /// page or its neighbours meanwhile, `fill` may run again, or its result may not be used. It is not called for a page
    /// that comes back from swap.
    ///
    /// # Errors
    ///
    /// See [`FaultError`].
    pub fn fault_filled(
        &self,
        space: SpaceId,
        page: Page,
        kind: FaultKind,
        memory: &dyn PageSource,
        mut fill: impl FnMut(Pfn, Order),
    ) -> Result<Fault, FaultError> {
        if !self.may_map(page) {
            return Err(FaultError::NoSuchPage);
        }
        let mut prepared = Prepared {
            tables: ArrayVec::new(),
            leaf: None,
            try_huge: kind == FaultKind::HugeIfPossible,
            eligible: kind == FaultKind::HugeIfPossible,
        };
        let result = self.fault_with(space, page, memory, &mut prepared, &mut fill);
        for table in prepared.tables {
            memory.free(table, Order::BASE);
        }
        if let Some((frame, order)) = prepared.leaf {
            memory.free(frame, order);
        }
        if result.is_ok() {
            self.frames
                .events()
                .add(self.platform.cpu(), Event::PgFault, 1);
            self.platform.charge(Cost::Fault);
        }
        result
    }

    fn fault_with(
        &self,
        space: SpaceId,
        page: Page,
        memory: &dyn PageSource,
        prepared: &mut Prepared,
        fill: &mut impl FnMut(Pfn, Order),
    ) -> Result<Fault, FaultError> {
        let slot = self.slot(space).ok_or(FaultError::NoSuchSpace)?;
        let mut fetched = None;
        loop {
            let need = {
                let mut state = slot.state.lock();
                if state.id != space.get() {
                    return Err(FaultError::NoSuchSpace);
                }
                let place = self.find(&mut state, page);
                match place.kind() {
                    Kind::Leaf => {
                        return Ok(Fault {
                            frame: frame_of(place.entry, place.depth, page),
                            huge: place.depth == HUGE_DEPTH,
                            fresh: false,
                        });
                    }
                    Kind::Migration => Need::Time,
                    Kind::Swapped => {
                        let slot = place.entry.slot();
                        if fetched.take() != Some(slot) {
                            Need::Contents(slot)
                        } else if let Some(fault) = self.swap_in(&mut state, page, &place) {
                            return Ok(fault);
                        } else {
                            Need::Time
                        }
                    }
                    Kind::Empty | Kind::Table => {
                        // A huge page needs no last-level table, but deposits one.
                        let tables = LEAF_DEPTH - place.depth;
                        let huge = prepared.try_huge && tables > 0;
                        if let Some(fault) =
                            self.try_install(&mut state, page, place, huge, prepared)
                        {
                            return Ok(fault);
                        }
                        Need::Frames { tables, huge }
                    }
                }
            };
            match need {
                Need::Frames { tables, huge } => {
                    self.prepare(tables, huge, memory, prepared, fill)?;
                }
                Need::Contents(slot) => {
                    self.fetch(slot)?;
                    fetched = Some(slot);
                }
                Need::Time => self.platform.relax(),
            }
        }
    }

    /// Allocates and fills what is missing in `prepared`. No lock is held.
    fn prepare(
        &self,
        tables: usize,
        huge: bool,
        memory: &dyn PageSource,
        prepared: &mut Prepared,
        fill: &mut impl FnMut(Pfn, Order),
    ) -> Result<(), OutOfMemory> {
        while prepared.tables.len() < tables {
            prepared
                .tables
                .push(new_table(self.frames, self.platform, memory)?);
        }
        if let Some((frame, Order::HUGE)) = prepared.leaf
            && !huge
        {
            // A base page was mapped in the range meanwhile.
            memory.free(frame, Order::HUGE);
            prepared.leaf = None;
        }
        if prepared.leaf.is_some() {
            return Ok(());
        }
        if huge {
            match memory.alloc(AllocRequest::new(Order::HUGE, FrameClass::Movable)) {
                Ok(frame) => {
                    prepared.leaf = Some((frame, Order::HUGE));
                    fill(frame, Order::HUGE);
                    for _ in 0..Order::HUGE.frames() {
                        self.platform.charge(Cost::FillFrame);
                    }
                    return Ok(());
                }
                Err(OutOfMemory) => {
                    prepared.try_huge = false;
                    let cpu = self.platform.cpu();
                    self.frames.events().add(cpu, Event::ThpFaultFallback, 1);
                }
            }
        }
        let frame = memory.alloc(AllocRequest::movable())?;
        prepared.leaf = Some((frame, Order::BASE));
        fill(frame, Order::BASE);
        self.platform.charge(Cost::FillFrame);
        Ok(())
    }

    /// Installs the prepared leaf at the empty `place`, if everything needed is prepared.
    fn try_install(
        &self,
        state: &mut SpaceState,
        page: Page,
        place: Place,
        huge: bool,
        prepared: &mut Prepared,
    ) -> Option<Fault> {
        let (frame, order) = prepared.leaf?;
        if prepared.tables.len() < LEAF_DEPTH - place.depth || (order == Order::HUGE && !huge) {
            return None;
        }
        prepared.leaf = None;
        let huge = order == Order::HUGE;
        let mut table = place.table;
        for depth in place.depth..if huge { HUGE_DEPTH } else { LEAF_DEPTH } {
            let next = prepared.tables.pop()?;
            self.set_entry(table, page.index(depth), Entry::table(next));
            self.add_count(table, 1);
            state.tables += 1;
            table = next;
        }
        let (first, depth, within) = if huge {
            let deposit = prepared.tables.pop()?;
            self.deposit_table(state, deposit);
            state.huge += 1;
            self.frames
                .events()
                .add(self.platform.cpu(), Event::ThpFaultAlloc, 1);
            (page.huge_base(), HUGE_DEPTH, page.offset())
        } else {
            state.leaf = Some((page.region(), table));
            state.base += 1;
            if prepared.eligible {
                self.mark_eligible(table);
            }
            (page, LEAF_DEPTH, 0)
        };
        self.frames
            .set_owner(frame, self.owner, OwnerWord::new(state.space(), first).0);
        self.set_entry(table, page.index(depth), Entry::leaf(frame, order));
        self.add_count(table, 1);
        self.set_age(state, frame, Age::Young);
        // Last, as `isolate` takes only listed frames, and `migrate` expects their entry.
        self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
        Some(Fault {
            frame: frame.plus(within),
            huge,
            fresh: true,
        })
    }
}
