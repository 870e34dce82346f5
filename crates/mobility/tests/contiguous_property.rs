//! Contiguous ranges in random memory: after every step all identities hold, each range is its caller's alone, and the
//! contents of all frames are where they belong.

mod machine;

use std::sync::atomic::Ordering;

use dirigible_frames::{AllocRequest, Event, FrameClass, FrameFlags, Order, Pfn, Watermark};
use dirigible_mobility::{
    CompactResult, CompactionConfig, ContiguousError, ContiguousRequest, Outcome,
};
use machine::ranges::{contents, own, release};
use machine::{Answer, CPU, Machine};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

#[derive(Clone, Debug)]
enum Step {
    Fill(u16),
    Map(u16),
    Inflate(u16),
    Unmovable,
    FreeUnmovable(u16),
    Thin(u16),
    FreeOne(u16),
    Pin(u16),
    Unpin,
    Stubborn(u16),
    Docile,
    Say(u8, u8),
    Answer(u8),
    Room(u8),
    Settle(u8),
    Direct,
    FreeHuge,
    Contiguous {
        frames: usize,
        align: u8,
        class: u8,
        watermark: u8,
    },
    At {
        place: u64,
        frames: usize,
        class: u8,
        watermark: u8,
    },
    /// Frees every n-th frame that ranges have given.
    FreePieces(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let frames = || prop_oneof![1usize..64, 1usize..600, 500usize..2200];
    prop_oneof![
        1 => (1u16..100).prop_map(Step::Fill),
        2 => (1u16..600).prop_map(Step::Map),
        2 => (1u16..600).prop_map(Step::Inflate),
        1 => Just(Step::Unmovable),
        2 => any::<u16>().prop_map(Step::FreeUnmovable),
        4 => (2u16..6).prop_map(Step::Thin),
        2 => any::<u16>().prop_map(Step::FreeOne),
        1 => any::<u16>().prop_map(Step::Pin),
        2 => Just(Step::Unpin),
        1 => any::<u16>().prop_map(Step::Stubborn),
        1 => Just(Step::Docile),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(n, kind)| Step::Say(n, kind)),
        1 => any::<u8>().prop_map(Step::Answer),
        1 => any::<u8>().prop_map(Step::Room),
        2 => any::<u8>().prop_map(Step::Settle),
        1 => Just(Step::Direct),
        1 => Just(Step::FreeHuge),
        8 => (frames(), 0u8..11, 0u8..4, 0u8..4).prop_map(|(frames, align, class, watermark)| {
            Step::Contiguous { frames, align, class, watermark }
        }),
        6 => (any::<u64>(), frames(), 0u8..4, 0u8..4).prop_map(|(place, frames, class, watermark)| {
            Step::At { place, frames, class, watermark }
        }),
        4 => (1usize..4).prop_map(Step::FreePieces),
    ]
}

const WATERMARKS: [Watermark; 4] = [
    Watermark::None,
    Watermark::Min,
    Watermark::Low,
    Watermark::High,
];

fn outcome(kind: u8) -> Outcome {
    match kind % 5 {
        0 => Outcome::Moved,
        1 => Outcome::Refused,
        2 => Outcome::Released,
        3 => Outcome::Busy,
        _ => Outcome::Pending,
    }
}

fn listed(m: &Machine, at: u16) -> Option<Pfn> {
    let mut frames = m.user.frames();
    frames.extend(m.balloon.frames());
    (!frames.is_empty()).then(|| frames[usize::from(at) % frames.len()])
}

#[derive(Default)]
struct Held {
    unmovable: Vec<Pfn>,
    huge: Vec<Pfn>,
    pinned: Vec<Pfn>,
}

/// A range was asked for: if it was given, nothing lies in it, and nothing moved from one of its blocks to another.
fn asked(
    m: &Machine,
    result: Result<Pfn, ContiguousError>,
    (frames, class): (usize, FrameClass),
    before: Before,
) {
    let Ok(first) = result else { return };
    let blocks = |frame: Pfn| frame.block_base();
    let range = own(m, first, frames, class);
    let window = blocks(range[0])..=blocks(*range.last().unwrap());
    if m.event(Event::CompactBlockAborted) != before.aborted {
        // A window was given up before this one, and its frames may have moved into this one.
        return;
    }
    for (owner, seen) in [m.user, m.balloon].into_iter().zip(before.seen) {
        for &(from, to) in &owner.seen.lock().unwrap()[seen..] {
            let moved_inside = window.contains(&blocks(from)) && window.contains(&blocks(to));
            assert!(
                !moved_inside,
                "{from} to {to} for {first} and {frames} frames"
            );
        }
    }
}

/// What there was when a range was asked for.
struct Before {
    seen: [usize; 2],
    aborted: u64,
}

fn before(m: &Machine) -> Before {
    Before {
        seen: [m.user, m.balloon].map(|owner| owner.seen.lock().unwrap().len()),
        aborted: m.event(Event::CompactBlockAborted),
    }
}

fn released(m: &Machine) -> usize {
    let of = |owner: &machine::MockOwner| owner.released.load(Ordering::Relaxed);
    of(m.user) + of(m.balloon)
}

fn take(m: &Machine, step: Step, held: &mut Held) {
    let frames = m.frames;
    match step {
        Step::Fill(turn) => {
            let map = || (0..turn).filter(|_| m.map().is_some()).count();
            while map() + m.inflate(turn.into()) > 0 {}
        }
        Step::Map(count) => {
            for _ in 0..count {
                m.map();
            }
        }
        Step::Inflate(count) => {
            m.inflate(count.into());
        }
        Step::Unmovable => {
            let request = AllocRequest::unmovable().with_watermark(Watermark::None);
            held.unmovable.extend(frames.alloc(CPU, request));
        }
        Step::FreeUnmovable(at) => {
            if !held.unmovable.is_empty() {
                let at = usize::from(at) % held.unmovable.len();
                let frame = held.unmovable.swap_remove(at);
                frames.free(CPU, frame, Order::BASE).unwrap();
            }
        }
        Step::Thin(nth) => m.thin(|frame| frame.get() % u64::from(nth) != 0),
        Step::FreeOne(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).free(frame);
            }
        }
        Step::Pin(at) => {
            if let Some(frame) = listed(m, at) {
                frames.set_flags(frame, FrameFlags::PINNED);
                held.pinned.push(frame);
            }
        }
        Step::Unpin => {
            held.pinned
                .drain(..)
                .for_each(|frame| frames.clear_flags(frame, FrameFlags::PINNED));
        }
        Step::Stubborn(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).refuse(frame);
            }
        }
        Step::Docile => {
            for owner in [m.user, m.balloon] {
                owner.stubborn.lock().unwrap().clear();
                owner.script.lock().unwrap().clear();
                *owner.always.lock().unwrap() = None;
            }
        }
        Step::Say(n, kind) => {
            let owner = if n % 2 == 0 { m.user } else { m.balloon };
            owner.script.lock().unwrap().clear();
            owner.say((0..n / 2).map(|_| Outcome::Moved));
            owner.say([outcome(kind)]);
        }
        Step::Answer(kind) => {
            let answer = [
                Answer::Never,
                Answer::Moved,
                Answer::Refused,
                Answer::Released,
            ][usize::from(kind) % 4];
            *m.user.answer.lock().unwrap() = answer;
            *m.balloon.answer.lock().unwrap() = answer;
        }
        Step::Room(kind) => {
            // From now on the balloon answers late, and takes few at a time.
            let always = [None, Some(Outcome::Pending)][usize::from(kind) % 2];
            *m.balloon.always.lock().unwrap() = always;
            let room = [1, 20, 100, usize::MAX][usize::from(kind / 2) % 4];
            m.balloon.room.store(room, Ordering::Relaxed);
        }
        Step::Settle(kind) => {
            m.settle(m.user, outcome(kind % 3));
            m.settle(m.balloon, outcome(kind / 4 % 3));
        }
        Step::Direct => {
            held.huge.extend(match m.direct(FrameClass::Unmovable) {
                CompactResult::Captured(head) => Some(head),
                _ => None,
            });
        }
        Step::FreeHuge => {
            if let Some(head) = held.huge.pop() {
                m.free_huge(head);
            }
        }
        Step::Contiguous {
            frames,
            align,
            class,
            watermark,
        } => {
            let class = FrameClass::from_bits(class);
            let request = ContiguousRequest::new(frames, class)
                .aligned(Order::new(align).unwrap())
                .with_watermark(WATERMARKS[usize::from(watermark)]);
            let before = before(m);
            let result = m.mobility.alloc_contiguous(CPU, request);
            assert!(result.is_err() || result.unwrap().is_aligned(request.align));
            asked(m, result, (frames, class), before);
        }
        Step::At {
            place,
            frames: count,
            class,
            watermark,
        } => {
            let class = FrameClass::from_bits(class);
            let span = frames.block_count() as u64 * 512 + 600;
            let first = Pfn::new((frames.base().get() + place % span).saturating_sub(300));
            let watermark = WATERMARKS[usize::from(watermark)];
            let before = before(m);
            let result = m.mobility.alloc_at(CPU, first, count, class, watermark);
            asked(m, result.map(|()| first), (count, class), before);
        }
        Step::FreePieces(nth) => {
            let singles: Vec<_> = m.singles.lock().unwrap().iter().copied().collect();
            release(m, singles.into_iter().rev().step_by(nth));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn ranges_are_exclusive_and_no_contents_are_lost(
        start in 0u64..1200,
        lengths in proptest::collection::vec((600u64..3600, 0u64..900), 1..4),
        two_zones in any::<bool>(),
        (turn, thin) in (1u16..100, 2u16..6),
        budget_blocks in 1usize..5,
        exchange_batch in prop_oneof![Just(1), Just(16), Just(256)],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let config = CompactionConfig {
            exchange_batch,
            budget_blocks,
            idle_polls: 20,
            ..CompactionConfig::default()
        };
        let mut ranges = Vec::new();
        let mut at = start;
        for (length, gap) in lengths {
            ranges.push(at..at + length);
            at += length + gap;
        }
        // Zones share no block.
        let above = at.next_multiple_of(512);
        let other = above..above + 4 * 512;
        let m = if two_zones {
            machine::zoned(&[&ranges, std::slice::from_ref(&other)], config)
        } else {
            machine::zoned(&[&ranges], config)
        };
        let mut held = Held::default();
        for step in [Step::Fill(turn), Step::Thin(thin), Step::Unmovable] {
            take(&m, step, &mut held);
        }
        for step in steps {
            let before = (contents(&m), released(&m));
            let asks = matches!(step, Step::Contiguous { .. } | Step::At { .. });
            // Pins and refusals are the mock's and go with the frame, which moves or is freed under them.
            let cached = matches!(step, Step::FreeOne(_));
            take(&m, step, &mut held);
            if !cached {
                m.check();
            }
            let after = contents(&m);
            if asks {
                prop_assert!(after.is_subset(&before.0));
                prop_assert_eq!(before.0.len() - after.len(), released(&m) - before.1);
                prop_assert_eq!(m.frames.isolated_blocks(), 0);
            }
        }
        m.settle(m.user, Outcome::Moved);
        m.settle(m.balloon, Outcome::Moved);
        take(&m, Step::Unpin, &mut held);
        m.check_at_rest();
        take(&m, Step::FreePieces(3), &mut held);
        m.check_at_rest();
        take(&m, Step::FreePieces(1), &mut held);
        held.huge.drain(..).for_each(|head| m.free_huge(head));
        held.unmovable.drain(..).for_each(|frame| m.frames.free(CPU, frame, Order::BASE).unwrap());
        m.thin(|_| true);
        m.check_at_rest();
        prop_assert_eq!(m.frames.free_frames(), m.frames.managed_frames());
    }
}
