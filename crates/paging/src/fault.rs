//! Page faults: anonymous memory, base and huge.

use crate::{
    entry::{Entry, Kind},
    page::{HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::{Paging, frame_of},
    source::{OutOfMemory, PageSource},
    space::{OwnerWord, SpaceId, SpaceState},
    tables::{Place, new_table},
};
use arrayvec::ArrayVec;
use dirigible_frames::{AllocRequest, Cost, Event, FrameClass, FrameState, Order, PageTables, Pfn};

/// What a fault may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A base page.
    Base,
    /// A huge page if nothing else lies in the aligned 2 MiB range and a huge frame is to be had; a base page
    /// otherwise.
    HugeIfPossible,
}

/// What a fault found or made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The base frame that holds the page.
    pub frame: Pfn,
    /// The page is part of a huge page.
    pub huge: bool,
    /// Mapped by this fault; otherwise it was there before.
    pub fresh: bool,
}

/// Why a fault could not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    /// No memory for the page or for a table.
    #[error("out of memory")]
    OutOfMemory,
    /// The address space is no more.
    #[error("no such address space")]
    NoSuchSpace,
    /// The page number has more than 36 bits, or lies in the kernel's half.
    #[error("no such page")]
    NoSuchPage,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Frames got before the lock is taken.
struct Hand {
    tables: ArrayVec<Pfn, LEAF_DEPTH>,
    leaf: Option<(Pfn, Order)>,
    try_huge: bool,
}

/// What the tables say that the hand must hold.
struct Need {
    tables: usize,
    huge: bool,
}

impl<P: PageTables> Paging<'_, P> {
    /// Maps `page`, zeroed, unless it is mapped already.
    ///
    /// Charges a fault, and the filling of each new frame.
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

    /// As [`Paging::fault`], with the contents written by `fill` in place of zeroes.
    ///
    /// `fill` gets the head of the new frame or huge frame and its order (a huge frame holds the whole aligned range
    /// around `page`) before anybody else can reach it, and writes all of it. It runs with no lock held. It runs again,
    /// or for nothing, when somebody else maps the page or its neighbours meanwhile.
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
        let mut hand = Hand {
            tables: ArrayVec::new(),
            leaf: None,
            try_huge: kind == FaultKind::HugeIfPossible,
        };
        let result = self.fault_with(space, page, memory, &mut hand, &mut fill);
        for table in hand.tables {
            memory.free(table, Order::BASE);
        }
        if let Some((frame, order)) = hand.leaf {
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
        hand: &mut Hand,
        fill: &mut impl FnMut(Pfn, Order),
    ) -> Result<Fault, FaultError> {
        let slot = self.slot(space).ok_or(FaultError::NoSuchSpace)?;
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
                    Kind::Migration => None,
                    Kind::Empty | Kind::Table => {
                        // A huge page saves the last table but deposits one.
                        let tables = LEAF_DEPTH - place.depth;
                        let huge = hand.try_huge && tables > 0;
                        if let Some(fault) = self.try_install(&mut state, page, place, huge, hand) {
                            return Ok(fault);
                        }
                        Some(Need { tables, huge })
                    }
                }
            };
            match need {
                Some(need) => self.gather(need, memory, hand, fill)?,
                None => self.platform.relax(),
            }
        }
    }

    /// Allocates and fills what `hand` lacks. No lock is held.
    fn gather(
        &self,
        need: Need,
        memory: &dyn PageSource,
        hand: &mut Hand,
        fill: &mut impl FnMut(Pfn, Order),
    ) -> Result<(), OutOfMemory> {
        while hand.tables.len() < need.tables {
            hand.tables
                .push(new_table(self.frames, self.platform, memory)?);
        }
        if let Some((frame, Order::HUGE)) = hand.leaf
            && !need.huge
        {
            // Somebody mapped a base page in the range meanwhile.
            memory.free(frame, Order::HUGE);
            hand.leaf = None;
        }
        if hand.leaf.is_some() {
            return Ok(());
        }
        if need.huge {
            match memory.alloc(AllocRequest::new(Order::HUGE, FrameClass::Movable)) {
                Ok(frame) => {
                    hand.leaf = Some((frame, Order::HUGE));
                    fill(frame, Order::HUGE);
                    for _ in 0..Order::HUGE.frames() {
                        self.platform.charge(Cost::FillFrame);
                    }
                    return Ok(());
                }
                Err(OutOfMemory) => {
                    hand.try_huge = false;
                    let cpu = self.platform.cpu();
                    self.frames.events().add(cpu, Event::ThpFaultFallback, 1);
                }
            }
        }
        let frame = memory.alloc(AllocRequest::movable())?;
        hand.leaf = Some((frame, Order::BASE));
        fill(frame, Order::BASE);
        self.platform.charge(Cost::FillFrame);
        Ok(())
    }

    /// Installs the leaf in `hand` at the empty `place`, if the hand holds all that this takes.
    fn try_install(
        &self,
        state: &mut SpaceState,
        page: Page,
        place: Place,
        huge: bool,
        hand: &mut Hand,
    ) -> Option<Fault> {
        let (frame, order) = hand.leaf?;
        if hand.tables.len() < LEAF_DEPTH - place.depth || (order == Order::HUGE && !huge) {
            return None;
        }
        hand.leaf = None;
        let huge = order == Order::HUGE;
        let mut table = place.table;
        for depth in place.depth..if huge { HUGE_DEPTH } else { LEAF_DEPTH } {
            let next = hand.tables.pop()?;
            self.set_entry(table, page.index(depth), Entry::table(next));
            self.add_count(table, 1);
            state.tables += 1;
            table = next;
        }
        let (first, depth, within) = if huge {
            let deposit = hand.tables.pop()?;
            self.deposit_table(state, deposit);
            state.huge += 1;
            self.frames
                .events()
                .add(self.platform.cpu(), Event::ThpFaultAlloc, 1);
            (page.huge_base(), HUGE_DEPTH, page.offset())
        } else {
            state.leaf = Some((page.region(), table));
            state.base += 1;
            (page, LEAF_DEPTH, 0)
        };
        self.frames
            .set_owner(frame, self.owner, OwnerWord::new(state.space(), first).0);
        self.set_entry(table, page.index(depth), Entry::leaf(frame, order));
        self.add_count(table, 1);
        // Only now may compaction find it: `isolate` takes listed frames, and `migrate` expects their entry.
        self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
        Some(Fault {
            frame: frame.plus(within),
            huge,
            fresh: true,
        })
    }
}
