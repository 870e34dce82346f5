//! The memory manager: allocator, compaction, slow path and their owners, put together.

use dirigible_balloon::{BalloonDriver, FrameSource};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, CpuId, FrameAllocator, Order, OwnerId, PageTables, Pfn,
    Platform,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovableOwner, RegisterError};
use dirigible_paging::{
    OutOfMemory, OutOfMemoryNotifier, PageSource, Paging, Reclaim, SlowPath, SlowPathConfig,
    StallObserver,
};
use dirigible_reclaim::Reclaimer;

use crate::{
    balloon_worker::{BalloonWorker, BalloonWorkerConfig, Drain},
    chain::Full,
    kcompactd::{Kcompactd, KcompactdConfig},
    khugepaged::{Fill, Khugepaged, KhugepagedConfig},
    kswapd::{Kswapd, KswapdConfig},
    parts::{Notifier, Part, Parts, Spaces},
    room::{NoRoom, Room},
};

/// How the parts work together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManagerConfig {
    /// Compaction.
    pub compaction: CompactionConfig,
    /// The allocation slow path.
    pub slow_path: SlowPathConfig,
    /// Background compaction.
    pub kcompactd: KcompactdConfig,
    /// Collapse of base pages into huge pages.
    pub khugepaged: KhugepagedConfig,
    /// Background reclaim.
    pub kswapd: KswapdConfig,
    /// The balloon's worker.
    pub balloon_worker: BalloonWorkerConfig,
    /// How long [`shutdown`](MemoryManager::shutdown) waits for what is under way, in nanoseconds. Default 2 s.
    pub shutdown_ns: u64,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            compaction: CompactionConfig::default(),
            slow_path: SlowPathConfig::default(),
            kcompactd: KcompactdConfig::default(),
            khugepaged: KhugepagedConfig::default(),
            kswapd: KswapdConfig::default(),
            balloon_worker: BalloonWorkerConfig::default(),
            shutdown_ns: 2_000_000_000,
        }
    }
}

impl ManagerConfig {
    /// Settings for `frames`: background compaction keeps up twice the whole blocks that its zones reserve, and the
    /// slow path follows the allocator's fallback policy.
    pub fn for_frames(frames: &FrameAllocator<'_>) -> Self {
        let reserve = frames
            .zones()
            .map(|zone| u64::from(frames.reserve_blocks(zone)))
            .sum();
        let compaction = CompactionConfig {
            reserve_low: reserve,
            reserve_high: 2 * reserve,
            ..CompactionConfig::default()
        };
        let slow_path = SlowPathConfig {
            fallback: frames.fallback(),
            ..SlowPathConfig::default()
        };
        Self {
            compaction,
            slow_path,
            ..Self::default()
        }
    }
}

/// Why something could not be registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Its owner number.
    #[error(transparent)]
    Owner(#[from] RegisterError),
    /// The list of its kind has no room.
    #[error(transparent)]
    Full(#[from] Full),
}

/// More processors than the allocator was made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("CPU {} is one too many: the memory manager was booted for {configured}", cpu.index())]
pub struct TooManyCpus {
    /// The processor.
    pub cpu: CpuId,
    /// How many there are.
    pub configured: usize,
}

/// Bytes of room that a manager takes, alignment included: compaction with its workspaces, and what is registered.
pub const MANAGER_BYTES: usize =
    bytes_of::<Mobility<'static, Nowhere>>() + bytes_of::<Parts<'static>>();

const fn bytes_of<T>() -> usize {
    size_of::<T>() + align_of::<T>()
}

/// A platform whose only use is its size: parts refer to theirs, so they are as large with any.
struct Nowhere;

impl Platform for Nowhere {
    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {}
}

/// The memory manager of a guest.
///
/// It refers to its parts; compaction, with 43 KiB the largest, lies in the [`Room`] that the caller gave. Nothing in
/// it is dropped, and nothing needs to be: [`shutdown`](Self::shutdown) gives the frames back.
///
/// Owners are made on the allocator and registered, in any order: they do not refer to the manager.
pub struct MemoryManager<'a, P: Platform> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    pub(crate) mobility: &'a Mobility<'a, P>,
    pub(crate) parts: &'a Parts<'a>,
    pub(crate) config: ManagerConfig,
    memory: SlowPath<'a, P>,
}

impl<'a, P: Platform> MemoryManager<'a, P> {
    /// A manager of `frames` that keeps its own state in `room`, of at least [`MANAGER_BYTES`]. Takes a few KiB of
    /// stack.
    ///
    /// # Errors
    ///
    /// The room is too small.
    pub fn new_in(
        mut room: Room<'a>,
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        config: ManagerConfig,
    ) -> Result<Self, NoRoom> {
        let slot = room.slot()?;
        let mobility = Mobility::new_in(slot, frames, platform, config.compaction);
        let parts: &'a Parts<'a> = room.place(Parts::new())?;
        let mobility: &'a Mobility<'a, P> = mobility;
        let memory = SlowPath::new(mobility, &parts.reclaimers, config.slow_path)
            .with_notifier(&parts.notifiers)
            .observed_by(&parts.observers);
        Ok(Self {
            frames,
            platform,
            mobility,
            parts,
            config,
            memory,
        })
    }

    /// Makes `owner` the owner of all frames that carry `id`.
    ///
    /// # Errors
    ///
    /// The number has an owner already or cannot have one, or there is no room; nothing is registered then.
    pub fn register(&self, id: OwnerId, owner: &'a dyn MovableOwner) -> Result<(), AddError> {
        self.register_part(Part::Owner(id), owner)
    }

    /// Registers a balloon under the number that its frames carry. It is also called before a request fails; it gives
    /// no frames unless deflation on out-of-memory was negotiated.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_balloon<B>(&self, balloon: &'a B) -> Result<(), AddError>
    where
        B: MovableOwner + BalloonDriver,
    {
        self.add_balloon(balloon, balloon)
    }

    fn add_balloon(
        &self,
        driver: &'a dyn BalloonDriver,
        owner: &'a dyn MovableOwner,
    ) -> Result<(), AddError> {
        let id = driver.owner_id();
        self.demand_free(id)?;
        self.parts.notifiers.add(Notifier::Balloon(id, driver))?;
        let registered = self.register_part(Part::Balloon(id, driver), owner);
        registered.inspect_err(|_| self.parts.remove(id))
    }

    /// Registers address spaces under the number that their frames carry.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_paging<Q: PageTables>(
        &self,
        paging: &'a Paging<'a, Q>,
    ) -> Result<(), AddError> {
        let spaces: &'a dyn Spaces = paging;
        self.register_part(Part::Paging(paging.owner_id(), spaces), paging)
    }

    fn register_part(&self, part: Part<'a>, owner: &'a dyn MovableOwner) -> Result<(), AddError> {
        self.demand_free(part.owner())?;
        self.mobility.register(part.owner(), owner)?;
        // There is room for as many parts as there are numbers.
        Ok(self.parts.owners.add(part)?)
    }

    fn demand_free(&self, id: OwnerId) -> Result<(), RegisterError> {
        match self.parts.owners.iter().any(|part| part.owner() == id) {
            true => Err(RegisterError::Busy),
            false => Ok(()),
        }
    }

    /// Takes the owner with the number `id` out: a balloon whose device is unplugged, say. It has given its frames back
    /// before.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Isolated`] while any of its frames is isolated or one of its pairs is pending,
    /// [`RegisterError::Absent`] when there is no such owner.
    pub fn unregister(&self, id: OwnerId) -> Result<(), RegisterError> {
        self.mobility.unregister(id)?;
        self.parts.remove(id);
        Ok(())
    }

    /// Adds a reclaimer, called after those that are there already.
    ///
    /// # Errors
    ///
    /// The list is full.
    pub fn add_reclaimer(&self, reclaimer: &'a dyn Reclaim) -> Result<(), Full> {
        self.parts.reclaimers.add(reclaimer)
    }

    /// Adds a notifier, called before a request fails, after those that are there already.
    ///
    /// # Errors
    ///
    /// The list is full.
    pub fn add_notifier(&self, notifier: &'a dyn OutOfMemoryNotifier) -> Result<(), Full> {
        self.parts.notifiers.add(Notifier::Other(notifier))
    }

    /// Adds an observer of requests that were not served at once.
    ///
    /// # Errors
    ///
    /// The list is full.
    pub fn add_observer(&self, observer: &'a dyn StallObserver) -> Result<(), Full> {
        self.parts.observers.add(observer)
    }

    /// Checks that `cpu` is one of those that the manager was booted for. A kernel calls it for each CPU that comes up,
    /// before that CPU allocates: the tables of others do not exist.
    ///
    /// # Errors
    ///
    /// It is one too many.
    pub fn admit_cpu(&self, cpu: CpuId) -> Result<(), TooManyCpus> {
        let configured = self.frames.cpu_count();
        if cpu.index() < configured {
            Ok(())
        } else {
            Err(TooManyCpus { cpu, configured })
        }
    }

    /// The allocator.
    pub fn frames(&self) -> &'a FrameAllocator<'a> {
        self.frames
    }

    /// The machine below.
    pub fn platform(&self) -> &'a P {
        self.platform
    }

    /// Compaction.
    pub fn mobility(&self) -> &'a Mobility<'a, P> {
        self.mobility
    }

    /// The allocation slow path: a [`PageSource`] for address spaces.
    pub fn memory(&self) -> &SlowPath<'a, P> {
        &self.memory
    }

    /// Background compaction, to be run as one daemon.
    pub fn kcompactd(&self) -> Kcompactd<'a, 'a, P> {
        Kcompactd::new(self.mobility, self.config.kcompactd)
    }

    /// The daemon that collapses base pages of `paging`'s programs into huge pages. `fill` writes the pages of a range
    /// that were not mapped, as a fault would. It gets huge pages by the slow path: so it waits for compaction and
    /// reclaim, and is to be run in a thread, or as a program, of its own.
    pub fn khugepaged<'s, Q: PageTables>(
        &'s self,
        paging: &'s Paging<'a, Q>,
        fill: Fill<'s>,
    ) -> Khugepaged<'s, 'a, Q> {
        Khugepaged::new(paging, &self.memory, fill, self.config.khugepaged)
    }

    /// Background reclaim by `reclaimer`, to be run as one daemon. The caller
    /// [adds](Self::add_reclaimer) the reclaimer too, so that requests reclaim, and wake the daemon.
    pub fn kswapd<'r>(&self, reclaimer: &'r Reclaimer<'a, P>) -> Kswapd<'r, 'a, P> {
        Kswapd::new(reclaimer, self.config.kswapd)
    }

    /// The worker of a registered balloon, to be run as one daemon; the balloon gets its frames from here.
    pub fn balloon_worker<'s>(&'s self, balloon: &'s dyn BalloonDriver) -> BalloonWorker<'s> {
        BalloonWorker::new(balloon, self, self.config.balloon_worker).draining(self)
    }
}

impl<P: Platform> Drain for MemoryManager<'_, P> {
    fn drain(&self) {
        self.mobility.drain_settled();
    }
}

impl<P: Platform> PageSource for MemoryManager<'_, P> {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        self.memory.alloc(request)
    }

    fn free(&self, frame: Pfn, order: Order) {
        self.memory.free(frame, order);
    }
}

/// Frames for balloons, reclaimed where free ones are missing.
impl<P: Platform> FrameSource for MemoryManager<'_, P> {
    fn take(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize {
        self.memory.take_balloon(how, out)
    }

    fn give_back(&self, frames: &[Pfn]) {
        let freed = self.frames.free_bulk(self.platform.cpu(), frames);
        debug_assert!(freed.is_ok(), "frames from take are allocated: {freed:?}");
    }
}
