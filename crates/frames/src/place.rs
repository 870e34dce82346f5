//! Where a block stands in its zone's three indexes: by room for requests, by cost for compaction, by what else is in it for a
//! balloon that heals.

use crate::{BlockState, FRAMES_PER_BLOCK, Ledger, Migratetype, Refusal, index::Place};

/// Classes of blocks with room, or with a cost.
pub(crate) const CLASSES: usize = 18;
/// Frames of one class of the cost and heal indexes.
const CLASS_STEP: usize = 32;
/// A balloon frame costs this fraction of a copied frame to move: a share of a message.
const BALLOON_DISCOUNT: usize = 8;

/// Kinds of blocks in the room index. Each has [`CLASSES`] rows but the last, which has one.
pub(crate) mod kind {
    pub const UNMOVABLE: usize = 0;
    pub const MOVABLE: usize = 1;
    pub const RECLAIMABLE: usize = 2;
    /// Movable by type, with frames in it that cannot be moved, or that an owner does not give up: they cannot become whole,
    /// and are filled first.
    pub const HYBRID: usize = 3;
    /// Wholly free, whatever the type.
    pub const WHOLE: usize = 4;
}

/// The row of wholly free blocks.
pub(crate) const WHOLE_ROW: usize = kind::WHOLE * CLASSES;
/// Rows of the room index.
pub(crate) const ROOM_ROWS: usize = WHOLE_ROW + 1;

/// Rows of the cost index: [`CLASSES`] of candidates, then those that compaction tried in vain, by the kind of refusal.
pub(crate) const REFUSED_ROW: usize = CLASSES;
/// How many there are.
pub(crate) const COST_ROWS: usize = CLASSES + 4;

/// Rows of the heal index: [`CLASSES`] of blocks with balloon frames by what else is in them, then those that a balloon of
/// whole blocks has begun and goes on with.
pub(crate) const BEGUN_ROW: usize = CLASSES;
/// How many there are.
pub(crate) const HEAL_ROWS: usize = CLASSES + 1;

/// The row of the room index for blocks of `kind` and `class`.
pub(crate) const fn room_row(kind: usize, class: usize) -> usize {
    kind * CLASSES + class
}

/// The class of a block with `free` frames, 1 to 511: 1, 2, 3, 4, then two classes for each doubling.
///
/// Full memory leaves most blocks with a handful of free frames, so classes are narrow there: *fullest* and *emptiest* mean
/// what they say just where it matters.
pub(crate) const fn room_class(free: u16) -> usize {
    if free <= 4 {
        return (free as usize).saturating_sub(1);
    }
    let below = free as usize - 1;
    let octave = below.ilog2() as usize;
    4 + (octave - 2) * 2 + (below >> (octave - 1) & 1)
}

const _: () = assert!(room_class(511) < CLASSES && room_class(5) == 4);

#[inline(never)]
pub(crate) fn room_place(ledger: Ledger) -> Place {
    if ledger.state() != BlockState::Open || ledger.free() == 0 {
        return Place::NONE;
    }
    if ledger.is_whole() {
        return Place::row(WHOLE_ROW);
    }
    let kind = match ledger.migratetype() {
        Migratetype::Unmovable => kind::UNMOVABLE,
        Migratetype::Reclaimable => kind::RECLAIMABLE,
        Migratetype::Movable
            if ledger.unmovable() > 0
                || matches!(ledger.refusal(), Refusal::Lasting | Refusal::Expired) =>
        {
            kind::HYBRID
        }
        Migratetype::Movable => kind::MOVABLE,
    };
    Place::row(room_row(kind, room_class(ledger.free())))
}

/// What emptying a block costs, in copied frames: a balloon frame is an eighth of one.
#[inline]
pub(crate) fn evacuation_cost(ledger: Ledger) -> usize {
    ledger.movable() as usize + (ledger.balloon() as usize).div_ceil(BALLOON_DISCOUNT)
}

/// Whether compaction may empty the block.
#[inline]
pub(crate) fn is_candidate(ledger: Ledger) -> bool {
    ledger.state() == BlockState::Open
        && ledger.migratetype() == Migratetype::Movable
        && ledger.unmovable() == 0
        && ledger.used() > 0
}

/// The place of a candidate that costs `cost`.
#[inline]
pub(crate) fn cost_place(ledger: Ledger, cost: usize) -> Place {
    match ledger.refusal() {
        _ if !is_candidate(ledger) => Place::NONE,
        Refusal::None => Place::row((cost / CLASS_STEP).min(CLASSES - 1)),
        refusal => Place::row(REFUSED_ROW + refusal as usize),
    }
}

#[inline]
pub(crate) fn heal_place(ledger: Ledger) -> Place {
    if ledger.balloon() == 0 || ledger.state() == BlockState::Huge {
        Place::NONE
    } else if ledger.unmovable() > 0 {
        Place::row(CLASSES - 1)
    } else if is_begun(ledger) {
        Place::row(BEGUN_ROW)
    } else {
        Place::row((ledger.movable() as usize / CLASS_STEP).min(CLASSES - 1))
    }
}

/// Whether the block holds balloon frames, room for more, and nothing else.
pub(crate) fn is_begun(ledger: Ledger) -> bool {
    ledger.balloon() > 0
        && ledger.balloon() + ledger.free() == FRAMES_PER_BLOCK as u16
        && ledger.free() > 0
        && ledger.state() == BlockState::Open
        && ledger.migratetype() == Migratetype::Movable
}
