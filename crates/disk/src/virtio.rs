//! A virtio-blk driver over virtio-drivers' `Transport` and `Hal`.
//!
//! Two locks. `core` guards the places for requests and the positions in the rings; it is held for one request or one
//! look at the answers. `wire` guards the transport; it is only tried, and if it is taken, the work is left to its
//! holder. Neither is held while anybody waits. Order: `wire`, `core`.
//!
//! Without a request in flight, a look for answers is one load; with some, it is a look at the used ring's index and at
//! the clock, without a lock.

mod error;
mod memory;
mod places;
mod repair;
mod ring;
mod wire;

use dirigible_frames::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, fence};
use dirigible_frames::{Cost, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

pub use self::error::SetUpError;
use self::places::{Places, Sent};
use self::repair::Condition;
use self::ring::{BLOCK_SECTORS, Ring};
use self::wire::Wire;
use crate::{BlockDevice, Completion, DiskConfig, DiskRequest, MAX_REQUEST_FRAMES, SubmitError};

/// The most requests that a disk can have in flight.
pub const MAX_DEPTH: usize = 64;

/// Frame numbers from here on have no physical address of 64 bits.
const END_OF_FRAMES: u64 = 1 << (64 - dirigible_frames::FRAME_SHIFT);

/// How a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskState {
    /// It takes requests.
    Live,
    /// It was ordered to reset itself and has not confirmed that yet.
    Resetting,
    /// It has failed for good. It has confirmed its reset: it uses no memory any more.
    Dead,
    /// It has failed for good and has not confirmed its reset: it may use memory for ever.
    Abandoned,
}

/// What has happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskStats {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests that the device has done.
    pub done: u64,
    /// Requests that the device says have failed.
    pub failed: u64,
    /// Requests that ended with a reset.
    pub lost: u64,
    /// Resets that were ordered since the disk was set up.
    pub resets: u64,
    /// Answers that no honest device gives.
    pub lies: u64,
}

/// What is changed with the lock held.
struct Core {
    places: Places,
    condition: Condition,
    /// Index of the available ring.
    available: u16,
    /// Resets in a row.
    restarts: u32,
    /// What has happened.
    stats: DiskStats,
}

/// A virtio-blk device as a disk.
///
/// The device may answer inside `Transport::notify` or from another thread. Frames are read and written by the device
/// at their physical address, which is the frame's number times its size.
///
/// The device's write cache is off, since nobody would flush it: the driver does not accept the feature that turns it
/// on. A host that keeps the promise then makes each write durable before it answers.
///
/// # When the device fails
///
/// A request that is not answered in time, or a device that says that it has failed, makes the driver reset the device.
/// A confirmed reset ends all requests as [`DiskError::Lost`](crate::DiskError::Lost), and the device is set up anew, a
/// few times in a row. A reset that is not confirmed ends them as
/// [`DiskError::Abandoned`](crate::DiskError::Abandoned). A device that answers as no honest one does is reset and left
/// so: nothing that it says afterwards would be worth more.
///
/// Dropping the disk resets the device. Drop it when all requests have been taken: those in flight end, and nobody is
/// told. If the device does not confirm the reset, the queue's memory and the transport are leaked.
pub struct VirtioDisk<'a, H: Hal, T: Transport, P: Platform> {
    platform: &'a P,
    config: DiskConfig,
    blocks: u64,
    ring: Ring<H>,
    core: Mutex<Core>,
    wire: Mutex<Wire<T>>,
    /// Requests accepted and not taken yet. Zero: there is nothing to look for.
    open: AtomicU32,
    /// Index up to which the used ring was read. Written under `core`.
    seen: AtomicU32,
    /// When deadlines are to be looked at, or the device asked. Written under `core`.
    look_at: AtomicU64,
    /// There is something to take or to repair, whatever the used ring says. Written under `core`.
    urgent: AtomicBool,
    /// The device is to be notified.
    bell: AtomicBool,
    /// An interrupt is to be acknowledged.
    interrupted: AtomicBool,
}

impl<'a, H: Hal, T: Transport, P: Platform> VirtioDisk<'a, H, T, P> {
    /// Resets the device, negotiates, and starts it.
    ///
    /// # Errors
    /// When the device is no disk, or one that the driver cannot use.
    pub fn new(transport: T, platform: &'a P, config: DiskConfig) -> Result<Self, SetUpError> {
        let mut wire = Wire::new(transport);
        if wire.reset(platform, config.reset_timeout_ns).is_none() {
            return Err(SetUpError::NoReset);
        }
        let set_up = wire.negotiate(&config).and_then(|device| {
            let ring = Ring::new(device.shape).ok_or(SetUpError::NoDmaMemory)?;
            Ok((device, ring))
        });
        let (device, ring) = match set_up {
            Ok(set_up) => set_up,
            Err(error) => {
                wire.reset(platform, config.reset_timeout_ns);
                return Err(error);
            }
        };
        wire.start(&ring);
        Ok(Self {
            platform,
            config,
            blocks: device.blocks,
            core: Mutex::new(Core {
                places: Places::new(device.shape.places),
                condition: Condition::Live,
                available: 0,
                restarts: 0,
                stats: DiskStats::default(),
            }),
            ring,
            wire: Mutex::new(wire),
            open: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            look_at: AtomicU64::new(u64::MAX),
            urgent: AtomicBool::new(false),
            bell: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        })
    }

    /// How the disk is.
    pub fn state(&self) -> DiskState {
        self.core.lock().condition.state()
    }

    /// What has happened so far.
    pub fn stats(&self) -> DiskStats {
        self.core.lock().stats
    }

    /// Requests that were accepted and whose completion nobody has taken yet.
    pub fn open(&self) -> usize {
        // Relaxed: a number for the caller to look at.
        self.open.load(Ordering::Relaxed) as usize
    }

    /// The device has raised its interrupt: takes the line down. Whoever waits for a request looks for it; nothing
    /// else is to be done. Waits for nothing: may be called by an interrupt's handler on a machine where handlers do
    /// not interrupt callers of this disk, else by its bottom half.
    pub fn handle_interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        self.use_wire();
    }

    /// Does what is to be done at the transport, unless somebody is there: then they do.
    fn use_wire(&self) {
        loop {
            // Pairs with the fence below: either the holder sees our flag after it has let go, or we find the lock free.
            fence(Ordering::SeqCst);
            let Some(mut wire) = self.wire.try_lock() else {
                return;
            };
            if self.interrupted.swap(false, Ordering::SeqCst) {
                wire.acknowledge();
            }
            if self.bell.swap(false, Ordering::SeqCst) {
                wire.notify();
            }
            drop(wire);
            fence(Ordering::SeqCst);
            let flags = [&self.interrupted, &self.bell];
            if !flags.iter().any(|flag| flag.load(Ordering::SeqCst)) {
                return;
            }
        }
    }

    /// Whether the disk can have such a request at all.
    fn fits(&self, request: &DiskRequest<'_>) -> bool {
        let count = request.frames.len();
        let end = request.block.checked_add(count as u64);
        (1..=MAX_REQUEST_FRAMES).contains(&count)
            && end.is_some_and(|end| end <= self.blocks)
            && request
                .frames
                .iter()
                .all(|frame| frame.get() < END_OF_FRAMES)
    }

    /// Puts a request into the queue; whether the device wants to be notified.
    fn enqueue(&self, request: &DiskRequest<'_>) -> Result<bool, SubmitError> {
        let DiskRequest {
            token,
            write,
            block,
            frames,
        } = *request;
        let mut core = self.core.lock();
        match core.condition.state() {
            DiskState::Live => {}
            DiskState::Resetting => return Err(SubmitError::Busy),
            DiskState::Dead | DiskState::Abandoned => return Err(SubmitError::Dead),
        }
        let place = core.places.find().ok_or(SubmitError::Busy)?;
        let now = self.platform.now();
        let deadline = now.saturating_add(self.config.timeout_ns);
        self.ring
            .prepare(place, write, block * BLOCK_SECTORS, frames);
        core.places
            .send(place, Sent::new(token, write, frames.len(), deadline));
        core.stats.sent += 1;
        // Relaxed: who is to find the completion knows of the request, by the caller's own means.
        self.open.fetch_add(1, Ordering::Relaxed);
        let look_at = deadline.min(now.saturating_add(self.config.ask_ns));
        // Relaxed: written under the lock only; a reader that comes too early looks again.
        if look_at < self.look_at.load(Ordering::Relaxed) {
            self.look_at.store(look_at, Ordering::Relaxed);
        }
        let wanted = self.ring.publish(place, core.available);
        core.available = core.available.wrapping_add(1);
        Ok(wanted)
    }

    /// Whether a look under the lock may find something.
    fn is_worth_a_look(&self) -> bool {
        // Acquire: pairs with the releases under the lock, whose holder did what the flag says.
        self.urgent.load(Ordering::Acquire)
            || u32::from(self.ring.used_index()) != self.seen.load(Ordering::Acquire)
            || self.platform.now() >= self.look_at.load(Ordering::Relaxed)
    }

    /// Takes answers from the used ring into `out`; gives how many. A device that lies is to be reset.
    fn take_answers(&self, core: &mut Core, out: &mut [Completion]) -> usize {
        let mut seen = self.seen.load(Ordering::Relaxed) as u16;
        let mut taken = 0;
        for room in out {
            if seen == self.ring.used_index() {
                break;
            }
            let Some(completion) = self.take_answer(core, seen) else {
                core.stats.lies += 1;
                self.begin_reset(core, true);
                break;
            };
            seen = seen.wrapping_add(1);
            *room = completion;
            taken += 1;
        }
        // Release: pairs with the acquire in `is_worth_a_look`.
        self.seen.store(seen.into(), Ordering::Release);
        taken
    }

    /// The answer at `index` of the used ring; `None` if it is none that an honest device gives.
    fn take_answer(&self, core: &mut Core, index: u16) -> Option<Completion> {
        let used = self.ring.used(index);
        let place = used.place?;
        let sent = core.places.take_sent(place)?;
        let Some(completion) = sent.answered(used.length, self.ring.status(place)) else {
            // It ends with all others, when the device has confirmed the reset.
            core.places.send(place, sent);
            return None;
        };
        match completion.result {
            Ok(()) => {
                core.stats.done += 1;
                core.restarts = 0;
            }
            Err(_) => core.stats.failed += 1,
        }
        Some(completion)
    }

    /// Takes what has ended, under the lock; gives how many, and whether something is to be done at the transport.
    fn take(&self, out: &mut [Completion]) -> (usize, bool) {
        let mut core = self.core.lock();
        let mut taken = 0;
        for room in out.iter_mut() {
            let Some(completion) = core.places.take_ended() else {
                break;
            };
            *room = completion;
            taken += 1;
        }
        if core.condition == Condition::Live {
            taken += self.take_answers(&mut core, &mut out[taken..]);
        }
        let mut attend = core.condition.is_resetting();
        let is_read = u32::from(self.ring.used_index()) == self.seen.load(Ordering::Relaxed);
        // With answers left, a request may only look overdue.
        if core.condition == Condition::Live && is_read {
            let now = self.platform.now();
            if now >= self.look_at.load(Ordering::Relaxed) {
                attend = true;
                self.look_at_deadlines(&mut core, now);
            }
        }
        let urgent = core.condition.is_resetting() || core.places.has_ended(self.ring.shape.places);
        self.urgent.store(urgent, Ordering::Release);
        (taken, attend)
    }
}

impl<H: Hal, T: Transport + Send, P: Platform> BlockDevice for VirtioDisk<'_, H, T, P> {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn depth(&self) -> usize {
        self.ring.shape.places
    }

    fn submit(&self, request: DiskRequest<'_>) -> Result<(), SubmitError> {
        if !self.fits(&request) {
            return Err(SubmitError::Invalid);
        }
        let mut result = self.enqueue(&request);
        if result == Err(SubmitError::Busy) && self.urgent.load(Ordering::Acquire) {
            // A reset may be all that is in the way, and nobody need be looking for completions.
            self.attend();
            result = self.enqueue(&request);
        }
        let wanted = result?;
        self.platform
            .charge(Cost::DiskRequest(request.frames.len() as u32));
        if wanted {
            self.bell.store(true, Ordering::SeqCst);
            self.use_wire();
        }
        Ok(())
    }

    fn completed(&self, out: &mut [Completion]) -> usize {
        // Relaxed: see `enqueue`.
        if self.open.load(Ordering::Relaxed) == 0 || !self.is_worth_a_look() {
            return 0;
        }
        let (mut taken, attend) = self.take(out);
        if attend {
            self.attend();
            taken += self.take(&mut out[taken..]).0;
        }
        self.open.fetch_sub(taken as u32, Ordering::Relaxed);
        taken
    }
}

impl<H: Hal, T: Transport, P: Platform> Drop for VirtioDisk<'_, H, T, P> {
    fn drop(&mut self) {
        let quiet = self
            .wire
            .lock()
            .reset(self.platform, self.config.reset_timeout_ns);
        if let Some(quiet) = quiet {
            self.ring.allow_release(&quiet);
        }
    }
}

impl<H: Hal, T: Transport, P: Platform> core::fmt::Debug for VirtioDisk<'_, H, T, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VirtioDisk")
            .field("blocks", &self.blocks)
            .field("state", &self.state())
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}
