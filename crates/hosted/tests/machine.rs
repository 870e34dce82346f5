//! Building machines, several at once, and what lies where in their memory.
#![allow(missing_docs)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dirigible::schedule::Clock;
use dirigible_frames::{Cost, CpuId, FrameContents, PageTables, Pfn, Platform};
use dirigible_hosted::{
    AnswerTime, Backing, BalloonOptions, HostFacts, HostedHal, MAX_CPUS, MachineBuilder,
    MachineClock, Mode, costs, features,
};
use support::*;
use virtio_drivers::{
    BufferDirection, Hal,
    transport::{DeviceStatus, Transport},
};

fn error_of(builder: MachineBuilder) -> String {
    builder
        .build()
        .expect_err("a machine that cannot be")
        .to_string()
}

#[test]
fn impossible_machines_are_refused_with_a_reason() {
    let mib = 1 << 20;
    assert!(error_of(MachineBuilder::new(0)).contains("at least 16 MiB"));
    assert!(error_of(MachineBuilder::new(64 * mib + 5)).contains("whole number of frames"));
    assert!(error_of(MachineBuilder::new(4 * mib)).contains("at least 16 MiB"));
    let available = HostFacts::gather().available_bytes;
    let too_much = (available * 2).next_multiple_of(4096);
    let error = error_of(MachineBuilder::new(too_much));
    assert!(error.contains("this host can spare"), "{error}");
    assert!(error_of(MachineBuilder::new(64 * mib).cpus(0)).contains("0 CPUs"));
    assert!(error_of(MachineBuilder::new(64 * mib).cpus(MAX_CPUS + 1)).contains("257 CPUs"));
    let odd = BalloonOptions {
        queue_max: 100,
        ..BalloonOptions::default()
    };
    assert!(error_of(MachineBuilder::new(64 * mib).balloon(odd)).contains("power of two"));
    let unknown = BalloonOptions {
        features: 1 << 5,
        ..BalloonOptions::default()
    };
    assert!(error_of(MachineBuilder::new(64 * mib).balloon(unknown)).contains("0x20"));
}

#[test]
fn the_metadata_are_given_once_and_nobody_else_reaches_them() {
    let machine = machine(64, Mode::Deterministic, BalloonOptions::default());
    let metadata = machine.ram().metadata_slice().unwrap();
    assert!(machine.ram().metadata_slice().is_none());
    assert!(metadata.len() as u64 * 1000 >= (64 << 20) * 45 / 10);
    assert!(metadata.iter().all(|&byte| byte == 0));
    metadata.fill(0xa5);

    // Neither the platform nor a driver, who points a queue at them.
    let reserved = machine.ram().layout().reserved();
    for frame in [reserved.start, Pfn::new(reserved.end.get() - 1)] {
        let read = catch_unwind(AssertUnwindSafe(|| machine.platform().read_word(frame, 0)));
        assert!(read.is_err());
    }
    let balloon = &machine.balloons()[0];
    let mut transport = balloon.transport().unwrap();
    transport.write_driver_features(features::VERSION_1);
    transport.queue_set(INFLATE, 16, 0x1000, 0x2000, 0x3000);
    transport.set_status(DeviceStatus::DRIVER_OK | DeviceStatus::FEATURES_OK);
    assert!(balloon.needs_reset());
    transport.notify(INFLATE);
    assert!(metadata.iter().all(|&byte| byte == 0xa5));
}

#[test]
fn accesses_outside_managed_memory_panic() {
    let regions = [Pfn::new(0)..Pfn::new(8192), Pfn::new(9000)..Pfn::new(9100)];
    let machine = MachineBuilder::new(0).regions(&regions).build().unwrap();
    let platform = machine.platform();
    let first = machine.ram().layout().managed()[0].start;
    let panics = |work: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
    panics(&|| platform.write_word(first, 512, 1));
    panics(&|| _ = platform.read_word(Pfn::new(8192), 0));
    panics(&|| _ = platform.read_word(Pfn::new(u64::MAX), 0));
    panics(&|| platform.zero_frames(Pfn::new(8191), 2));
    panics(&|| platform.zero_frames(Pfn::new(8191), usize::MAX));
    panics(&|| platform.copy_frames(first, Pfn::new(9099), 2));
    panics(&|| platform.write_lines(Pfn::new(9100), &[0; 64]));
    platform.write_word(Pfn::new(9099), 511, 7);
    assert_eq!(platform.read_word(Pfn::new(9099), 511), 7);
}

#[test]
fn frames_are_copied_zeroed_and_exchanged_whole() {
    let machine = MachineBuilder::new(64 << 20).build().unwrap();
    let platform = machine.platform();
    let first = machine.ram().layout().managed()[0].start;
    for index in 0..3 * 512 {
        platform.write_word(
            first.plus(index / 512),
            (index % 512) as usize,
            index * index + 1,
        );
    }
    platform.copy_frames(first, first.plus(600), 3);
    platform.zero_frames(first.plus(1), 1);
    for index in 0..3 * 512 {
        let (frame, word) = (index / 512, (index % 512) as usize);
        let expected = if frame == 1 { 0 } else { index * index + 1 };
        assert_eq!(platform.read_word(first.plus(frame), word), expected);
        assert_eq!(
            platform.read_word(first.plus(600 + frame), word),
            index * index + 1
        );
    }
    let mut lines = [0; 64];
    platform.read_lines(first.plus(602), &mut lines);
    assert_eq!(lines[5], (2 * 512 + 40) * (2 * 512 + 40) + 1);
    lines[5] = 99;
    platform.write_lines(first, &lines);
    assert_eq!(platform.read_word(first, 40), 99);
    assert_eq!(platform.read_word(first, 41), 41 * 41 + 1);

    assert_eq!(platform.swap_entry(first, 3, 8), 3 * 3 + 1);
    assert_eq!(platform.compare_exchange_entry(first, 3, 9, 1), Err(8));
    assert_eq!(platform.compare_exchange_entry(first, 3, 8, 16), Ok(8));
    assert_eq!(platform.or_entry(first, 3, 1), 16);
    assert_eq!(platform.load_entry(first, 3), 17);
}

#[test]
fn virtual_time_moves_only_when_told() {
    let machine = MachineBuilder::new(64 << 20).build().unwrap();
    let platform = machine.platform();
    assert_eq!(platform.now(), 0);
    platform.charge(Cost::HostRequest(256));
    assert_eq!(platform.now(), costs::price(Cost::HostRequest(256)));
    platform.advance_to(1_000_000_000);
    platform.advance_to(5);
    assert_eq!(platform.now(), 1_000_000_000);
    platform.relax();
    assert_eq!(platform.now(), 1_000_000_000 + costs::RELAX);
}

#[test]
fn a_thread_is_one_cpu_of_a_threaded_machine() {
    let machine = machine(64, Mode::Threads, BalloonOptions::default());
    let platform = machine.platform();
    assert!(catch_unwind(AssertUnwindSafe(|| platform.cpu())).is_err());
    let binding = platform.bind_cpu(CpuId::new(2)).unwrap();
    assert_eq!(platform.cpu(), CpuId::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(platform.bind_cpu(CpuId::new(2)).is_err());
            let _binding = platform.bind_cpu(CpuId::new(3)).unwrap();
            assert_eq!(platform.cpu(), CpuId::new(3));
        });
    });
    drop(binding);
    assert!(platform.bind_cpu(CpuId::new(4)).is_err());
    let now = platform.now();
    platform.charge(Cost::Fault);
    platform.advance_to(u64::MAX);
    platform.relax();
    assert!(platform.now() > now && platform.now() < u64::MAX);
}

#[test]
fn two_machines_live_in_one_process() {
    let options = BalloonOptions::default();
    let (one, two) = (
        machine(32, Mode::Deterministic, options),
        machine(64, Mode::Threads, options),
    );
    // A thread that built none and is bound to none works for no machine ...
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(HostedHal::dma_alloc(1, BufferDirection::Both).0, 0));
    });
    // ... a bound thread for its own, not for the one that it built last, and each driver stays with its machine.
    let binding = one.platform().bind_cpu(CpuId::new(0)).unwrap();
    let mut first = RawDriver::new(&one.balloons()[0]);
    drop(binding);
    let pages = one.ram().dma_pages_taken();
    assert!(pages > 0);
    assert_eq!(two.ram().dma_pages_taken(), 0);

    let binding = two.platform().bind_cpu(CpuId::new(0)).unwrap();
    let mut second = RawDriver::new(&two.balloons()[0]);
    second
        .send(two.platform(), INFLATE, &frames(&two, 40, 1))
        .unwrap();
    drop(binding);

    let binding = one.platform().bind_cpu(CpuId::new(0)).unwrap();
    first
        .send(one.platform(), INFLATE, &frames(&one, 30, 1))
        .unwrap();
    assert_eq!(
        (
            one.balloons()[0].held_frames(),
            two.balloons()[0].held_frames()
        ),
        (30, 40)
    );
    drop(first);
    assert_eq!(one.ram().dma_pages_taken(), 0);
    assert!(two.ram().dma_pages_taken() > 0);
    drop(binding);
}

#[test]
fn dma_memory_is_zeroed_shared_in_place_and_runs_out_cleanly() {
    let machine = machine(64, Mode::Deterministic, BalloonOptions::default());
    let _binding = machine.platform().bind_cpu(CpuId::new(0)).unwrap();
    let pages = machine.ram().layout().dma();
    let pages = (pages.end.get() - pages.start.get()) as usize;

    let (physical, address) = HostedHal::dma_alloc(2, BufferDirection::Both);
    assert_eq!(physical, machine.ram().layout().dma().start.address());
    let buffer = core::ptr::NonNull::slice_from_raw_parts(address, 8192);
    #[allow(unsafe_code)]
    // SAFETY: two pages that were just allocated and that nobody else knows; returned once.
    unsafe {
        address.write_bytes(0xff, 8192);
        let tail = core::ptr::NonNull::slice_from_raw_parts(address.add(100), 50);
        assert_eq!(
            HostedHal::share(tail, BufferDirection::Both),
            physical + 100
        );
        HostedHal::unshare(physical + 100, tail, BufferDirection::Both);
        assert_eq!(HostedHal::dma_dealloc(physical, address, 1), -1);
        assert_eq!(HostedHal::dma_dealloc(physical, address, 2), 0);
        assert_eq!(HostedHal::dma_dealloc(physical, address, 2), -1);
    }
    let (again, address) = HostedHal::dma_alloc(2, BufferDirection::Both);
    assert_eq!((again, address.cast()), (physical, buffer.cast::<u8>()));
    #[allow(unsafe_code)]
    // SAFETY: as above.
    unsafe {
        let bytes = core::slice::from_raw_parts(address.as_ptr(), 8192);
        assert!(bytes.iter().all(|&byte| byte == 0));
        assert_eq!(HostedHal::dma_alloc(pages - 1, BufferDirection::Both).0, 0);
        assert_eq!(HostedHal::dma_alloc(usize::MAX, BufferDirection::Both).0, 0);
        assert_eq!(HostedHal::dma_dealloc(again, address, 2), 0);
    }
    assert_eq!(machine.ram().dma_pages_taken(), 0);
}

#[test]
fn a_driver_may_outlive_its_machine() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(64, mode, BalloonOptions::default());
        let binding = machine.platform().bind_cpu(CpuId::new(0)).unwrap();
        let mut driver = RawDriver::new(&machine.balloons()[0]);
        driver
            .send(machine.platform(), INFLATE, &frames(&machine, 3, 1))
            .unwrap();
        drop(binding);
        drop(machine);
        // Its queues are still memory, and go away with it.
        driver.transport().notify(INFLATE);
        assert_eq!(driver.peek(INFLATE), None);
    }
}

#[test]
fn huge_pages_may_back_memory() {
    let machine = MachineBuilder::new(64 << 20)
        .backing(Backing::HugePages)
        .build()
        .unwrap();
    let first = machine.ram().layout().managed()[0].start;
    machine.platform().write_word(first, 0, 1);
    let resident = machine.ram().resident_frames().unwrap();
    assert!(resident == 1 || resident == 512, "{resident}");
    assert!(machine.ram().is_resident(first).unwrap());
    assert!(!machine.ram().is_resident(Pfn::new(0)).unwrap());
    assert!(machine.ram().resident_bytes().unwrap() >= resident << 12);
}

/// What a queue of actors does while programs wait: a due device goes first, and time goes on in short steps.
#[test]
fn virtual_time_passes_to_what_comes_next_and_a_millisecond_at_most() {
    const MILLISECOND: u64 = 1_000_000;
    let options = BalloonOptions {
        answer: AnswerTime::After(10_000),
        ..BalloonOptions::default()
    };
    let machine = machine(16, Mode::Deterministic, options);
    let (platform, clock) = (machine.platform(), MachineClock::new(machine.platform()));
    clock.pass(None);
    assert_eq!(platform.now(), MILLISECOND);
    clock.pass(Some(MILLISECOND + 7));
    assert_eq!(platform.now(), MILLISECOND + 7);
    clock.pass(Some(100 * MILLISECOND));
    assert_eq!(platform.now(), 2 * MILLISECOND + 7);

    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let request = frames(&machine, 1, 1)[0].to_le_bytes();
    let request: &'static [u8] = Box::leak(Box::new(request));
    for catches_up in [false, true] {
        let begun = platform.now();
        let token = driver.post(INFLATE, request);
        clock.pass(None);
        assert_eq!(platform.now(), begun + 10_000);
        assert_eq!(driver.peek(INFLATE), Some(token));
        driver.pop(INFLATE, token, request).unwrap();

        // The answer is due in the middle of what an actor does.
        let token = driver.post(DEFLATE, request);
        while platform.now() < begun + 30_000 {
            platform.charge(Cost::FillFrame);
        }
        let now = platform.now();
        assert_eq!(driver.peek(DEFLATE), None);
        match catches_up {
            true => clock.catch_up(),
            false => clock.pass(Some(now + 1)),
        }
        assert_eq!((platform.now(), driver.peek(DEFLATE)), (now, Some(token)));
        driver.pop(DEFLATE, token, request).unwrap();
    }
}
