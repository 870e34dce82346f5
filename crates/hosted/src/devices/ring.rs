//! The device's end of one virtqueue. The driver is not trusted.

use core::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::devices::registers::QueueSetup;

/// Flag of the available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Bytes before a ring's entries: flags and index.
const RING_HEAD: u64 = 4;
/// Bytes of a used ring's entry.
const USED_ENTRY: u64 = 8;

/// The driver's rings are invalid: the queue cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokenRing;

/// A request, as found in the rings.
pub(crate) type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A queue that the driver set up.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
}

impl Ring {
    /// The queue that `setup` describes; `None` if it lies outside memory, is misaligned, or has no queue's size.
    pub(crate) fn new(setup: QueueSetup, max: u16, memory: &GuestMemoryMmap) -> Option<Self> {
        let mut queue = Queue::new(max).ok()?;
        queue.try_set_size(setup.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.driver_area))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.device_area))
            .ok()?;
        queue.set_ready(true);
        queue.is_valid(memory).then_some(Self { queue })
    }

    /// Entries in the queue: most requests that can be under way.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next request.
    pub(crate) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<Chain<'m>>, BrokenRing> {
        match self.queue.iter(memory) {
            Ok(mut available) => Ok(available.next()),
            Err(_) => Err(BrokenRing),
        }
    }

    /// Answers request `head`, for which nothing was written.
    pub(crate) fn answer(&mut self, memory: &GuestMemoryMmap, head: u16) -> Result<(), BrokenRing> {
        self.answer_with(memory, head, 0)
    }

    /// Answers request `head`, for which `length` bytes were written.
    pub(crate) fn answer_with(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        length: u32,
    ) -> Result<(), BrokenRing> {
        let added = self.queue.add_used(memory, head, length);
        added.map_err(|_| BrokenRing)
    }

    /// Answers with an id that no honest device would give.
    pub(crate) fn answer_raw(
        &mut self,
        memory: &GuestMemoryMmap,
        id: u32,
    ) -> Result<(), BrokenRing> {
        let next = self.queue.next_used();
        let used = GuestAddress(self.queue.used_ring());
        let place = RING_HEAD + u64::from(next % self.queue.size()) * USED_ENTRY;
        let entry = used.checked_add(place).ok_or(BrokenRing)?;
        let index = used.checked_add(2).ok_or(BrokenRing)?;
        // The id, then a length of 0, both little-endian.
        memory
            .write_obj(u64::from(id).to_le(), entry)
            .map_err(|_| BrokenRing)?;
        let next = next.wrapping_add(1);
        self.queue.set_next_used(next);
        // Release pairs with the driver's acquire load of the index: the entry is there before it is announced.
        memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(|_| BrokenRing)
    }

    /// Whether the driver wants an interrupt for what was answered.
    pub(crate) fn wants_interrupt(&self, memory: &GuestMemoryMmap) -> bool {
        // Pairs with the driver's own fence: it sets the flag, then looks at the used ring; we fill the ring, then look
        // at the flag. One of the two sees the other's store.
        fence(Ordering::SeqCst);
        let flags = memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Acquire);
        flags.map_or(true, |flags| u16::from_le(flags) & NO_INTERRUPT == 0)
    }
}
