//! The balloon device over real virtqueues: what it does to memory, what it books, what it answers.
#![allow(missing_docs)]

mod support;

use std::time::Duration;

use dirigible_frames::{Pfn, Platform};
use dirigible_hosted::{
    AnswerTime, BalloonOptions, DiscardMethod, Fault, FaultPlan, HostedMachine, MachineBuilder,
    Mode, Request, features,
};
use support::*;
use virtio_drivers::{Error, transport::Transport};

fn default_machine() -> HostedMachine {
    machine(64, Mode::Deterministic, BalloonOptions::default())
}

#[test]
fn residency_falls_by_what_is_inflated_and_comes_back_on_touch() {
    for (mode, step) in [
        (Mode::Deterministic, 1),
        (Mode::Deterministic, 3),
        (Mode::Threads, 2),
    ] {
        let machine = machine(64, mode, BalloonOptions::default());
        let ram = machine.ram();
        assert_eq!(ram.resident_frames().unwrap(), 0);
        ram.touch_all();
        let all = ram.layout().managed_frames();
        assert_eq!(ram.resident_frames().unwrap(), all);

        let mut driver = RawDriver::new(&machine.balloons()[0]);
        let frames = shuffled(frames(&machine, 2000, step));
        for batch in frames.chunks(256) {
            driver.send(machine.platform(), INFLATE, batch).unwrap();
        }
        assert_eq!(ram.resident_frames().unwrap(), all - 2000);
        assert_eq!(machine.balloons()[0].held_frames(), 2000);
        for batch in frames.chunks(256) {
            driver.send(machine.platform(), DEFLATE, batch).unwrap();
        }
        assert_eq!(ram.resident_frames().unwrap(), all - 2000);
        for &frame in &frames {
            stamp(&machine, frame);
        }
        assert_eq!(ram.resident_frames().unwrap(), all);
        let counters = machine.balloons()[0].counters();
        assert_eq!(
            (counters.inflated, counters.deflated, counters.peak),
            (2000, 2000, 2000)
        );
        assert_eq!(
            (counters.inflate_messages, counters.deflate_messages),
            (8, 8)
        );
        assert_eq!(counters.errors.total(), 0);
        assert_eq!(counters.discards.failures, 0);
    }
}

#[test]
fn what_the_host_took_reads_zero_and_its_neighbours_stay() {
    let machine = default_machine();
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let all = frames(&machine, 3000, 1);
    all.iter().for_each(|&frame| stamp(&machine, frame));
    let taken: Vec<u32> = shuffled(all.clone()).into_iter().take(1024).collect();
    for batch in taken.chunks(256) {
        driver.send(machine.platform(), INFLATE, batch).unwrap();
    }
    for &frame in &all {
        let expected = if taken.contains(&frame) {
            0
        } else {
            u64::from(frame) << 32 | 1
        };
        assert_eq!(stamp_of(&machine, frame), Some(expected), "frame {frame}");
    }
}

#[test]
fn madvise_and_process_madvise_do_the_same() {
    let results: Vec<_> = [DiscardMethod::Auto, DiscardMethod::Madvise]
        .into_iter()
        .map(|discard| {
            let options = BalloonOptions {
                discard,
                ..BalloonOptions::default()
            };
            let machine = machine(64, Mode::Deterministic, options);
            machine.ram().touch_all();
            let mut driver = RawDriver::new(&machine.balloons()[0]);
            let frames = shuffled(frames(&machine, 9000, 1));
            frames.iter().for_each(|&frame| stamp(&machine, frame));
            // More runs in one request than the kernel takes in one call, and runs of all lengths.
            driver
                .send(machine.platform(), INFLATE, &frames[..5000])
                .unwrap();
            let contents: Vec<_> = frames
                .iter()
                .map(|&frame| stamp_of(&machine, frame))
                .collect();
            let discards = machine.balloons()[0].counters().discards;
            assert_eq!((discards.frames, discards.failures), (5000, 0));
            (
                contents,
                discards.runs,
                machine.ram().resident_frames().unwrap(),
            )
        })
        .collect();
    assert!(results[0].1 > 1024);
    assert_eq!(results[0], results[1]);
}

#[test]
fn adjacent_frames_are_discarded_by_one_call() {
    let machine = default_machine();
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    driver
        .send(
            machine.platform(),
            INFLATE,
            &shuffled(frames(&machine, 256, 1)),
        )
        .unwrap();
    let discards = machine.balloons()[0].counters().discards;
    assert_eq!(
        (discards.frames, discards.runs, discards.calls),
        (256, 1, 1)
    );
}

#[test]
fn protocol_errors_are_counted_and_change_nothing() {
    let machine = default_machine();
    let balloon = &machine.balloons()[0];
    let platform = machine.platform();
    let mut driver = RawDriver::new(balloon);
    let first = first_frame(&machine) as u32;

    driver.send(platform, INFLATE, &[first, first + 1]).unwrap();
    driver
        .send(platform, INFLATE, &[first, first + 2, first + 2])
        .unwrap();
    assert_eq!(balloon.counters().errors.already_held, 2);
    assert_eq!(balloon.held_frames(), 3);

    driver
        .send(platform, DEFLATE, &[first + 1, first + 9])
        .unwrap();
    assert_eq!(balloon.counters().errors.not_held, 1);
    assert_eq!(balloon.held_frames(), 2);

    // Metadata, DMA area, beyond the end, the largest number.
    let end = machine.ram().layout().regions()[0].end.get() as u32;
    driver
        .send(platform, INFLATE, &[0, first - 1, end, u32::MAX])
        .unwrap();
    driver.send(platform, DEFLATE, &[end, u32::MAX]).unwrap();
    assert_eq!(balloon.counters().errors.out_of_range, 6);
    assert_eq!(balloon.held_frames(), 2);

    driver.send_bytes(platform, INFLATE, &[1, 2, 3]).unwrap();
    driver
        .send(platform, INFLATE, &vec![first; 20_000])
        .unwrap();
    assert_eq!(balloon.counters().errors.malformed, 2);

    driver.transport().write_config_space(0, 77u32).unwrap();
    assert_eq!(balloon.counters().errors.config_writes, 1);
    assert_eq!(balloon.target(), 0);
    assert_eq!(balloon.held_frames(), 2);
    assert!(balloon.holds(Pfn::new(first.into())));
    assert!(!balloon.needs_reset());
}

#[test]
fn a_frame_touched_while_the_host_holds_it_is_found() {
    let options = BalloonOptions {
        audit: true,
        ..BalloonOptions::default()
    };
    let machine = machine(64, Mode::Deterministic, options);
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let frames = frames(&machine, 8, 2);
    driver.send(machine.platform(), INFLATE, &frames).unwrap();
    stamp(&machine, frames[3]);
    driver.send(machine.platform(), DEFLATE, &frames).unwrap();
    assert_eq!(machine.balloons()[0].counters().errors.touched, 1);
}

#[test]
fn target_and_actual_go_through_the_configuration() {
    let machine = default_machine();
    let balloon = &machine.balloons()[0];
    balloon.set_target(11).unwrap();
    assert!(
        !balloon.interrupt().is_pending(),
        "interrupted before the driver was ready"
    );
    let mut driver = RawDriver::new(balloon);
    assert_eq!(driver.target(), 11);
    let seen = balloon.interrupt().count();
    balloon.set_target(4000).unwrap();
    assert!(balloon.interrupt().wait_past(seen, Duration::ZERO));
    assert_eq!(driver.acknowledge(), CONFIG_INTERRUPT);
    assert_eq!(driver.target(), 4000);
    driver.write_actual(123);
    assert_eq!(balloon.actual(), 123);

    let managed = machine.ram().layout().managed_frames();
    balloon.set_target(managed).unwrap();
    let error = balloon.set_target(managed + 1).unwrap_err();
    assert!(error.to_string().contains(&managed.to_string()), "{error}");
    assert!(balloon.set_target(1 << 33).is_err());
    assert_eq!(balloon.target(), managed);
    balloon.set_target_unchecked(u32::MAX);
    assert_eq!(driver.target(), u32::MAX);

    let config =
        |driver: &mut RawDriver, offset| driver.transport().read_config_space::<u32>(offset);
    assert_eq!(config(&mut driver, 8), Err(Error::ConfigSpaceTooSmall));
    assert_eq!(
        config(&mut driver, usize::MAX),
        Err(Error::ConfigSpaceTooSmall)
    );
    assert_eq!(
        driver.transport().write_config_space(6, 1u32),
        Err(Error::ConfigSpaceTooSmall)
    );
    assert_eq!(
        driver.transport().write_config_space(2, 1u32),
        Err(Error::InvalidParam)
    );
    assert_eq!(
        driver.transport().write_config_space(4, 1u16),
        Err(Error::InvalidParam)
    );
}

#[test]
fn answers_interrupt_unless_the_driver_wants_none() {
    let machine = default_machine();
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let first = first_frame(&machine) as u32;
    driver.send(machine.platform(), INFLATE, &[first]).unwrap();
    assert_eq!(driver.acknowledge(), QUEUE_INTERRUPT);
    driver.want_interrupts(INFLATE, false);
    driver
        .send(machine.platform(), INFLATE, &[first + 1])
        .unwrap();
    assert_eq!(driver.acknowledge(), 0);
    driver.send(machine.platform(), DEFLATE, &[first]).unwrap();
    assert_eq!(driver.acknowledge(), QUEUE_INTERRUPT);
}

#[test]
fn statistics_come_when_asked_for() {
    static FIRST: [u8; 20] = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 1, 0, 0, 0, 0, 0, 0];
    static SECOND: [u8; 10] = [4, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    let options = BalloonOptions {
        features: features::STATS_VQ | features::MUST_TELL_HOST | features::DEFLATE_ON_OOM,
        ..BalloonOptions::default()
    };
    let machine = machine(64, Mode::Deterministic, options);
    let balloon = &machine.balloons()[0];
    let mut driver = RawDriver::new(balloon);
    let token = driver.post(STATS, &FIRST);
    assert_eq!(balloon.statistics().values.get(&4), Some(&258));
    // The buffer stays with the device until the host asks.
    assert_eq!(driver.peek(STATS), None);
    balloon.request_statistics();
    driver.pop(STATS, token, &FIRST).unwrap();
    driver.post(STATS, &SECOND);
    let statistics = balloon.statistics();
    assert_eq!(
        (statistics.reports, statistics.values.get(&4)),
        (2, Some(&9))
    );
    assert_eq!(statistics.values.get(&0), Some(&1));
    assert_eq!(balloon.counters().errors.total(), 0);
    // A second buffer while one is outstanding: the older comes back.
    driver.post(STATS, &SECOND);
    assert!(driver.peek(STATS).is_some());
    assert_eq!(balloon.counters().errors.malformed, 1);
}

#[test]
fn a_silent_device_is_waited_for_in_bounded_time() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(64, mode, BalloonOptions::default());
        let balloon = &machine.balloons()[0];
        let mut driver = RawDriver::new(balloon);
        driver.patience = Duration::from_millis(50);
        balloon.set_fault(Some(
            FaultPlan::once(Fault::Silent).on(Request::Deflate).after(1),
        ));
        let first = first_frame(&machine) as u32;
        let platform = machine.platform();
        driver.send(platform, INFLATE, &[first, first + 1]).unwrap();
        driver.send(platform, DEFLATE, &[first]).unwrap();
        assert_eq!(
            driver.send(platform, DEFLATE, &[first + 1]),
            Err(Error::NotReady)
        );
        driver.send(platform, INFLATE, &[first + 2]).unwrap();
    }
}

#[test]
fn a_device_that_answers_twice_or_wrongly_is_seen_by_the_driver() {
    static REQUEST: [u8; 4] = [0, 8, 0, 0];
    let machine = default_machine();
    let balloon = &machine.balloons()[0];
    let mut driver = RawDriver::new(balloon);
    balloon.set_fault(Some(FaultPlan::once(Fault::Twice)));
    let token = driver.post(INFLATE, &REQUEST);
    driver.pop(INFLATE, token, &REQUEST).unwrap();
    assert_eq!(driver.peek(INFLATE), Some(token));

    balloon.set_fault(Some(FaultPlan::once(Fault::WrongId(4711))));
    driver.post(DEFLATE, &REQUEST);
    assert_eq!(driver.peek(DEFLATE), Some(4711));
}

#[test]
fn delayed_answers_come_when_they_are_due() {
    static REQUEST: [u8; 4] = [0, 8, 0, 0];
    let machine = default_machine();
    let balloon = &machine.balloons()[0];
    let platform = machine.platform();
    let mut driver = RawDriver::new(balloon);
    balloon.set_fault(Some(FaultPlan::always(Fault::Delay(1_000_000))));
    let begin = platform.now();
    let token = driver.post(INFLATE, &REQUEST);
    platform.advance_to(begin + 999_999);
    assert_eq!(driver.peek(INFLATE), None);
    platform.advance_to(begin + 1_000_000);
    assert_eq!(driver.peek(INFLATE), Some(token));
    driver.pop(INFLATE, token, &REQUEST).unwrap();
    // Waiting lets the time pass.
    driver.send(platform, DEFLATE, &[2048]).unwrap();
    assert!(platform.now() >= begin + 2_000_000);
}

#[test]
fn delayed_answers_come_in_real_time_too() {
    let machine = machine(64, Mode::Threads, BalloonOptions::default());
    let balloon = &machine.balloons()[0];
    let mut driver = RawDriver::new(balloon);
    balloon.set_fault(Some(FaultPlan::once(Fault::Delay(20_000_000))));
    let begin = machine.platform().now();
    driver
        .send(machine.platform(), INFLATE, &frames(&machine, 4, 1))
        .unwrap();
    assert!(machine.platform().now() >= begin + 20_000_000);
}

#[test]
fn a_reset_frees_everything_for_the_next_driver() {
    let machine = default_machine();
    let balloon = &machine.balloons()[0];
    let frames = frames(&machine, 100, 1);
    for _ in 0..3 {
        let mut driver = RawDriver::new(balloon);
        assert!(balloon.transport().is_none(), "two drivers for one device");
        driver.send(machine.platform(), INFLATE, &frames).unwrap();
        assert_eq!(balloon.held_frames(), 100);
        drop(driver);
        assert_eq!(balloon.held_frames(), 0);
        assert_eq!(machine.ram().dma_pages_taken(), 0);
    }
    assert_eq!(balloon.counters().held_at_reset, 300);
    assert_eq!(balloon.counters().errors.total(), 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    use virtio_drivers::transport::DeviceStatus;
    let machine = default_machine();
    let mut transport = machine.balloons()[0].transport().unwrap();
    assert_eq!(transport.read_device_features(), features::VERSION_1);
    assert_eq!(transport.max_queue_size(STATS), 0);
    transport.write_driver_features(features::VERSION_1 | features::STATS_VQ);
    transport.set_status(DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
    assert!(!transport.get_status().contains(DeviceStatus::FEATURES_OK));
}

#[test]
fn memory_with_a_hole_is_ballooned_on_both_sides_of_it() {
    let regions = [
        Pfn::new(1000)..Pfn::new(9000),
        Pfn::new(20_000)..Pfn::new(24_001),
    ];
    let machine = MachineBuilder::new(0)
        .regions(&regions)
        .balloon(BalloonOptions::default())
        .build()
        .unwrap();
    machine.ram().touch_all();
    let all = machine.ram().resident_frames().unwrap();
    assert_eq!(all, machine.ram().layout().managed_frames());
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let wanted = [8998, 8999, 9000, 19_999, 20_000, 20_001, 24_000, 24_001];
    driver.send(machine.platform(), INFLATE, &wanted).unwrap();
    let counters = machine.balloons()[0].counters();
    assert_eq!((counters.inflated, counters.errors.out_of_range), (5, 3));
    assert_eq!(machine.ram().resident_frames().unwrap(), all - 5);
}

#[test]
fn two_balloons_of_a_machine_keep_their_own_books() {
    let machine = MachineBuilder::new(64 << 20)
        .balloon(BalloonOptions::default())
        .balloon(BalloonOptions::default())
        .build()
        .unwrap();
    let [one, two] = machine.balloons() else {
        panic!("two balloons")
    };
    let (mut first, mut second) = (RawDriver::new(one), RawDriver::new(two));
    let frames = frames(&machine, 10, 1);
    first
        .send(machine.platform(), INFLATE, &frames[..4])
        .unwrap();
    second
        .send(machine.platform(), INFLATE, &frames[4..])
        .unwrap();
    assert_eq!((one.held_frames(), two.held_frames()), (4, 6));
}

#[test]
fn a_host_that_takes_its_time_takes_it_for_each_request() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let answer_ns = 5_000_000;
        let options = BalloonOptions {
            answer: AnswerTime::After(answer_ns),
            ..BalloonOptions::default()
        };
        let machine = machine(64, mode, options);
        let mut driver = RawDriver::new(&machine.balloons()[0]);
        let (platform, first) = (machine.platform(), first_frame(&machine) as u32);
        for (queue, frame) in [(INFLATE, first), (INFLATE, first + 1), (DEFLATE, first)] {
            let before = platform.now();
            driver.send(platform, queue, &[frame]).unwrap();
            let took = platform.now() - before;
            assert!(took >= answer_ns, "{mode:?}: {took}");
        }
        // A fault goes before what is usual.
        machine.balloons()[0].set_fault(Some(FaultPlan::once(Fault::Twice)));
        let before = platform.now();
        driver.send(platform, INFLATE, &[first + 2]).unwrap();
        assert!(mode == Mode::Threads || platform.now() - before < answer_ns);
    }
}
