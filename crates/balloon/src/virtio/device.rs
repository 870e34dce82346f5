//! The queues: with their memory (`dma.rs`) the only unsafe code of the crate.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};

use super::dma::{Buffers, STATS_PLACE};
use crate::features::config_space;
use crate::request::{LARGE_PFNS, Message, REQUESTS, RequestId};
use crate::stats::{ENTRY_BYTES, MAX_ENTRIES, Report};
use crate::{Features, Queue, QueueNumbering};

/// Descriptors in each queue: fits every known device, and more than there can be requests.
pub const QUEUE_SIZE: usize = 16;

/// How many times a reset asks whether the device has finished it.
const RESET_LOOKS: usize = 1000;

const _: () = assert!(QUEUE_SIZE >= REQUESTS);
// What stands in `Outstanding`.
const _: () = assert!(LARGE_PFNS * 4 <= u16::MAX as usize);

/// Why a device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is another kind of device.
    #[error("the device is no memory balloon but {0:?}")]
    NotABalloon(DeviceType),
    /// It does not agree to the features.
    #[error("the device refused the features {0:?}")]
    FeaturesRefused(Features),
    /// A queue could not be set up.
    #[error("the {queue:?} queue cannot be set up: {error}")]
    Queue {
        /// Which.
        queue: Queue,
        /// What virtio-drivers says.
        error: virtio_drivers::Error,
    },
    /// No memory for the requests.
    #[error("no DMA memory for the requests")]
    NoDmaMemory,
    /// The configuration space cannot be read.
    #[error("the configuration space cannot be read: {0}")]
    Config(virtio_drivers::Error),
}

/// What stands behind a descriptor that the device has.
#[derive(Clone, Copy)]
struct Outstanding {
    place: u8,
    len: u16,
}

/// The used ring has an entry for a descriptor that the device does not have. It cannot be stepped over, and a later
/// request with that descriptor would be taken for answered: the queue is at its end.
struct Bogus;

struct Ring<H: Hal> {
    queue: VirtQueue<H, QUEUE_SIZE>,
    number: u16,
    outstanding: [Option<Outstanding>; QUEUE_SIZE],
    bogus: bool,
}

impl<H: Hal> Ring<H> {
    fn new<T: Transport>(
        transport: &mut T,
        queue: Queue,
        features: Features,
    ) -> Result<Option<Self>, DeviceError> {
        let Some(dense) = queue.number(features, QueueNumbering::Dense) else {
            return Ok(None);
        };
        let number = match queue.number(features, QueueNumbering::Fixed) {
            // Nothing at the dense number: the device follows the specification's numbers.
            Some(fixed) if transport.max_queue_size(dense) == 0 => fixed,
            _ => dense,
        };
        let error = |error| DeviceError::Queue { queue, error };
        let queue = VirtQueue::new(transport, number, false, false).map_err(error)?;
        Ok(Some(Self {
            queue,
            number,
            outstanding: [None; QUEUE_SIZE],
            bogus: false,
        }))
    }

    /// Gives `len` bytes of a buffer to the device and tells it so.
    fn send<T: Transport, const N: usize>(
        &mut self,
        transport: &mut T,
        buffers: &mut Buffers<H, N>,
        place: usize,
        len: usize,
    ) -> Result<(), virtio_drivers::Error> {
        let buffer = buffers.readable(place, len);
        // SAFETY: the buffer lives in DMA memory until the device has been reset, and is not written until it has
        // been popped: `busy`, set below, keeps `writable` away from it.
        let token = unsafe { self.queue.add(&[buffer], &mut []) }?;
        buffers.set_busy(place, true);
        if let Some(entry) = self.outstanding.get_mut(usize::from(token)) {
            *entry = Some(Outstanding {
                place: place as u8,
                len: len as u16,
            });
        }
        // Always, whatever the device says about notifications: there is no full fence between the store of the
        // available index and virtio-drivers' look at the device's wish.
        transport.notify(self.number);
        Ok(())
    }

    /// The buffer that the device has returned next. Its lengths are not looked at: it had nothing to write.
    fn pop<const N: usize>(&mut self, buffers: &mut Buffers<H, N>) -> Result<Option<usize>, Bogus> {
        if self.bogus {
            return Ok(None);
        }
        let Some(token) = self.queue.peek_used() else {
            return Ok(None);
        };
        let entry = self.outstanding.get(usize::from(token)).copied().flatten();
        let Some(Outstanding { place, len }) = entry else {
            self.bogus = true;
            return Err(Bogus);
        };
        let (place, len) = (usize::from(place), usize::from(len));
        // SAFETY: `outstanding` says that `add` gave this token for exactly this buffer and length, and that it has
        // not been popped since.
        let popped = unsafe {
            self.queue
                .pop_used(token, &[buffers.readable(place, len)], &mut [])
        };
        if popped.is_err() {
            // The entry changed between two looks at it.
            self.bogus = true;
            return Err(Bogus);
        }
        self.outstanding[usize::from(token)] = None;
        buffers.set_busy(place, false);
        Ok(Some(place))
    }
}

/// What the used rings held.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) requests: ArrayVec<(Queue, RequestId), { 2 * REQUESTS }>,
    pub(super) broken: bool,
    stats: bool,
}

impl Answers {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && !self.broken && !self.stats
    }
}

/// The device with its queues.
pub(super) struct Device<H: Hal, T: Transport, const N: usize> {
    transport: T,
    features: Features,
    inflate: Ring<H>,
    deflate: Ring<H>,
    stats: Option<Ring<H>>,
    /// Set up because it is negotiated, and left empty: no hint is ever given.
    _hint: Option<Ring<H>>,
    buffers: Buffers<H, N>,
    live: bool,
}

impl<H: Hal, T: Transport, const N: usize> Device<H, T, N> {
    pub(super) fn new(mut transport: T, accepted: Features) -> Result<Self, DeviceError> {
        let kind = transport.device_type();
        // The id 5 has two names in virtio-drivers.
        if !matches!(
            kind,
            DeviceType::MemoryBallooning | DeviceType::MemoryBalloon
        ) {
            return Err(DeviceError::NotABalloon(kind));
        }
        let features = transport.begin_init(accepted);
        let set_up = Self::set_up(&mut transport, features);
        let (inflate, deflate, stats, hint, buffers) = match set_up {
            Ok(parts) => parts,
            Err(error) => {
                transport.set_status(DeviceStatus::FAILED);
                return Err(error);
            }
        };
        transport.finish_init();
        Ok(Self {
            transport,
            features,
            inflate,
            deflate,
            stats,
            _hint: hint,
            buffers,
            live: true,
        })
    }

    #[allow(clippy::type_complexity)]
    fn set_up(
        transport: &mut T,
        features: Features,
    ) -> Result<
        (
            Ring<H>,
            Ring<H>,
            Option<Ring<H>>,
            Option<Ring<H>>,
            Buffers<H, N>,
        ),
        DeviceError,
    > {
        // Legacy devices have no such bit.
        let agreed = transport.get_status().contains(DeviceStatus::FEATURES_OK);
        if !agreed && !transport.requires_legacy_layout() {
            return Err(DeviceError::FeaturesRefused(features));
        }
        read_target(transport).map_err(DeviceError::Config)?;
        let buffers = Buffers::new()?;
        let missing = |queue| DeviceError::Queue {
            queue,
            error: virtio_drivers::Error::Unsupported,
        };
        let mut ring = |queue| Ring::new(transport, queue, features);
        let inflate = ring(Queue::Inflate)?.ok_or(missing(Queue::Inflate))?;
        let deflate = ring(Queue::Deflate)?.ok_or(missing(Queue::Deflate))?;
        let stats = ring(Queue::Stats)?;
        let hint = ring(Queue::FreePageHint)?;
        Ok((inflate, deflate, stats, hint, buffers))
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    pub(super) fn read_target(&self) -> Result<u32, virtio_drivers::Error> {
        read_target(&self.transport)
    }

    pub(super) fn write_actual(&mut self, actual: u32) {
        if self.live {
            // A device that does not take it has no use for it.
            let _ = self
                .transport
                .write_config_space(config_space::ACTUAL, config_space::encode(actual));
        }
    }

    /// Takes the line down and says why it was up.
    pub(super) fn acknowledge_interrupt(&mut self) -> InterruptStatus {
        // After a reset too: a line that stays up would call for ever.
        self.transport.ack_interrupt()
    }

    /// Sends one request of the state machine.
    pub(super) fn send(
        &mut self,
        queue: Queue,
        request: RequestId,
        message: &Message<N>,
    ) -> Result<(), virtio_drivers::Error> {
        let ring = match queue {
            Queue::Inflate => &mut self.inflate,
            Queue::Deflate => &mut self.deflate,
            _ => return Err(virtio_drivers::Error::Unsupported),
        };
        let place = request.index();
        if !self.live || ring.bogus || place >= REQUESTS || message.pfns().is_empty() {
            return Err(virtio_drivers::Error::InvalidParam);
        }
        let Some(buffer) = self.buffers.writable(place) else {
            return Err(virtio_drivers::Error::AlreadyUsed);
        };
        let len = message.encode(buffer);
        ring.send(&mut self.transport, &mut self.buffers, place, len)
    }

    /// Takes what the device has returned.
    pub(super) fn answers(&mut self) -> Answers {
        let mut answers = Answers::default();
        if !self.live {
            return answers;
        }
        for (queue, ring) in [
            (Queue::Inflate, &mut self.inflate),
            (Queue::Deflate, &mut self.deflate),
        ] {
            while !answers.requests.is_full() {
                match ring.pop(&mut self.buffers) {
                    Ok(Some(place)) => {
                        answers.requests.push((queue, RequestId::new(place as u8)));
                    }
                    Ok(None) => break,
                    Err(Bogus) => answers.broken = true,
                }
            }
        }
        if let Some(stats) = &mut self.stats {
            match stats.pop(&mut self.buffers) {
                Ok(Some(_)) => answers.stats = true,
                Ok(None) => {}
                Err(Bogus) => answers.broken = true,
            }
        }
        answers
    }

    /// Whether the device has no statistics buffer and could have one.
    pub(super) fn wants_stats(&self) -> bool {
        self.live
            && !self.buffers.is_busy(STATS_PLACE)
            && self.stats.as_ref().is_some_and(|ring| !ring.bogus)
    }

    /// Gives the device its one statistics buffer, if it has none.
    pub(super) fn send_stats(&mut self, report: &Report) -> bool {
        if !self.wants_stats() {
            return false;
        }
        let (Some(ring), Some(buffer)) = (&mut self.stats, self.buffers.writable(STATS_PLACE))
        else {
            return false;
        };
        let mut bytes = [0; MAX_ENTRIES * ENTRY_BYTES];
        let len = report.encode(&mut bytes);
        buffer[..len].copy_from_slice(&bytes[..len]);
        len > 0
            && ring
                .send(&mut self.transport, &mut self.buffers, STATS_PLACE, len)
                .is_ok()
    }

    /// Makes the device forget its queues. It ends whether the device plays along or not.
    pub(super) fn reset(&mut self) {
        self.live = false;
        // Not queue by queue: virtio-drivers waits without a bound for a queue to say that it is off.
        self.transport.set_status(DeviceStatus::empty());
        for _ in 0..RESET_LOOKS {
            if self.transport.get_status().is_empty() {
                break;
            }
        }
    }
}

fn read_target<T: Transport>(transport: &T) -> Result<u32, virtio_drivers::Error> {
    transport
        .read_config_space(config_space::NUM_PAGES)
        .map(config_space::decode)
}

impl<H: Hal, T: Transport, const N: usize> Drop for Device<H, T, N> {
    fn drop(&mut self) {
        // Before the fields, which are the memory that the device reads and writes.
        self.reset();
    }
}
