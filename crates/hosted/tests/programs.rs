//! Programs that wait for the host in the middle of compaction, while others run.
#![allow(missing_docs)]

mod support;

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use dirigible::schedule::{Actor, Engine, Next};
use dirigible_frames::{FrameClass, Order, Pfn, Platform};
use dirigible_hosted::{Fault, FaultPlan, MachineClock, Mode};
use support::{
    guest::{Guest, MIB, audited, guest, whole_blocks},
    machine,
};

/// How long the host takes for each answer.
const ANSWER: u64 = 20_000_000;
/// Time between two steps of a program that allocates.
const PACE: u64 = 100_000;
/// Frames that it takes, and gives back, in a step.
const TAKEN: usize = 32;

/// Empties a block for kernel memory, once: waits for two answers of the host in the middle.
struct Compactor<'g, 'a, 'b> {
    guest: &'g Guest<'a, 'b>,
    /// When it began and when it had the block.
    took: Mutex<(u64, u64)>,
    ended: &'g AtomicBool,
}

impl Actor for &Compactor<'_, '_, '_> {
    fn step(&mut self, now: u64) -> Next {
        let (guest, platform) = (self.guest, self.guest.machine.platform());
        let result = guest
            .mobility
            .evacuate_for(platform.cpu(), FrameClass::Unmovable);
        assert_eq!(result, Ok(()));
        *self.took.lock().unwrap() = (now, platform.now());
        self.ended.store(true, Ordering::Relaxed);
        Next::Done
    }
}

/// Takes frames and gives them back, again and again.
struct Allocator<'g, 'a, 'b> {
    guest: &'g Guest<'a, 'b>,
    /// Those that it had in its hands at one time: kept, so that no step allocates memory of the host.
    held: Vec<Pfn>,
    /// Steps that ended before the compactor's did.
    steps: &'g AtomicU64,
    ended: &'g AtomicBool,
}

impl Actor for Allocator<'_, '_, '_> {
    fn step(&mut self, now: u64) -> Next {
        let guest = self.guest;
        let cpu = guest.machine.platform().cpu();
        for _ in 0..TAKEN {
            self.held.push(guest.alloc().expect("memory is not full"));
        }
        for frame in self.held.drain(..) {
            guest.frames.free(cpu, frame, Order::BASE).unwrap();
        }
        if self.ended.load(Ordering::Relaxed) {
            return Next::Done;
        }
        self.steps.fetch_add(1, Ordering::Relaxed);
        Next::At(now + PACE)
    }
}

/// Runs `compactors` programs that each wait for a block of the balloon, beside one that allocates, while the host
/// takes `answer` for each message. Gives when they began and ended, and how many steps the other made meanwhile.
fn compact_while_others_run(answer: u64, compactors: usize) -> (Vec<(u64, u64)>, u64) {
    let machine = machine(MIB, Mode::Deterministic, audited());
    let mut found = (Vec::new(), 0);
    guest(&machine, whole_blocks(), |guest| {
        // Holes to move to; the balloon takes whole blocks.
        let held = guest.make_holes(6);
        guest.reach(8 * 512);
        let fault = Fault::Delay(answer);
        guest.host().set_fault(Some(FaultPlan::always(fault)));
        let (ended, steps) = (AtomicBool::new(false), AtomicU64::new(0));
        let programs: Vec<Compactor<'_, '_, '_>> = (0..compactors)
            .map(|_| Compactor {
                guest,
                took: Mutex::default(),
                ended: &ended,
            })
            .collect();
        let mut engine = Engine::new();
        for program in &programs {
            engine.add_program(0, Box::new(program)).unwrap();
        }
        let allocator = Allocator {
            guest,
            held: Vec::with_capacity(TAKEN),
            steps: &steps,
            ended: &ended,
        };
        engine.add_program(0, Box::new(allocator)).unwrap();
        let over = AtomicBool::new(false);
        engine.run(&MachineClock::new(machine.platform()), &over, |_, _| {});
        drop(engine);
        guest.host().set_fault(None);
        found.0 = programs
            .iter()
            .map(|program| *program.took.lock().unwrap())
            .collect();
        found.1 = steps.into_inner();
        guest.settle();
        held.into_iter().for_each(|frame| guest.free(frame));
        guest.reach(0);
    });
    found
}

#[test]
fn a_program_allocates_while_another_waits_for_the_host_inside_compaction() {
    let (took, steps) = compact_while_others_run(ANSWER, 1);
    let (began, ended) = took[0];
    // Two messages, one after the other; what else compaction does takes less than one more answer.
    assert!(
        (2 * ANSWER..3 * ANSWER).contains(&(ended - began)),
        "{took:?}"
    );
    let all = (ended - began) / PACE;
    // Of the same processor, the compactor itself used less than a millisecond.
    assert!((all - 10..=all + 1).contains(&steps), "{steps} of {all}");
}

#[test]
fn two_programs_of_one_cpu_compact_at_the_same_time() {
    let (took, _) = compact_while_others_run(ANSWER / 4, 2);
    // The second one has a place of its own: it neither fails nor waits until the first has ended. Both in all wait no
    // longer than compaction's patience.
    let first_end = took.iter().map(|(_, ended)| *ended).min();
    for (began, ended) in &took {
        assert!(
            Some(*began) < first_end && ended - began < 50_000_000,
            "{took:?}"
        );
    }
}

#[test]
fn runs_with_programs_that_wait_are_the_same() {
    let [one, other] = [(); 2].map(|()| compact_while_others_run(ANSWER / 4, 2));
    assert_eq!(one, other);
}
