//! The mover in a guest that goes on working: frames that were the balloon's may have another owner in the middle of a
//! round.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../../paging/tests/support/guest.rs"]
mod guest;

use dirigible::schedule::{Actor, Next};
use dirigible_frames::{
    BalloonPlacement, BlockId, Config, FRAMES_PER_BLOCK, Fallback, FrameAllocator, FrameState,
    Order, OwnerId, Pfn, Placement, Platform, Watermark, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovableOwner, MovePair, Outcome};
use dirigible_paging::{FaultKind, NoReclaim, Page, Paging, SlowPath, SlowPathConfig};
use dirigible_workload::{
    balloon::BalloonControl,
    control::Control,
    mover::{Mover, MoverParts},
};
use guest::{BASE, CPUS, MockGuest};

const BLOCKS: usize = 24;
/// More than the mover moves in one step.
const BALLOON: usize = 8 * FRAMES_PER_BLOCK;

struct Full;

impl BalloonControl for Full {
    fn set_target(&self, _: u64) {}
    fn target(&self) -> u64 {
        BALLOON as u64
    }
    fn actual(&self) -> u64 {
        BALLOON as u64
    }
    fn stepped(&self) {}
}

/// An owner of balloon frames without a host.
struct Frames<'a>(&'a FrameAllocator<'a>, OwnerId);

impl MovableOwner for Frames<'_> {
    fn isolate(&self, frame: Pfn) -> bool {
        self.0.try_isolate(frame, self.1).is_ok()
    }
    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            self.0.set_owner(pair.to, self.1, 0);
            let listed = self
                .0
                .transition(pair.to, FrameState::Allocated, FrameState::Listed);
            let left = self
                .0
                .transition(pair.from, FrameState::Isolated, FrameState::Allocated);
            assert!(listed.is_ok() && left.is_ok());
            pair.outcome = Outcome::Moved;
        }
    }
    fn putback(&self, frame: Pfn) {
        let back = self
            .0
            .transition(frame, FrameState::Isolated, FrameState::Listed);
        assert!(back.is_ok());
    }
}

/// In the middle of a round part of the balloon is given back and becomes a huge page: the mover skips it, and no frame
/// stays isolated.
#[test]
fn frames_that_left_the_balloon_are_skipped() {
    let ranges = [Pfn::new(BASE)..Pfn::new(BASE + (BLOCKS * FRAMES_PER_BLOCK) as u64)];
    let zone = ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    };
    let config = Config {
        zones: &[zone],
        reserved: &[],
        cpus: CPUS,
        placement: Placement::LowestFirst,
        fallback: Fallback::Steal,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    let guest = MockGuest::new(BLOCKS * FRAMES_PER_BLOCK);
    let (programs, balloon) = (OwnerId::new(1).unwrap(), OwnerId::new(2).unwrap());
    let paging = Paging::new(&frames, &guest, programs, 4);
    let owner = Frames(&frames, balloon);
    let mobility = Mobility::new(&frames, &guest, CompactionConfig::default());
    mobility.register(programs, &paging).unwrap();
    mobility.register(balloon, &owner).unwrap();
    let memory = SlowPath::new(&mobility, &NoReclaim, SlowPathConfig::default());

    let mut held = vec![Pfn::default(); BALLOON];
    let how = BalloonPlacement::WholeBlocks;
    let got = frames.alloc_balloon(guest.cpu(), how, Watermark::None, &mut held);
    assert_eq!(got, BALLOON);
    for &frame in &held {
        frames.set_owner(frame, balloon, 0);
        frames
            .transition(frame, FrameState::Allocated, FrameState::Listed)
            .unwrap();
    }

    let control = Control::new();
    let parts = MoverParts {
        balloon: &Full,
        owner: balloon,
        mobility: &mobility,
        memory: &memory,
        control: &control,
    };
    let mut mover = Mover::new(parts, BALLOON as u64, 1);
    assert!(matches!(mover.step(0), Next::At(_)));

    // The highest block is not moved yet: it is given back to the guest, which makes it a huge page.
    let last = held.last().map(|&frame| frames.block_of(frame)).unwrap();
    let block = last.unwrap_or(BlockId::new(0));
    let first = frames.block_start(block);
    for frame in (0..FRAMES_PER_BLOCK as u64).map(|offset| first.plus(offset)) {
        frames
            .transition(frame, FrameState::Listed, FrameState::Allocated)
            .expect("not moved yet");
        frames.free(guest.cpu(), frame, Order::BASE).unwrap();
    }
    frames.drain_cpu_caches();
    // Other free blocks are used up first.
    let space = paging.create_space(&memory).unwrap();
    let mut page = Page::new(512);
    while frames.state(first) == FrameState::Free {
        let fault = paging.fault(space, page, FaultKind::HugeIfPossible, &memory);
        assert!(fault.unwrap().huge);
        page = page.plus(512);
    }
    assert_eq!(frames.owner(first), programs);

    let mut now = 1;
    while let Next::At(next) = mover.step(now) {
        now = next;
        assert!(now < 1_000_000_000_000, "the mover never ends");
    }
    assert_eq!(mobility.isolated_frames(), 0);
    mobility.verify().unwrap();
    assert_eq!(
        (frames.state(first), frames.order(first)),
        (FrameState::Listed, Order::HUGE)
    );
    assert_eq!(frames.owner(first), programs);
    paging.destroy_space(space);
    frames.drain_cpu_caches();
    frames.verify().unwrap();
}
