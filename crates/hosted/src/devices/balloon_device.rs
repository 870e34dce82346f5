//! The device side of virtio-balloon: takes the guest's frames, and really gives their memory back to the host.
//!
//! The driver is not trusted: whatever stands in its rings, the device neither panics nor touches memory that the
//! driver could not touch itself.

use std::{collections::VecDeque, sync::Arc};

use dirigible_frames::{FRAME_SIZE, Pfn};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use crate::{
    costs::host_answer,
    devices::{
        balloon_options::{AnswerTime, BalloonOptions, features},
        balloon_stats::GuestStatistics,
        faults::{Fault, FaultPlan, Request},
        held_frames::{HeldFrames, ProtocolErrors},
        registers::{DeviceModel, Registers},
        ring::{BrokenRing, Chain, Ring},
    },
    memory::{
        discard::{DiscardCounts, Discarder},
        guest_ram::RamShared,
        residency::resident_pages,
    },
};

/// Queue of frames to be taken.
pub(crate) const INFLATE: u16 = 0;
/// Queue of frames to be given back.
pub(crate) const DEFLATE: u16 = 1;
/// Queue of statistics, if offered: queues are numbered densely over what is offered.
pub(crate) const STATS: u16 = 2;

/// Configuration word: frames that the host wants.
pub(crate) const NUM_PAGES: usize = 0;
/// Configuration word: frames in the balloon, as the driver reports.
pub(crate) const ACTUAL: usize = 1;
/// Bytes of the configuration with these features.
pub(crate) const CONFIG_BYTES: usize = 8;

/// Frame numbers read from a request at once.
const CHUNK: usize = 1024;
/// Bytes of a frame number in a request.
const PFN_BYTES: usize = 4;

/// What the device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonCounters {
    /// Inflate requests.
    pub inflate_messages: u64,
    /// Deflate requests.
    pub deflate_messages: u64,
    /// Statistics buffers received.
    pub stats_messages: u64,
    /// Frames taken.
    pub inflated: u64,
    /// Frames given back.
    pub deflated: u64,
    /// Most frames held at a time.
    pub peak: u64,
    /// What was discarded, and how.
    pub discards: DiscardCounts,
    /// What the driver did wrong.
    pub errors: ProtocolErrors,
    /// Frames that a driver left with the host when it reset the device.
    pub held_at_reset: u64,
}

/// A request that is to be answered later.
#[derive(Clone, Copy, Debug)]
struct Delayed {
    due: u64,
    queue: u16,
    head: u16,
}

/// The device model.
#[derive(Debug)]
pub(crate) struct BalloonDevice {
    ram: Arc<RamShared>,
    rings: [Option<Ring>; 3],
    held: HeldFrames,
    discarder: Discarder,
    audit: bool,
    /// From the taking of a request to its answer.
    answer: AnswerTime,
    /// Whether time is virtual, and the device's work takes none by itself.
    is_virtual: bool,
    counters: BalloonCounters,
    statistics: GuestStatistics,
    /// The driver's statistics buffer, kept until the host asks for new figures.
    stats_buffer: Option<u16>,
    stats_wanted: bool,
    fault: Option<FaultPlan>,
    /// The rings are valid: the device fails because the fault plan says so.
    planned: bool,
    /// At most as many of a queue as its ring has entries.
    delayed: VecDeque<Delayed>,
    /// Queues with more requests than one kick may bring: go on at the next tick.
    unfinished: bool,
    /// Frames of the request under way.
    frames: Vec<Pfn>,
}

impl BalloonDevice {
    pub(crate) fn new(
        ram: Arc<RamShared>,
        end: Pfn,
        options: BalloonOptions,
        is_virtual: bool,
    ) -> Self {
        Self {
            ram,
            rings: [const { None }; 3],
            held: HeldFrames::new(end),
            discarder: Discarder::new(options.discard),
            audit: options.audit,
            answer: options.answer,
            is_virtual,
            counters: BalloonCounters::default(),
            statistics: GuestStatistics::default(),
            stats_buffer: None,
            stats_wanted: false,
            fault: None,
            planned: false,
            delayed: VecDeque::new(),
            unfinished: false,
            frames: Vec::new(),
        }
    }

    pub(crate) fn counters(&self) -> BalloonCounters {
        BalloonCounters {
            discards: self.discarder.counts(),
            ..self.counters
        }
    }

    pub(crate) fn held(&self) -> &HeldFrames {
        &self.held
    }

    pub(crate) fn statistics(&self) -> &GuestStatistics {
        &self.statistics
    }

    /// The statistics buffer goes back to the driver at the next tick.
    pub(crate) fn want_statistics(&mut self) {
        self.stats_wanted = true;
    }

    pub(crate) fn set_fault(&mut self, plan: Option<FaultPlan>) {
        self.fault = plan;
    }

    /// Serves the requests of a queue; the result says whether the driver wants an interrupt.
    fn serve(&mut self, queue: u16, now: u64) -> Result<bool, BrokenRing> {
        let ram = Arc::clone(&self.ram);
        let memory = ram.view();
        let Some(ring) = self.ring(queue) else {
            return Ok(false);
        };
        // An honest driver has at most as many under way; one that adds as fast as we answer must not hold us.
        let mut budget = ring.size();
        let mut answered = false;
        loop {
            let Some(ring) = self.ring(queue) else {
                return Ok(answered);
            };
            let Some(chain) = ring.pop(memory)? else {
                break;
            };
            let head = chain.head_index();
            if head >= ring.size() {
                return Err(BrokenRing);
            }
            match queue {
                INFLATE => {
                    self.inflate(chain, memory);
                    answered |= self.finish(queue, head, Request::Inflate, now, memory)?;
                }
                DEFLATE => {
                    self.deflate(chain, memory);
                    answered |= self.finish(queue, head, Request::Deflate, now, memory)?;
                }
                _ => answered |= self.take_statistics(chain, head, memory)?,
            }
            budget -= 1;
            if budget == 0 {
                self.unfinished = true;
                break;
            }
        }
        Ok(answered
            && self
                .ring(queue)
                .is_some_and(|ring| ring.wants_interrupt(memory)))
    }

    fn ring(&mut self, queue: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(queue))?.as_mut()
    }

    /// Takes the frames of a request and discards their memory.
    fn inflate(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) {
        self.counters.inflate_messages += 1;
        let mut frames = self.read_frames(chain, memory);
        frames.retain(|&frame| {
            if self.ram.managed().host_address(frame).is_none() {
                self.counters.errors.out_of_range += 1;
                false
            } else if self.held.take(frame) {
                true
            } else {
                self.counters.errors.already_held += 1;
                false
            }
        });
        frames.sort_unstable();
        self.discarder.discard(self.ram.managed(), &frames);
        self.counters.inflated += frames.len() as u64;
        self.counters.peak = self.counters.peak.max(self.held.count());
        self.frames = frames;
    }

    /// Gives the frames of a request back. Their memory comes back when the guest touches it, filled with zeroes.
    fn deflate(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) {
        self.counters.deflate_messages += 1;
        let mut frames = self.read_frames(chain, memory);
        frames.retain(|&frame| {
            let held = self.held.give_back(frame);
            if self.ram.managed().host_address(frame).is_none() {
                self.counters.errors.out_of_range += 1;
            } else if !held {
                self.counters.errors.not_held += 1;
            }
            held
        });
        self.counters.deflated += frames.len() as u64;
        if self.audit {
            for &frame in &frames {
                let address = self.ram.managed().host_address(frame).unwrap_or_default();
                let touched =
                    resident_pages(address..address + FRAME_SIZE).is_ok_and(|pages| pages > 0);
                self.counters.errors.touched += u64::from(touched);
            }
        }
        self.frames = frames;
    }

    /// The frame numbers of a request.
    fn read_frames(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Vec<Pfn> {
        let mut frames = core::mem::take(&mut self.frames);
        frames.clear();
        // More numbers than there are frames must repeat some.
        let mut room = self.ram.frames() as usize;
        for descriptor in chain {
            if !self.read_descriptor(descriptor, memory, &mut room, &mut frames) {
                self.counters.errors.malformed += 1;
                break;
            }
        }
        frames
    }

    /// The frame numbers of one buffer; `false` if it is not of the form that it should have.
    fn read_descriptor(
        &self,
        descriptor: Descriptor,
        memory: &GuestMemoryMmap,
        room: &mut usize,
        frames: &mut Vec<Pfn>,
    ) -> bool {
        let length = descriptor.len() as usize;
        let count = length / PFN_BYTES;
        if descriptor.is_write_only() || !length.is_multiple_of(PFN_BYTES) || count > *room {
            return false;
        }
        *room -= count;
        let mut chunk = [0u8; CHUNK * PFN_BYTES];
        for start in (0..length).step_by(chunk.len()) {
            let part = &mut chunk[..(length - start).min(CHUNK * PFN_BYTES)];
            let Some(address) = descriptor.addr().checked_add(start as u64) else {
                return false;
            };
            if memory.read_slice(part, address).is_err() {
                return false;
            }
            let (numbers, _) = part.as_chunks::<PFN_BYTES>();
            frames.extend(
                numbers
                    .iter()
                    .map(|&number| Pfn::new(u32::from_le_bytes(number).into())),
            );
        }
        true
    }

    /// How long an honest answer to the request under way takes, beside the work itself.
    fn usual_delay(&self) -> u64 {
        match self.answer {
            AnswerTime::OfWork if self.is_virtual => host_answer(self.frames.len()),
            AnswerTime::OfWork => 0,
            AnswerTime::After(ns) => ns,
        }
    }

    /// Answers a request, or does what the fault plan says; whether the used ring moved.
    fn finish(
        &mut self,
        queue: u16,
        head: u16,
        request: Request,
        now: u64,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, BrokenRing> {
        let usual = Some(self.usual_delay()).filter(|&delay| delay > 0);
        let usual = usual.map(Fault::Delay);
        let fault = self.fault.as_mut().and_then(|plan| plan.next(request));
        let fault = fault.or(usual);
        let delayed = self.delayed.iter().filter(|other| other.queue == queue);
        let unanswered = delayed.count();
        let Some(ring) = self.ring(queue) else {
            return Ok(false);
        };
        match fault {
            None => ring.answer(memory, head)?,
            Some(Fault::Silent) => return Ok(false),
            Some(Fault::Twice) => {
                ring.answer(memory, head)?;
                ring.answer(memory, head)?;
            }
            Some(Fault::WrongId(id)) => ring.answer_raw(memory, id)?,
            Some(Fault::BreakDown) => {
                self.planned = true;
                return Err(BrokenRing);
            }
            // A ring has as many descriptors as entries: a driver with more requests under way gives one twice.
            Some(Fault::Delay(_)) if unanswered >= usize::from(ring.size()) => {
                return Err(BrokenRing);
            }
            Some(Fault::Delay(delay)) => {
                let due = now.saturating_add(delay);
                self.delayed.push_back(Delayed { due, queue, head });
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the statistics and keeps the buffer until new ones are wanted.
    fn take_statistics(
        &mut self,
        chain: Chain<'_>,
        head: u16,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, BrokenRing> {
        self.counters.stats_messages += 1;
        if !self.statistics.read(chain, memory) {
            self.counters.errors.malformed += 1;
        }
        // A second buffer is against the protocol; the first goes back, none is lost.
        let Some(former) = self.stats_buffer.replace(head) else {
            return Ok(false);
        };
        self.counters.errors.malformed += 1;
        let Some(ring) = self.ring(STATS) else {
            return Ok(false);
        };
        ring.answer(memory, former)?;
        Ok(true)
    }

    /// Answers what is due and what the host asked for.
    fn catch_up(&mut self, now: u64) -> Result<bool, BrokenRing> {
        let ram = Arc::clone(&self.ram);
        let memory = ram.view();
        let mut interrupt = false;
        // In the order of the requests, not of their times: answers on one queue do not overtake each other.
        while let Some(&Delayed { due, queue, head }) = self.delayed.front() {
            if due > now {
                break;
            }
            self.delayed.pop_front();
            if let Some(ring) = self.ring(queue) {
                ring.answer(memory, head)?;
                interrupt |= ring.wants_interrupt(memory);
            }
        }
        if self.stats_wanted
            && let Some(head) = self.stats_buffer.take()
        {
            self.stats_wanted = false;
            if let Some(ring) = self.ring(STATS) {
                ring.answer(memory, head)?;
                interrupt |= ring.wants_interrupt(memory);
            }
        }
        if core::mem::take(&mut self.unfinished) {
            for queue in [INFLATE, DEFLATE, STATS] {
                interrupt |= self.serve(queue, now)?;
            }
        }
        Ok(interrupt)
    }

    /// The rings are invalid: no queue is used until the driver resets the device.
    fn give_up(&mut self, registers: &Registers) -> bool {
        if !core::mem::take(&mut self.planned) {
            self.counters.errors.rings += 1;
        }
        self.rings = [const { None }; 3];
        self.delayed.clear();
        self.unfinished = false;
        self.stats_buffer = None;
        registers.need_reset();
        false
    }
}

impl DeviceModel for BalloonDevice {
    fn activate(&mut self, registers: &Registers) {
        let ram = Arc::clone(&self.ram);
        let queues = registers.queues();
        for (ring, setup) in self.rings.iter_mut().zip(queues) {
            *ring = None;
            // A queue that is not set up is not used.
            if setup.size == 0 {
                continue;
            }
            *ring = Ring::new(setup, registers.queue_max, ram.view());
            if ring.is_none() {
                self.give_up(registers);
                return;
            }
        }
        if registers.accepted() & features::STATS_VQ == 0 {
            self.rings[usize::from(STATS)] = None;
        }
    }

    fn reset(&mut self) {
        self.rings = [const { None }; 3];
        self.counters.held_at_reset += self.held.count();
        self.held.clear();
        self.delayed.clear();
        self.stats_buffer = None;
        self.stats_wanted = false;
        self.unfinished = false;
    }

    fn kicked(&mut self, registers: &Registers, queue: u16, now: u64) -> bool {
        self.serve(queue, now)
            .unwrap_or_else(|BrokenRing| self.give_up(registers))
    }

    fn tick(&mut self, registers: &Registers, now: u64) -> bool {
        self.catch_up(now)
            .unwrap_or_else(|BrokenRing| self.give_up(registers))
    }

    fn due(&self) -> u64 {
        if self.unfinished {
            return 0;
        }
        self.delayed.front().map_or(u64::MAX, |delayed| delayed.due)
    }

    fn may_write(&self, word: usize) -> bool {
        word == ACTUAL
    }

    fn refused_write(&mut self) {
        self.counters.errors.config_writes += 1;
    }
}
