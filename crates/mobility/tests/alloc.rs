//! Allocation that empties a block for a request whose own blocks are full.
#![cfg(not(shuttle))]
#![allow(missing_docs)]

mod machine;

use dirigible_frames::{
    AllocError, AllocRequest, Event, Fallback, FrameClass, Migratetype, Order, Watermark,
};
use dirigible_mobility::{CompactionConfig, evacuates};
use machine::{CPU, Machine, with_fallback};

/// Movable frames in each of so many blocks, `used` in each.
fn movable(blocks: u64, used: usize) -> Machine {
    let range = 0..blocks * 512;
    let m = with_fallback(Fallback::Evacuate, &[&[range]], CompactionConfig::default());
    m.fill_and_keep(|frame| frame.offset_in_block() < used);
    m
}

#[test]
fn a_block_is_emptied_for_a_request_whose_own_are_full() {
    let m = movable(4, 200);
    let request = AllocRequest::unmovable();
    assert_eq!(m.frames.alloc(CPU, request), Err(AllocError::Fragmented));
    let mut evacuations = 2;
    let frame = m.mobility.alloc(CPU, request, &mut evacuations).unwrap();
    assert_eq!(evacuations, 1);
    let block = m.frames.block_of(frame).unwrap();
    assert_eq!(m.frames.ledger(block).migratetype(), Migratetype::Unmovable);
    assert_eq!(m.frames.hybrid_blocks(), 0);
    // The next ones find room there.
    let run = AllocRequest {
        order: Order::new(3).unwrap(),
        ..request
    };
    let more = m.mobility.alloc(CPU, run, &mut evacuations).unwrap();
    assert_eq!((m.frames.block_of(more), evacuations), (Some(block), 1));
    m.frames.free(CPU, frame, request.order).unwrap();
    m.frames.free(CPU, more, run.order).unwrap();
    m.check_at_rest();
}

#[test]
fn a_slow_path_begins_where_the_fast_one_ended() {
    let m = movable(4, 200);
    let request = AllocRequest::unmovable();
    let mut evacuations = 2;
    let why = AllocError::BelowWatermark;
    let result = m.mobility.alloc_after(CPU, request, why, &mut evacuations);
    assert_eq!((result, evacuations), (Err(why), 2));
    let why = m.frames.alloc(CPU, request).unwrap_err();
    let frame = m.mobility.alloc_after(CPU, request, why, &mut evacuations);
    assert_eq!(evacuations, 1);
    m.frames.free(CPU, frame.unwrap(), request.order).unwrap();
    m.check_at_rest();
}

#[test]
fn without_evacuations_it_is_the_allocators_call() {
    let m = movable(4, 200);
    let frame = m.mobility.alloc(CPU, AllocRequest::movable(), &mut 0);
    m.frames.free(CPU, frame.unwrap(), Order::BASE).unwrap();
    let result = m.mobility.alloc(CPU, AllocRequest::unmovable(), &mut 0);
    assert_eq!(result, Err(AllocError::Fragmented));
    assert_eq!(m.event(Event::CompactIsolated), 0);
}

#[test]
fn requests_that_gain_nothing_evacuate_nothing() {
    let m = movable(4, 200);
    for request in [
        AllocRequest::huge(),
        AllocRequest {
            class: FrameClass::Unmovable,
            ..AllocRequest::huge()
        },
    ] {
        assert!(!evacuates(&request));
        let mut evacuations = 2;
        let result = m.mobility.alloc(CPU, request, &mut evacuations);
        assert_eq!((result, evacuations), (Err(AllocError::Fragmented), 2));
    }
    assert_eq!(m.event(Event::CompactIsolated), 0);
}

#[test]
fn a_block_that_cannot_be_emptied_costs_one_evacuation() {
    // 4 x 112 free frames: no block's 400 find targets in the three others.
    let m = movable(4, 400);
    let request = AllocRequest::unmovable().with_watermark(Watermark::None);
    let mut evacuations = 2;
    for left in [1, 0, 0] {
        let result = m.mobility.alloc(CPU, request, &mut evacuations);
        assert_eq!((result, evacuations), (Err(AllocError::Fragmented), left));
    }
    // With more room, and one more attempt, it goes.
    m.thin(|frame| frame.offset_in_block() >= 200);
    evacuations = 1;
    let frame = m.mobility.alloc(CPU, request, &mut evacuations).unwrap();
    m.frames.free(CPU, frame, request.order).unwrap();
    m.check_at_rest();
}
