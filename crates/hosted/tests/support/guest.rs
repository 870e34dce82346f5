//! A guest with allocator, compaction and balloon, but without a load.
#![allow(dead_code)]

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, BootPlan, Booted, Marks, Tables},
    memory_map::MapEntry,
};
use dirigible_balloon::{AllocatorSource, BalloonConfig, Step, VirtioBalloon};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, CpuId, FrameAllocator, Order, OwnerId, Pfn, Platform,
    Watermark, Watermarks,
};
use dirigible_hosted::{
    BalloonOptions, HostBalloon, HostedHal, HostedMachine, HostedPlatform, InProcessTransport, Mode,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::SlowPath;

use super::first_frame;

pub const BALLOON: OwnerId = OwnerId::new(7).unwrap();
pub const MIB: u64 = 64;

/// The driver over the hosted machine.
pub type Balloon<'a> = VirtioBalloon<'a, HostedHal, InProcessTransport, HostedPlatform>;

/// Everything that a running guest has but its load.
pub struct Guest<'a, 'b> {
    pub machine: &'a HostedMachine,
    pub frames: &'a FrameAllocator<'a>,
    pub mobility: &'a Mobility<'a, HostedPlatform>,
    /// The slow path, with the balloon as its out-of-memory notifier.
    pub memory: &'a SlowPath<'a, HostedPlatform>,
    pub balloon: &'a Balloon<'b>,
    pub source: AllocatorSource<'a, HostedPlatform>,
}

/// How long an evacuation waits for the device, in nanoseconds: in real time a busy host may keep it waiting.
pub fn pending_timeout(mode: Mode) -> u64 {
    match mode {
        Mode::Deterministic => 50_000_000,
        Mode::Threads => 1_000_000_000,
    }
}

/// What a guest keeps free.
#[derive(Clone, Copy)]
pub struct Keeps {
    /// The zone's watermarks, in frames.
    pub watermarks: Watermarks,
    /// Whole free blocks that background compaction works for; 0 for none.
    pub whole_blocks: u64,
}

impl Default for Keeps {
    fn default() -> Self {
        Self {
            watermarks: Watermarks {
                min: 64,
                low: 128,
                high: 256,
            },
            whole_blocks: 0,
        }
    }
}

/// Builds a guest on `machine`, runs `work` in it as CPU 0, and checks all books at the end.
pub fn guest(machine: &HostedMachine, config: BalloonConfig, work: impl FnOnce(&Guest<'_, '_>)) {
    guest_that_keeps(Keeps::default(), machine, config, work);
}

/// The same, told what to keep free.
pub fn guest_that_keeps(
    keeps: Keeps,
    machine: &HostedMachine,
    config: BalloonConfig,
    work: impl FnOnce(&Guest<'_, '_>),
) {
    let platform = machine.platform();
    let _binding = platform.bind_cpu(CpuId::new(0)).unwrap();
    let layout = machine.ram().layout();
    let map: Vec<MapEntry> = layout.managed().iter().map(MapEntry::usable).collect();
    let boot = BootConfig {
        cpus: platform.cpus(),
        marks: Marks::Fixed(keeps.watermarks),
        reserve_blocks: Some(0),
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let memory = machine.ram().table_memory().unwrap();
    let booted = BootPlan::new(&map, boot).unwrap().boot(memory, platform);
    let Booted { frames, room } = booted.unwrap();
    assert_eq!(frames.managed_frames(), layout.managed_frames());
    let compaction = CompactionConfig {
        pending_timeout_ns: pending_timeout(platform.mode()),
        reserve_low: keeps.whole_blocks,
        reserve_high: keeps.whole_blocks,
        ..CompactionConfig::default()
    };
    let transport = machine.balloons()[0].transport().unwrap();
    let balloon = Balloon::new(transport, frames, platform, BALLOON, config).unwrap();
    let config = ManagerConfig {
        compaction,
        ..ManagerConfig::default()
    };
    let manager = MemoryManager::new_in(room, frames, platform, config).unwrap();
    manager.register_balloon(&balloon).unwrap();
    let source = AllocatorSource {
        frames,
        platform,
        watermark: Watermark::Low,
    };
    work(&Guest {
        machine,
        frames,
        mobility: manager.mobility(),
        memory: manager.memory(),
        balloon: &balloon,
        source,
    });
    // A device that has been reset leaves nothing behind, once what had settled is taken.
    balloon.reset();
    manager.mobility().drain_settled();
    assert_eq!(balloon.held().total(), 0);
    assert_eq!(frames.managed_frames(), layout.managed_frames());
    manager.verify().unwrap();
    assert_eq!(machine.balloons()[0].counters().errors.total(), 0);
}

impl Guest<'_, '_> {
    pub fn host(&self) -> &HostBalloon {
        &self.machine.balloons()[0]
    }

    /// Lets the balloon work until it has its target or cannot go on before the device or time does, and takes the ends
    /// of late moves as a daemon does.
    pub fn settle(&self) -> Step {
        loop {
            let step = self.balloon.step(&self.source, 16);
            self.mobility.drain_settled();
            match step {
                Step::Busy => {}
                Step::Waiting => {
                    self.machine.platform().relax();
                    self.balloon.handle_interrupt();
                }
                step => return step,
            }
        }
    }

    /// Sets a target and waits until the balloon has it.
    pub fn reach(&self, frames: u64) {
        self.host().set_target(frames).unwrap();
        assert_eq!(self.settle(), Step::Idle);
        assert_eq!(self.balloon.actual(), frames);
        assert_eq!(self.host().actual(), frames);
        assert_eq!(self.host().held_frames(), frames);
    }

    pub fn alloc(&self) -> Option<Pfn> {
        self.frames
            .alloc(self.machine.platform().cpu(), AllocRequest::movable())
            .ok()
    }

    pub fn free(&self, frame: Pfn) {
        self.frames
            .free(self.machine.platform().cpu(), frame, Order::BASE)
            .unwrap();
    }

    /// Every frame that can be had, then every second one of the lower `blocks` blocks' free again: holes to move to.
    pub fn make_holes(&self, blocks: usize) -> Vec<Pfn> {
        let mut held: Vec<Pfn> = core::iter::from_fn(|| self.alloc()).collect();
        held.sort_unstable();
        let end = Pfn::new(first_frame(self.machine)).plus(blocks as u64 * 512);
        let (low, high): (Vec<_>, Vec<_>) = held.into_iter().partition(|&frame| frame < end);
        let (kept, freed): (Vec<_>, Vec<_>) =
            low.into_iter().partition(|frame| frame.get() % 2 == 0);
        freed
            .into_iter()
            .chain(high)
            .for_each(|frame| self.free(frame));
        self.frames.drain_cpu_caches();
        kept
    }

    /// Blocks with at least `least` balloon frames.
    pub fn balloon_blocks(&self, least: u16) -> Vec<BlockId> {
        self.frames
            .blocks()
            .filter(|&block| self.frames.ledger(block).balloon() >= least)
            .collect()
    }
}

pub fn whole_blocks() -> BalloonConfig {
    BalloonConfig {
        placement: BalloonPlacement::WholeBlocks,
        ..BalloonConfig::default()
    }
}

pub fn audited() -> BalloonOptions {
    BalloonOptions {
        audit: true,
        ..BalloonOptions::default()
    }
}
