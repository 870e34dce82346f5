//! The allocator in interrupt handlers.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use dirigible_frames::{
    AllocRequest, CpuId, FrameAllocator, FrameClass, Order, PageTables, Pfn, Platform, Watermark,
};

use super::{
    deadline::{MILLISECOND, is_over},
    manager::{Memory, allocator},
    numbers::Numbers,
    outcome::{Outcome, ensure},
};
use crate::kernel::{
    arch::{clock, cpu::MAX_CPUS, smp, tick},
    machine::Guest,
    platform::GuestPlatform,
};

/// How much faster than usual the timer ticks.
const FASTER: u32 = 4;
/// How long a round takes if each handler has interrupted the allocator [`ENOUGH`] times by then.
const ROUND: u64 = 600 * MILLISECOND;
/// How long a round takes at most, on a busy host.
const LONGEST_ROUND: u64 = 10_000 * MILLISECOND;
/// How often each handler must interrupt normal code inside the allocator.
const ENOUGH: u64 = 16;
/// Whole blocks that are left free in the round in which memory is scarce.
const SCARCE: u64 = 6;
/// Most allocations that a CPU's normal code holds.
const HELD: usize = 2048;
/// Most allocations that a CPU's handler holds.
const HELD_BY_HANDLER: usize = 64;
/// Slots for frames that normal code hands over to handlers.
const SLOTS: usize = 64;
/// The word of a frame that holds its mark while it is allocated.
const MARKED_WORD: usize = 5;
/// The mark, combined with the frame's number.
const MARK: u64 = 0x6d61_726b << 32;
/// The order of the runs that are allocated beside single frames and huge pages.
const RUN: Order = order(3);

const fn order(order: u8) -> Order {
    match Order::new(order) {
        Some(order) => order,
        None => Order::BASE,
    }
}

/// A failure. A number, as handlers must not allocate text: the heap has a lock.
#[derive(Clone, Copy)]
enum Wrong {
    AllocatedTwice = 1,
    MarkLost,
    NotFreed,
}

impl Wrong {
    const ALL: [(Self, &str); 3] = [
        (Self::AllocatedTwice, "was allocated though it is in use"),
        (Self::MarkLost, "has lost its mark while it was in use"),
        (Self::NotFreed, "could not be freed by its holder"),
    ];
}

/// What all CPUs and handlers share.
struct Shared<'a> {
    frames: &'a FrameAllocator<'a>,
    /// The first failure, below the frame's number; 0 if there was none.
    wrong: AtomicU64,
    /// Marked base frames that are handed over to handlers, by number; 0: an empty slot.
    slots: [AtomicU64; SLOTS],
}

impl Shared<'_> {
    fn fail(&self, wrong: Wrong, frame: Pfn) {
        let word = frame.get() << 8 | wrong as u64;
        // Relaxed: only the first failure is kept, and nothing else is published.
        let _ = self
            .wrong
            .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn has_failed(&self) -> bool {
        self.wrong.load(Ordering::Relaxed) != 0
    }

    fn outcome(&self) -> Outcome {
        let word = self.wrong.load(Ordering::Relaxed);
        let found = Wrong::ALL
            .iter()
            .find(|(wrong, _)| *wrong as u64 == word & 0xff);
        found.map_or(Ok(()), |(_, how)| {
            Err(alloc::format!("{} {how}", Pfn::new(word >> 8)))
        })
    }
}

/// A CPU's normal code, or its handler.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    cpu: CpuId,
    /// For normal code: set while it is in the allocator, and read by the CPU's handler.
    inside: Option<&'a AtomicBool>,
}

impl<'a> Worker<'a> {
    fn call<T>(&self, work: impl FnOnce(&'a FrameAllocator<'a>) -> T) -> T {
        let Some(inside) = self.inside else {
            return work(self.shared.frames);
        };
        // Relaxed, with fences for the compiler only: the only reader is this CPU's own handler.
        inside.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let result = work(self.shared.frames);
        compiler_fence(Ordering::SeqCst);
        inside.store(false, Ordering::Relaxed);
        result
    }

    /// Calls `each` for the frames of an allocation that carry a mark: for a huge page, every eighth.
    fn each_mark(&self, first: Pfn, order: Order, mut each: impl FnMut(Pfn)) {
        let step = if order == Order::HUGE { 8 } else { 1 };
        (0..order.frames() as u64)
            .step_by(step)
            .for_each(|offset| each(first.plus(offset)));
    }

    fn mark(&self, first: Pfn, order: Order) {
        self.each_mark(first, order, |frame| {
            let old = GuestPlatform.swap_entry(frame, MARKED_WORD, MARK | frame.get());
            if old == MARK | frame.get() {
                self.shared.fail(Wrong::AllocatedTwice, frame);
            }
        });
    }

    fn take(&self, order: Order, class: FrameClass) -> Option<Pfn> {
        let request = AllocRequest::new(order, class);
        let first = self.call(|frames| frames.alloc(self.cpu, request)).ok()?;
        self.mark(first, order);
        Some(first)
    }

    fn give(&self, first: Pfn, order: Order) {
        self.each_mark(first, order, |frame| {
            let old = GuestPlatform.swap_entry(frame, MARKED_WORD, 0);
            if old != MARK | frame.get() {
                self.shared.fail(Wrong::MarkLost, frame);
            }
        });
        if self
            .call(|frames| frames.free(self.cpu, first, order))
            .is_err()
        {
            self.shared.fail(Wrong::NotFreed, first);
        }
    }

    /// An allocation of a random kind, mostly a single frame.
    fn take_some(&self, numbers: &mut Numbers) -> Option<(Pfn, Order)> {
        let (order, class) = match numbers.below(64) {
            0 => (Order::HUGE, FrameClass::Movable),
            1..=3 => (RUN, FrameClass::Movable),
            4 => (RUN, FrameClass::Unmovable),
            5..=30 => (Order::BASE, FrameClass::Unmovable),
            _ => (Order::BASE, FrameClass::Movable),
        };
        Some((self.take(order, class)?, order))
    }

    /// Isolates a block, and captures it if it is completely free.
    fn empty_block(&self, numbers: &mut Numbers, held: &[(Pfn, Order)]) {
        let block = self.call(|frames| {
            let near = held.last().and_then(|(first, _)| frames.block_of(*first));
            let any = numbers.below(frames.block_count() as u64) as usize;
            near.filter(|_| any.is_multiple_of(2))
                .or_else(|| frames.blocks().nth(any))
        });
        let isolated = block.and_then(|block| self.call(|frames| frames.isolate_block(block)).ok());
        let Some(isolated) = isolated else {
            return;
        };
        match self.call(|frames| frames.capture_block(isolated, FrameClass::Movable)) {
            Ok(first) => {
                self.mark(first, Order::HUGE);
                self.give(first, Order::HUGE);
            }
            Err(isolated) => self.call(|frames| frames.unisolate_block(isolated)),
        }
    }

    /// Runs normal code until `is_done`.
    fn work(&self, is_done: &dyn Fn() -> bool) {
        let mut numbers = Numbers(0x7157_0001 + self.cpu.index() as u64 * 91);
        let mut held: Vec<(Pfn, Order)> = Vec::with_capacity(HELD);
        while !is_done() && !self.shared.has_failed() {
            for _ in 0..64 {
                match numbers.below(64) {
                    0 => self.call(FrameAllocator::drain_cpu_caches),
                    1..=3 => self.empty_block(&mut numbers, &held),
                    4..=12 => {
                        if let Some(frame) = self.take(Order::BASE, FrameClass::Movable) {
                            self.hand_over(frame, &mut numbers);
                        }
                    }
                    number if held.len() == HELD || (!held.is_empty() && number % 2 == 0) => {
                        let index = numbers.below(held.len() as u64) as usize;
                        let (first, order) = held.swap_remove(index);
                        self.give(first, order);
                    }
                    _ => held.extend(self.take_some(&mut numbers)),
                }
            }
        }
        for (first, order) in held {
            self.give(first, order);
        }
    }

    /// Hands a frame over to whichever handler finds it. Frees it at once if the slot is taken.
    fn hand_over(&self, frame: Pfn, numbers: &mut Numbers) {
        let slot = &self.shared.slots[numbers.below(SLOTS as u64) as usize];
        // Release: pairs with the swap in `free_handed_over`, so that the handler sees the frame's mark.
        let handed_over =
            slot.compare_exchange(0, frame.get(), Ordering::Release, Ordering::Relaxed);
        if handed_over.is_err() {
            self.give(frame, Order::BASE);
        }
    }

    /// Frees the frame in a slot; gives whether there was one.
    fn free_handed_over(&self, slot: usize) -> bool {
        // Acquire: pairs with the release in `hand_over`.
        let frame = self.shared.slots[slot].swap(0, Ordering::Acquire);
        if frame != 0 {
            self.give(Pfn::new(frame), Order::BASE);
        }
        frame != 0
    }
}

/// The state of one CPU's handler. Relaxed throughout: only that CPU uses it, until the routine is removed.
struct Handler {
    numbers: AtomicU64,
    /// Allocations: the number of the first frame, above the order; 0 if there is none.
    held: [AtomicU64; HELD_BY_HANDLER],
    inside: AtomicBool,
    /// How often it ran.
    ticks: AtomicU64,
    /// How often it interrupted normal code inside the allocator.
    nested: AtomicU64,
    /// Frames that it freed for normal code.
    freed: AtomicU64,
}

impl Handler {
    fn new(index: usize) -> Self {
        Self {
            numbers: AtomicU64::new(0x7157_1001 + index as u64 * 57),
            held: [const { AtomicU64::new(0) }; HELD_BY_HANDLER],
            inside: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            nested: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    fn interrupted(&self, worker: &Worker<'_>) {
        let mut numbers = Numbers(self.numbers.load(Ordering::Relaxed));
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let nested = u64::from(self.inside.load(Ordering::Relaxed));
        self.nested.fetch_add(nested, Ordering::Relaxed);
        for _ in 0..8 {
            let freed = worker.free_handed_over(numbers.below(SLOTS as u64) as usize);
            self.freed.fetch_add(u64::from(freed), Ordering::Relaxed);
            let place = &self.held[numbers.below(HELD_BY_HANDLER as u64) as usize];
            if !Self::give(place, worker)
                && let Some((first, order)) = worker.take_some(&mut numbers)
            {
                let word = first.get() << 8 | u64::from(order.get());
                place.store(word, Ordering::Relaxed);
            }
        }
        self.numbers.store(numbers.0, Ordering::Relaxed);
    }

    /// Frees an allocation of the handler; gives whether there was one.
    fn give(place: &AtomicU64, worker: &Worker<'_>) -> bool {
        let word = place.swap(0, Ordering::Relaxed);
        if word != 0 {
            worker.give(Pfn::new(word >> 8), order(word as u8));
        }
        word != 0
    }
}

/// Timer handlers of all CPUs allocate and free frames. The code that they interrupt does so too, drains caches, and
/// isolates and captures blocks. The first round has plenty of memory. The second has little, so that requests are
/// refused and drain the caches in handlers, too. No frame is allocated twice, and all frames are free at the end.
///
/// Without [`Masking`](crate::kernel::arch::masking::Masking) a handler soon waits for a lock that the interrupted code
/// holds.
pub(super) fn handlers_allocate_and_free(guest: &Guest, memory: &mut Memory) -> Outcome {
    let frames = allocator(guest, memory)?;
    let free = frames.free_frames();
    for scarce in [false, true] {
        let mut away: Vec<Pfn> = Vec::new();
        let first_cpu = CpuId::new(0);
        let huge =
            AllocRequest::new(Order::HUGE, FrameClass::Movable).with_watermark(Watermark::None);
        while scarce && frames.free_blocks() > SCARCE {
            away.push(
                frames
                    .alloc(first_cpu, huge)
                    .map_err(|error| alloc::format!("{error}"))?,
            );
        }
        round(guest, frames)?;
        for first in away {
            frames
                .free(first_cpu, first, Order::HUGE)
                .map_err(|error| alloc::format!("{first}: {error}"))?;
        }
        frames.drain_cpu_caches();
        frames.verify().map_err(|error| alloc::format!("{error}"))?;
        ensure(frames.free_frames() == free, || {
            alloc::format!("{} of {free} frames are free", frames.free_frames())
        })?;
    }
    Ok(())
}

fn round(guest: &Guest, frames: &FrameAllocator<'_>) -> Outcome {
    let shared = Shared {
        frames,
        wrong: AtomicU64::new(0),
        slots: [const { AtomicU64::new(0) }; SLOTS],
    };
    let handlers: [Handler; MAX_CPUS] = core::array::from_fn(Handler::new);
    let worker = |cpu, inside| Worker {
        shared: &shared,
        cpu,
        inside,
    };
    let in_handler = |cpu: CpuId| handlers[cpu.index()].interrupted(&worker(cpu, None));
    tick::with_routine(&in_handler, || {
        let begun = GuestPlatform.now();
        smp::on_all(&|cpu| {
            let handler = &handlers[cpu.index()];
            let is_done = || {
                let enough = handler.nested.load(Ordering::Relaxed) >= ENOUGH;
                let longest = if enough { ROUND } else { LONGEST_ROUND };
                is_over(&GuestPlatform, begun + longest)
            };
            clock::start_fast_tick(FASTER);
            worker(cpu, Some(&handler.inside)).work(&is_done);
            clock::start_tick();
        });
    });
    // The handlers do not run any more: the first CPU frees what they hold.
    let last = worker(CpuId::new(0), None);
    for slot in 0..SLOTS {
        last.free_handed_over(slot);
    }
    for place in handlers.iter().flat_map(|handler| &handler.held) {
        Handler::give(place, &last);
    }
    shared.outcome()?;
    for (handler, cpu) in handlers.iter().zip(0..guest.cpus) {
        let [ticks, nested, freed] = [&handler.ticks, &handler.nested, &handler.freed]
            .map(|count| count.load(Ordering::Relaxed));
        ensure(nested >= ENOUGH && freed > 0, || {
            alloc::format!(
                "the handler of CPU {cpu} shows nothing: {ticks} ticks, {nested} inside the allocator, \
                 {freed} frames freed for others"
            )
        })?;
    }
    Ok(())
}
