//! The real driver over the real queue: disks that work, fail, lie, and fall silent.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use dirigible_disk::{
    BlockDevice, Completion, DiskConfig, DiskError, DiskRequest, DiskState, MAX_REQUEST_FRAMES,
    SetUpError, SubmitError, VirtioDisk,
};
use dirigible_frames::{Cost, FrameContents, Pfn, Platform};
use dirigible_hosted::{
    DiskAccess, DiskFault, DiskFaultPlan, DiskOptions, HostDisk, HostedHal, HostedMachine,
    HostedPlatform, InProcessTransport, MachineBuilder, Mode, costs,
};
use proptest::prelude::*;

type Disk<'a> = VirtioDisk<'a, HostedHal, InProcessTransport, HostedPlatform>;

const BLOCKS: u64 = 256;
const SECOND: u64 = 1_000_000_000;
const NONE: Completion = Completion {
    token: u32::MAX,
    result: Ok(()),
};

fn options() -> DiskOptions {
    DiskOptions {
        bytes: BLOCKS * 4096,
        ..DiskOptions::default()
    }
}

fn machine_of(mode: Mode, options: DiskOptions) -> HostedMachine {
    let builder = MachineBuilder::new(32 << 20).mode(mode).disk(options);
    builder.build().unwrap()
}

/// A driver on a machine's first disk, and frames to use.
struct Rig<'m> {
    machine: &'m HostedMachine,
    disk: Disk<'m>,
}

impl<'m> Rig<'m> {
    fn new(machine: &'m HostedMachine, config: DiskConfig) -> Self {
        let transport = machine.disks()[0].transport().unwrap();
        let disk = Disk::new(transport, machine.platform(), config).unwrap();
        Self { machine, disk }
    }

    fn host(&self) -> &'m HostDisk {
        &self.machine.disks()[0]
    }

    fn now(&self) -> u64 {
        self.machine.platform().now()
    }

    /// Frame number `index` of the managed memory.
    fn frame(&self, index: u64) -> Pfn {
        self.machine.ram().layout().managed()[0].start.plus(index)
    }

    fn frames(&self, indexes: impl IntoIterator<Item = u64>) -> Vec<Pfn> {
        indexes.into_iter().map(|index| self.frame(index)).collect()
    }

    /// Fills a frame with words made of `value`.
    fn fill(&self, frame: Pfn, value: u64) {
        for word in 0..512 {
            let value = value.wrapping_mul(1 << 16).wrapping_add(word as u64);
            self.machine.platform().write_word(frame, word, value);
        }
    }

    fn contents(&self, frame: Pfn) -> Vec<u8> {
        let platform = self.machine.platform();
        (0..512)
            .flat_map(|word| platform.read_word(frame, word).to_le_bytes())
            .collect()
    }

    fn stored(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.host().read(block * 4096, &mut bytes).unwrap();
        bytes
    }

    fn submit(
        &self,
        token: u32,
        write: bool,
        block: u64,
        frames: &[Pfn],
    ) -> Result<(), SubmitError> {
        self.disk.submit(DiskRequest {
            token,
            write,
            block,
            frames,
        })
    }

    /// Takes all completions; waits at most a minute of virtual time, or of real time.
    fn wait_for(&self, count: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        let mut out = [NONE; 3];
        let began = (self.now(), Instant::now());
        while all.len() < count {
            let taken = self.disk.completed(&mut out);
            all.extend_from_slice(&out[..taken]);
            if taken == 0 {
                assert!(self.now() - began.0 < 60 * SECOND, "{count}: {all:?}");
                assert!(began.1.elapsed() < Duration::from_secs(60));
                self.machine.platform().relax();
            }
        }
        all
    }

    /// One request from beginning to end.
    fn transfer(&self, write: bool, block: u64, frames: &[Pfn]) -> Result<(), DiskError> {
        self.submit(7, write, block, frames).unwrap();
        let done = self.wait_for(1);
        assert_eq!((done.len(), done[0].token), (1, 7));
        done[0].result
    }

    fn idle(&self) {
        assert_eq!(self.disk.open(), 0);
        assert_eq!(self.disk.completed(&mut [NONE; 4]), 0);
    }
}

/// Short times, for tests in which the device fails.
fn hasty() -> DiskConfig {
    DiskConfig {
        timeout_ns: 20_000_000,
        ask_ns: 2_000_000,
        reset_timeout_ns: 5_000_000,
        restart_limit: 2,
        ..DiskConfig::default()
    }
}

#[test]
fn what_is_written_is_on_the_disk_and_read_back() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        for indirect in [true, false] {
            let machine = machine_of(
                mode,
                DiskOptions {
                    indirect,
                    ..options()
                },
            );
            let rig = Rig::new(&machine, DiskConfig::default());
            assert_eq!(rig.disk.blocks(), BLOCKS);
            assert_eq!(rig.disk.depth(), if indirect { 64 } else { 7 });
            // Scattered, backward, with a run in the middle.
            let frames = rig.frames((0..32).map(|index| match index {
                0..8 => 900 - 2 * index,
                8..20 => 500 + index,
                _ => 300 - index,
            }));
            for (value, &frame) in (1..).zip(&frames) {
                rig.fill(frame, value);
            }
            assert_eq!(rig.transfer(true, 100, &frames), Ok(()));
            for (block, &frame) in (100..).zip(&frames) {
                assert_eq!(rig.stored(block), rig.contents(frame));
            }
            assert_eq!(rig.stored(99), vec![0; 4096]);
            assert_eq!(rig.stored(132), vec![0; 4096]);
            // Read them in two halves to other places.
            let others = rig.frames((0..32).map(|index| 1000 + index * 3));
            assert_eq!(rig.transfer(false, 100, &others[..16]), Ok(()));
            assert_eq!(rig.transfer(false, 116, &others[16..]), Ok(()));
            for (&frame, &other) in frames.iter().zip(&others) {
                assert_eq!(rig.contents(frame), rig.contents(other));
            }
            rig.idle();
            let counters = rig.host().counters();
            assert_eq!((counters.reads, counters.writes), (2, 1));
            assert_eq!(counters.bytes_read, 32 * 4096);
            assert_eq!(counters.bytes_written, 32 * 4096);
            assert_eq!((counters.malformed, counters.out_of_range), (0, 0));
            assert_eq!(rig.disk.stats().done, 3);
        }
    }
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, DiskConfig::default());
    let frames = rig.frames(0..40);
    for (block, frames) in [
        (0, &frames[..0]),
        (0, &frames[..MAX_REQUEST_FRAMES + 1]),
        (BLOCKS, &frames[..1]),
        (BLOCKS - 1, &frames[..2]),
        (u64::MAX, &frames[..1]),
        (u64::MAX / 8, &frames[..8]),
        (0, &[Pfn::new(1 << 52)]),
        (0, &[Pfn::new(u64::MAX)]),
    ] {
        for write in [false, true] {
            let result = rig.submit(0, write, block, frames);
            assert_eq!(result, Err(SubmitError::Invalid));
        }
    }
    assert_eq!(rig.host().counters().reads, 0);
    assert_eq!(rig.transfer(true, BLOCKS - 32, &frames[..32]), Ok(()));
    rig.idle();
}

#[test]
fn beyond_the_depth_the_disk_is_busy() {
    for (indirect, queue_max, depth) in [
        (true, 256, 64),
        (true, 16, 16),
        (false, 1024, 30),
        (false, 64, 1),
    ] {
        let shape = DiskOptions {
            indirect,
            queue_max,
            ..options()
        };
        let machine = machine_of(Mode::Deterministic, shape);
        let rig = Rig::new(&machine, DiskConfig::default());
        assert_eq!(rig.disk.depth(), depth);
        for round in 0..3 {
            for token in 0..depth as u32 {
                let frame = rig.frame(token.into());
                rig.fill(frame, u64::from(token + round));
                rig.submit(token, true, token.into(), &[frame]).unwrap();
            }
            let frame = [rig.frame(100)];
            assert_eq!(rig.submit(99, true, 99, &frame), Err(SubmitError::Busy));
            assert_eq!(rig.disk.open(), depth);
            let mut done = rig.wait_for(1);
            rig.submit(99, true, 99, &frame).unwrap();
            done.extend(rig.wait_for(depth + 1 - done.len()));
            let mut tokens: Vec<_> = done.iter().map(|done| done.token).collect();
            tokens.sort_unstable();
            assert!(done.iter().all(|done| done.result.is_ok()));
            assert!(tokens.into_iter().eq((0..depth as u32).chain([99])));
            rig.idle();
        }
        // The first are answered while the last are sent.
        let peak = rig.host().counters().peak as usize;
        assert!(peak <= depth && peak > depth / 2, "{peak} of {depth}");
    }
}

/// A queue that has no room for one request, and one without entries.
#[test]
fn a_device_without_room_is_refused() {
    let shape = DiskOptions {
        indirect: false,
        queue_max: 32,
        ..options()
    };
    let machine = machine_of(Mode::Deterministic, shape);
    let transport = machine.disks()[0].transport().unwrap();
    let disk = Disk::new(transport, machine.platform(), DiskConfig::default());
    assert_eq!(disk.unwrap_err(), SetUpError::SmallQueue { entries: 32 });
    machine.disks()[0].claim_sectors(7);
    let transport = machine.disks()[0].transport().unwrap();
    let disk = Disk::new(transport, machine.platform(), DiskConfig::default());
    assert_eq!(disk.unwrap_err(), SetUpError::Empty { sectors: 7 });
    assert_eq!(machine.ram().dma_pages_taken(), 0);
}

#[test]
fn time_is_latency_and_shared_transfer() {
    for speed in [1000, 100] {
        let slow = DiskOptions {
            speed_thousandths: speed,
            ..options()
        };
        let machine = machine_of(Mode::Deterministic, slow);
        let rig = Rig::new(&machine, DiskConfig::default());
        let latency = costs::disk_latency(speed);
        let block = costs::disk_transfer(4096, speed);
        // One alone: the processor's share, the latency, the transfer.
        let frames = rig.frames(0..32);
        let began = rig.now();
        rig.submit(0, false, 0, &frames[..4]).unwrap();
        let sent = rig.now();
        assert_eq!(sent - began, costs::price(Cost::DiskRequest(4)));
        machine
            .platform()
            .advance_to(sent + latency + 4 * block - 1);
        assert_eq!(rig.disk.completed(&mut [NONE; 1]), 0);
        machine.platform().advance_to(sent + latency + 4 * block);
        assert_eq!(rig.disk.completed(&mut [NONE; 1]), 1);
        // 48 at once: latencies overlap up to the depth, transfers do not.
        let began = rig.now();
        for token in 0..48 {
            rig.submit(token, false, 0, &frames).unwrap();
        }
        let done = rig.wait_for(48);
        assert!(done.iter().map(|done| done.token).eq(0..48));
        let took = rig.now() - began;
        let transfers = 48 * 32 * block;
        assert!(took >= transfers + latency, "{took}");
        assert!(took < transfers + 2 * latency + transfers / 20, "{took}");
    }
}

#[test]
fn small_requests_wait_for_the_depth() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, DiskConfig::default());
    let began = rig.now();
    for token in 0..64 {
        rig.submit(token, false, token.into(), &[rig.frame(token.into())])
            .unwrap();
    }
    // The last 32 begin when others end: two latencies at least, and far from 64 of them.
    rig.wait_for(64);
    let took = rig.now() - began;
    assert!(took > 2 * costs::disk_latency(1000), "{took}");
    assert!(took < 10 * costs::disk_latency(1000), "{took}");
}

/// Blocks that were never written take no room, and the disk is gone with the machine.
#[test]
fn the_disk_is_sparse() {
    let machine = machine_of(
        Mode::Deterministic,
        DiskOptions {
            bytes: 1 << 40,
            ..DiskOptions::default()
        },
    );
    let rig = Rig::new(&machine, DiskConfig::default());
    assert_eq!(rig.disk.blocks(), 1 << 28);
    let frames = rig.frames(0..4);
    frames.iter().for_each(|&frame| rig.fill(frame, 3));
    assert_eq!(rig.transfer(true, (1 << 28) - 4, &frames), Ok(()));
    assert!(rig.host().stored_bytes().unwrap() < 1 << 20);
    assert_eq!(rig.stored((1 << 28) - 1), rig.contents(frames[3]));
    // Beyond 2^32 sectors nothing is cut off.
    assert_eq!(rig.stored(((1 << 28) - 1) % (1 << 29 >> 3)), vec![0; 4096]);
}

#[test]
fn a_disk_needs_a_size_a_speed_and_a_place() {
    for bad in [
        DiskOptions {
            bytes: 0,
            ..options()
        },
        DiskOptions {
            bytes: 4097,
            ..options()
        },
        DiskOptions {
            bytes: 1 << 63,
            ..options()
        },
        DiskOptions {
            speed_thousandths: 0,
            ..options()
        },
        DiskOptions {
            queue_max: 100,
            ..options()
        },
        DiskOptions {
            directory: Some("/nowhere/at/all".into()),
            ..options()
        },
    ] {
        assert!(MachineBuilder::new(32 << 20).disk(bad).build().is_err());
    }
}

#[test]
fn errors_come_back_with_their_request_and_the_disk_lives() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine_of(mode, options());
        let rig = Rig::new(&machine, DiskConfig::default());
        let frames = rig.frames([3, 9]);
        frames.iter().for_each(|&frame| rig.fill(frame, 5));
        let plan = |access, every| {
            DiskFaultPlan::always(DiskFault::Error)
                .on(access)
                .every(every)
        };
        rig.host()
            .set_faults(vec![plan(DiskAccess::Write, 3), plan(DiskAccess::Read, 2)]);
        for number in 1..=6 {
            let failed = Err(DiskError::Io);
            let wanted = if number % 3 == 0 { failed } else { Ok(()) };
            assert_eq!(rig.transfer(true, 10 * number, &frames), wanted);
            let wanted = if number % 2 == 0 { failed } else { Ok(()) };
            assert_eq!(rig.transfer(false, 10 * number, &frames), wanted);
        }
        assert_eq!(rig.host().counters().faults, 2 + 3);
        assert_eq!(rig.disk.stats().failed, 2 + 3);
        assert_eq!(rig.disk.state(), DiskState::Live);
        rig.idle();
    }
}

#[test]
fn a_torn_write_leaves_half_of_it() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, DiskConfig::default());
    let frames = rig.frames([1, 5, 2]);
    for (value, &frame) in (1..).zip(&frames) {
        rig.fill(frame, value);
    }
    rig.host()
        .set_faults(vec![DiskFaultPlan::once(DiskFault::Torn)]);
    assert_eq!(rig.transfer(true, 8, &frames), Err(DiskError::Io));
    assert_eq!(rig.stored(8), rig.contents(frames[0]));
    let middle = rig.stored(9);
    assert_eq!(middle[..2048], rig.contents(frames[1])[..2048]);
    assert_eq!(middle[2048..], [0; 2048]);
    assert_eq!(rig.stored(10), vec![0; 4096]);
    assert_eq!(rig.transfer(true, 8, &frames), Ok(()));
    assert_eq!(rig.stored(10), rig.contents(frames[2]));
}

#[test]
fn a_delayed_request_is_overtaken() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine_of(mode, options());
        let rig = Rig::new(&machine, DiskConfig::default());
        let delay = DiskFault::Delay(20_000_000);
        rig.host().set_faults(vec![DiskFaultPlan::once(delay)]);
        let began = rig.now();
        for token in 0..5 {
            rig.submit(token, false, 0, &[rig.frame(token.into())])
                .unwrap();
        }
        let done = rig.wait_for(5);
        assert!(rig.now() - began >= 20_000_000);
        let tokens: Vec<_> = done.iter().map(|done| done.token).collect();
        assert_eq!(tokens, [1, 2, 3, 4, 0]);
        assert!(done.iter().all(|done| done.result.is_ok()));
    }
}

/// All in flight come back, each once, and afterwards the disk works.
#[test]
fn a_silent_device_is_reset_and_set_up_anew() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine_of(mode, options());
        let rig = Rig::new(&machine, hasty());
        let frame = [rig.frame(1)];
        assert_eq!(rig.transfer(false, 0, &frame), Ok(()));
        for round in 1..5 {
            let silent = DiskFaultPlan::always(DiskFault::Silent);
            rig.host().set_faults(vec![silent]);
            let began = rig.now();
            for token in 0..10 {
                rig.submit(token, true, 0, &frame).unwrap();
            }
            let mut done = rig.wait_for(10);
            assert!(rig.now() - began >= 20_000_000);
            done.sort_by_key(|done| done.token);
            assert!(done.iter().map(|done| done.token).eq(0..10));
            // The first is overdue; the others are not to blame.
            let (lost, others) = done.split_at(1);
            assert_eq!(lost[0].result, Err(DiskError::Lost));
            let interrupted = |done: &Completion| {
                let result = done.result;
                matches!(result, Err(DiskError::Lost | DiskError::Interrupted))
            };
            assert!(others.iter().all(interrupted));
            assert_eq!(rig.disk.state(), DiskState::Live);
            rig.idle();
            rig.host().set_faults(Vec::new());
            assert_eq!(rig.transfer(true, 0, &frame), Ok(()));
            assert_eq!(rig.disk.stats().resets, round);
        }
        assert_eq!(rig.disk.stats().lost, 40);
    }
}

/// A request that never comes back takes others with it: they are told apart, so that whoever sent them tries again.
#[test]
fn a_reset_interrupts_the_requests_that_are_not_overdue() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    let (frame, other) = ([rig.frame(1)], [rig.frame(2)]);
    rig.host()
        .set_faults(vec![DiskFaultPlan::always(DiskFault::Silent)]);
    rig.submit(0, true, 0, &frame).unwrap();
    machine.platform().advance_to(rig.now() + 5_000_000);
    rig.submit(1, true, 1, &other).unwrap();
    let mut done = rig.wait_for(2);
    done.sort_by_key(|done| done.token);
    let results: Vec<_> = done.iter().map(|done| done.result).collect();
    assert_eq!(results, [Err(DiskError::Lost), Err(DiskError::Interrupted)]);
    rig.host().set_faults(Vec::new());
    assert_eq!(rig.transfer(true, 1, &other), Ok(()));
}

#[test]
fn a_device_that_stays_silent_is_given_up() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    rig.host()
        .set_faults(vec![DiskFaultPlan::always(DiskFault::Silent)]);
    let frame = [rig.frame(1)];
    for live in [true, true, false] {
        assert_eq!(rig.transfer(true, 0, &frame), Err(DiskError::Lost));
        assert_eq!(rig.disk.state() == DiskState::Live, live);
    }
    assert_eq!(rig.disk.state(), DiskState::Dead);
    rig.host().set_faults(Vec::new());
    assert_eq!(rig.submit(1, true, 0, &frame), Err(SubmitError::Dead));
    rig.idle();
    let Rig { disk, .. } = rig;
    drop(disk);
    assert_eq!(machine.ram().dma_pages_taken(), 0);
    // The next driver finds a device that works.
    let rig = Rig::new(&machine, hasty());
    assert_eq!(rig.transfer(true, 0, &frame), Ok(()));
}

/// Long before the timeout.
#[test]
fn a_device_that_says_that_it_failed_is_reset_soon() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine_of(mode, options());
        let patient = DiskConfig {
            timeout_ns: 50 * SECOND,
            ..hasty()
        };
        let rig = Rig::new(&machine, patient);
        let broken = DiskFaultPlan::once(DiskFault::BreakDown);
        rig.host().set_faults(vec![broken]);
        let frame = [rig.frame(1)];
        let began = rig.now();
        assert_eq!(rig.transfer(true, 0, &frame), Err(DiskError::Interrupted));
        assert!(rig.now() - began < SECOND);
        assert_eq!(rig.transfer(true, 0, &frame), Ok(()));
        assert_eq!(rig.host().counters().broken_rings, 0);
    }
}

/// The device may write the frames for ever: they come back as such, and its queue's memory is not used again.
#[test]
fn a_reset_that_is_not_confirmed_abandons_the_frames() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    let slow = DiskFaultPlan::always(DiskFault::Delay(10 * SECOND));
    rig.host().set_faults(vec![slow]);
    rig.host().ignore_resets(true);
    rig.host().write(0, &[9; 4096]).unwrap();
    for token in 0..3 {
        let frame = [rig.frame(token.into())];
        rig.submit(token, false, 0, &frame).unwrap();
    }
    let done = rig.wait_for(3);
    let abandoned = Err(DiskError::Abandoned);
    assert!(done.iter().all(|done| done.result == abandoned));
    assert_eq!(rig.disk.state(), DiskState::Abandoned);
    assert_eq!(
        rig.submit(1, true, 0, &[rig.frame(1)]),
        Err(SubmitError::Dead)
    );
    // It does write them.
    assert_eq!(rig.contents(rig.frame(0)), vec![0; 4096]);
    machine.platform().advance_to(rig.now() + 10 * SECOND);
    assert_eq!(rig.contents(rig.frame(0)), vec![9; 4096]);
    rig.idle();
    let taken = machine.ram().dma_pages_taken();
    drop(rig);
    assert!(taken > 0);
    assert_eq!(machine.ram().dma_pages_taken(), taken);
}

/// Whatever a device says, all requests end and nothing panics.
#[test]
fn a_device_that_lies_is_reset_for_good() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        for indirect in [true, false] {
            for fault in [
                DiskFault::NoStatus,
                DiskFault::Status(3),
                DiskFault::Status(255),
                DiskFault::WrongId(1),
                DiskFault::WrongId(63),
                DiskFault::WrongId(64),
                DiskFault::WrongId(65_535),
                DiskFault::WrongId(65_536),
                DiskFault::WrongId(u32::MAX),
                DiskFault::Length(2 * 4096 + 2),
                DiskFault::Length(u32::MAX),
            ] {
                let machine = machine_of(
                    mode,
                    DiskOptions {
                        indirect,
                        ..options()
                    },
                );
                let rig = Rig::new(&machine, hasty());
                rig.host()
                    .set_faults(vec![DiskFaultPlan::once(fault).after(1)]);
                let frames = rig.frames([1, 3]);
                assert_eq!(rig.transfer(false, 0, &frames), Ok(()));
                assert_eq!(
                    rig.transfer(false, 0, &frames),
                    Err(DiskError::Lost),
                    "{fault:?}"
                );
                assert_eq!(rig.disk.state(), DiskState::Dead, "{fault:?}");
                assert_eq!(rig.disk.stats().lies, 1);
                let again = rig.submit(1, false, 0, &frames);
                assert_eq!(again, Err(SubmitError::Dead));
                rig.idle();
            }
        }
    }
}

/// The second answer is for nobody, whether others are in flight or not.
#[test]
fn an_answer_that_comes_twice_is_no_other_requests() {
    for others in 0..3 {
        let machine = machine_of(Mode::Deterministic, options());
        let rig = Rig::new(&machine, hasty());
        rig.host()
            .set_faults(vec![DiskFaultPlan::once(DiskFault::Twice)]);
        for token in 0..=others {
            let frame = [rig.frame(token.into())];
            rig.submit(token, false, 0, &frame).unwrap();
        }
        let done = rig.wait_for(others as usize + 1);
        assert_eq!(
            done[0],
            Completion {
                token: 0,
                result: Ok(())
            }
        );
        let lost = Err(DiskError::Lost);
        assert!(done[1..].iter().all(|done| done.result == lost));
        assert_eq!(rig.disk.state(), DiskState::Dead);
        rig.idle();
    }
}

/// The second answer stands in the ring when nobody looks any more, and the next request gets the same place: it does
/// not count as its answer, since no status was written for it.
#[test]
fn a_stale_answer_is_not_taken_for_a_later_request() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    let twice = DiskFaultPlan::once(DiskFault::Twice);
    let silent = DiskFaultPlan::always(DiskFault::Silent);
    rig.host().set_faults(vec![twice, silent]);
    rig.submit(0, false, 0, &[rig.frame(0)]).unwrap();
    machine.platform().advance_to(rig.now() + 1_000_000);
    let mut out = [NONE; 1];
    assert_eq!(rig.disk.completed(&mut out), 1);
    assert_eq!(
        out[0],
        Completion {
            token: 0,
            result: Ok(())
        }
    );
    assert_eq!(rig.disk.open(), 0);
    let result = rig.transfer(false, 0, &[rig.frame(1)]);
    assert_eq!(result, Err(DiskError::Lost));
    assert_eq!(rig.disk.state(), DiskState::Dead);
    assert_eq!(rig.disk.stats().lies, 1);
}

/// A disk that has shrunk over a reset is not the disk that it was.
#[test]
fn a_device_that_changes_over_a_reset_is_given_up() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    let frame = [rig.frame(1)];
    rig.host()
        .set_faults(vec![DiskFaultPlan::once(DiskFault::Silent)]);
    rig.host().claim_sectors(BLOCKS * 8 - 1);
    assert_eq!(rig.transfer(true, 0, &frame), Err(DiskError::Lost));
    assert_eq!(rig.disk.state(), DiskState::Dead);
    assert!(!rig.host().needs_reset());
}

/// Whoever polls last may be gone: a request finds a reset that nobody brings to its end.
#[test]
fn a_submit_brings_a_reset_to_its_end() {
    let machine = machine_of(Mode::Deterministic, options());
    let rig = Rig::new(&machine, hasty());
    let frame = [rig.frame(1)];
    rig.host()
        .set_faults(vec![DiskFaultPlan::once(DiskFault::Silent)]);
    rig.host().ignore_resets(true);
    rig.submit(1, true, 0, &frame).unwrap();
    machine.platform().advance_to(rig.now() + 21_000_000);
    assert_eq!(rig.disk.completed(&mut [NONE; 1]), 0);
    assert_eq!(rig.disk.state(), DiskState::Resetting);
    assert_eq!(rig.submit(2, true, 0, &frame), Err(SubmitError::Busy));
    rig.host().ignore_resets(false);
    rig.submit(2, true, 0, &frame).unwrap();
    let done = rig.wait_for(2);
    let lost = Completion {
        token: 1,
        result: Err(DiskError::Lost),
    };
    assert_eq!(
        done,
        [
            lost,
            Completion {
                token: 2,
                result: Ok(())
            }
        ]
    );
    assert_eq!(rig.disk.state(), DiskState::Live);
}

/// Many threads send and poll; each request's completion comes once, to one of them, with its data done.
#[test]
fn threads_share_a_disk() {
    const THREADS: u32 = 4;
    const ROUNDS: u32 = 200;
    let machine = machine_of(Mode::Threads, options());
    let rig = Rig::new(
        &machine,
        DiskConfig {
            depth: 8,
            ..DiskConfig::default()
        },
    );
    let taken = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rig, taken) = (&rig, &taken);
            scope.spawn(move || {
                let began = Instant::now();
                let mut sent = 0;
                while taken.lock().unwrap().len() < (THREADS * ROUNDS) as usize {
                    assert!(began.elapsed() < Duration::from_secs(100));
                    if sent < ROUNDS {
                        // Each request has a frame and a block of its own at the time.
                        let token = thread * ROUNDS + sent;
                        let frame = rig.frame(token.into());
                        rig.fill(frame, token.into());
                        let block = u64::from(token) % BLOCKS;
                        match rig.submit(token, true, block, &[frame]) {
                            Ok(()) => sent += 1,
                            Err(error) => assert_eq!(error, SubmitError::Busy),
                        }
                    }
                    let mut out = [NONE; 2];
                    let count = rig.disk.completed(&mut out);
                    taken.lock().unwrap().extend_from_slice(&out[..count]);
                }
            });
        }
    });
    let mut taken = taken.into_inner().unwrap();
    taken.sort_by_key(|done| done.token);
    assert!(taken.iter().map(|done| done.token).eq(0..THREADS * ROUNDS));
    assert!(taken.iter().all(|done| done.result.is_ok()));
    rig.idle();
}

/// A step of the property test.
#[derive(Clone, Debug)]
enum Action {
    Write { block: u64, frames: Vec<u64> },
    Read { block: u64, frames: Vec<u64> },
    Take { room: usize },
    Pass { ns: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let frames = || {
        prop_oneof![
            // A run, so that pieces are joined.
            (0..200u64, 1..=32u64).prop_map(|(first, count)| (first..first + count).collect()),
            prop::collection::btree_set(0..200u64, 1..=32)
                .prop_map(|set| set.into_iter().collect::<Vec<_>>())
                .prop_shuffle(),
        ]
    };
    let block = || 0..BLOCKS;
    prop_oneof![
        3 => (block(), frames()).prop_map(|(block, frames)| Action::Write { block, frames }),
        3 => (block(), frames()).prop_map(|(block, frames)| Action::Read { block, frames }),
        2 => (0..10usize).prop_map(|room| Action::Take { room }),
        2 => (1..300_000u64).prop_map(|ns| Action::Pass { ns }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    /// Requests that are in flight together touch different blocks and frames; then the disk is as a byte array.
    #[test]
    fn a_disk_is_an_array_of_blocks(
        actions in prop::collection::vec(action(), 1..60),
        indirect: bool,
    ) {
        let machine = machine_of(Mode::Deterministic, DiskOptions { indirect, ..options() });
        let rig = Rig::new(&machine, DiskConfig::default());
        let mut model = vec![vec![0; 4096]; BLOCKS as usize];
        let mut memory = vec![vec![0; 4096]; 256];
        // Open requests: token, whether it writes, block, frames.
        let mut open: Vec<(u32, bool, u64, Vec<u64>)> = Vec::new();
        let mut next = 0;
        let settle = |open: &mut Vec<(u32, bool, u64, Vec<u64>)>,
                          done: &Completion,
                          model: &[Vec<u8>],
                          memory: &mut Vec<Vec<u8>>| {
            let place = open.iter().position(|open| open.0 == done.token);
            let (_, write, block, frames) = open.swap_remove(place.expect("an open request"));
            assert_eq!(done.result, Ok(()));
            if !write {
                for (block, frame) in (block as usize..).zip(frames) {
                    memory[frame as usize].clone_from(&model[block]);
                    assert_eq!(rig.contents(rig.frame(frame)), model[block]);
                }
            }
        };
        for action in actions {
            match action {
                Action::Write { block, ref frames } | Action::Read { block, ref frames } => {
                    let write = matches!(action, Action::Write { .. });
                    let blocks = block..block + frames.len() as u64;
                    let free = open.iter().all(|(_, _, first, others)| {
                        let end = first + others.len() as u64;
                        (blocks.end <= *first || end <= block)
                            && !frames.iter().any(|frame| others.contains(frame))
                    });
                    if !free {
                        continue;
                    }
                    if write {
                        for &frame in frames {
                            next += 1;
                            rig.fill(rig.frame(frame), next);
                            memory[frame as usize] = rig.contents(rig.frame(frame));
                        }
                    }
                    let pfns = rig.frames(frames.iter().copied());
                    let token = next as u32 ^ 0x8000_0000;
                    next += 1;
                    let result = rig.submit(token, write, block, &pfns);
                    if blocks.end > BLOCKS {
                        prop_assert_eq!(result, Err(SubmitError::Invalid));
                    } else if open.len() == rig.disk.depth() {
                        prop_assert_eq!(result, Err(SubmitError::Busy));
                    } else {
                        prop_assert_eq!(result, Ok(()));
                        if write {
                            for (block, &frame) in (block as usize..).zip(frames) {
                                model[block].clone_from(&memory[frame as usize]);
                            }
                        }
                        open.push((token, write, block, frames.clone()));
                    }
                }
                Action::Take { room } => {
                    let mut out = vec![NONE; room];
                    let taken = rig.disk.completed(&mut out);
                    for done in &out[..taken] {
                        settle(&mut open, done, &model, &mut memory);
                    }
                }
                Action::Pass { ns } => machine.platform().advance_to(rig.now() + ns),
            }
            prop_assert_eq!(rig.disk.open(), open.len());
        }
        for done in rig.wait_for(open.len()) {
            settle(&mut open, &done, &model, &mut memory);
        }
        for (block, bytes) in (0..).zip(&model) {
            prop_assert_eq!(&rig.stored(block), bytes);
        }
        // No frame was touched that was not asked for.
        for (frame, bytes) in (0..).zip(&memory) {
            prop_assert_eq!(&rig.contents(rig.frame(frame)), bytes);
        }
        rig.idle();
    }
}
