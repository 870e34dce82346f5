//! The allocators, each set up as its users set it up.

use bitmap_allocator::{BitAlloc, BitAlloc1M};
use buddy_slab_allocator::BuddyAllocator;
use buddy_system_allocator::LockedFrameAllocator;
use dirigible_frames::{
    AllocRequest, Config as FramesConfig, CpuId, FRAME_SIZE, Fallback, FrameAllocator, FrameClass,
    Order, Pfn, Placement, Watermark, Watermarks, ZoneConfig,
};
use spin::Mutex;

use crate::heap;
use crate::random::Random;

/// One allocator under test, shared by the threads.
pub trait Peer: Sync {
    /// Takes 2^order frames for CPU `cpu`; what names the first.
    fn alloc(&self, cpu: usize, order: u8) -> Option<u64>;
    /// Gives them back.
    fn free(&self, cpu: usize, frame: u64, order: u8);
    /// Takes one frame, out of what is kept back for others too.
    fn alloc_last(&self, cpu: usize) -> Option<u64> {
        self.alloc(cpu, 0)
    }
    /// The number of a frame, 0 for the first.
    fn number(&self, frame: u64) -> usize {
        frame as usize
    }
    /// Is notified of what the next calls on `cpu` are counted for, if for anything: a position in
    /// [`MEASURES`](crate::scenario::MEASURES).
    fn begins(&self, _cpu: usize, _measure: Option<usize>) {}
    /// Panics if the allocator, with everything given back, is not what it was at the beginning.
    fn check(&self) {}
}

/// Something to do with an allocator.
pub trait Scenario {
    /// What comes out of it.
    type Outcome;
    /// The frames to manage.
    fn frames(&self) -> usize;
    /// How many threads there will be.
    fn cpus(&self) -> usize;
    /// Does it with `peer`, which is fresh.
    fn run<P: Peer>(&self, peer: &P) -> Self::Outcome;
}

/// An allocator that takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contestant {
    /// This crate.
    Dirigible,
    /// A buddy on trees.
    BuddySystem,
    /// A tree of bitmaps.
    Bitmap,
    /// A buddy on lists through its descriptors.
    BuddySlab,
}

impl Contestant {
    /// All of them, ours first.
    pub const ALL: [Self; 4] = [
        Self::Dirigible,
        Self::BuddySystem,
        Self::Bitmap,
        Self::BuddySlab,
    ];

    /// The crate's name, and its version if it is not ours.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dirigible => "dirigible-frames",
            Self::BuddySystem => "buddy_system_allocator 0.13",
            Self::Bitmap => "bitmap-allocator 0.4.6",
            Self::BuddySlab => "buddy-slab-allocator 0.6.1",
        }
    }

    /// Sets up a fresh allocator and does `scenario` with it.
    pub fn run<S: Scenario>(self, scenario: &S) -> S::Outcome {
        let frames = scenario.frames();
        match self {
            Self::Dirigible => with_config(frames, scenario.cpus(), |config| {
                let bytes = FrameAllocator::metadata_bytes(config).expect("a sound configuration");
                let mut memory = vec![0; bytes];
                let allocator = FrameAllocator::new(config, &mut memory)
                    .expect("as much metadata as it asked for");
                scenario.run(&allocator)
            }),
            Self::BuddySystem => scenario.run(&fresh_buddy(frames)),
            Self::Bitmap => {
                let bitmap: Box<Mutex<BitAlloc1M>> = Box::default();
                bitmap.lock().insert(0..frames);
                scenario.run(&*bitmap)
            }
            Self::BuddySlab => scenario.run(&BuddySlab::fresh(frames)),
        }
    }

    /// Bytes of metadata for `frames` frames, with what they depend on.
    pub fn metadata(self, frames: usize) -> Vec<(&'static str, usize)> {
        match self {
            Self::Dirigible => {
                let bytes = |cpus| {
                    with_config(frames, cpus, |config| {
                        FrameAllocator::metadata_bytes(config).unwrap_or(0)
                    })
                };
                vec![
                    ("descriptors and all, 2 CPUs", bytes(2)),
                    ("64 CPUs", bytes(64)),
                ]
            }
            Self::BuddySystem => buddy_metadata(frames),
            Self::Bitmap => vec![("bitmap", size_of::<BitAlloc1M>() * frames / BitAlloc1M::CAP)],
            Self::BuddySlab => {
                let bytes = BuddyAllocator::<FRAME_SIZE>::required_meta_size(frames * FRAME_SIZE);
                vec![("descriptors", bytes)]
            }
        }
    }
}

/// One zone of `frames` frames with the policies that a user gets by default.
pub fn with_config<R>(
    frames: usize,
    cpus: usize,
    use_it: impl FnOnce(&FramesConfig<'_>) -> R,
) -> R {
    let ranges = [Pfn::new(0)..Pfn::new(frames as u64)];
    // What Linux sets for this much memory, near enough: the checks are made, and half of the memory passes them.
    let min = frames as u64 / 400;
    let zone = ZoneConfig {
        name: "bench",
        ranges: &ranges,
        watermarks: Watermarks {
            min,
            low: min + min / 4,
            high: min + min / 2,
        },
        // One in 512, and not more than the experiment's.
        reserve_blocks: (frames >> 18).min(4) as u32,
    };
    use_it(&FramesConfig {
        zones: &[zone],
        reserved: &[],
        cpus: cpus as u16,
        placement: Placement::FullestFirst,
        fallback: Fallback::Evacuate,
        ..FramesConfig::default()
    })
}

impl Peer for FrameAllocator<'_> {
    fn alloc(&self, cpu: usize, order: u8) -> Option<u64> {
        let request = match order {
            0 => AllocRequest::movable(),
            9 => AllocRequest::huge(),
            _ => AllocRequest::new(Order::new(order)?, FrameClass::Movable),
        };
        FrameAllocator::alloc(self, CpuId::new(cpu as u16), request)
            .ok()
            .map(Pfn::get)
    }

    fn free(&self, cpu: usize, frame: u64, order: u8) {
        let order = Order::new(order).expect("an order that was asked for");
        FrameAllocator::free(self, CpuId::new(cpu as u16), Pfn::new(frame), order)
            .expect("the frame is ours");
    }

    fn alloc_last(&self, cpu: usize) -> Option<u64> {
        let request = AllocRequest::movable()
            .with_watermark(Watermark::None)
            .breaking_reserve();
        FrameAllocator::alloc(self, CpuId::new(cpu as u16), request)
            .ok()
            .map(Pfn::get)
    }

    fn check(&self) {
        self.verify().expect("the accounts are right");
        self.drain_cpu_caches();
        assert_eq!(self.free_frames(), self.managed_frames());
    }
}

fn fresh_buddy(frames: usize) -> LockedFrameAllocator<21> {
    let allocator = LockedFrameAllocator::new();
    allocator.lock().add_frame(0, frames);
    allocator
}

fn buddy_metadata(frames: usize) -> Vec<(&'static str, usize)> {
    let fresh = heap::held_by(|| std::mem::forget(fresh_buddy(frames)));
    let mut order: Vec<usize> = (0..frames).step_by(2).collect();
    Random::new(0).shuffle(&mut order);
    let scattered = heap::held_by(|| {
        let allocator = fresh_buddy(frames);
        while allocator.lock().alloc(1).is_some() {}
        order
            .iter()
            .for_each(|&frame| allocator.lock().dealloc(frame, 1));
        std::mem::forget(allocator);
    });
    let own = size_of::<LockedFrameAllocator<21>>();
    vec![
        ("heap, all free", own + fresh),
        ("heap, every 2nd frame free", own + scattered),
    ]
}

impl Peer for LockedFrameAllocator<21> {
    fn alloc(&self, _cpu: usize, order: u8) -> Option<u64> {
        self.lock().alloc(1 << order).map(|frame| frame as u64)
    }

    fn free(&self, _cpu: usize, frame: u64, order: u8) {
        self.lock().dealloc(frame as usize, 1 << order);
    }
}

impl Peer for Mutex<BitAlloc1M> {
    fn alloc(&self, _cpu: usize, order: u8) -> Option<u64> {
        let frame = match order {
            0 => self.lock().alloc(),
            _ => self.lock().alloc_contiguous(None, 1 << order, order.into()),
        };
        frame.map(|frame| frame as u64)
    }

    fn free(&self, _cpu: usize, frame: u64, order: u8) {
        let freed = match order {
            0 => self.lock().dealloc(frame as usize),
            _ => self.lock().dealloc_contiguous(frame as usize, 1 << order),
        };
        assert!(freed, "a frame that was taken");
    }
}

/// It hands out addresses of real memory and keeps its metadata before them; the memory is never touched.
struct BuddySlab {
    allocator: Mutex<BuddyAllocator<FRAME_SIZE>>,
    /// The address of frame 0.
    start: usize,
    _memory: Vec<u8>,
}

impl BuddySlab {
    fn fresh(frames: usize) -> Self {
        let heap = frames * FRAME_SIZE;
        let metadata = BuddyAllocator::<FRAME_SIZE>::required_meta_size(heap);
        let mut memory = vec![0; heap + metadata + 16 * FRAME_SIZE];
        let mut allocator = BuddyAllocator::new();
        // SAFETY: `memory` is writable, and lives in the peer as long as the allocator does; nobody else uses it.
        unsafe { allocator.init(&mut memory) }.expect("room for metadata and frames");
        let start = allocator.section(0).expect("one section").start;
        Self {
            allocator: Mutex::new(allocator),
            start,
            _memory: memory,
        }
    }
}

impl Peer for BuddySlab {
    fn alloc(&self, _cpu: usize, order: u8) -> Option<u64> {
        self.allocator
            .lock()
            .alloc_pages(1 << order, FRAME_SIZE)
            .ok()
            .map(|address| address as u64)
    }

    fn free(&self, _cpu: usize, frame: u64, order: u8) {
        self.allocator
            .lock()
            .dealloc_pages(frame as usize, 1 << order);
    }

    fn number(&self, frame: u64) -> usize {
        (frame as usize - self.start) / FRAME_SIZE
    }

    fn check(&self) {
        assert_eq!(self.allocator.lock().allocated_bytes(), 0);
    }
}
