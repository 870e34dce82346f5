//! The balloon over virtio-drivers' `Transport` and `VirtQueue`.
//!
//! Two locks: `state` guards the books and is held for the length of one call of [`Balloon`]; `device` guards the
//! queues and the transport and is held for one request or one look at the used rings. Neither is held while memory
//! is allocated or freed, anybody waits, or a [`Settle`] runs. Order: `device` before `state`; both are held only
//! to pass `actual` or the target on.
//!
//! The configuration space is left alone as far as that goes: each access stops a virtual CPU, and QEMU lets it go on
//! only when it has served all requests that it knows of, so that it then stands idle until we have sent the next.

mod device;
mod dma;
mod owner;
mod pump;
mod wait;
mod worker;

use dirigible_frames::sync::{AtomicBool, Mutex};
use dirigible_frames::{FrameAllocator, OwnerClass, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use self::device::Device;
pub use self::device::{DeviceError, QUEUE_SIZE};
use self::dma::Numbers;
use crate::balloon::{Balloon, check};
use crate::source::Settle;
use crate::{BalloonConfig, BalloonStats, Fault, Features, Held, MAX_PFNS};

/// Why a balloon could not be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// The settings or the guest's memory do not fit.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The device does not fit.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

struct State<'a, H: Hal, const N: usize> {
    balloon: Balloon<'a, FrameAllocator<'a>, N, Numbers<H, N>>,
    /// What of the balloon's statistics stands in the vm events already.
    published: BalloonStats,
    /// The target as it was read last; `None` when it could not be read.
    target: Option<u32>,
    /// When that was.
    read_at: Option<u64>,
    /// The device does not know the size yet.
    unwritten: bool,
    /// When it was told the last one.
    written_at: u64,
}

/// A balloon: books, device, and everything between.
///
/// One worker calls [`step`](Self::step); the interrupt's bottom half calls
/// [`handle_interrupt`](Self::handle_interrupt); mobility calls the [`MovableOwner`](dirigible_mobility::MovableOwner)
/// operations. All of them may run at once.
///
/// A device that answers inside `Transport::notify` is as welcome as one that answers from another thread: after
/// every notification the used rings are looked at.
///
/// `N` is the most frame numbers in a message. A guest that knows that its host takes more than 256 (QEMU does,
/// Firecracker drops them) writes `VirtioBalloon<'_, H, T, P, 4096>`, at most [`LARGE_PFNS`](crate::LARGE_PFNS), and says
/// in its settings how many of them to use ([`batch`](BalloonConfig::batch),
/// [`exchange_batch`](BalloonConfig::exchange_batch)). The numbers are in DMA memory; a large balloon takes no more of
/// the stack than a small one, but for one message (16 KiB) while requests are sent.
pub struct VirtioBalloon<'a, H: Hal, T: Transport, P: Platform, const N: usize = MAX_PFNS> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
    settle: &'a dyn Settle,
    features: Features,
    config: BalloonConfig,
    class: OwnerClass,
    state: Mutex<State<'a, H, N>>,
    device: Mutex<Device<H, T, N>>,
    /// An interrupt came that nobody has looked at.
    interrupted: AtomicBool,
    /// The device has said since the target was last read that its configuration is another.
    reconfigured: AtomicBool,
}

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// Negotiates features, sets the queues up, starts the device and gives it its statistics buffer.
    ///
    /// `settle` hears of pairs that `migrate` left pending; for a balloon that is registered with a
    /// [`Mobility`](dirigible_mobility::Mobility) that is the `Mobility` itself.
    ///
    /// # Errors
    /// When the settings are out of range, the guest's memory is larger than a balloon can name, or the device is no
    /// balloon or does not let itself be set up.
    pub fn new(
        transport: T,
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        settle: &'a dyn Settle,
        class: OwnerClass,
        config: BalloonConfig,
    ) -> Result<Self, BalloonError> {
        // The settings first: a device that is not touched needs no reset.
        check::<_, N>(frames, class, &config)?;
        let device = Device::new(transport, Features::accepted(config.deflate_on_oom))?;
        let features = device.features();
        let numbers = Numbers::new()?;
        let balloon = Balloon::in_memory(frames, class, features, config.clone(), numbers)?;
        let this = Self {
            frames,
            platform,
            settle,
            features,
            config,
            class,
            state: Mutex::new(State {
                balloon,
                published: BalloonStats::default(),
                target: Some(0),
                read_at: None,
                unwritten: false,
                written_at: 0,
            }),
            device: Mutex::new(device),
            interrupted: AtomicBool::new(false),
            reconfigured: AtomicBool::new(false),
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
    pub fn held(&self) -> Held {
        self.state.lock().balloon.held()
    }

    /// Pairs that `migrate` left pending and that have not settled, and those of exchanges that run at this moment.
    pub fn pending_pairs(&self) -> u64 {
        self.state.lock().balloon.pending_pairs()
    }

    /// What is wrong, if anything.
    pub fn fault(&self) -> Option<Fault> {
        let mut state = self.state.lock();
        state.balloon.tick(self.platform.now());
        state.balloon.fault()
    }

    /// The negotiated features.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The class that the balloon's frames carry.
    pub fn class(&self) -> OwnerClass {
        self.class
    }

    /// Recounts the books, for tests; see [`Balloon::verify`].
    ///
    /// # Errors
    /// What does not fit.
    pub fn verify(&self) -> Result<(), Fault> {
        self.state.lock().balloon.verify()
    }
}
