//! The queues: with their memory (`dma.rs`) the only unsafe code of the crate.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use dirigible_frames::Platform;
use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::dma::{Buffers, STATS_PLACE};
use super::error::DeviceError;
use super::wire::{Quiet, Wire};
use crate::request::{LARGE_PFNS, Message, REQUESTS, RequestId};
use crate::stats::{ENTRY_BYTES, MAX_ENTRIES, Report};
use crate::{Features, Queue, QueueNumbering};

/// Descriptors in each queue: fits every known device, and more than there can be requests.
pub const QUEUE_SIZE: usize = 16;

const _: () = assert!(QUEUE_SIZE >= REQUESTS);
// What stands in `Outstanding`.
const _: () = assert!(LARGE_PFNS * 4 <= u16::MAX as usize);

/// The buffer behind a descriptor that the device has.
#[derive(Clone, Copy)]
struct Outstanding {
    place: u8,
    len: u16,
}

/// The used ring has an entry for a descriptor that the device does not have. It cannot be stepped over, and a later
/// request with that descriptor would be taken for answered: nothing more is sent or read on the queue.
struct Bogus;

struct Ring<H: Hal> {
    queue: VirtQueue<H, QUEUE_SIZE>,
    number: u16,
    outstanding: [Option<Outstanding>; QUEUE_SIZE],
    bogus: bool,
}

impl<H: Hal> Ring<H> {
    /// Sets a queue up in `place`, if the device has it. Out of line, as the compiler unrolls the caller's loop.
    #[inline(never)]
    fn set_up<T: Transport>(
        place: &mut Option<Self>,
        transport: &mut T,
        queue: Queue,
        features: Features,
    ) -> Result<(), DeviceError> {
        let Some(dense) = queue.number(features, QueueNumbering::Dense) else {
            return Ok(());
        };
        let number = match queue.number(features, QueueNumbering::Fixed) {
            // Nothing at the dense number: the device follows the specification's numbers.
            Some(fixed) if transport.max_queue_size(dense) == 0 => fixed,
            _ => dense,
        };
        let error = |error| DeviceError::Queue { queue, error };
        let queue = VirtQueue::new(transport, number, false, false).map_err(error)?;
        *place = Some(Self {
            queue,
            number,
            outstanding: [None; QUEUE_SIZE],
            bogus: false,
        });
        Ok(())
    }

    /// Gives `len` bytes of a buffer to the device, which is still to be notified.
    #[inline(never)]
    fn send<const N: usize>(
        &mut self,
        buffers: &mut Buffers<H, N>,
        place: usize,
        len: usize,
    ) -> Result<(), virtio_drivers::Error> {
        let buffer = buffers.readable(place, len);
        // SAFETY: the buffer lives in DMA memory until the device has confirmed a reset (`Queues::drop`), and is not
        // written until it has been popped: `busy`, set below, keeps `writable` away from it.
        let token = unsafe { self.queue.add(&[buffer], &mut []) }?;
        buffers.set_busy(place, true);
        if let Some(entry) = self.outstanding.get_mut(usize::from(token)) {
            *entry = Some(Outstanding {
                place: place as u8,
                len: len as u16,
            });
        }
        Ok(())
    }

    /// The buffer that the device has returned next. The length is not looked at: the device had nothing to write.
    #[inline(never)]
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

/// The rings with their buffers. From its set-up on the device has a ring's address.
struct Parts<H: Hal, const N: usize> {
    inflate: Option<Ring<H>>,
    deflate: Option<Ring<H>>,
    stats: Option<Ring<H>>,
    /// Set up because it is negotiated, and left empty: no hint is ever given.
    hint: Option<Ring<H>>,
    buffers: Buffers<H, N>,
}

/// The queues of a device: what lies in memory, without the transport.
pub(super) struct Queues<H: Hal, const N: usize> {
    /// `None` once the device has confirmed that it has forgotten them.
    parts: Option<Parts<H, N>>,
    open: bool,
}

/// Memory that a device does not know of any more, to be given back by dropping it. Not under `queues` or `state`:
/// others wait for these.
#[must_use = "giving memory back under a lock keeps others waiting"]
pub(super) struct Forgotten<H: Hal, const N: usize>(#[expect(dead_code)] Option<Parts<H, N>>);

impl<H: Hal, const N: usize> Queues<H, N> {
    /// The memory for requests, without rings.
    pub(super) fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            parts: Some(Parts {
                inflate: None,
                deflate: None,
                stats: None,
                hint: None,
                buffers: Buffers::new()?,
            }),
            open: false,
        })
    }

    /// Sets the queues up for a device whose features are negotiated and which is not started yet.
    ///
    /// If that fails half way, the device has the addresses of the rings that are here already. They stay here until
    /// it has confirmed a reset ([`release`](Self::release)).
    pub(super) fn set_up<T: Transport, P: Platform>(
        &mut self,
        wire: &mut Wire<'_, T, P>,
        features: Features,
    ) -> Result<(), DeviceError> {
        let parts = self.parts.as_mut().ok_or(DeviceError::NoDmaMemory)?;
        let mut bells = [0; 3];
        let transport = wire.transport()?;
        for (which, (queue, place)) in [
            (Queue::Inflate, &mut parts.inflate),
            (Queue::Deflate, &mut parts.deflate),
            (Queue::Stats, &mut parts.stats),
            (Queue::FreePageHint, &mut parts.hint),
        ]
        .into_iter()
        .enumerate()
        {
            Ring::set_up(place, transport, queue, features)?;
            if let (Some(bell), Some(ring)) = (bells.get_mut(which), place) {
                *bell = ring.number;
            }
        }
        if parts.inflate.is_none() || parts.deflate.is_none() {
            return Err(DeviceError::Queue {
                queue: Queue::Inflate,
                error: virtio_drivers::Error::Unsupported,
            });
        }
        wire.set_bells(bells);
        self.open = true;
        Ok(())
    }

    fn open(&mut self) -> Option<&mut Parts<H, N>> {
        self.parts.as_mut().filter(|_| self.open)
    }

    /// Puts one request of the state machine on its queue. The device is still to be notified.
    pub(super) fn send(
        &mut self,
        queue: Queue,
        request: RequestId,
        message: &Message<N>,
    ) -> Result<(), virtio_drivers::Error> {
        let place = request.index();
        let Some(parts) = self.open() else {
            return Err(virtio_drivers::Error::InvalidParam);
        };
        let ring = match queue {
            Queue::Inflate => &mut parts.inflate,
            Queue::Deflate => &mut parts.deflate,
            _ => return Err(virtio_drivers::Error::Unsupported),
        };
        let ring = ring.as_mut().ok_or(virtio_drivers::Error::InvalidParam)?;
        if ring.bogus || place >= REQUESTS || message.pfns().is_empty() {
            return Err(virtio_drivers::Error::InvalidParam);
        }
        let Some(buffer) = parts.buffers.writable(place) else {
            return Err(virtio_drivers::Error::AlreadyUsed);
        };
        let len = message.encode(buffer);
        ring.send(&mut parts.buffers, place, len)
    }

    /// Takes what the device has returned.
    pub(super) fn answers(&mut self) -> Answers {
        let mut answers = Answers::default();
        let Some(parts) = self.open() else {
            return answers;
        };
        for (queue, ring) in [
            (Queue::Inflate, &mut parts.inflate),
            (Queue::Deflate, &mut parts.deflate),
        ] {
            let Some(ring) = ring else {
                continue;
            };
            while !answers.requests.is_full() {
                match ring.pop(&mut parts.buffers) {
                    Ok(Some(place)) => {
                        answers.requests.push((queue, RequestId::new(place as u8)));
                    }
                    Ok(None) => break,
                    Err(Bogus) => answers.broken = true,
                }
            }
        }
        if let Some(stats) = &mut parts.stats {
            match stats.pop(&mut parts.buffers) {
                Ok(Some(_)) => answers.stats = true,
                Ok(None) => {}
                Err(Bogus) => answers.broken = true,
            }
        }
        answers
    }

    /// Whether the device has no statistics buffer and could have one.
    pub(super) fn wants_stats(&mut self) -> bool {
        self.open().is_some_and(|parts| {
            !parts.buffers.is_busy(STATS_PLACE)
                && parts.stats.as_ref().is_some_and(|ring| !ring.bogus)
        })
    }

    /// Gives the device its one statistics buffer, if it has none. It is still to be notified.
    pub(super) fn send_stats(&mut self, report: &Report) -> bool {
        if !self.wants_stats() {
            return false;
        }
        let Some(parts) = self.open() else {
            return false;
        };
        let (Some(ring), Some(buffer)) = (&mut parts.stats, parts.buffers.writable(STATS_PLACE))
        else {
            return false;
        };
        let mut bytes = [0; MAX_ENTRIES * ENTRY_BYTES];
        let len = report.encode(&mut bytes);
        buffer[..len].copy_from_slice(&bytes[..len]);
        len > 0 && ring.send(&mut parts.buffers, STATS_PLACE, len).is_ok()
    }

    /// Nothing is sent any more, and no answer taken.
    pub(super) fn close(&mut self) {
        self.open = false;
    }

    /// The device has forgotten the queues: their memory is ours again.
    pub(super) fn release(&mut self, _proof: &Quiet) -> Forgotten<H, N> {
        self.open = false;
        Forgotten(self.parts.take())
    }
}

impl<H: Hal, const N: usize> Drop for Queues<H, N> {
    fn drop(&mut self) {
        // Not released: the device may still read and write this memory, so nobody else ever gets it.
        if let Some(parts) = self.parts.take() {
            core::mem::forget(parts);
        }
    }
}
