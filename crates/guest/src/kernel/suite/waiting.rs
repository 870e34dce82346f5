//! Programs that wait in the middle of a call, or of a page fault, while others of their CPU run.

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::Booted,
    schedule::{Actor, Engine, Next},
};
use dirigible_frames::{
    AllocRequest, FRAMES_PER_BLOCK, FrameAllocator, FrameContents, FrameState, Order, OwnerId, Pfn,
    Platform,
};
use dirigible_mobility::{Mobility, MovableOwner, MovePair, Outcome as Moved};
use dirigible_paging::{FaultKind, Page};

use super::{
    deadline::MILLISECOND,
    manager::{Memory, boot, with_manager},
    outcome::{Outcome, Verdict, ensure},
};
use crate::kernel::{
    arch::user, experiment::MachineClock, machine::Guest, platform::GuestPlatform,
};

/// How long the owner takes to answer.
const ANSWER: u64 = 20 * MILLISECOND;
/// Frames that the other program takes, and gives back, in a step.
const TAKEN: usize = 16;
/// Steps that the other program ends meanwhile, at least: far fewer than it can.
const STEPS: u64 = 100;
/// Frames that are moved.
const MOVES: usize = 64;
/// Evacuations that are tried: on a busy host one may come to its deadline.
const TRIES: usize = 10;

/// An actor made of a function.
struct Does<F>(F);

impl<F: FnMut(u64) -> Next + Send> Actor for Does<F> {
    fn step(&mut self, now: u64) -> Next {
        (self.0)(now)
    }
}

/// An owner that has no room for a move until [`ANSWER`] after the first one was asked for. Its frames have no
/// contents.
struct SlowOwner<'a> {
    frames: &'a FrameAllocator<'a>,
    owner: OwnerId,
    /// When it answers; 0: nothing was asked for.
    answers_at: AtomicU64,
}

impl SlowOwner<'_> {
    fn answers(&self) -> bool {
        let at = self.answers_at.load(Ordering::Relaxed);
        at != 0 && GuestPlatform.now() >= at
    }

    /// One step of a frame's state, which must succeed.
    fn step(&self, frame: Pfn, from: FrameState, to: FrameState) {
        let done = self.frames.transition(frame, from, to).is_ok();
        assert!(done, "{frame} is not {from:?}");
    }
}

impl MovableOwner for SlowOwner<'_> {
    fn isolate(&self, frame: Pfn) -> bool {
        self.frames.try_isolate(frame, self.owner).is_ok()
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        if self.answers_at.load(Ordering::Relaxed) == 0 {
            let at = GuestPlatform.now() + ANSWER;
            self.answers_at.store(at, Ordering::Relaxed);
        }
        let answers = self.answers();
        for pair in pairs {
            pair.outcome = Moved::Busy;
            if answers {
                self.frames.set_owner(pair.to, self.owner, 0);
                self.step(pair.to, FrameState::Allocated, FrameState::Listed);
                self.step(pair.from, FrameState::Isolated, FrameState::Allocated);
                pair.outcome = Moved::Moved;
            }
        }
    }

    fn putback(&self, frame: Pfn) {
        self.step(frame, FrameState::Isolated, FrameState::Listed);
    }

    fn poll(&self, deadline: u64) -> bool {
        while !self.answers() && GuestPlatform.now() < deadline {
            GuestPlatform.relax();
        }
        self.answers()
    }
}

/// While one program waits 20 ms for an owner inside compaction, another one of the same CPU allocates.
pub(super) fn a_program_allocates_while_another_waits(
    guest: &Guest,
    memory: &mut Memory,
) -> Outcome {
    let text = |error: &dyn core::fmt::Display| alloc::format!("{error}");
    let Booted { frames, room } = boot(guest, memory)?;
    let platform = GuestPlatform;
    let slow = SlowOwner {
        frames,
        owner: OwnerId::new(2).ok_or("no owner number")?,
        answers_at: AtomicU64::new(0),
    };
    let config = ManagerConfig::default();
    let manager = MemoryManager::new_in(room, frames, &platform, config);
    let manager = manager.map_err(|error| text(&error))?;
    let registered = manager.register(slow.owner, &slow);
    registered.map_err(|error| text(&error))?;
    wait_in_compaction(manager.mobility(), &slow)?;
    manager.shutdown(0).map_err(|error| text(&error))
}

fn wait_in_compaction(mobility: &Mobility<'_, GuestPlatform>, slow: &SlowOwner<'_>) -> Outcome {
    let (frames, platform) = (slow.frames, &GuestPlatform);
    let cpu = platform.cpu();
    // Two blocks of single frames: the owner gets a few of the first, and half of the second are holes to move to.
    let take = || frames.alloc(cpu, AllocRequest::movable()).ok();
    // By number: sorting frames is the allocator's business, and would count as its code.
    let taken = (0..4 * FRAMES_PER_BLOCK).filter_map(|_| take());
    let mut numbers: Vec<u64> = taken.map(Pfn::get).collect();
    numbers.sort_unstable();
    let mut held: Vec<Pfn> = numbers.into_iter().map(Pfn::new).collect();
    let whole = held.chunk_by(|a, b| frames.block_of(*a) == frames.block_of(*b));
    let mut whole = whole.filter(|chunk| chunk.len() == FRAMES_PER_BLOCK);
    let (Some(first), Some(second)) = (whole.next(), whole.next()) else {
        return Err("no two blocks of single frames".into());
    };
    let owned: Vec<Pfn> = first[..MOVES].to_vec();
    let block = frames.block_of(first[0]).ok_or("a frame without a block")?;
    let freed = first[MOVES..].iter().chain(second.iter().step_by(2));
    let freed: Vec<Pfn> = freed.copied().collect();
    for &frame in &owned {
        frames.set_owner(frame, slow.owner, 0);
        slow.step(frame, FrameState::Allocated, FrameState::Listed);
    }
    held.retain(|frame| freed.binary_search(frame).is_err() && !owned.contains(frame));
    freed.iter().for_each(|&frame| free(frames, frame));
    frames.drain_cpu_caches();

    let (ended, steps, verdict) = (
        AtomicBool::new(false),
        AtomicU64::new(0),
        Verdict::default(),
    );
    let mut engine = Engine::new();
    let compacts = Does(|_| {
        let begun = platform.now();
        let emptied = (0..TRIES).find_map(|_| mobility.evacuate(block).ok());
        let took = platform.now() - begun;
        ended.store(true, Ordering::Relaxed);
        verdict.note(ensure(took >= ANSWER, || {
            alloc::format!("it did not wait: {took} ns")
        }));
        match emptied {
            Some(empty) => frames.unisolate_block(empty),
            None => verdict.note(Err("the block was not emptied".into())),
        }
        Next::Done
    });
    let allocates = Does(|now| {
        let cpu = platform.cpu();
        let take = || frames.alloc(cpu, AllocRequest::movable()).ok();
        let taken: arrayvec::ArrayVec<Pfn, TAKEN> = (0..TAKEN).filter_map(|_| take()).collect();
        verdict.note(ensure(taken.len() == TAKEN, || "no memory".into()));
        taken.iter().for_each(|&frame| free(frames, frame));
        if ended.load(Ordering::Relaxed) {
            return Next::Done;
        }
        steps.fetch_add(1, Ordering::Relaxed);
        Next::At(now)
    });
    for program in [
        Box::new(compacts) as Box<dyn Actor + '_>,
        Box::new(allocates),
    ] {
        let added = engine.add_program(platform.now(), program);
        added.map_err(|error| alloc::format!("{error}"))?;
    }
    engine.run(&MachineClock, &AtomicBool::new(false), |_, _| {});
    drop(engine);

    let blocks = frames.blocks();
    let used: Vec<Pfn> = blocks.flat_map(|block| frames.used_frames(block)).collect();
    for frame in used {
        if frames.owner(frame) == slow.owner && frames.state(frame) == FrameState::Listed {
            slow.step(frame, FrameState::Listed, FrameState::Allocated);
            held.push(frame);
        }
    }
    held.iter().for_each(|&frame| free(frames, frame));
    verdict.outcome()?;
    let steps = steps.into_inner();
    ensure(steps >= STEPS, || {
        alloc::format!("only {steps} steps of the other program")
    })
}

fn free(frames: &FrameAllocator<'_>, frame: Pfn) {
    let freed = frames.free(GuestPlatform.cpu(), frame, Order::BASE);
    assert!(freed.is_ok(), "{frame}: {freed:?}");
}

/// A program waits in the middle of a page fault, and another one of the same CPU touches its own memory meanwhile,
/// with faults of its own.
pub(super) fn a_fault_waits_while_others_fault(guest: &Guest, memory: &mut Memory) -> Outcome {
    const PAGES: u64 = 200;
    let page = |number| Page::new(0x4000_0000 / 4096 + number);
    with_manager(guest, memory, |manager| {
        let (paging, platform) = (manager.paging, manager.platform);
        let text = |error| alloc::format!("{error}");
        let [first, second] = [(); 2].map(|()| paging.create_space(manager.memory));
        let (first, second) = (first.map_err(text)?, second.map_err(text)?);
        let map = |space, page| {
            let zero = |frame, order: Order| platform.zero_frames(frame, order.frames());
            let mapped = paging.fault_filled(space, page, FaultKind::Base, manager.memory, zero);
            mapped.is_ok()
        };
        let root = |space| paging.root(space).map_or(0, |root| root.address());
        let store = |space, number, value| {
            user::store(root(space), page(number).address(), value, &mut || {
                map(space, page(number))
            })
        };
        let load =
            |space, number| user::load_word(root(space), page(number).address(), &mut || false);
        let (done, verdict) = (AtomicU64::new(0), Verdict::default());
        let (done, verdict_ref) = (&done, &verdict);
        // Waits in its fault until the other has touched all of its pages.
        let waits = Does(move |_| {
            let stored = user::store(root(first), page(0).address(), 77, &mut || {
                while done.load(Ordering::Relaxed) < PAGES {
                    platform.relax();
                }
                map(first, page(0))
            });
            let found = load(first, 0);
            verdict_ref.note(ensure(stored && found == Some(77), || {
                alloc::format!("its page reads as {found:?}")
            }));
            Next::Done
        });
        let touches = Does(move |now| {
            let number = done.load(Ordering::Relaxed);
            let well = store(second, number, number + 5);
            let found = load(second, number);
            verdict_ref.note(ensure(well && found == Some(number + 5), || {
                alloc::format!("page {number} of the other reads as {found:?}")
            }));
            done.store(number + 1, Ordering::Relaxed);
            match number + 1 < PAGES {
                true => Next::At(now),
                false => Next::Done,
            }
        });
        let mut engine = Engine::new();
        for program in [Box::new(waits) as Box<dyn Actor + '_>, Box::new(touches)] {
            let added = engine.add_program(platform.now(), program);
            added.map_err(|error| alloc::format!("{error}"))?;
        }
        engine.run(&MachineClock, &AtomicBool::new(false), |_, _| {});
        drop(engine);
        paging.destroy_space(first);
        paging.destroy_space(second);
        verdict.outcome()
    })
}
