//! The allocator in interrupt handlers.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use dirigible_frames::{
    AllocRequest, CpuId, FrameAllocator, FrameClass, Order, PageTables, Pfn, Platform, Watermark,
};

use super::{
    deadline::{MILLISECOND, is_over},
    manager::allocator,
    numbers::Numbers,
    outcome::{Outcome, ensure},
};
use crate::kernel::{
    arch::{clock, cpu::MAX_CPUS, smp, tick},
    machine::Guest,
    platform::GuestPlatform,
};

/// The timer ticks so much faster than it does otherwise.
const FASTER: u32 = 4;
/// How long each round takes, …
const ROUND: u64 = 600 * MILLISECOND;
/// … and at most, on a busy host, until each handler has come so often while normal code was in the allocator.
const LONGEST_ROUND: u64 = 10_000 * MILLISECOND;
const ENOUGH: u64 = 16;
/// Whole blocks that are left to the round in which memory is scarce.
const SCARCE: u64 = 6;
/// Allocations that a CPU's normal code holds at most, and that its handler does.
const HELD: usize = 2048;
const HELD_BY_HANDLER: usize = 64;
/// Places for frames that normal code leaves to handlers.
const LETTERS: usize = 64;
/// The word of a frame that says that it is somebody's, with the frame's number.
const MARKED_WORD: usize = 5;
const MARK: u64 = 0x6d61_726b << 32;
const RUN: Order = order(3);

const fn order(order: u8) -> Order {
    match Order::new(order) {
        Some(order) => order,
        None => Order::BASE,
    }
}

/// What can be wrong. Handlers cannot compose a sentence, as the heap has a lock.
#[derive(Clone, Copy)]
enum Wrong {
    HandedOutTwice = 1,
    MarkLost,
    NotFreed,
}

impl Wrong {
    const ALL: [(Self, &str); 3] = [
        (Self::HandedOutTwice, "was handed out though it is in use"),
        (Self::MarkLost, "has lost its mark while it was in use"),
        (Self::NotFreed, "cannot be given back by its holder"),
    ];
}

/// What all CPUs and handlers share.
struct Ground<'a> {
    frames: &'a FrameAllocator<'a>,
    /// What was wrong first, below the frame's number; 0: nothing.
    wrong: AtomicU64,
    /// Marked base frames on their way to a handler, by number; 0: an empty place.
    letters: [AtomicU64; LETTERS],
}

impl Ground<'_> {
    fn blame(&self, wrong: Wrong, frame: Pfn) {
        let word = frame.get() << 8 | wrong as u64;
        // Relaxed: only the first counts, and nothing else is published.
        let _ = self
            .wrong
            .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_wrong(&self) -> bool {
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

/// Normal code of a CPU, or its handler, at work.
struct Hand<'a> {
    ground: &'a Ground<'a>,
    cpu: CpuId,
    /// Set while normal code is in the allocator, for the CPU's handler.
    inside: Option<&'a AtomicBool>,
}

impl<'a> Hand<'a> {
    fn call<T>(&self, work: impl FnOnce(&'a FrameAllocator<'a>) -> T) -> T {
        let Some(inside) = self.inside else {
            return work(self.ground.frames);
        };
        // Relaxed, and fences for the compiler alone: the only reader interrupts this very CPU.
        inside.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let result = work(self.ground.frames);
        compiler_fence(Ordering::SeqCst);
        inside.store(false, Ordering::Relaxed);
        result
    }

    /// Replaces the marks of an allocation's frames, of a huge page every eighth.
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
                self.ground.blame(Wrong::HandedOutTwice, frame);
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
                self.ground.blame(Wrong::MarkLost, frame);
            }
        });
        if self
            .call(|frames| frames.free(self.cpu, first, order))
            .is_err()
        {
            self.ground.blame(Wrong::NotFreed, first);
        }
    }

    /// An allocation of a kind at random: mostly a single frame.
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

    /// Isolates a block, and takes it if it is wholly free.
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

    /// What normal code does until it `is_done`.
    fn work(&self, is_done: &dyn Fn() -> bool) {
        let mut numbers = Numbers(0x7157_0001 + self.cpu.index() as u64 * 91);
        let mut held: Vec<(Pfn, Order)> = Vec::with_capacity(HELD);
        while !is_done() && !self.ground.is_wrong() {
            for _ in 0..64 {
                match numbers.below(64) {
                    0 => self.call(FrameAllocator::drain_cpu_caches),
                    1..=3 => self.empty_block(&mut numbers, &held),
                    4..=12 => {
                        if let Some(frame) = self.take(Order::BASE, FrameClass::Movable) {
                            self.post(frame, &mut numbers);
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

    /// Leaves a frame to whatever handler comes by; where there is no place it goes back at once.
    fn post(&self, frame: Pfn, numbers: &mut Numbers) {
        let place = &self.ground.letters[numbers.below(LETTERS as u64) as usize];
        // Release: pairs with the swap in `open_letter`; who frees the frame sees its mark.
        let posted = place.compare_exchange(0, frame.get(), Ordering::Release, Ordering::Relaxed);
        if posted.is_err() {
            self.give(frame, Order::BASE);
        }
    }

    /// Frees the frame in a place of the mailbox; whether there was one.
    fn open_letter(&self, place: usize) -> bool {
        let frame = self.ground.letters[place].swap(0, Ordering::Acquire);
        if frame != 0 {
            self.give(Pfn::new(frame), Order::BASE);
        }
        frame != 0
    }
}

/// What one CPU's handler has and knows. Relaxed throughout: its CPU alone uses it, until the routine is taken away.
struct Handler {
    numbers: AtomicU64,
    /// Allocations: the number of the first frame, above the order; 0: none.
    held: [AtomicU64; HELD_BY_HANDLER],
    inside: AtomicBool,
    /// Times that it came, and those at which normal code was in the allocator.
    ticks: AtomicU64,
    between: AtomicU64,
    /// Frames of normal code that it freed.
    letters: AtomicU64,
}

impl Handler {
    fn new(index: usize) -> Self {
        Self {
            numbers: AtomicU64::new(0x7157_1001 + index as u64 * 57),
            held: [const { AtomicU64::new(0) }; HELD_BY_HANDLER],
            inside: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            between: AtomicU64::new(0),
            letters: AtomicU64::new(0),
        }
    }

    fn interrupted(&self, hand: &Hand<'_>) {
        let mut numbers = Numbers(self.numbers.load(Ordering::Relaxed));
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let between = u64::from(self.inside.load(Ordering::Relaxed));
        self.between.fetch_add(between, Ordering::Relaxed);
        for _ in 0..8 {
            let letter = hand.open_letter(numbers.below(LETTERS as u64) as usize);
            self.letters.fetch_add(u64::from(letter), Ordering::Relaxed);
            let place = &self.held[numbers.below(HELD_BY_HANDLER as u64) as usize];
            if !Self::give(place, hand)
                && let Some((first, order)) = hand.take_some(&mut numbers)
            {
                let word = first.get() << 8 | u64::from(order.get());
                place.store(word, Ordering::Relaxed);
            }
        }
        self.numbers.store(numbers.0, Ordering::Relaxed);
    }

    /// Frees an allocation of the handler's; whether there was one.
    fn give(place: &AtomicU64, hand: &Hand<'_>) -> bool {
        let word = place.swap(0, Ordering::Relaxed);
        if word != 0 {
            hand.give(Pfn::new(word >> 8), order(word as u8));
        }
        word != 0
    }
}

/// Timer interrupts of all CPUs allocate and free while the code that they interrupt does so, too, drains caches, and
/// isolates and captures blocks: first with plenty of memory, then with little, so that requests are refused and drain
/// the caches in handlers as well. All comes back, and nothing is handed out twice.
///
/// Without [`Masking`](crate::kernel::arch::masking::Masking) a handler soon waits for a lock that the code below it
/// holds.
pub(super) fn handlers_allocate_and_free(guest: &Guest, metadata: &mut [u8]) -> Outcome {
    let frames = allocator(guest, metadata)?;
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
        round(guest, &frames)?;
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
    let ground = Ground {
        frames,
        wrong: AtomicU64::new(0),
        letters: [const { AtomicU64::new(0) }; LETTERS],
    };
    let handlers: [Handler; MAX_CPUS] = core::array::from_fn(Handler::new);
    let hand = |cpu, inside| Hand {
        ground: &ground,
        cpu,
        inside,
    };
    let in_handler = |cpu: CpuId| handlers[cpu.index()].interrupted(&hand(cpu, None));
    tick::with_routine(&in_handler, || {
        let begun = GuestPlatform.now();
        smp::on_all(&|cpu| {
            let handler = &handlers[cpu.index()];
            let is_done = || {
                let enough = handler.between.load(Ordering::Relaxed) >= ENOUGH;
                let longest = if enough { ROUND } else { LONGEST_ROUND };
                is_over(&GuestPlatform, begun + longest)
            };
            clock::start_fast_tick(FASTER);
            hand(cpu, Some(&handler.inside)).work(&is_done);
            clock::start_tick();
        });
    });
    // The handlers come no more: what they have left is the first CPU's.
    let last = hand(CpuId::new(0), None);
    for place in 0..LETTERS {
        last.open_letter(place);
    }
    for place in handlers.iter().flat_map(|handler| &handler.held) {
        Handler::give(place, &last);
    }
    ground.outcome()?;
    for (handler, cpu) in handlers.iter().zip(0..guest.cpus) {
        let [ticks, between, letters] = [&handler.ticks, &handler.between, &handler.letters]
            .map(|count| count.load(Ordering::Relaxed));
        ensure(between >= ENOUGH && letters > 0, || {
            alloc::format!(
                "the handler of CPU {cpu} shows nothing: {ticks} ticks, {between} inside the allocator, \
                 {letters} frames freed for others"
            )
        })?;
    }
    Ok(())
}
