//! The queue, as the driver sees it: a split virtqueue whose descriptors belong to request places for good.
//!
//! virtio-drivers' `VirtQueue` has its size fixed at compile time, keeps a copy of all descriptors inside the value,
//! and allocates for indirect descriptors. Here the device decides how large the queue is. Where it takes indirect
//! descriptors, each request place has a table of its own in DMA memory and takes one entry of the queue; else each
//! place has its share of the queue's descriptors. Nothing is allocated, and no list of free descriptors is kept.
//!
//! All calls that change something are made by one caller at a time, which the lock of `virtio.rs` sees to; wrong use
//! cannot do more than send a wrong request.
#![forbid(unsafe_code)]

use core::sync::atomic::{Ordering, fence};

use dirigible_frames::{FRAME_SIZE, Pfn};
use virtio_drivers::{Hal, PhysAddr};

use super::MAX_DEPTH;
use super::memory::Memory;
use super::wire::Quiet;
use crate::MAX_REQUEST_FRAMES;

/// Descriptors of a request: header, a piece for each frame, status.
pub(super) const CHAIN: usize = MAX_REQUEST_FRAMES + 2;
/// Most entries that the queue is given: enough for all places without indirect descriptors.
const MOST_ENTRIES: u32 = (MAX_DEPTH * CHAIN).next_power_of_two() as u32;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Bytes of a ring before its entries: flags and index.
const RING_HEAD: usize = 4;
/// Where a ring's index stands.
const RING_INDEX: usize = 2;
/// Bytes of a used ring's entry: id and length.
const USED_ENTRY: usize = 8;
/// Header (16 bytes) and status of a place, padded.
const PLACE_HEAD: usize = 32;
/// Where the status stands in it.
const STATUS: usize = 16;
/// Bytes of the header.
const HEADER_BYTES: u32 = 16;
/// Sectors of a block.
pub(super) const BLOCK_SECTORS: u64 = (FRAME_SIZE / 512) as u64;

/// Flag of a descriptor: another follows.
const NEXT: u64 = 1;
/// Flag of a descriptor: the device writes.
const WRITE: u64 = 2;
/// Flag of a descriptor: it is a table of descriptors.
const INDIRECT: u64 = 4;
/// Flag of the used ring: the device wants no notification.
const NO_NOTIFY: u16 = 1;

/// Request types.
const TYPE_IN: u64 = 0;
const TYPE_OUT: u64 = 1;

/// A status that no device gives: what stands there until the device answers.
const NO_STATUS: u8 = 0xff;

/// Sizes and offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Entries of the queue, a power of two.
    entries: u16,
    /// Places for requests.
    pub(super) places: usize,
    /// Whether places have tables of their own.
    indirect: bool,
    /// The most bytes of a piece.
    largest: u32,
}

impl Shape {
    /// For a queue of at most `max` entries; `None` when it has no room for one request.
    pub(super) fn new(max: u32, depth: usize, indirect: bool, largest: u32) -> Option<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let each = if indirect { 1 } else { CHAIN };
        let wanted = (depth * each).next_power_of_two() as u32;
        // The largest power of two that the device has.
        let offered = 1 << max.clamp(1, MOST_ENTRIES).ilog2();
        let entries = wanted.min(offered) as u16;
        let places = (usize::from(entries) / each).min(depth);
        (max > 0 && places > 0).then_some(Self {
            entries,
            places,
            indirect,
            largest,
        })
    }

    /// Entries of the queue.
    pub(super) const fn entries(self) -> u16 {
        self.entries
    }

    const fn available(self) -> usize {
        self.entries as usize * DESCRIPTOR
    }

    const fn used(self) -> usize {
        // Its entries are words of 32 bits.
        (self.available() + RING_HEAD + self.entries as usize * 2 + 2).next_multiple_of(4)
    }

    const fn first_place(self) -> usize {
        (self.used() + RING_HEAD + self.entries as usize * USED_ENTRY + 2)
            .next_multiple_of(DESCRIPTOR)
    }

    const fn place_bytes(self) -> usize {
        PLACE_HEAD + if self.indirect { CHAIN * DESCRIPTOR } else { 0 }
    }

    /// Bytes of all together.
    const fn bytes(self) -> usize {
        self.first_place() + self.places * self.place_bytes()
    }

    /// Where a place's header is.
    const fn place(self, place: usize) -> usize {
        self.first_place() + place * self.place_bytes()
    }

    /// The offset of a place's descriptors, and the number of the first in its table.
    const fn table(self, place: usize) -> (usize, usize) {
        if self.indirect {
            (self.place(place) + PLACE_HEAD, 0)
        } else {
            (place * CHAIN * DESCRIPTOR, place * CHAIN)
        }
    }

    /// The descriptor that begins a place's request.
    const fn head(self, place: usize) -> usize {
        if self.indirect { place } else { place * CHAIN }
    }

    /// The place whose request begins with descriptor `id`.
    fn place_of(self, id: u32) -> Option<usize> {
        let id = usize::try_from(id).ok()?;
        let each = if self.indirect { 1 } else { CHAIN };
        (id.is_multiple_of(each) && id / each < self.places).then_some(id / each)
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Used {
    /// Whose request it is; `None`: nobody's.
    pub(super) place: Option<usize>,
    /// Bytes that the device says it has written.
    pub(super) length: u32,
}

/// The queue and its requests in memory.
pub(super) struct Ring<H: Hal> {
    memory: Memory<H>,
    pub(super) shape: Shape,
}

impl<H: Hal> Ring<H> {
    /// `None` when there is no memory.
    pub(super) fn new(shape: Shape) -> Option<Self> {
        let memory = Memory::new(shape.bytes())?;
        Some(Self { memory, shape })
    }

    /// Physical addresses of the descriptors, the available ring and the used ring.
    pub(super) fn addresses(&self) -> [PhysAddr; 3] {
        [0, self.shape.available(), self.shape.used()].map(|offset| self.memory.physical(offset))
    }

    /// As at first. No device uses the queue.
    pub(super) fn clear(&self) {
        for word in (0..self.shape.first_place()).step_by(2) {
            self.memory.word16(word).store(0, Ordering::Relaxed);
        }
    }

    /// The index of the used ring: moves with every answer.
    pub(super) fn used_index(&self) -> u16 {
        let index = self.memory.word16(self.shape.used() + RING_INDEX);
        // Acquire: what the device wrote before (entry, status, frames) is seen by who sees the index.
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// The entry at `index` of the used ring.
    pub(super) fn used(&self, index: u16) -> Used {
        let entry = usize::from(index % self.shape.entries);
        let offset = self.shape.used() + RING_HEAD + entry * USED_ENTRY;
        // Relaxed: `used_index` came before.
        let read = |offset| u32::from_le(self.memory.word32(offset).load(Ordering::Relaxed));
        Used {
            place: self.shape.place_of(read(offset)),
            length: read(offset + 4),
        }
    }

    /// The status byte of a request that was answered.
    pub(super) fn status(&self, place: usize) -> u8 {
        let status = self.memory.byte(self.shape.place(place) + STATUS);
        // Relaxed: `used_index` came before.
        status.load(Ordering::Relaxed)
    }

    /// Writes one descriptor of a table.
    fn describe(&self, offset: usize, address: PhysAddr, length: u32, flags: u64, next: usize) {
        let rest = u64::from(length) | flags << 32 | (next as u64) << 48;
        // Relaxed: `publish` comes after.
        let (first, second) = (self.memory.word64(offset), self.memory.word64(offset + 8));
        first.store(address.to_le(), Ordering::Relaxed);
        second.store(rest.to_le(), Ordering::Relaxed);
    }

    /// Writes the request of a place that the device does not have.
    pub(super) fn prepare(&self, place: usize, write: bool, sector: u64, frames: &[Pfn]) {
        let shape = self.shape;
        let head = shape.place(place);
        let kind = if write { TYPE_OUT } else { TYPE_IN };
        // Relaxed, all of them: `publish` comes after.
        let (first, second) = (self.memory.word64(head), self.memory.word64(head + 8));
        first.store(kind.to_le(), Ordering::Relaxed);
        second.store(sector.to_le(), Ordering::Relaxed);
        let status = self.memory.byte(head + STATUS);
        status.store(NO_STATUS, Ordering::Relaxed);

        let (table, base) = shape.table(place);
        let mut count = 0;
        let mut describe = |address, length, flags| {
            let next = if flags & NEXT != 0 {
                base + count + 1
            } else {
                0
            };
            self.describe(table + count * DESCRIPTOR, address, length, flags, next);
            count += 1;
        };
        describe(self.memory.physical(head), HEADER_BYTES, NEXT);
        let direction = if write { 0 } else { WRITE };
        let pieces = Pieces {
            frames,
            largest: shape.largest,
        };
        for (address, length) in pieces {
            describe(address, length, NEXT | direction);
        }
        describe(self.memory.physical(head + STATUS), 1, WRITE);
        if shape.indirect {
            let bytes = (count * DESCRIPTOR) as u32;
            let address = self.memory.physical(table);
            self.describe(shape.head(place) * DESCRIPTOR, address, bytes, INDIRECT, 0);
        }
    }

    /// Gives a prepared request to the device as entry number `index` of the available ring; whether the device wants
    /// to be notified.
    pub(super) fn publish(&self, place: usize, index: u16) -> bool {
        let ring = self.shape.available();
        let entry = usize::from(index % self.shape.entries);
        let head = self.shape.head(place) as u16;
        let slot = self.memory.word16(ring + RING_HEAD + entry * 2);
        slot.store(head.to_le(), Ordering::Relaxed);
        let next = index.wrapping_add(1).to_le();
        // Release: a device that sees the index sees the request.
        let slot = self.memory.word16(ring + RING_INDEX);
        slot.store(next, Ordering::Release);
        // We store the index and then look at the flag; the device sets the flag and then looks at the index. With a
        // full fence on both sides one of the two sees the other's store.
        fence(Ordering::SeqCst);
        let flags = self.memory.word16(self.shape.used());
        u16::from_le(flags.load(Ordering::Relaxed)) & NO_NOTIFY == 0
    }

    /// The device never uses the queue again: its memory is given back with it.
    pub(super) fn allow_release(&self, quiet: &Quiet) {
        self.memory.allow_release(quiet);
    }
}

/// Frames as pieces of memory: those that follow each other in memory are one piece.
struct Pieces<'a> {
    frames: &'a [Pfn],
    /// The most bytes of a piece, at least a frame.
    largest: u32,
}

impl Iterator for Pieces<'_> {
    type Item = (PhysAddr, u32);

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.frames.first()?;
        let most = (self.largest / FRAME_SIZE as u32) as usize;
        let follows = |pair: &[Pfn]| pair[1].get() == pair[0].get().wrapping_add(1);
        let joined = self.frames.windows(2).take_while(|pair| follows(pair));
        let run = (joined.count() + 1).min(most.max(1));
        self.frames = &self.frames[run..];
        Some((first.address(), (run * FRAME_SIZE) as u32))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn frames_in_a_row_are_one_piece() {
        let frames = [5, 6, 7, 9, 8, 7].map(Pfn::new);
        let pieces = |largest| -> Vec<_> {
            let frames = &frames;
            Pieces { frames, largest }
                .map(|(address, length)| (address / 4096, length / 4096))
                .collect()
        };
        assert_eq!(pieces(u32::MAX), [(5, 3), (9, 1), (8, 1), (7, 1)]);
        assert_eq!(
            pieces(2 * 4096 + 1),
            [(5, 2), (7, 1), (9, 1), (8, 1), (7, 1)]
        );
        assert_eq!(pieces(4096).len(), 6);
    }

    #[test]
    fn places_fit_the_queue() {
        let shape = |max, depth, indirect| Shape::new(max, depth, indirect, u32::MAX);
        for (max, depth, indirect, entries, places) in [
            (256, 64, true, 64, 64),
            (1024, 32, true, 32, 32),
            (1000, 999, true, 64, MAX_DEPTH),
            (16, 64, true, 16, 16),
            (1, 64, true, 1, 1),
            (256, 64, false, 256, 7),
            (1024, 64, false, 1024, 30),
            (1024, 2, false, 128, 2),
            (32768, 64, false, 4096, 64),
            (u32::MAX, 64, false, 4096, 64),
            (64, 64, false, 64, 1),
        ] {
            let shape = shape(max, depth, indirect).unwrap();
            assert_eq!((shape.entries, shape.places), (entries, places));
            let heads: Vec<_> = (0..places).map(|place| shape.head(place)).collect();
            for id in 0..u32::from(entries) + 5 {
                let place = heads.iter().position(|&head| head == id as usize);
                assert_eq!(shape.place_of(id), place);
            }
            assert_eq!(shape.place_of(u32::MAX), None);
            // No table is beyond the queue's descriptors, or beyond the memory.
            let (table, _) = shape.table(places - 1);
            let end = if indirect {
                shape.bytes()
            } else {
                shape.available()
            };
            assert!(table + CHAIN * DESCRIPTOR <= end);
        }
        for (max, indirect) in [(0, true), (0, false), (33, false), (1, false)] {
            assert_eq!(shape(max, 64, indirect), None);
        }
    }
}
