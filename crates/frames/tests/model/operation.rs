//! What a random run does, step by step. Numbers called `pick` are taken modulo what there is to pick from.

use dirigible_frames::{
    AllocRequest, BalloonPlacement, FrameClass, FrameState, Migratetype, Order, Watermark,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Operation {
    Alloc(u16, AllocRequest),
    AllocBulk(u16, AllocRequest, usize),
    Balloon(u16, BalloonPlacement, Watermark, usize),
    Targets {
        avoid: usize,
        count: usize,
    },
    Free {
        cpu: u16,
        pick: usize,
    },
    FreeBulk {
        cpu: u16,
        pick: usize,
        stride: usize,
        count: usize,
    },
    /// Frees whatever may be freed in a block.
    FreeBlock {
        cpu: u16,
        pick: usize,
    },
    /// Tries to free what must not be freed.
    WrongFree {
        cpu: u16,
        frame: usize,
        order: u8,
    },
    AllocRange {
        cpu: u16,
        request: AllocRequest,
        count: usize,
        align: u8,
    },
    AllocAt {
        cpu: u16,
        request: AllocRequest,
        frame: usize,
        count: usize,
    },
    /// Frees from inside an allocation on.
    FreeRange {
        cpu: u16,
        pick: usize,
        offset: usize,
        count: usize,
    },
    SplitAny(usize),
    Isolate(usize),
    Unisolate(usize),
    Capture(usize, FrameClass),
    Convert(usize, Migratetype),
    Drain,
    Reclass(usize, FrameClass),
    Split(usize),
    Transition(usize, FrameState),
    Adjust {
        frame: usize,
        frames: i64,
    },
    Watermarks {
        pick: usize,
        min: u64,
    },
}

fn class() -> impl Strategy<Value = FrameClass> {
    (0..4u8).prop_map(FrameClass::from_bits)
}

fn watermark() -> impl Strategy<Value = Watermark> {
    prop_oneof![
        2 => Just(Watermark::None),
        4 => Just(Watermark::Min),
        1 => Just(Watermark::Low),
        1 => Just(Watermark::High),
    ]
}

prop_compose! {
    fn request()(
        order in prop_oneof![3 => Just(0u8), 3 => 0..=10u8, 1 => Just(9u8)],
        class in class(),
        watermark in watermark(),
        break_reserve in any::<bool>(),
        fall_back in any::<bool>(),
        any_block in prop_oneof![3 => Just(false), 1 => Just(true)],
    ) -> AllocRequest {
        AllocRequest {
            order: Order::new(order).expect("0 to 10"),
            class,
            watermark,
            break_reserve,
            fall_back,
            any_block,
        }
    }
}

fn placement() -> impl Strategy<Value = BalloonPlacement> {
    prop_oneof![
        Just(BalloonPlacement::Ordinary),
        Just(BalloonPlacement::Unmovable),
        Just(BalloonPlacement::FillHoles),
        Just(BalloonPlacement::WholeBlocks),
    ]
}

fn held_state() -> impl Strategy<Value = FrameState> {
    prop_oneof![
        Just(FrameState::Allocated),
        Just(FrameState::Entering),
        Just(FrameState::Listed),
        Just(FrameState::Isolated),
        Just(FrameState::Leaving),
    ]
}

pub fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let cpu = || 0..3u16;
    let pick = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let count = || prop_oneof![1..64usize, 1..700usize];
    let range = || prop_oneof![1..80usize, 1..600usize, 1..1800usize];
    prop_oneof![
        12 => (cpu(), request()).prop_map(|(cpu, request)| O::Alloc(cpu, request)),
        8 => (cpu(), request(), count()).prop_map(|(c, request, n)| O::AllocBulk(c, request, n)),
        6 => (cpu(), placement(), watermark(), count())
            .prop_map(|(cpu, placement, mark, n)| O::Balloon(cpu, placement, mark, n)),
        3 => (pick(), count()).prop_map(|(avoid, count)| O::Targets { avoid, count }),
        8 => (cpu(), pick()).prop_map(|(cpu, pick)| O::Free { cpu, pick }),
        6 => (cpu(), pick(), 1..8usize, count())
            .prop_map(|(cpu, pick, stride, count)| O::FreeBulk { cpu, pick, stride, count }),
        4 => (cpu(), pick()).prop_map(|(cpu, pick)| O::FreeBlock { cpu, pick }),
        3 => (cpu(), pick(), 0..=10u8)
            .prop_map(|(cpu, frame, order)| O::WrongFree { cpu, frame, order }),
        4 => (cpu(), request(), range(), 0..=10u8)
            .prop_map(|(cpu, request, count, align)| O::AllocRange { cpu, request, count, align }),
        3 => (cpu(), request(), pick(), range())
            .prop_map(|(cpu, request, frame, count)| O::AllocAt { cpu, request, frame, count }),
        5 => (cpu(), pick(), 0..600usize, range())
            .prop_map(|(cpu, pick, offset, count)| O::FreeRange { cpu, pick, offset, count }),
        2 => pick().prop_map(O::SplitAny),
        4 => pick().prop_map(O::Isolate),
        2 => pick().prop_map(O::Unisolate),
        2 => (pick(), class()).prop_map(|(pick, class)| O::Capture(pick, class)),
        1 => (pick(), 0..3usize).prop_map(|(pick, t)| O::Convert(pick, Migratetype::ALL[t])),
        1 => Just(O::Drain),
        4 => (pick(), class()).prop_map(|(pick, class)| O::Reclass(pick, class)),
        2 => pick().prop_map(O::Split),
        4 => (pick(), held_state()).prop_map(|(pick, state)| O::Transition(pick, state)),
        1 => (pick(), -64..64i64).prop_map(|(frame, frames)| O::Adjust { frame, frames }),
        1 => (pick(), 0..400u64).prop_map(|(pick, min)| O::Watermarks { pick, min }),
    ]
}
