//! The real driver with devices that break down or fall silent for a while: what becomes of frames, contents, and of
//! the balloon's registration.
#![allow(missing_docs)]

mod support;

use dirigible_balloon::{BalloonConfig, Fault as DriverFault, Step};
use dirigible_frames::{FrameClass, Order, Pfn, Platform};
use dirigible_hosted::{Fault, FaultPlan, Mode, Request};
use support::{
    guest::{Guest, MIB, audited, guest, whole_blocks},
    machine, stamp, stamp_of,
};

/// Frames with contents that must stay as they are.
fn with_contents(guest: &Guest<'_, '_>, count: usize) -> Vec<Pfn> {
    let frames: Vec<_> = (0..count).map(|_| guest.alloc().unwrap()).collect();
    for &frame in &frames {
        stamp(guest.machine, frame.get() as u32);
    }
    frames
}

fn are_intact(guest: &Guest<'_, '_>, frames: &[Pfn]) -> bool {
    let expected = |frame: &Pfn| Some(frame.get() << 32 | 1);
    frames
        .iter()
        .all(|frame| stamp_of(guest.machine, frame.get() as u32) == expected(frame))
}

/// Lets time pass until the balloon has its target, whatever it says meanwhile.
fn recover(guest: &Guest<'_, '_>) {
    for _ in 0..100_000 {
        // The device has interrupted.
        guest.balloon.handle_interrupt();
        match guest.settle() {
            Step::Idle => return,
            Step::RetryAt(_) => guest.machine.platform().relax(),
            step => panic!("{step:?}"),
        }
    }
    panic!("the balloon does not come to rest");
}

#[test]
fn a_device_that_breaks_down_is_repaired_and_the_target_reached() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        for (request, from, to) in [
            (Request::Inflate, 2000, 4000),
            (Request::Deflate, 4000, 500),
        ] {
            let machine = machine(MIB, mode, audited());
            guest(&machine, BalloonConfig::default(), |guest| {
                let contents = with_contents(guest, 500);
                guest.reach(from);
                let plan = FaultPlan::once(Fault::BreakDown).on(request).after(1);
                guest.host().set_fault(Some(plan));
                guest.host().set_target(to).unwrap();
                recover(guest);
                assert!(!guest.host().needs_reset());
                let stats = guest.balloon.stats();
                assert_eq!(stats.restarts, 1);
                assert!(stats.forgotten > 0);
                guest.balloon.verify().unwrap();
                assert_eq!(guest.balloon.actual(), to);
                assert_eq!(
                    (guest.host().held_frames(), guest.host().actual()),
                    (to, to)
                );
                assert!(are_intact(guest, &contents));
                contents.into_iter().for_each(|frame| guest.free(frame));
                guest.reach(0);
                let free = guest.frames.free_frames() + guest.frames.cached_frames();
                assert_eq!(free, machine.ram().layout().managed_frames());
            });
        }
    }
}

/// In the middle of a compaction, on either of an exchange's messages: nothing is lost, and compaction goes on through
/// the same registration.
#[test]
fn a_device_that_breaks_down_in_an_exchange_costs_that_exchange() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        for request in [Request::Inflate, Request::Deflate] {
            let machine = machine(MIB, mode, audited());
            guest(&machine, whole_blocks(), |guest| {
                let held = guest.make_holes(10);
                guest.reach(2 * 512);
                let block = guest.balloon_blocks(512)[0];
                let plan = FaultPlan::once(Fault::BreakDown).on(request);
                guest.host().set_fault(Some(plan));
                if let Ok(isolated) = guest.mobility.evacuate(block) {
                    guest.frames.unisolate_block(isolated);
                }
                recover(guest);
                assert_eq!(guest.mobility.isolated_frames(), 0);
                assert_eq!(guest.host().held_frames(), 2 * 512);
                assert_eq!(guest.balloon.held().listed, 2 * 512);
                assert_eq!(guest.balloon.stats().restarts, 1);
                let block = guest.balloon_blocks(512)[0];
                let isolated = guest.mobility.evacuate(block).unwrap();
                let huge = guest
                    .frames
                    .capture_block(isolated, FrameClass::Movable)
                    .unwrap();
                let cpu = machine.platform().cpu();
                guest.frames.free(cpu, huge, Order::HUGE).unwrap();
                held.into_iter().for_each(|frame| guest.free(frame));
                guest.reach(0);
            });
        }
    }
}

/// It answers at last: until then its frames are no matter for compaction, afterwards they are again.
#[test]
fn a_host_that_answers_nothing_for_a_while() {
    let machine = machine(MIB, Mode::Deterministic, audited());
    guest(&machine, whole_blocks(), |guest| {
        let contents = with_contents(guest, 100);
        guest.reach(4 * 512);
        assert_eq!(guest.frames.class_frames().balloon, 4 * 512);
        let delay = 2 * BalloonConfig::default().request_timeout_ns;
        guest
            .host()
            .set_fault(Some(FaultPlan::always(Fault::Delay(delay))));
        guest.host().set_target(5 * 512).unwrap();
        let step = guest.settle();
        assert!(
            matches!(step, Step::Failed(DriverFault::Silent { .. })),
            "{step:?}"
        );
        assert_eq!(guest.frames.class_frames().balloon, 512, "those under way");
        guest.host().set_fault(None);
        let later = machine.platform().now() + delay;
        machine.platform().advance_to(later);
        guest.balloon.handle_interrupt();
        assert_eq!(guest.balloon.fault(), None);
        assert_eq!(guest.settle(), Step::Idle);
        assert_eq!(guest.frames.class_frames().balloon, 5 * 512);
        assert_eq!(guest.balloon.stats().restarts, 0);
        assert!(are_intact(guest, &contents));
        contents.into_iter().for_each(|frame| guest.free(frame));
        guest.reach(0);
    });
}

#[test]
fn a_device_that_breaks_down_each_time_is_given_up_and_costs_nothing() {
    let machine = machine(MIB, Mode::Deterministic, audited());
    guest(&machine, BalloonConfig::default(), |guest| {
        let managed = guest.frames.managed_frames();
        guest.reach(1000);
        guest
            .host()
            .set_fault(Some(FaultPlan::always(Fault::BreakDown)));
        guest.host().set_target(1500).unwrap();
        let mut steps = 0;
        let fault = loop {
            match guest.settle() {
                Step::RetryAt(_) => machine.platform().relax(),
                Step::Failed(fault) => break fault,
                step => panic!("{step:?}"),
            }
            steps += 1;
            assert!(steps < 1_000_000);
        };
        assert_eq!(fault, DriverFault::NeedsReset);
        assert_eq!(guest.balloon.stats().restarts, 4);
        // What it had is the guest's, without anybody's help.
        let free = guest.frames.free_frames() + guest.frames.cached_frames();
        assert_eq!((free, guest.frames.managed_frames()), (managed, managed));
        assert_eq!(guest.balloon.held().total(), 0);
        guest.host().set_fault(None);
        guest.balloon.restart().unwrap();
        assert_eq!(guest.settle(), Step::Idle);
        guest.reach(0);
        assert_eq!(guest.frames.managed_frames(), managed);
    });
}
