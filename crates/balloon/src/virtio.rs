//! The balloon over virtio-drivers' `Transport` and `VirtQueue`.
//!
//! Two locks: `state` guards the books and is held for the length of one call of [`Balloon`]; `device` guards the
//! queues and the transport and is held for one request or one look at the used rings. Neither is held while memory
//! is allocated or freed, anybody waits, or a [`Settle`] runs. Order: `device` before `state`; both are held only
//! to write `actual`.

mod device;
mod owner;
mod wait;
mod worker;

use dirigible_frames::sync::{AtomicBool, Mutex, Ordering, fence};
use dirigible_frames::{Cost, Event, FRAME_SIZE, FrameAllocator, OwnerClass, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use self::device::Device;
pub use self::device::{DeviceError, QUEUE_SIZE};
use crate::balloon::{Balloon, Output};
use crate::request::Message;
use crate::source::Settle;
use crate::stats::{Report, Tag};
use crate::{BalloonConfig, BalloonStats, Fault, Features, Held};

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

struct State<'a> {
    balloon: Balloon<'a, FrameAllocator<'a>>,
    /// What of the balloon's statistics stands in the vm events already.
    published: BalloonStats,
}

/// A balloon: books, device, and everything between.
///
/// One worker calls [`step`](Self::step); the interrupt's bottom half calls
/// [`handle_interrupt`](Self::handle_interrupt); mobility calls the [`MovableOwner`](dirigible_mobility::MovableOwner)
/// operations. All of them may run at once.
///
/// A device that answers inside `Transport::notify` is as welcome as one that answers from another thread: after
/// every notification the used rings are looked at.
pub struct VirtioBalloon<'a, H: Hal, T: Transport, P: Platform> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
    settle: &'a dyn Settle,
    features: Features,
    config: BalloonConfig,
    class: OwnerClass,
    state: Mutex<State<'a>>,
    device: Mutex<Device<H, T>>,
    /// An interrupt came that nobody has looked at.
    interrupted: AtomicBool,
}

impl<'a, H: Hal, T: Transport, P: Platform> VirtioBalloon<'a, H, T, P> {
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
        Balloon::new(frames, class, Features::empty(), config.clone())?;
        let device = Device::new(transport, Features::accepted(config.deflate_on_oom))?;
        let features = device.features();
        let balloon = Balloon::new(frames, class, features, config.clone())?;
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
            }),
            device: Mutex::new(device),
            interrupted: AtomicBool::new(false),
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

    /// The device has interrupted: takes its answers and does what follows from them.
    ///
    /// It may be called from any thread, and from within `Transport::notify`. It takes the balloon's locks, so an
    /// interrupt handler that may have interrupted the balloon on its own CPU must leave the call to a bottom half.
    pub fn handle_interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        // Pairs with the fences in `pump` and `look_again`: whoever holds the device sees the flag after letting go, or we
        // see the device free.
        fence(Ordering::SeqCst);
        let free = self.device.try_lock().is_some();
        // Held: perhaps by ourselves, further up in `notify`. The holder looks at the rings when it has let go.
        if free {
            self.pump();
        }
    }

    /// After the device was held outside of `pump`: does what an interrupt meanwhile left to us.
    fn look_again(&self) {
        // Pairs with the fence in `handle_interrupt`.
        fence(Ordering::SeqCst);
        if self.interrupted.load(Ordering::SeqCst) {
            self.pump();
        }
    }

    /// Does all outputs, takes all answers, until there is neither.
    fn pump(&self) {
        let mut message = Message::new();
        let mut stats_due = true;
        loop {
            // Pairs with the store in `handle_interrupt`.
            if self.interrupted.swap(false, Ordering::SeqCst) {
                self.device.lock().acknowledge_interrupt();
            }
            self.do_outputs(&mut message);
            // Once per call: a device that returns the buffer at once does not keep us here.
            if stats_due && self.fill_stats() {
                stats_due = false;
            }
            if self.take_answers() {
                continue;
            }
            // Pairs with the fence in `handle_interrupt`.
            fence(Ordering::SeqCst);
            if !self.interrupted.load(Ordering::SeqCst) {
                break;
            }
        }
        self.publish();
    }

    fn do_outputs(&self, message: &mut Message) {
        loop {
            // A statement of its own: the lock is released before the output is done.
            let output = self
                .state
                .lock()
                .balloon
                .next_output(self.platform.now(), message);
            match output {
                None => break,
                Some(Output::Send { queue, request }) => {
                    self.platform
                        .charge(Cost::HostRequest(message.pfns().len() as u32));
                    let sent = self.device.lock().send(queue, request, message);
                    if sent.is_err() {
                        self.state.lock().balloon.send_failed(request);
                    }
                }
                Some(Output::Free) => self.free(message),
                Some(Output::Settled { from, to, outcome }) => {
                    self.settle.settled(from, to, outcome);
                }
                Some(Output::WriteActual(_)) => {
                    let mut device = self.device.lock();
                    // Read again with the device in hand: of two writers the later writes the later value.
                    let actual = self.state.lock().balloon.actual();
                    device.write_actual(actual as u32);
                }
            }
        }
    }

    fn free(&self, message: &Message) {
        let mut frames = arrayvec::ArrayVec::<_, { crate::MAX_PFNS }>::new();
        frames.extend(message.frames());
        if self.frames.free_bulk(self.platform.cpu(), &frames).is_err() {
            // Frames that were ours and cannot be freed: somebody else freed them.
            self.state.lock().balloon.damaged(frames.len() as u64);
        }
    }

    /// Takes the used rings' entries; `true` if there was one.
    fn take_answers(&self) -> bool {
        let answers = self.device.lock().answers();
        if answers.is_empty() {
            return false;
        }
        let mut state = self.state.lock();
        for &(queue, request) in &answers.requests {
            // The device's fault, counted by the balloon.
            let _ = state.balloon.complete(queue, request);
        }
        if answers.broken {
            state.balloon.protocol_broken();
        }
        true
    }

    /// Gives the device its statistics buffer when it has none; whether it did.
    fn fill_stats(&self) -> bool {
        if !self.device.lock().wants_stats() {
            return false;
        }
        let mut report = Report::new();
        report.set(Tag::MemFree, self.frames.free_frames() * FRAME_SIZE as u64);
        report.set(
            Tag::MemTotal,
            self.frames.managed_frames() * FRAME_SIZE as u64,
        );
        let sent = self.device.lock().send_stats(&report);
        if sent {
            self.state.lock().balloon.stats.stats_buffers += 1;
        }
        sent
    }

    /// Raises the vm events by what has happened since the last call.
    fn publish(&self) {
        let mut state = self.state.lock();
        let (new, old) = (state.balloon.stats(), state.published);
        if new == old {
            return;
        }
        state.published = new;
        let cpu = self.platform.cpu();
        for (event, new, old) in [
            (Event::BalloonInflate, new.inflated, old.inflated),
            (Event::BalloonDeflate, new.deflated, old.deflated),
            (Event::BalloonMigrate, new.frames_moved, old.frames_moved),
            (Event::BalloonMessages, new.messages, old.messages),
            (
                Event::BalloonMigrateMessages,
                new.migrate_messages,
                old.migrate_messages,
            ),
            (Event::BalloonRetry, new.retries, old.retries),
        ] {
            if new > old {
                self.frames.events().add(cpu, event, new - old);
            }
        }
    }
}
