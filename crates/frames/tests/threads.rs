//! Real threads on one allocator: no frame has two holders, and all counts fit when they are done.

#![cfg(not(shuttle))]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, BlockState, Config, CpuId, Event, FRAMES_PER_BLOCK,
    Fallback, FrameAllocator, FrameClass, FrameState, Migratetype, Order, OwnerId, Pfn, Placement,
    Watermark, Watermarks, ZoneConfig,
};

const START: u64 = 700;
const END: u64 = 700 + 24 * FRAMES_PER_BLOCK as u64;

/// What all threads share: the allocator and the test's own account of it.
struct Arena<'a> {
    frames: &'a FrameAllocator<'a>,
    /// Whether the frame has a holder.
    held: Vec<AtomicBool>,
    /// Frames that came without being counted as allocated: captured blocks and targets.
    uncounted: AtomicU64,
}

impl Arena<'_> {
    fn mark(&self, pfn: Pfn, order: Order, held: bool) {
        let first = (pfn.get() - self.frames.base().get()) as usize;
        for slot in &self.held[first..first + order.frames()] {
            assert_eq!(
                slot.swap(held, Ordering::AcqRel),
                !held,
                "{pfn:?} {order:?}"
            );
        }
    }
}

/// One thread's view.
struct Worker<'a> {
    arena: &'a Arena<'a>,
    cpu: CpuId,
    owner: OwnerId,
    held: Vec<(Pfn, Order)>,
    listed: Vec<Pfn>,
    random: u64,
}

impl Worker<'_> {
    /// A number below `limit` (xorshift).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn request(&mut self, order: Order) -> AllocRequest {
        let request = AllocRequest::new(order, FrameClass::from_bits(self.below(4) as u8));
        if self.below(2) == 0 {
            request.breaking_reserve()
        } else {
            request
        }
    }

    fn took(&mut self, pfn: Pfn, order: Order) {
        self.arena.mark(pfn, order, true);
        assert_eq!(self.arena.frames.state(pfn), FrameState::Allocated);
        self.held.push((pfn, order));
    }

    fn took_many(&mut self, pfns: &[Pfn]) {
        for &pfn in pfns {
            self.took(pfn, Order::BASE);
        }
    }

    fn free_one(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let position = self.below(self.held.len() as u64) as usize;
        let (pfn, order) = self.held.swap_remove(position);
        self.free(pfn, order);
    }

    fn free(&self, pfn: Pfn, order: Order) {
        self.arena.mark(pfn, order, false);
        let freed = self.arena.frames.free(self.cpu, pfn, order);
        assert_eq!(freed, Ok(()));
    }

    fn step(&mut self) {
        let frames = self.arena.frames;
        // Hold less when memory is short, so that something always moves.
        while self.held.len() > 2500 {
            self.free_one();
        }
        match self.below(100) {
            0..40 => {
                let request = self.request(Order::BASE);
                if let Ok(pfn) = frames.alloc(self.cpu, request) {
                    self.took(pfn, Order::BASE);
                }
            }
            40..70 => self.free_one(),
            70..76 => {
                let order = Order::new(1 + self.below(10) as u8).expect("1 to 10");
                let request = self.request(order);
                if let Ok(pfn) = frames.alloc(self.cpu, request) {
                    self.took(pfn, order);
                }
            }
            76..79 => {
                let mut out = [Pfn::default(); 100];
                let request = self.request(Order::BASE);
                let count = frames.alloc_bulk(self.cpu, request, &mut out);
                self.took_many(&out[..count]);
            }
            79..83 => self.free_many(),
            83..86 => self.inflate(),
            86..88 => {
                let avoid = self.block();
                let mut out = [Pfn::default(); 40];
                let count = frames.take_targets(avoid, Watermark::None, &mut out);
                self.arena
                    .uncounted
                    .fetch_add(count as u64, Ordering::Relaxed);
                self.took_many(&out[..count]);
            }
            88..92 => self.isolate(),
            92..95 => self.publish(),
            95..97 => self.withdraw(),
            97..99 => self.steal(),
            _ => self.split(),
        }
    }

    fn block(&mut self) -> BlockId {
        BlockId::new(self.below(self.arena.frames.block_count() as u64) as u32)
    }

    fn free_many(&mut self) {
        let mut pfns: Vec<Pfn> = Vec::new();
        self.held.retain(|&(pfn, order)| {
            let take = order == Order::BASE && pfns.len() < 150;
            if take {
                pfns.push(pfn);
            }
            !take
        });
        pfns.sort_unstable();
        for &pfn in &pfns {
            self.arena.mark(pfn, Order::BASE, false);
        }
        assert_eq!(self.arena.frames.free_bulk(self.cpu, &pfns), Ok(()));
    }

    fn inflate(&mut self) {
        let placement = [
            BalloonPlacement::Ordinary,
            BalloonPlacement::Unmovable,
            BalloonPlacement::FillHoles,
            BalloonPlacement::WholeBlocks,
        ][self.below(4) as usize];
        let mut out = [Pfn::default(); 128];
        let count = self
            .arena
            .frames
            .alloc_balloon(self.cpu, placement, Watermark::Low, &mut out);
        assert!(out[..count].is_sorted());
        self.took_many(&out[..count]);
    }

    /// Isolates a block, looks that nothing leaves it, and opens it in one of three ways.
    fn isolate(&mut self) {
        let frames = self.arena.frames;
        let block = self.block();
        let Ok(token) = frames.isolate_block(block) else {
            return;
        };
        let free = frames.ledger(block).free();
        for _ in 0..20 {
            if let Ok(pfn) = frames.alloc(self.cpu, AllocRequest::movable()) {
                assert_ne!(
                    frames.block_of(pfn),
                    Some(block),
                    "taken from an isolated block"
                );
                self.took(pfn, Order::BASE);
            }
        }
        let ledger = frames.ledger(block);
        assert_eq!(ledger.state(), BlockState::Isolated);
        assert!(ledger.free() >= free, "frames left an isolated block");
        match self.below(3) {
            0 => frames.unisolate_block(token),
            1 => {
                let migratetype = Migratetype::ALL[self.below(3) as usize];
                frames.convert_block(token, migratetype);
            }
            _ => match frames.capture_block(token, FrameClass::Movable) {
                Ok(pfn) => {
                    self.arena.uncounted.fetch_add(512, Ordering::Relaxed);
                    self.took(pfn, Order::HUGE);
                }
                Err(token) => frames.unisolate_block(token),
            },
        }
    }

    /// Puts frames on the books: from now on another thread may isolate them.
    fn publish(&mut self) {
        let frames = self.arena.frames;
        for _ in 0..10 {
            let Some(position) = self
                .held
                .iter()
                .position(|(_, order)| *order == Order::BASE)
            else {
                return;
            };
            let (pfn, _) = self.held.swap_remove(position);
            frames.reclass(pfn, FrameClass::Movable);
            frames.set_owner(pfn, self.owner, pfn.get() ^ u64::MAX);
            self.listed.push(pfn);
            let listed = frames.transition(pfn, FrameState::Allocated, FrameState::Listed);
            assert_eq!(listed, Ok(()));
        }
    }

    /// Takes frames off the books, except those that another thread took first.
    fn withdraw(&mut self) {
        for pfn in core::mem::take(&mut self.listed) {
            let frames = self.arena.frames;
            if frames
                .transition(pfn, FrameState::Listed, FrameState::Allocated)
                .is_ok()
            {
                // One may have come back to us by way of another thread; then it is listed twice here, and taken once.
                self.held.push((pfn, Order::BASE));
            }
        }
    }

    /// Isolates what others have listed, as compaction does, and frees it.
    fn steal(&mut self) {
        let frames = self.arena.frames;
        let start = frames.block_start(self.block());
        for offset in 0..FRAMES_PER_BLOCK as u64 {
            let pfn = start.plus(offset);
            if frames.state(pfn) == FrameState::Listed
                && frames.try_isolate(pfn, frames.owner(pfn)).is_ok()
            {
                assert_eq!(
                    frames.owner_word(pfn),
                    pfn.get() ^ u64::MAX,
                    "published before"
                );
                let owned = frames.transition(pfn, FrameState::Isolated, FrameState::Allocated);
                assert_eq!(owned, Ok(()));
                self.free(pfn, Order::BASE);
            }
        }
    }

    fn split(&mut self) {
        let Some(position) = self
            .held
            .iter()
            .position(|(_, order)| *order == Order::HUGE)
        else {
            return;
        };
        let (pfn, _) = self.held.swap_remove(position);
        self.arena.frames.split_huge(pfn);
        self.held
            .extend((0..512).map(|offset| (pfn.plus(offset), Order::BASE)));
    }

    fn finish(&mut self) {
        self.withdraw();
        while let Some((pfn, order)) = self.held.pop() {
            self.free(pfn, order);
        }
    }
}

/// Lets `cpu_of.len()` threads work, thread `n` on CPU `cpu_of[n]`, and checks what is left.
fn hammer(cpu_of: &[u16], cpus: u16, placement: Placement, fallback: Fallback, steps: usize) {
    let low = [
        Pfn::new(START)..Pfn::new(4096),
        Pfn::new(6144)..Pfn::new(8192),
    ];
    let high = [
        Pfn::new(4096)..Pfn::new(6144),
        Pfn::new(8192)..Pfn::new(END),
    ];
    let zone = |name, ranges, reserve_blocks| ZoneConfig {
        name,
        ranges,
        watermarks: Watermarks {
            min: 64,
            low: 96,
            high: 128,
        },
        reserve_blocks,
    };
    let zones = [zone("DMA32", &low, 0), zone("Normal", &high, 1)];
    let reserved = [Pfn::new(1000)..Pfn::new(1100)];
    let config = Config {
        zones: &zones,
        reserved: &reserved,
        cpus,
        placement,
        fallback,
        ..Config::default()
    };
    let mut metadata =
        vec![0; FrameAllocator::metadata_bytes(&config).expect("a sound configuration")];
    let frames = FrameAllocator::new(&config, &mut metadata).expect("enough metadata memory");
    let span = frames.block_count() * FRAMES_PER_BLOCK;
    let arena = Arena {
        frames: &frames,
        held: (0..span).map(|_| AtomicBool::new(false)).collect(),
        uncounted: AtomicU64::new(0),
    };
    let all = frames.free_frames();
    std::thread::scope(|scope| {
        for (number, &cpu) in cpu_of.iter().enumerate() {
            let arena = &arena;
            scope.spawn(move || {
                let mut worker = Worker {
                    arena,
                    cpu: CpuId::new(cpu),
                    owner: OwnerId::new(number as u8 + 1).expect("not 0"),
                    held: Vec::new(),
                    listed: Vec::new(),
                    random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
                };
                for _ in 0..steps {
                    worker.step();
                }
                worker.finish();
            });
        }
    });
    assert!(arena.held.iter().all(|held| !held.load(Ordering::Acquire)));
    frames.verify().expect("all counts fit, caches full");
    frames.drain_cpu_caches();
    frames.verify().expect("all counts fit, caches empty");
    assert_eq!(frames.free_frames(), all);
    let (alloc, free) = (
        frames.events().get(Event::PgAlloc),
        frames.events().get(Event::PgFree),
    );
    assert_eq!(alloc + arena.uncounted.load(Ordering::Relaxed), free);
}

#[test]
fn threads_on_cpus_of_their_own() {
    hammer(
        &[0, 1, 2, 3],
        4,
        Placement::FullestFirst,
        Fallback::Evacuate,
        40_000,
    );
}

#[test]
fn threads_that_steal_blocks() {
    hammer(
        &[0, 1, 2],
        3,
        Placement::LowestFirst,
        Fallback::Steal,
        40_000,
    );
}

#[test]
fn threads_that_all_say_they_are_cpu_0() {
    hammer(
        &[0, 0, 0, 0],
        1,
        Placement::FullestFirst,
        Fallback::Steal,
        40_000,
    );
}

/// Blocks to empty or to heal are sorted by counts that others change meanwhile: each count must be read once, or the
/// order is inconsistent.
#[test]
fn blocks_are_sorted_while_they_change() {
    const BLOCKS: usize = 64;
    let ranges = [Pfn::new(0)..Pfn::new((BLOCKS * FRAMES_PER_BLOCK) as u64)];
    let zone = ZoneConfig {
        name: "all",
        ranges: &ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    };
    let config = Config {
        zones: &[zone],
        reserved: &[],
        cpus: 2,
        placement: Placement::LowestFirst,
        fallback: Fallback::Steal,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    // Every block holds some of the balloon's frames; the rest is somebody's who gives back many and takes them again.
    let cpu = CpuId::new(0);
    for _ in 0..BLOCKS {
        let mut balloon = [Pfn::default(); 64];
        let how = BalloonPlacement::Ordinary;
        let count = frames.alloc_balloon(cpu, how, Watermark::None, &mut balloon);
        assert_eq!(count, balloon.len());
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        let mut rest = [Pfn::default(); FRAMES_PER_BLOCK - 64];
        assert_eq!(frames.alloc_bulk(cpu, request, &mut rest), rest.len());
    }
    /// Ends the other thread also when this one panics.
    struct Ender<'a>(&'a AtomicBool);
    impl Drop for Ender<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ender = Ender(&over);
        scope.spawn(|| {
            let cpu = CpuId::new(1);
            let mut random = 1_u64;
            while !over.load(Ordering::Relaxed) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let block = (random >> 33) as usize % BLOCKS;
                let first = Pfn::new((block * FRAMES_PER_BLOCK) as u64);
                let mut pfns: Vec<Pfn> = (0..FRAMES_PER_BLOCK as u64)
                    .map(|offset| first.plus(offset))
                    .filter(|&pfn| frames.class(pfn) == FrameClass::Movable)
                    .collect();
                frames.free_bulk(cpu, &pfns).unwrap();
                frames.drain_cpu_caches();
                let request = AllocRequest::movable().with_watermark(Watermark::None);
                assert_eq!(frames.alloc_bulk(cpu, request, &mut pfns), pfns.len());
            }
        });
        let mut blocks = [BlockId::new(0); BLOCKS];
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(500);
        while std::time::Instant::now() < deadline {
            frames.healing_blocks(&mut blocks);
            frames.cheapest_blocks(None, &mut blocks);
        }
    });
}
