//! The balloon over virtio-drivers' `Transport` and `VirtQueue`.
//!
//! Three locks. `state` guards the books and is held for the length of one call of [`Balloon`]. `queues` guards the
//! rings and their buffers, which lie in memory, and is held for one request or one look at the used rings. `wire`
//! guards the transport: it is only ever tried. If it is taken, the work is left to its holder (`posted.rs`). None of
//! them is held while memory is allocated or freed, or anybody waits. The exception is `wire`: whoever resets a device
//! or sets one up holds it while the device confirms the reset and while DMA memory comes and goes.
//!
//! Order: `wire`, `queues`, `state`. The last two are held together where a request goes out or an answer comes in,
//! so that a reset falls before it or after it.
//!
//! The configuration space is accessed as rarely as possible. Each access stops a virtual CPU, and QEMU lets it go on
//! only when all requests that it knows of are served, so the host then idles until we have sent the next. Other CPUs
//! do not wait for that one, and compaction never touches the configuration space.

mod device;
mod dma;
mod driver;
mod error;
mod ledger;
mod owner;
mod posted;
mod pump;
mod repair;
mod serve;
mod wait;
mod wire;
mod worker;

use dirigible_frames::sync::{AtomicBool, Mutex};
use dirigible_frames::{FrameAllocator, OwnerId, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

pub use self::device::QUEUE_SIZE;
use self::device::Queues;
use self::dma::Numbers;
pub use self::error::{BalloonError, DeviceError};
use self::posted::Posted;
use self::wire::Wire;
use crate::balloon::{Balloon, check};
use crate::{BalloonConfig, BalloonStats, Fault, Features, Held, MAX_PFNS};

/// The state machine with its numbers in DMA memory.
type Core<'a, H, const N: usize> = Balloon<'a, FrameAllocator<'a>, N, Numbers<H, N>>;

struct State<'a, H: Hal, const N: usize> {
    balloon: Core<'a, H, N>,
    /// The statistics as they are in the vm events already.
    published: BalloonStats,
    /// The target as it was read last; `None` when it could not be read.
    target: Option<u32>,
    /// When that was.
    read_at: Option<u64>,
    /// The device does not know the size yet.
    unwritten: bool,
    /// When the size was written last.
    written_at: u64,
    /// When the device was last asked whether it needs a reset because it does not answer.
    asked_at: u64,
    /// Restarts by `step` since a request was last answered.
    restarts: u32,
    /// When the next one may be.
    restart_at: u64,
    /// Whether the ledger counts the listed frames as unmovable; `None`: some of them, perhaps.
    unmovable: Option<bool>,
    /// The device was to be reset and did not confirm it.
    adrift: bool,
    /// How often `reset` or `shutdown` was called. A restart or a repair that is under way then gives up.
    ends: u64,
    /// Frames on their way from the balloon to the allocator.
    returning: u64,
    /// How many have arrived there so far.
    given_back: u64,
    /// Deflations undone, as far as `unmovable` takes them into account.
    undone: u64,
}

impl<H: Hal, const N: usize> State<'_, H, N> {
    /// Where the frames are, those in our hands included.
    fn held(&self) -> Held {
        let mut held = self.balloon.held();
        held.returning += self.returning;
        held
    }

    /// Whether `step` is to reset the device: it asks for it, and nobody has ended the balloon.
    fn needs_repair(&self) -> bool {
        self.balloon.fault() == Some(Fault::NeedsReset) && !self.balloon.is_stopping()
    }

    /// Frames that stand in the way of an end: all, without those of moves that were refused. The latter come back
    /// when the end of the move is taken, and nothing of the balloon waits for that.
    fn awaited(&self) -> u64 {
        self.held()
            .total()
            .saturating_sub(self.balloon.refused_frames())
    }

    /// After a call that may have undone deflations: what came back to the list is movable in the ledger, so the next
    /// look at it begins a new walk.
    fn note_undone(&mut self) {
        let undone = self.balloon.undone;
        if core::mem::replace(&mut self.undone, undone) != undone && self.unmovable != Some(false) {
            self.unmovable = None;
        }
    }
}

/// A balloon: books, device, and everything between.
///
/// One worker calls [`step`](Self::step); the interrupt's bottom half calls
/// [`handle_interrupt`](Self::handle_interrupt); mobility calls the [`MovableOwner`](dirigible_mobility::MovableOwner)
/// operations. All of them may run at once.
///
/// A device may answer inside `Transport::notify` or from another thread: after every notification the used rings are
/// looked at.
///
/// `N` is the most frame numbers in a message. A guest that knows that its host takes more than 256 (QEMU does,
/// Firecracker drops them) writes `VirtioBalloon<'_, H, T, P, 4096>`, at most [`LARGE_PFNS`](crate::LARGE_PFNS), and
/// says in its settings how many of them to use ([`batch`](BalloonConfig::batch),
/// [`exchange_batch`](BalloonConfig::exchange_batch)). The numbers are in DMA memory; a large balloon takes no more
/// of the stack than a small one, but for one message (16 KiB) while requests are sent.
///
/// # When the device fails
///
/// A device that reports it is reset and started again by [`step`](Self::step), and the balloon grows anew toward the
/// host's target; a device that was [`reset`](Self::reset) can be [`restart`](Self::restart)ed. A confirmed reset
/// gives all frames back to the guest. As long as there is a [`fault`](Self::fault), the balloon's frames count as
/// unmovable in the allocator's ledger, so that compaction does not try for their blocks: a dead device costs memory
/// and nothing else.
///
/// Dropping the balloon resets the device. If the device confirms that, the frames go back to the allocator. If it
/// does not, the host may have them for ever: they are lost for good, as unmovable frames of no owner, and the
/// queues' memory and the transport are leaked. Pairs that have settled and that nobody has taken end as if they had
/// been taken. Declare a balloon before the `Mobility` that it is registered with: then the latter goes first.
pub struct VirtioBalloon<'a, H: Hal, T: Transport, P: Platform, const N: usize = MAX_PFNS> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
    config: BalloonConfig,
    id: OwnerId,
    state: Mutex<State<'a, H, N>>,
    queues: Mutex<Queues<H, N>>,
    /// Only tried, except by a reset.
    wire: Mutex<Wire<'a, T, P>>,
    /// The work that waits for it.
    posted: Posted,
    /// There are settled pairs to be taken. Written under `state`.
    has_settled: AtomicBool,
    /// Since the target was last read the device has reported that its configuration has changed.
    reconfigured: AtomicBool,
    /// Since then an interrupt has come that did not say why.
    unsure: AtomicBool,
}

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// Negotiates features, sets the queues up, starts the device and gives it its statistics buffer.
    ///
    /// The balloon's frames carry the owner number `id`. To make them movable, register the balloon with a
    /// [`Mobility`](dirigible_mobility::Mobility) under that number. The balloon does not know it: what settles late
    /// it keeps for [`take_settled`](dirigible_mobility::MovableOwner::take_settled).
    ///
    /// # Errors
    /// When the settings are out of range, the guest's memory is larger than a balloon can name, or the device is no
    /// balloon or does not let itself be set up.
    pub fn new(
        transport: T,
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        id: OwnerId,
        config: BalloonConfig,
    ) -> Result<Self, BalloonError> {
        // The settings first: a device that is not touched needs no reset.
        check::<_, N>(frames, id, &config)?;
        let numbers = Numbers::new()?;
        let mut wire = Wire::new(transport, platform, config.reset_timeout_ns);
        let (features, mut queues) = Self::set_up(&mut wire, &config)?;
        let balloon = Balloon::in_memory(frames, id, features, config.clone(), numbers);
        let balloon = match balloon {
            Ok(balloon) => balloon,
            Err(fault) => {
                if let Some(quiet) = wire.give_up() {
                    drop(queues.release(&quiet));
                }
                return Err(fault.into());
            }
        };
        wire.start();
        let this = Self {
            frames,
            platform,
            config,
            id,
            state: Mutex::new(State {
                balloon,
                published: BalloonStats::default(),
                target: Some(0),
                read_at: None,
                unwritten: false,
                written_at: 0,
                asked_at: 0,
                restarts: 0,
                restart_at: 0,
                unmovable: Some(false),
                adrift: false,
                ends: 0,
                returning: 0,
                given_back: 0,
                undone: 0,
            }),
            queues: Mutex::new(queues),
            wire: Mutex::new(wire),
            posted: Posted::new(),
            has_settled: AtomicBool::new(false),
            reconfigured: AtomicBool::new(false),
            unsure: AtomicBool::new(false),
        };
        this.pump();
        Ok(this)
    }

    /// Frames promised to the host: what the device reads as `actual`.
    pub fn actual(&self) -> u64 {
        self.state.lock().balloon.actual()
    }

    /// The target as it was read last, lowered to what the guest has.
    pub fn target(&self) -> u64 {
        self.state.lock().balloon.target()
    }

    /// The target as the host set it, when it was read last.
    pub fn requested(&self) -> u32 {
        self.state.lock().balloon.requested()
    }

    /// What has happened so far.
    pub fn stats(&self) -> BalloonStats {
        self.state.lock().balloon.stats()
    }

    /// Where the frames are.
    #[inline(never)]
    pub fn held(&self) -> Held {
        self.state.lock().held()
    }

    /// Pairs that `migrate` left pending and that have not settled, and those of exchanges that run at this moment.
    pub fn pending_pairs(&self) -> u64 {
        self.state.lock().balloon.pending_pairs()
    }

    /// Pairs that have settled and wait to be taken: by `Mobility::drain_settled`, if the balloon is registered.
    pub fn settled_pairs(&self) -> u64 {
        self.state.lock().balloon.settled_pairs()
    }

    /// What is wrong, if anything.
    #[inline(never)]
    pub fn fault(&self) -> Option<Fault> {
        let mut state = self.state.lock();
        state.balloon.tick(self.platform.now());
        state.balloon.fault()
    }

    /// The negotiated features.
    pub fn features(&self) -> Features {
        self.state.lock().balloon.features()
    }

    /// The owner number that the balloon's frames carry.
    pub fn owner_id(&self) -> OwnerId {
        self.id
    }

    /// Recounts the books, for tests; see [`Balloon::verify`].
    ///
    /// # Errors
    /// What does not fit.
    pub fn verify(&self) -> Result<(), Fault> {
        self.state.lock().balloon.verify()
    }
}
