//! A block's place in its zone's three indexes: by room for requests, by cost for compaction, and by what else is in it
//! for a balloon that deflates (the *heal* index).

use crate::{BlockState, FRAMES_PER_BLOCK, Ledger, Migratetype, Refusal, index::Place};

/// Ranks of blocks of one kind by room, or of all by cost: each has a bucket of its own.
pub(crate) const RANKS: usize = 18;
/// Frames of one rank of the cost and heal indexes.
const RANK_STEP: usize = 32;
/// A balloon frame costs this fraction of a copied frame to move: a share of a message.
const BALLOON_DISCOUNT: usize = 8;

/// Kinds of blocks in the room index. Each has [`RANKS`] buckets but the last, which has one.
pub(crate) mod kind {
    pub const UNMOVABLE: usize = 0;
    pub const MOVABLE: usize = 1;
    pub const RECLAIMABLE: usize = 2;
    /// Movable by type, with frames that cannot be moved, or that an owner does not give up: they cannot become whole,
    /// so they are filled first.
    pub const HYBRID: usize = 3;
    /// Wholly free, whatever the type.
    pub const WHOLE: usize = 4;
}

/// The bucket of wholly free blocks.
pub(crate) const WHOLE_BUCKET: usize = kind::WHOLE * RANKS;
/// Buckets of the room index.
pub(crate) const ROOM_BUCKETS: usize = WHOLE_BUCKET + 1;

/// Buckets of the cost index: [`RANKS`] of candidates, then refused blocks, by the kind of refusal.
pub(crate) const REFUSED_BUCKET: usize = RANKS;
/// How many there are.
pub(crate) const COST_BUCKETS: usize = RANKS + 4;

/// Buckets of the heal index: [`RANKS`] of blocks with balloon frames by what else is in them, then those that a
/// balloon of whole blocks has begun.
pub(crate) const BEGUN_BUCKET: usize = RANKS;
/// How many there are.
pub(crate) const HEAL_BUCKETS: usize = RANKS + 1;

/// The bucket of the room index for blocks of `kind` and `rank`.
pub(crate) const fn room_bucket(kind: usize, rank: usize) -> usize {
    kind * RANKS + rank
}

/// The rank of a block with `free` frames, 1 to 511: 1, 2, 3, 4, then two ranks for each doubling.
///
/// Full memory leaves most blocks with a handful of free frames, so ranks are narrow there, where it matters most which
/// block is the fullest.
pub(crate) const fn room_rank(free: u16) -> usize {
    if free <= 4 {
        return (free as usize).saturating_sub(1);
    }
    let below = free as usize - 1;
    let octave = below.ilog2() as usize;
    4 + (octave - 2) * 2 + (below >> (octave - 1) & 1)
}

const _: () = assert!(room_rank(511) < RANKS && room_rank(5) == 4);

#[inline(never)]
pub(crate) fn room_place(ledger: Ledger) -> Place {
    if ledger.state() != BlockState::Open || ledger.free() == 0 {
        return Place::NONE;
    }
    if ledger.is_whole() {
        return Place::bucket(WHOLE_BUCKET);
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
    Place::bucket(room_bucket(kind, room_rank(ledger.free())))
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
        Refusal::None => Place::bucket((cost / RANK_STEP).min(RANKS - 1)),
        refusal => Place::bucket(REFUSED_BUCKET + refusal as usize),
    }
}

#[inline]
pub(crate) fn heal_place(ledger: Ledger) -> Place {
    if ledger.balloon() == 0 || ledger.state() == BlockState::Huge {
        Place::NONE
    } else if ledger.unmovable() > 0 {
        Place::bucket(RANKS - 1)
    } else if is_begun(ledger) {
        Place::bucket(BEGUN_BUCKET)
    } else {
        Place::bucket((ledger.movable() as usize / RANK_STEP).min(RANKS - 1))
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
