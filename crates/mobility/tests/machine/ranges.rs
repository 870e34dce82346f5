//! Contiguous ranges in tests: asking for them, and what must hold afterwards.

use std::collections::BTreeSet;

use dirigible_frames::{BlockState, FrameClass, FrameState, Order, OwnerId, Pfn, Watermark};
use dirigible_mobility::{ContiguousError, ContiguousRequest};

use super::{CPU, Machine, blocks};

pub fn block_number(frame: Pfn) -> usize {
    frame.get() as usize / 512
}

/// A machine with so many movable frames in the blocks.
pub fn filled<const N: usize>(used: [usize; N]) -> Machine {
    let m = blocks(N as u64);
    m.fill_and_keep(|frame| frame.offset_in_block() < used[block_number(frame)]);
    m
}

/// Frames in a row as the caller gets them; the test holds them.
pub fn own(m: &Machine, first: Pfn, frames: usize, class: FrameClass) -> Vec<Pfn> {
    let range: Vec<_> = (0..frames as u64).map(|at| first.plus(at)).collect();
    for &frame in &range {
        let info = m.frames.frame(frame).unwrap();
        assert_eq!(
            (info.state, info.class, info.order, info.owner),
            (
                FrameState::Allocated,
                class,
                Order::BASE,
                OwnerId::default()
            ),
            "{frame}"
        );
        for owner in [m.user, m.balloon] {
            assert!(!owner.contents.lock().unwrap().contains_key(&frame));
        }
        assert!(
            m.singles.lock().unwrap().insert(frame),
            "{frame} given twice"
        );
    }
    range
}

pub fn ask(m: &Machine, request: ContiguousRequest) -> Result<Vec<Pfn>, ContiguousError> {
    let first = m.mobility.alloc_contiguous(CPU, request)?;
    assert!(first.is_aligned(request.align));
    Ok(own(m, first, request.frames, request.class))
}

pub fn ask_at(m: &Machine, first: u64, frames: usize) -> Result<Vec<Pfn>, ContiguousError> {
    let (first, class) = (Pfn::new(first), FrameClass::Unmovable);
    m.mobility
        .alloc_at(CPU, first, frames, class, Watermark::Min)?;
    Ok(own(m, first, frames, class))
}

pub fn release(m: &Machine, frames: impl IntoIterator<Item = Pfn>) {
    for frame in frames {
        assert!(m.singles.lock().unwrap().remove(&frame));
        m.frames.free(CPU, frame, Order::BASE).unwrap();
    }
}

/// Everything that the owners have in their frames.
pub fn contents(m: &Machine) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for owner in [m.user, m.balloon] {
        let contents = owner.contents.lock().unwrap();
        let mut known = owner.books.lock().unwrap().clone();
        known.extend(owner.pending.lock().unwrap().iter().map(|pair| pair.from));
        assert!(contents.keys().eq(known.iter()), "a frame without contents");
        for &content in contents.values() {
            assert!(all.insert(content), "twice in memory");
        }
    }
    all
}

pub fn all_open(m: &Machine, blocks: impl Iterator<Item = u32>) {
    for number in blocks {
        let state = m.frames.ledger(m.block(number)).state();
        assert_eq!(state, BlockState::Open, "{number}");
    }
}
