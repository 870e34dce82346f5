//! From a memory map to an allocator: zones, watermarks, and the place of the manager's own tables inside the map.

use core::{mem::MaybeUninit, ops::Range};

use arrayvec::ArrayVec;
use dirigible_frames::{
    Config, ConfigError, CostFn, FRAME_SIZE, FRAMES_PER_BLOCK, Fallback, FrameAllocator, MAX_ZONES,
    Pfn, Placement, Platform, Watermarks, ZoneConfig,
};

use crate::{
    manager::MANAGER_BYTES,
    memory_map::{self, MapEntry, MapError, Ranges},
    room::{NoRoom, Room},
    watermarks,
};

/// A zone: all memory of the map below an address that no zone before it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneSpec {
    /// For reports.
    pub name: &'static str,
    /// The first byte above the zone; a multiple of 2 MiB, or `u64::MAX` for all the rest.
    pub below: u64,
    /// Whole blocks by which it may grow later. A zone without memory at boot does not exist and cannot grow.
    pub later: u32,
}

impl ZoneSpec {
    /// One zone, *Normal*, for all memory.
    pub const fn all() -> Self {
        Self {
            name: "Normal",
            below: u64::MAX,
            later: 0,
        }
    }
}

/// Where the watermarks come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marks {
    /// They grow with memory, as [`watermarks::scaled`] says.
    Scaled,
    /// These, for each zone.
    Fixed(Watermarks),
}

/// Where the manager's own tables lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// In memory of the map, at the start of the first range with enough room below this address: as far as the kernel
    /// can reach. They are not managed.
    InMap {
        /// First byte that they must not reach.
        below: u64,
    },
    /// In memory that the map does not have.
    Apart,
}

/// How to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// Processors, numbered from 0.
    pub cpus: u16,
    /// One to [`MAX_ZONES`], ascending. Zones without memory are left out. Default: one, *Normal*.
    pub zones: &'a [ZoneSpec],
    /// Watermarks. Default: scaled.
    pub marks: Marks,
    /// Whole free blocks that each zone keeps from movable base requests. Default `None`: one for each GiB, to
    /// the nearest.
    pub reserve_blocks: Option<u32>,
    /// Where movable requests go. Default: into the fullest block.
    pub placement: Placement,
    /// What unmovable and reclaimable requests do when their own blocks are full. Default: a movable block is emptied
    /// for them.
    pub fallback: Fallback,
    /// What emptying a block costs. Default: the allocator's own rule.
    pub cost: Option<CostFn>,
    /// Where the tables lie. Default: anywhere in the map.
    pub tables: Tables,
}

impl Default for BootConfig<'_> {
    fn default() -> Self {
        Self {
            cpus: 1,
            zones: &const { [ZoneSpec::all()] },
            marks: Marks::Scaled,
            reserve_blocks: None,
            placement: Placement::FullestFirst,
            fallback: Fallback::Evacuate,
            cost: None,
            tables: Tables::InMap { below: u64::MAX },
        }
    }
}

/// Why nothing can be booted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The allocator refuses what follows from map and settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The zones do not ascend, or one ends inside of a block.
    #[error("zone {0} must end at a multiple of 2 MiB above the one before it")]
    ZoneBorder(&'static str),
    /// Memory of the map that is in no zone.
    #[error("memory from {0:#x} on is above the last zone")]
    AboveZones(u64),
    /// No range of the map has room for the tables.
    #[error(
        "no usable range below {below:#x} has the {needed} bytes that the manager's tables need"
    )]
    NoPlace {
        /// Bytes needed.
        needed: usize,
        /// The limit that was set.
        below: u64,
    },
    /// The memory handed in is too small for the tables.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// What follows from a memory map, before anything is written. About 3 KiB; a boot takes about 20 KiB of stack.
#[derive(Debug)]
pub struct BootPlan<'a> {
    config: BootConfig<'a>,
    managed: Ranges,
    in_use: Ranges,
    /// Of each zone that has memory: what was asked for, and its ranges in `managed`.
    zones: ArrayVec<(ZoneSpec, Range<usize>), MAX_ZONES>,
    bytes: usize,
    place: Option<Range<Pfn>>,
}

/// An allocator, and the room that is left for the manager.
#[derive(Debug)]
pub struct Booted<'m> {
    /// The allocator.
    pub frames: &'m FrameAllocator<'m>,
    /// For [`MemoryManager::new_in`](crate::MemoryManager::new_in).
    pub room: Room<'m>,
}

impl<'a> BootPlan<'a> {
    /// Lays out zones and tables for `map`. Entries may stand in any order.
    ///
    /// # Errors
    ///
    /// What is wrong with the map or the settings.
    pub fn new(map: &[MapEntry], config: BootConfig<'a>) -> Result<Self, BootError> {
        let memory_map::Frames { managed, in_use } = memory_map::frames(map)?;
        let mut plan = Self {
            config,
            managed,
            in_use,
            zones: ArrayVec::new(),
            bytes: 0,
            place: None,
        };
        plan.divide()?;
        // The tables for what they themselves take are a few bytes too many.
        plan.bytes = plan.with_config(None, FrameAllocator::metadata_bytes)?
            + size_of::<FrameAllocator<'_>>()
            + align_of::<FrameAllocator<'_>>()
            + MANAGER_BYTES;
        if let Tables::InMap { below } = config.tables {
            let place = plan.find_place(below)?;
            memory_map::cut(&mut plan.managed, &place)?;
            if plan.managed.is_empty() {
                return Err(MapError::Empty.into());
            }
            plan.place = Some(place);
            plan.divide()?;
        }
        Ok(plan)
    }

    /// How much memory [`boot`](Self::boot) needs, in bytes; alignment included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where in the map that memory lies, in whole frames; `None` for [`Tables::Apart`].
    pub fn place(&self) -> Option<Range<Pfn>> {
        self.place.clone()
    }

    /// The frames that will be managed, ascending.
    pub fn managed(&self) -> &[Range<Pfn>] {
        &self.managed
    }

    /// Those of them that are in use already, ascending.
    pub fn in_use(&self) -> &[Range<Pfn>] {
        &self.in_use
    }

    /// Makes the allocator in `memory`, of at least [`bytes`](Self::bytes), whatever is in it. What is in use is
    /// allocated in it, as single unmovable frames: [`free_range`](FrameAllocator::free_range) gives it back.
    /// Interrupts are masked as `platform` says.
    ///
    /// # Errors
    ///
    /// `memory` is too small.
    pub fn boot<'m, P: Platform + ?Sized>(
        &self,
        memory: &'m mut [MaybeUninit<u8>],
        platform: &P,
    ) -> Result<Booted<'m>, BootError> {
        let mut room = Room::new(memory);
        let frames = self.with_config(platform.interrupts(), |config| {
            let bytes = FrameAllocator::metadata_bytes(config)?;
            // The allocator aligns its tables itself.
            let tables = room.zeroed(1, bytes)?;
            let slot = room.slot()?;
            Ok::<_, BootError>(&*slot.write(FrameAllocator::new(config, tables)?))
        })?;
        Ok(Booted { frames, room })
    }

    /// Gives the zones their ranges.
    #[inline(never)]
    fn divide(&mut self) -> Result<(), BootError> {
        const BLOCK: u64 = (FRAME_SIZE * FRAMES_PER_BLOCK) as u64;
        let mut below = Pfn::new(0);
        let (mut split, mut zones) = (Ranges::new(), ArrayVec::new());
        if self.config.zones.is_empty() || self.config.zones.len() > MAX_ZONES {
            return Err(ConfigError::ZoneCount(self.config.zones.len()).into());
        }
        for zone in self.config.zones {
            let border = match zone.below {
                u64::MAX => Pfn::new(u64::MAX),
                bytes if bytes.is_multiple_of(BLOCK) => Pfn::containing(bytes),
                _ => return Err(BootError::ZoneBorder(zone.name)),
            };
            if border <= below {
                return Err(BootError::ZoneBorder(zone.name));
            }
            let first = split.len();
            for range in &self.managed {
                memory_map::push(&mut split, range.start.max(below)..range.end.min(border))?;
            }
            if split.len() > first {
                zones.push((*zone, first..split.len()));
            }
            below = border;
        }
        if let Some(range) = self.managed.iter().find(|range| range.end > below) {
            return Err(BootError::AboveZones(range.start.max(below).address()));
        }
        (self.managed, self.zones) = (split, zones);
        Ok(())
    }

    fn with_config<T>(
        &self,
        interrupts: Option<&'static dyn dirigible_frames::Interrupts>,
        use_it: impl FnOnce(&Config<'_>) -> T,
    ) -> T {
        let all = memory_map::count(&self.managed);
        let (mut zones, mut later) = (ArrayVec::<_, MAX_ZONES>::new(), [0; MAX_ZONES]);
        for ((spec, ranges), later) in self.zones.iter().zip(&mut later) {
            let ranges = &self.managed[ranges.clone()];
            let frames = memory_map::count(ranges);
            let reserve = self.config.reserve_blocks;
            zones.push(ZoneConfig {
                name: spec.name,
                ranges,
                watermarks: match self.config.marks {
                    Marks::Scaled => watermarks::scaled(frames, all),
                    Marks::Fixed(marks) => marks,
                },
                reserve_blocks: reserve.unwrap_or(((frames + (1 << 17)) >> 18) as u32),
            });
            *later = spec.later;
        }
        use_it(&Config {
            zones: &zones,
            reserved: &[],
            in_use: &self.in_use,
            cpus: self.config.cpus,
            placement: self.config.placement,
            fallback: self.config.fallback,
            later: &later[..zones.len()],
            interrupts,
            cost: self.config.cost,
        })
    }

    /// The first frames below `below` that have room for the tables and are not in use. What is in use may lie across
    /// the border of two ranges.
    fn find_place(&self, below: u64) -> Result<Range<Pfn>, BootError> {
        let count = self.bytes.div_ceil(FRAME_SIZE) as u64;
        let limit = Pfn::containing(below);
        for range in &self.managed {
            // Frame 0 is a null pointer where memory is mapped as it is.
            let mut start = range.start.max(Pfn::new(1));
            let inside = self.in_use.iter().filter(|used| used.start < range.end);
            for stop in inside.chain([&(range.end..range.end)]) {
                let end = stop.start.min(range.end).min(limit);
                if end > start && end.get() - start.get() >= count {
                    return Ok(start..start.plus(count));
                }
                start = start.max(stop.end);
            }
        }
        Err(BootError::NoPlace {
            needed: self.bytes,
            below,
        })
    }
}
