//! The allocators, each set up as its users set it up.

use bitmap_allocator::{BitAlloc, BitAlloc1M};
use buddy_slab_allocator::BuddyAllocator;
use buddy_system_allocator::LockedFrameAllocator;
use dirigible_frames::{
    AllocRequest, Config as FramesConfig, CpuId, FRAME_SIZE, Fallback, FrameAllocator, Order, Pfn,
    Placement, Watermarks, ZoneConfig,
};
use spin::Mutex;

use crate::heap;
use crate::scenario::{self, Config, Peer, Sample};

/// An allocator that takes part.
pub trait Contestant {
    /// The crate's name, and its version if it is not ours.
    fn name(&self) -> &'static str;
    /// Sets up a fresh allocator and lets it do everything that `config` asks.
    fn run(&self, config: &Config) -> Sample;
    /// Bytes of metadata for `frames` frames, with what they depend on.
    fn metadata(&self, frames: usize) -> Vec<(&'static str, usize)>;
}

/// All of them, ours first.
pub fn all() -> Vec<&'static dyn Contestant> {
    vec![&Dirigible, &BuddySystem, &Bitmap, &BuddySlab]
}

struct Dirigible;

struct DirigiblePeer<'m>(FrameAllocator<'m>);

impl Dirigible {
    /// Sets up one zone of `frames` frames with the policies that a user gets by default.
    fn with_config<R>(
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
            reserve_blocks: 4,
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
}

impl Contestant for Dirigible {
    fn name(&self) -> &'static str {
        "dirigible-frames"
    }

    fn run(&self, config: &Config) -> Sample {
        Self::with_config(config.frames(), config.threads, |frames| {
            let mut memory =
                vec![0; FrameAllocator::metadata_bytes(frames).expect("a sound configuration")];
            let allocator =
                FrameAllocator::new(frames, &mut memory).expect("as much metadata as it asked for");
            scenario::run(&DirigiblePeer(allocator), config)
        })
    }

    fn metadata(&self, frames: usize) -> Vec<(&'static str, usize)> {
        let bytes = |cpus| {
            Self::with_config(frames, cpus, |c| {
                FrameAllocator::metadata_bytes(c).unwrap_or(0)
            })
        };
        vec![
            ("descriptors and all, 2 CPUs", bytes(2)),
            ("64 CPUs", bytes(64)),
        ]
    }
}

impl Peer for DirigiblePeer<'_> {
    fn alloc(&self, cpu: usize, order: u8) -> Option<u64> {
        let request = if order == 0 {
            AllocRequest::movable()
        } else {
            AllocRequest::huge()
        };
        self.0
            .alloc(CpuId::new(cpu as u16), request)
            .ok()
            .map(Pfn::get)
    }

    fn free(&self, cpu: usize, frame: u64, order: u8) {
        let order = if order == 0 { Order::BASE } else { Order::HUGE };
        self.0
            .free(CpuId::new(cpu as u16), Pfn::new(frame), order)
            .expect("the frame is ours");
    }

    fn check(&self) {
        self.0.verify().expect("the accounts are right");
        assert_eq!(
            self.0.free_frames() + self.0.cached_frames(),
            self.0.managed_frames()
        );
    }
}

struct BuddySystem;

impl BuddySystem {
    fn fresh(frames: usize) -> LockedFrameAllocator<21> {
        let allocator = LockedFrameAllocator::new();
        allocator.lock().add_frame(0, frames);
        allocator
    }
}

impl Contestant for BuddySystem {
    fn name(&self) -> &'static str {
        "buddy_system_allocator 0.13"
    }

    fn run(&self, config: &Config) -> Sample {
        scenario::run(&Self::fresh(config.frames()), config)
    }

    fn metadata(&self, frames: usize) -> Vec<(&'static str, usize)> {
        let fresh = heap::held_by(|| std::mem::forget(Self::fresh(frames)));
        let mut order: Vec<u64> = (0..frames as u64).step_by(2).collect();
        scenario::shuffle(&mut order, 0);
        let scattered = heap::held_by(|| {
            let allocator = Self::fresh(frames);
            while allocator.lock().alloc(1).is_some() {}
            order
                .iter()
                .for_each(|&frame| allocator.lock().dealloc(frame as usize, 1));
            std::mem::forget(allocator);
        });
        let own = size_of::<LockedFrameAllocator<21>>();
        vec![
            ("heap, all free", own + fresh),
            ("heap, every 2nd frame free", own + scattered),
        ]
    }
}

impl Peer for LockedFrameAllocator<21> {
    fn alloc(&self, _cpu: usize, order: u8) -> Option<u64> {
        self.lock().alloc(1 << order).map(|frame| frame as u64)
    }

    fn free(&self, _cpu: usize, frame: u64, order: u8) {
        self.lock().dealloc(frame as usize, 1 << order);
    }
}

struct Bitmap;

impl Contestant for Bitmap {
    fn name(&self) -> &'static str {
        "bitmap-allocator 0.4.6"
    }

    fn run(&self, config: &Config) -> Sample {
        let bitmap: Box<Mutex<BitAlloc1M>> = Box::default();
        bitmap.lock().insert(0..config.frames());
        scenario::run(&*bitmap, config)
    }

    fn metadata(&self, frames: usize) -> Vec<(&'static str, usize)> {
        vec![("bitmap", size_of::<BitAlloc1M>() * frames / BitAlloc1M::CAP)]
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

struct BuddySlab;

/// It hands out addresses of real memory and keeps its metadata before them; the memory is never touched.
struct BuddySlabPeer {
    allocator: Mutex<BuddyAllocator<FRAME_SIZE>>,
    _memory: Vec<u8>,
}

impl Contestant for BuddySlab {
    fn name(&self) -> &'static str {
        "buddy-slab-allocator 0.6.1"
    }

    fn run(&self, config: &Config) -> Sample {
        let heap = config.frames() * FRAME_SIZE;
        let metadata = BuddyAllocator::<FRAME_SIZE>::required_meta_size(heap);
        let mut memory = vec![0; heap + metadata + 16 * FRAME_SIZE];
        let mut allocator = BuddyAllocator::new();
        // SAFETY: `memory` is writable, and lives in the peer as long as the allocator does; nobody else uses it.
        unsafe { allocator.init(&mut memory) }.expect("room for metadata and frames");
        scenario::run(
            &BuddySlabPeer {
                allocator: Mutex::new(allocator),
                _memory: memory,
            },
            config,
        )
    }

    fn metadata(&self, frames: usize) -> Vec<(&'static str, usize)> {
        vec![(
            "descriptors",
            BuddyAllocator::<FRAME_SIZE>::required_meta_size(frames * FRAME_SIZE),
        )]
    }
}

impl Peer for BuddySlabPeer {
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

    fn check(&self) {
        assert_eq!(self.allocator.lock().allocated_bytes(), 0);
    }
}
