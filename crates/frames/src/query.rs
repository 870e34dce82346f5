//! Sums and reports: free memory, buddyinfo, pagetypeinfo.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, Fallback, FrameAllocator, Order, Pfn, Watermarks,
    ZoneId,
    bits::count_runs,
    config::MAX_ZONES,
    cpu::CpuSlot,
    place::kind,
    search::{Search, SearchOrder},
    sync::Ordering,
};

/// Frames by class over all blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClassCounts {
    /// Free, in fields.
    pub free: u64,
    /// Movable with contents, cached ones included.
    pub movable: u64,
    /// Held by balloons and movable.
    pub balloon: u64,
    /// Unmovable and reclaimable, without the reserved.
    pub unmovable: u64,
    /// Reserved or no memory, within the span.
    pub reserved: u64,
}

/// The counts of `/proc/pagetypeinfo`, and some that it lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageTypeInfo {
    /// Blocks of each migratetype, in the order of [`Migratetype::ALL`](crate::Migratetype::ALL).
    pub blocks: [u32; 3],
    /// Free runs of each order in blocks of each type.
    pub free: [[u32; 11]; 3],
    /// Wholly free blocks among them.
    pub whole: u32,
    /// Isolated blocks.
    pub isolated: u32,
    /// Blocks that one allocation holds.
    pub huge: u32,
    /// Blocks with frames that can move and others that cannot.
    pub hybrid: u32,
}

impl FrameAllocator<'_> {
    /// Frames that can be taken now; those in CPU caches and isolated blocks do not count. Exact while nothing is under
    /// way; reads each CPU's part of the sum.
    #[inline(never)]
    pub fn free_frames(&self) -> u64 {
        self.zones().map(|zone| self.zone_free_frames(zone)).sum()
    }

    /// The same of one zone.
    #[inline(never)]
    pub fn zone_free_frames(&self, zone: ZoneId) -> u64 {
        self.free_in(zone).max(0) as u64
    }

    /// Frames in CPU caches, as they are at the time of the look. Takes no lock.
    pub fn cached_frames(&self) -> u64 {
        self.cpus.iter().map(CpuSlot::cached).sum()
    }

    /// Blocks that are isolated: their free frames, and the targets for their used ones, cannot be allocated meanwhile.
    /// A request that finds no memory while there are some may wait a moment and try again.
    pub fn isolated_blocks(&self) -> u32 {
        // Acquire: pairs with the release of the CPU that opens a block. A reader that sees the count fall finds the
        // frames.
        let each = self
            .isolated
            .iter()
            .map(|count| count.load(Ordering::Acquire));
        each.sum()
    }

    /// Wholly free blocks, those that CPUs keep for their next huge pages among them.
    pub fn free_blocks(&self) -> u64 {
        self.zones().map(|zone| self.zone_free_blocks(zone)).sum()
    }

    /// The same of one zone.
    #[inline(never)]
    pub fn zone_free_blocks(&self, zone: ZoneId) -> u64 {
        self.whole_in(zone).max(0) as u64
    }

    /// Free frames of a zone in blocks from which movable requests do not take under [`Fallback::Evacuate`]: those that
    /// hold immovable memory. 0 under [`Fallback::Steal`]. Looks at all of these blocks that have room.
    ///
    /// A movable request for whole blocks leaves its watermark without them: what it leaves is for small requests, and
    /// few of these are immovable.
    #[inline(never)]
    pub fn stranded_frames(&self, zone: ZoneId) -> u64 {
        if self.fallback == Fallback::Steal {
            return 0;
        }
        let search = Search {
            kinds: &[kind::UNMOVABLE, kind::RECLAIMABLE],
            order: SearchOrder::Emptiest,
            room: 1,
        };
        let mut sum = 0;
        self.search(zone, &search, &mut |block| {
            sum += u64::from(self.ledger(block).free());
            false
        });
        sum
    }

    /// Frames that the guest has: present, not reserved, not taken off by [`adjust_managed`](Self::adjust_managed).
    #[inline(never)]
    pub fn managed_frames(&self) -> u64 {
        self.zones
            .iter()
            .map(|zone| zone.managed().max(0) as u64)
            .sum()
    }

    /// The same of one zone.
    pub fn zone_managed(&self, zone: ZoneId) -> u64 {
        self.zone(zone).managed().max(0) as u64
    }

    /// Adds `frames` to what `pfn`'s zone has: a balloon takes off what it gives to the host.
    pub fn adjust_managed(&self, pfn: Pfn, frames: i64) {
        if let Some(zone) = self.zone_of(pfn) {
            self.zone(zone).add_managed(frames);
        }
    }

    /// Adds `each` for every frame of `pfns` to what its zone has: one atomic step for each zone, however many frames.
    pub fn adjust_managed_each(&self, pfns: impl Iterator<Item = Pfn>, each: i64) {
        let mut sums = [0; MAX_ZONES];
        for zone in pfns.filter_map(|pfn| self.zone_of(pfn)) {
            sums[zone.index()] += each;
        }
        for (zone, &sum) in self.zones.iter().zip(&sums) {
            if sum != 0 {
                zone.add_managed(sum);
            }
        }
    }

    /// The marks of a zone.
    pub fn watermarks(&self, zone: ZoneId) -> Watermarks {
        self.zone(zone).marks()
    }

    /// Replaces the marks of a zone.
    pub fn set_watermarks(&self, zone: ZoneId, marks: Watermarks) {
        self.zone(zone).set_marks(marks);
    }

    /// What requests for immovable memory do when their own blocks are full.
    pub fn fallback(&self) -> Fallback {
        self.fallback
    }

    /// Whole blocks that movable order-0 requests leave in a zone.
    pub fn reserve_blocks(&self, zone: ZoneId) -> u32 {
        self.zone(zone).reserve
    }

    /// The zone's name.
    pub fn zone_name(&self, zone: ZoneId) -> &'static str {
        self.zone(zone).name
    }

    /// Frames by class. Walks all ledgers.
    pub fn class_frames(&self) -> ClassCounts {
        self.blocks()
            .fold(ClassCounts::default(), |mut sum, block| {
                let (ledger, reserved) = (self.ledger(block), u64::from(self.reserved_in(block)));
                sum.free += u64::from(ledger.free());
                sum.movable += u64::from(ledger.movable());
                sum.balloon += u64::from(ledger.balloon());
                sum.unmovable += u64::from(ledger.unmovable()) - reserved;
                sum.reserved += reserved;
                sum
            })
    }

    fn words(&self, block: BlockId) -> [u64; 8] {
        core::array::from_fn(|word| self.field(block).0[word].load(Ordering::Relaxed))
    }

    /// Maximal aligned free runs of order 0 to 10 in open blocks, as `/proc/buddyinfo` counts them. Walks all blocks.
    pub fn buddyinfo(&self) -> [u32; 11] {
        let mut counts = [0; 11];
        // Where the block above must begin for both to be a run of order 10.
        let mut upper = None;
        for block in self.blocks() {
            let ledger = self.ledger(block);
            if ledger.counts_as_whole() {
                let start = self.block_start(block);
                let zone = self.zone_of_block(block);
                if upper == Some((zone, start)) {
                    counts[9] -= 1;
                    counts[10] += 1;
                } else {
                    counts[9] += 1;
                }
                let lower = start.is_aligned(Order::MAX);
                upper = lower.then(|| {
                    (
                        zone,
                        Pfn::new(start.get().wrapping_add(FRAMES_PER_BLOCK as u64)),
                    )
                });
                continue;
            }
            upper = None;
            if ledger.state() == BlockState::Open {
                count_runs(&self.words(block), &mut counts);
            }
        }
        counts
    }

    /// Blocks by type and state, and the free runs in them. Walks all blocks.
    pub fn pagetypeinfo(&self) -> PageTypeInfo {
        let mut info = PageTypeInfo::default();
        for block in self.blocks() {
            let ledger = self.ledger(block);
            let own = ledger.migratetype() as usize;
            info.blocks[own] += 1;
            match ledger.state() {
                BlockState::Isolated => info.isolated += 1,
                BlockState::Huge => info.huge += 1,
                _ if ledger.counts_as_whole() => {
                    info.whole += 1;
                    info.free[own][9] += 1;
                }
                BlockState::Open | BlockState::Spare => {
                    count_runs(&self.words(block), &mut info.free[own]);
                }
            }
            info.hybrid += u32::from(self.is_hybrid(block));
        }
        info
    }

    /// The share of free memory that a request of `order` cannot use, in thousandths: 0 is best. 0 with no free memory.
    ///
    /// Gorman's *unusable free space index*, as Linux prints it in `/sys/kernel/debug/extfrag/unusable_index`.
    pub fn unusable_index(&self, order: Order) -> u32 {
        let counts = self.buddyinfo();
        let frames = |orders: core::ops::Range<usize>| -> u64 {
            orders.map(|o| u64::from(counts[o]) << o).sum()
        };
        let (all, unusable) = (frames(0..11), frames(0..order.get() as usize));
        (unusable * 1000).checked_div(all).unwrap_or(0) as u32
    }

    /// Frames in a pageblock, for reports that print it.
    pub const fn block_frames(&self) -> usize {
        FRAMES_PER_BLOCK
    }
}
