//! The device side of virtio-blk: reads and writes a file, when virtual time has come.
//!
//! The driver is not trusted: whatever stands in its rings, the device neither panics nor touches memory that the
//! driver could not touch itself, nor anything beyond the end of the disk.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    costs::{DISK_DEPTH, disk_latency, disk_transfer},
    devices::{
        disk_faults::{DiskAccess, DiskFault, DiskFaultPlan},
        disk_file::{DiskFile, Piece},
        disk_options::SECTOR,
        registers::{DeviceModel, Registers},
        ring::{BrokenRing, Chain, Ring},
    },
    memory::guest_ram::RamShared,
};

/// The only queue.
pub(crate) const QUEUE: u16 = 0;
/// Configuration words: sectors (two words), most bytes of a piece, most pieces of a request.
pub(crate) const CAPACITY: usize = 0;
pub(crate) const SEG_MAX: usize = 3;
/// Bytes of the configuration that the device has.
pub(crate) const CONFIG_BYTES: usize = 16;
/// Most pieces of a request.
pub(crate) const MAX_PIECES: usize = 126;

/// Bytes of a request's header: type, a reserved word, sector.
const HEADER: usize = 16;
/// Request types.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
/// Status bytes.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Reads taken from the driver.
    pub reads: u64,
    /// Writes taken from the driver.
    pub writes: u64,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes written to the disk.
    pub bytes_written: u64,
    /// Most requests that were with the device at a time.
    pub peak: u64,
    /// Requests that got a planned fault.
    pub faults: u64,
    /// Requests beyond the end of the disk.
    pub out_of_range: u64,
    /// Requests that are none, or none that the device knows.
    pub malformed: u64,
    /// Times that the driver's rings were invalid.
    pub broken_rings: u64,
    /// Requests that the host's file could not do.
    pub host_errors: u64,
    /// Resets by the driver.
    pub resets: u64,
}

/// A request.
#[derive(Debug)]
struct Job {
    head: u16,
    access: DiskAccess,
    /// Where on the disk.
    offset: u64,
    pieces: Vec<Piece>,
    /// Bytes of all pieces.
    bytes: u64,
    status_at: GuestAddress,
    /// What the answer is whatever is done.
    refused: Option<u8>,
    fault: Option<DiskFault>,
}

/// The device model.
#[derive(Debug)]
pub(crate) struct DiskDevice {
    ram: Arc<RamShared>,
    file: DiskFile,
    bytes: u64,
    /// Thousandths of the speed in the table of costs; `None`: requests take the time of the work.
    speed: Option<u32>,
    ring: Option<Ring>,
    /// Requests beyond the depth, in the order in which they came.
    waiting: VecDeque<Job>,
    /// The others, by the time of their end and a number that keeps the order of their beginnings.
    running: BTreeMap<(u64, u64), Job>,
    started: u64,
    /// When the last transfer that was begun is over.
    transferred: u64,
    faults: Vec<DiskFaultPlan>,
    /// The driver's resets are not taken.
    deaf: bool,
    /// The rings are valid: the device fails because a fault plan says so.
    planned: bool,
    /// The queue has more requests than one kick may bring: go on at the next tick.
    unfinished: bool,
    counters: DiskCounters,
    /// For the pieces of later requests.
    spare: Vec<Vec<Piece>>,
}

impl DiskDevice {
    pub(crate) fn new(
        ram: Arc<RamShared>,
        file: DiskFile,
        bytes: u64,
        speed: Option<u32>,
        faults: Vec<DiskFaultPlan>,
    ) -> Self {
        Self {
            ram,
            file,
            bytes,
            speed,
            ring: None,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            started: 0,
            transferred: 0,
            faults,
            deaf: false,
            planned: false,
            unfinished: false,
            counters: DiskCounters::default(),
            spare: Vec::new(),
        }
    }

    pub(crate) fn counters(&self) -> DiskCounters {
        self.counters
    }

    pub(crate) fn file(&self) -> &DiskFile {
        &self.file
    }

    pub(crate) fn set_faults(&mut self, faults: Vec<DiskFaultPlan>) {
        self.faults = faults;
    }

    pub(crate) fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    /// Requests that the device has.
    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Takes new requests and answers those that are due; whether the driver wants an interrupt.
    fn serve(&mut self, now: u64) -> Result<bool, BrokenRing> {
        let ram = Arc::clone(&self.ram);
        let memory = ram.view();
        self.unfinished = false;
        // An honest driver has at most as many under way; one that adds as fast as we answer must not hold us.
        let mut budget = self.ring.as_ref().map_or(0, Ring::size);
        while let Some(ring) = self.ring.as_mut().filter(|_| budget > 0) {
            let Some(chain) = ring.pop(memory)? else {
                break;
            };
            let (head, size) = (chain.head_index(), ring.size());
            // A ring has as many descriptors as entries: a driver with more requests under way gives one twice.
            if head >= size || self.in_flight() >= usize::from(size) {
                return Err(BrokenRing);
            }
            let job = self.read_request(chain, head, memory)?;
            self.take(job, now)?;
            budget -= 1;
            self.unfinished = budget == 0;
        }
        let answered = self.finish_due(now, memory)?;
        let wanted = |ring: &Ring| ring.wants_interrupt(memory);
        Ok(answered && self.ring.as_ref().is_some_and(wanted))
    }

    /// The request of a chain; an error when there is no place for its status, so that it cannot be answered.
    fn read_request(
        &mut self,
        chain: Chain<'_>,
        head: u16,
        memory: &GuestMemoryMmap,
    ) -> Result<Job, BrokenRing> {
        let mut pieces = self.spare.pop().unwrap_or_default();
        pieces.clear();
        let mut header = None;
        let mut status = None;
        // Which pieces the device is to write: none of those to be read may follow.
        let (mut readable, mut writable) = (0, 0);
        let mut is_good = true;
        for descriptor in chain {
            let piece = Piece {
                address: descriptor.addr(),
                length: descriptor.len() as usize,
            };
            if header.is_none() {
                is_good = !descriptor.is_write_only() && piece.length == HEADER;
                let bytes = memory.read_obj::<[u8; HEADER]>(piece.address);
                header = Some(bytes.map_err(|_| BrokenRing)?);
                continue;
            }
            // What was taken for the status was a piece.
            if let Some(piece) = status.take() {
                pieces.push(piece);
                writable += 1;
            }
            if descriptor.is_write_only() {
                status = Some(piece);
            } else {
                is_good &= writable == 0;
                pieces.push(piece);
                readable += 1;
            }
        }
        is_good &= pieces.len() <= MAX_PIECES;
        let (Some(header), Some(status)) = (header, status) else {
            return Err(BrokenRing);
        };
        if status.length != 1 {
            return Err(BrokenRing);
        }
        let [kind, _, low, high] = words(&header);
        let sector = u64::from(low) | u64::from(high) << 32;
        let (access, is_known) = match kind {
            TYPE_IN => (DiskAccess::Read, true),
            TYPE_OUT => (DiskAccess::Write, true),
            _ => (DiskAccess::Read, false),
        };
        let is_one_way = match access {
            DiskAccess::Read => readable == 0,
            DiskAccess::Write => writable == 0,
        };
        let bytes = pieces.iter().map(|piece| piece.length as u64).sum::<u64>();
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|offset| offset.checked_add(bytes));
        let refused = if !is_known {
            self.counters.malformed += 1;
            Some(UNSUPPORTED)
        } else if !is_good || !is_one_way || bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            self.counters.malformed += 1;
            Some(IO_ERROR)
        } else if end.is_none_or(|end| end > self.bytes) {
            self.counters.out_of_range += 1;
            Some(IO_ERROR)
        } else {
            None
        };
        Ok(Job {
            head,
            access,
            offset: offset.unwrap_or(u64::MAX),
            pieces,
            bytes,
            status_at: status.address,
            refused,
            fault: None,
        })
    }

    /// Takes a request over: it begins now, or waits for others.
    fn take(&mut self, mut job: Job, now: u64) -> Result<(), BrokenRing> {
        match job.access {
            DiskAccess::Read => self.counters.reads += 1,
            DiskAccess::Write => self.counters.writes += 1,
        }
        if job.refused.is_none() {
            let (access, bytes) = (job.access, job.offset..job.offset + job.bytes);
            // All plans count the request.
            let plans = self.faults.iter_mut();
            let faults = plans.map(|plan| plan.next(access, &bytes));
            job.fault = faults.fold(None, Option::or);
        }
        self.counters.faults += u64::from(job.fault.is_some());
        match job.fault {
            Some(DiskFault::BreakDown) => {
                self.planned = true;
                return Err(BrokenRing);
            }
            Some(DiskFault::Silent | DiskFault::Deaf) => {
                self.deaf |= job.fault == Some(DiskFault::Deaf);
                self.recycle(job.pieces);
                return Ok(());
            }
            _ => {}
        }
        self.waiting.push_back(job);
        self.counters.peak = self.counters.peak.max(self.in_flight() as u64);
        self.start_next(now);
        Ok(())
    }

    /// Begins requests that wait, as far as the depth allows.
    fn start_next(&mut self, now: u64) {
        while self.running.len() < DISK_DEPTH
            && let Some(job) = self.waiting.pop_front()
        {
            let mut due = now;
            if let Some(speed) = self.speed {
                let bytes = if job.refused.is_none() { job.bytes } else { 0 };
                let ready = now.saturating_add(disk_latency(speed));
                // One request's data after the other's: they share what the disk can transfer.
                due = ready
                    .max(self.transferred)
                    .saturating_add(disk_transfer(bytes, speed));
                self.transferred = due;
            }
            if let Some(DiskFault::Delay(delay)) = job.fault {
                due = due.saturating_add(delay);
            }
            self.started += 1;
            self.running.insert((due, self.started), job);
        }
    }

    /// Does and answers the requests that are due; whether the used ring moved.
    fn finish_due(&mut self, now: u64, memory: &GuestMemoryMmap) -> Result<bool, BrokenRing> {
        let mut answered = false;
        while let Some(first) = self.running.first_entry()
            && first.key().0 <= now
        {
            let ((due, _), job) = first.remove_entry();
            let status = self.perform(&job, memory);
            self.answer(&job, status, memory)?;
            self.recycle(job.pieces);
            answered = true;
            // The next one began at that moment, even if time has gone on in larger steps.
            self.start_next(due);
        }
        Ok(answered)
    }

    /// Moves the data; gives the status.
    fn perform(&mut self, job: &Job, memory: &GuestMemoryMmap) -> u8 {
        if let Some(refused) = job.refused {
            return refused;
        }
        let half;
        let (pieces, bytes, status) = match job.fault {
            Some(DiskFault::Error) => return IO_ERROR,
            Some(DiskFault::Torn) => {
                half = first_half(&job.pieces, job.bytes);
                (&half, job.bytes / 2, IO_ERROR)
            }
            _ => (&job.pieces, job.bytes, OK),
        };
        let write = job.access == DiskAccess::Write;
        let moved = self.file.transfer(memory, pieces, job.offset, write);
        if moved.is_err() {
            self.counters.host_errors += 1;
            return IO_ERROR;
        }
        match job.access {
            DiskAccess::Read => self.counters.bytes_read += bytes,
            DiskAccess::Write => self.counters.bytes_written += bytes,
        }
        status
    }

    /// Answers a request, or does what the fault plan says.
    fn answer(
        &mut self,
        job: &Job,
        status: u8,
        memory: &GuestMemoryMmap,
    ) -> Result<(), BrokenRing> {
        let Some(ring) = self.ring.as_mut() else {
            return Ok(());
        };
        let status = match job.fault {
            Some(DiskFault::NoStatus) => None,
            Some(DiskFault::Status(status)) => Some(status),
            _ => Some(status),
        };
        if let Some(status) = status {
            memory
                .write_obj(status, job.status_at)
                .map_err(|_| BrokenRing)?;
        }
        let data = match job.access {
            DiskAccess::Read if job.refused.is_none() => job.bytes as u32,
            _ => 0,
        };
        let length = data + 1;
        match job.fault {
            Some(DiskFault::WrongId(id)) => ring.answer_raw(memory, id),
            Some(DiskFault::Length(length)) => ring.answer_with(memory, job.head, length),
            Some(DiskFault::Twice) => {
                ring.answer_with(memory, job.head, length)?;
                ring.answer_with(memory, job.head, length)
            }
            _ => ring.answer_with(memory, job.head, length),
        }
    }

    /// Keeps the memory of a request's pieces for others, unless it is a hostile driver's.
    fn recycle(&mut self, pieces: Vec<Piece>) {
        if pieces.capacity() <= 2 * MAX_PIECES {
            self.spare.push(pieces);
        }
    }

    /// Forgets all requests.
    fn forget(&mut self) {
        self.ring = None;
        self.waiting.clear();
        self.running.clear();
        self.unfinished = false;
        self.transferred = 0;
    }

    /// The rings are invalid: the queue is not used until the driver resets the device.
    fn give_up(&mut self, registers: &Registers) -> bool {
        if !core::mem::take(&mut self.planned) {
            self.counters.broken_rings += 1;
        }
        self.forget();
        registers.need_reset();
        false
    }
}

/// The little-endian words of a header.
fn words(header: &[u8; HEADER]) -> [u32; 4] {
    let (bytes, _) = header.as_chunks::<4>();
    core::array::from_fn(|word| {
        bytes
            .get(word)
            .map_or(0, |&bytes| u32::from_le_bytes(bytes))
    })
}

/// The pieces of the first half of `bytes`.
fn first_half(pieces: &[Piece], bytes: u64) -> Vec<Piece> {
    let mut left = (bytes / 2) as usize;
    let mut half = Vec::new();
    for piece in pieces {
        let length = piece.length.min(left);
        if length == 0 {
            break;
        }
        left -= length;
        half.push(Piece { length, ..*piece });
    }
    half
}

impl DeviceModel for DiskDevice {
    fn activate(&mut self, registers: &Registers) {
        let ram = Arc::clone(&self.ram);
        let setup = registers.queue(QUEUE).unwrap_or_default();
        // A queue that is not set up is not used.
        if setup.size == 0 {
            return;
        }
        self.ring = Ring::new(setup, registers.queue_max, ram.view());
        if self.ring.is_none() {
            self.give_up(registers);
        }
    }

    fn takes_reset(&self) -> bool {
        !self.deaf
    }

    fn reset(&mut self) {
        self.counters.resets += 1;
        self.forget();
    }

    fn kicked(&mut self, registers: &Registers, _queue: u16, now: u64) -> bool {
        self.serve(now)
            .unwrap_or_else(|BrokenRing| self.give_up(registers))
    }

    fn tick(&mut self, registers: &Registers, now: u64) -> bool {
        let ram = Arc::clone(&self.ram);
        let served = if self.unfinished {
            self.serve(now)
        } else {
            let wanted = |ring: &Ring| ring.wants_interrupt(ram.view());
            let answered = self.finish_due(now, ram.view());
            answered.map(|answered| answered && self.ring.as_ref().is_some_and(wanted))
        };
        served.unwrap_or_else(|BrokenRing| self.give_up(registers))
    }

    fn due(&self) -> u64 {
        if self.unfinished {
            return 0;
        }
        let first = self.running.first_key_value();
        first.map_or(u64::MAX, |(&(due, _), _)| due)
    }

    fn may_write(&self, _word: usize) -> bool {
        false
    }

    fn refused_write(&mut self) {
        self.counters.malformed += 1;
    }
}
