//! A small guest and a host that records every frame number it gets.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod host;
pub mod moves;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use dirigible_balloon::{BalloonConfig, FrameSource, MAX_PFNS, VirtioBalloon};
use dirigible_frames::{
    BalloonPlacement, Config, Cost, CpuId, Fallback, FrameAllocator, FrameClass, FrameState,
    OwnerId, Pfn, Placement, Platform, Watermark, Watermarks, ZoneConfig,
};

use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use host::{FakeHal, FakeTransport, Host};

pub const OWNER: OwnerId = OwnerId::new(3).unwrap();
pub const OTHER: OwnerId = OwnerId::new(4).unwrap();

/// A platform with a clock that only waiting moves; frames have no contents.
#[derive(Default)]
pub struct Clock {
    pub now: AtomicU64,
    /// What one `relax` takes.
    pub relax_ns: AtomicU64,
}

/// Lets another thread run, or another of the model checker's.
pub fn yield_now() {
    #[cfg(not(shuttle))]
    std::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

impl Clock {
    pub fn pass(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Platform for Clock {
    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
    fn charge(&self, _cost: Cost) {}
    fn relax(&self) {
        self.pass(self.relax_ns.load(Ordering::SeqCst));
        yield_now();
    }
}

/// Memory of `zones` times `blocks` pageblocks, leaked: tests are short.
pub fn memory(zones: &[u64]) -> &'static FrameAllocator<'static> {
    let mut start = 512;
    let mut ranges = Vec::new();
    for blocks in zones {
        ranges.push(vec![Pfn::new(start)..Pfn::new(start + blocks * 512)]);
        start += blocks * 512;
    }
    memory_of(&ranges)
}

/// Memory of a zone for each row of ranges, leaked.
pub fn memory_of(zones: &[Vec<Range<Pfn>>]) -> &'static FrameAllocator<'static> {
    const NAMES: [&str; 4] = ["one", "two", "three", "four"];
    let zones: Vec<_> = zones
        .iter()
        .zip(NAMES)
        .map(|(ranges, name)| ZoneConfig {
            name,
            ranges,
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        })
        .collect();
    let config = Config {
        zones: &zones,
        reserved: &[],
        cpus: 1,
        placement: Placement::LowestFirst,
        fallback: Fallback::Steal,
        ..Config::default()
    };
    let metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    Box::leak(Box::new(
        FrameAllocator::new(&config, metadata.leak()).unwrap(),
    ))
}

/// Every frame number of the memory.
pub fn all_frames(frames: &FrameAllocator<'_>) -> Vec<Pfn> {
    let of_block = |block| {
        let start: Pfn = frames.block_start(block);
        (0..512).map(move |at| start.plus(at))
    };
    frames.blocks().flat_map(of_block).collect()
}

/// How many frames are in `state`.
pub fn count(frames: &FrameAllocator<'_>, state: FrameState) -> u64 {
    all_frames(frames)
        .into_iter()
        .filter(|&frame| frames.state(frame) == state)
        .count() as u64
}

/// A source with a switch, a counter, and something to do while it is asked.
pub struct Source {
    pub frames: &'static FrameAllocator<'static>,
    pub dry: std::sync::atomic::AtomicBool,
    pub asked: AtomicU64,
    pub given_back: AtomicU64,
    #[allow(clippy::type_complexity)]
    pub meanwhile: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Source {
    pub fn new(frames: &'static FrameAllocator<'static>) -> Self {
        Self {
            frames,
            dry: Default::default(),
            asked: Default::default(),
            given_back: Default::default(),
            meanwhile: Default::default(),
        }
    }

    pub fn set_dry(&self, dry: bool) {
        self.dry.store(dry, Ordering::SeqCst);
    }

    /// Runs `action` each time the source is asked.
    pub fn set_meanwhile(&self, action: impl FnMut() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(action));
    }
}

impl FrameSource for Source {
    fn take(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let action = self.meanwhile.lock().unwrap().take();
        if let Some(mut action) = action {
            action();
            self.meanwhile.lock().unwrap().get_or_insert(action);
        }
        if self.dry.load(Ordering::SeqCst) {
            return 0;
        }
        self.frames
            .alloc_balloon(CpuId::new(0), how, Watermark::None, out)
    }

    fn give_back(&self, frames: &[Pfn]) {
        self.given_back
            .fetch_add(frames.len() as u64, Ordering::SeqCst);
        self.frames.free_bulk(CpuId::new(0), frames).unwrap();
    }
}

pub type FakeBalloon<const N: usize = MAX_PFNS> =
    VirtioBalloon<'static, FakeHal, FakeTransport, Clock, N>;

/// A guest with one balloon.
pub struct Guest<const N: usize = MAX_PFNS> {
    pub frames: &'static FrameAllocator<'static>,
    pub clock: &'static Clock,
    pub host: Host,
    pub source: Source,
    pub balloon: &'static FakeBalloon<N>,
}

impl Guest {
    pub fn new(blocks: u64) -> Self {
        Self::configured(blocks, BalloonConfig::default())
    }

    pub fn configured(blocks: u64, config: BalloonConfig) -> Self {
        Self::with(memory(&[blocks]), Host::new(), config)
    }

    pub fn with(
        frames: &'static FrameAllocator<'static>,
        host: Host,
        config: BalloonConfig,
    ) -> Self {
        Self::sized(frames, host, config)
    }

    pub fn on(
        clock: &'static Clock,
        frames: &'static FrameAllocator<'static>,
        host: Host,
        config: BalloonConfig,
        id: OwnerId,
    ) -> Self {
        Self::sized_on(clock, frames, host, config, id)
    }
}

impl<const N: usize> Guest<N> {
    /// One whose requests hold `N` numbers.
    pub fn sized(
        frames: &'static FrameAllocator<'static>,
        host: Host,
        config: BalloonConfig,
    ) -> Self {
        let clock: &'static Clock = Box::leak(Box::default());
        clock.relax_ns.store(10_000, Ordering::SeqCst);
        Self::sized_on(clock, frames, host, config, OWNER)
    }

    fn sized_on(
        clock: &'static Clock,
        frames: &'static FrameAllocator<'static>,
        host: Host,
        config: BalloonConfig,
        id: OwnerId,
    ) -> Self {
        host.inner().most = N;
        let balloon = VirtioBalloon::new(host.transport(), frames, clock, id, config).unwrap();
        let balloon = Box::leak(Box::new(balloon));
        Self {
            frames,
            clock,
            host,
            source: Source::new(frames),
            balloon,
        }
    }

    /// Steps until nothing more can be done at once, and checks all books.
    pub fn run(&self) -> dirigible_balloon::Step {
        for _ in 0..10_000 {
            match self.balloon.step(&self.source, 4) {
                dirigible_balloon::Step::Busy => {}
                step => {
                    self.check();
                    return step;
                }
            }
        }
        panic!("the balloon does not come to rest");
    }

    /// Sets the target, then [`run`](Self::run)s.
    pub fn to(&self, target: u32) -> dirigible_balloon::Step {
        self.host.set_target(target);
        self.run()
    }

    pub fn check(&self) {
        self.balloon.verify().unwrap();
        self.host.check();
    }

    /// What has settled late, in the order in which the balloon gives it: old frame, new frame, outcome.
    pub fn settled(&self) -> Vec<(Pfn, Pfn, Outcome)> {
        let mut all = Vec::new();
        // An odd size: exchanges are taken in parts, and parts of two together.
        let mut some = [MovePair::base(Pfn::default(), Pfn::default()); 37];
        loop {
            let taken = self.balloon.take_settled(&mut some);
            all.extend(
                some[..taken]
                    .iter()
                    .map(|pair| (pair.from, pair.to, pair.outcome)),
            );
            if taken < some.len() {
                return all;
            }
        }
    }

    /// All listed frames, lowest first.
    pub fn listed(&self) -> Vec<Pfn> {
        let listed = |frame: &Pfn| self.frames.state(*frame) == FrameState::Listed;
        all_frames(self.frames).into_iter().filter(listed).collect()
    }

    /// New frames of class `Balloon`.
    pub fn targets(&self, count: usize) -> Vec<Pfn> {
        let mut out = vec![Pfn::default(); count];
        let got = self.frames.alloc_balloon(
            CpuId::new(0),
            BalloonPlacement::Ordinary,
            Watermark::None,
            &mut out,
        );
        assert_eq!(got, count);
        out
    }

    pub fn free(&self, frames: &[Pfn]) {
        self.frames.free_bulk(CpuId::new(0), frames).unwrap();
    }

    pub fn is_class(&self, frame: Pfn, class: FrameClass) -> bool {
        self.frames
            .frame(frame)
            .is_some_and(|info| info.class == class)
    }
}
