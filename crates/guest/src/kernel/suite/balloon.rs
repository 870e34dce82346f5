//! The balloon on the hypervisor's device.

use alloc::{string::String, vec::Vec};

use dirigible::{ManagerConfig, MemoryManager, boot::Booted};
use dirigible_balloon::{AllocatorSource, BalloonConfig, Step};
use dirigible_frames::{
    AllocRequest, FrameContents, FrameState, Order, OwnerId, Pfn, Platform, Watermark,
};
use dirigible_mobility::{Mobility, MovePair, Outcome as Moved};
use dirigible_paging::{PageSource, SlowPath};
use dirigible_workload::protocol::TESTS_BALLOON;

use super::{
    deadline::{MILLISECOND, is_over},
    manager::{Memory, boot},
    outcome::{Outcome, ensure},
};
use crate::kernel::{
    arch::interrupts,
    balloon::{Driver, device},
    machine::Guest,
    platform::GuestPlatform,
};

const PATIENCE: u64 = 10_000 * MILLISECOND;
const PATTERN: u64 = 0x6261_6c6c_6f6f_6e00;

/// A machine whose balloon has reached its target.
struct Ballooned<'a, 'b> {
    driver: &'a Driver<'b>,
    mobility: &'a Mobility<'a, GuestPlatform>,
    /// The slow path, with the balloon as its out-of-memory notifier.
    memory: &'a SlowPath<'a, GuestPlatform>,
    source: &'a AllocatorSource<'a, GuestPlatform>,
    /// The frames that the balloon holds.
    held: Vec<Pfn>,
}

/// Runs `test` on a balloon that has reached its target. Afterwards all counts must be right, and all frames free
/// again.
fn with_balloon(
    guest: &Guest,
    memory: &mut Memory,
    test: impl FnOnce(&Ballooned<'_, '_>) -> Outcome,
) -> Outcome {
    let text = |error: &dyn core::fmt::Display| alloc::format!("{error}");
    let Booted { frames, room } = boot(guest, memory)?;
    let platform = GuestPlatform;
    let cpu = platform.cpu();
    let free = frames.free_frames();
    // The balloon's frames have contents, so that the test can see that the host has taken them.
    let mut taken = Vec::with_capacity(2 * TESTS_BALLOON as usize);
    while taken.len() < taken.capacity() {
        let frame = frames.alloc(cpu, AllocRequest::movable());
        let frame = frame.map_err(|error| alloc::format!("{error:?}"))?;
        platform.write_word(frame, 0, PATTERN);
        taken.push(frame);
    }
    for &frame in &taken {
        frames
            .free(cpu, frame, Default::default())
            .map_err(|error| alloc::format!("{error:?}"))?;
    }
    let id = OwnerId::new(2).ok_or("no owner number")?;
    let transport = device()?;
    let line = transport
        .line()
        .ok_or("the balloon has no interrupt line")?;
    let config = BalloonConfig {
        deflate_on_oom: true,
        ..BalloonConfig::default()
    };
    let driver: Driver<'_> =
        Driver::new(transport, frames, &platform, id, config).map_err(|error| text(&error))?;
    let manager = MemoryManager::new_in(room, frames, &platform, ManagerConfig::default());
    let manager = manager.map_err(|error| text(&error))?;
    manager
        .register_balloon(&driver)
        .map_err(|error| text(&error))?;
    let source = AllocatorSource {
        frames,
        platform: &platform,
        watermark: Watermark::Low,
    };
    let (deadline, mut interrupted) = (platform.now() + PATIENCE, 0);
    loop {
        if line.is_pending() {
            interrupted += 1;
            driver.handle_interrupt();
        }
        match driver.step(&source, 4) {
            Step::Idle if driver.actual() == TESTS_BALLOON => break,
            Step::Failed(fault) => return Err(text(&fault)),
            Step::Busy => {}
            _ => interrupts::idle(),
        }
        if is_over(&platform, deadline) {
            let (actual, target) = (driver.actual(), driver.target());
            return Err(alloc::format!(
                "the balloon has {actual} of {target} frames; {TESTS_BALLOON} were to be asked for"
            ));
        }
    }
    ensure(interrupted > 0, || "the device never interrupted".into())?;
    // By number: sorting frames is the allocator's business, and would count as its code.
    let mut taken: Vec<u64> = taken.into_iter().map(Pfn::get).collect();
    taken.sort_unstable();
    driver.verify().map_err(|error| text(&error))?;
    let held = listed(frames, id, guest);
    ensure(held.len() as u64 == TESTS_BALLOON, || {
        alloc::format!("{} frames are listed, not {TESTS_BALLOON}", held.len())
    })?;
    // Frames that were never written would read as zeroes anyway.
    let written = held
        .iter()
        .all(|frame| taken.binary_search(&frame.get()).is_ok());
    ensure(written, || {
        "the balloon took frames that nobody had written".into()
    })?;
    test(&Ballooned {
        driver: &driver,
        mobility: manager.mobility(),
        memory: manager.memory(),
        source: &source,
        held,
    })?;
    manager.shutdown(0).map_err(|error| text(&error))?;
    ensure(frames.free_frames() == free, || {
        alloc::format!("{} of {free} frames are free", frames.free_frames())
    })
}

/// The frames that are listed for owner `id`.
fn listed(frames: &dirigible_frames::FrameAllocator<'_>, id: OwnerId, guest: &Guest) -> Vec<Pfn> {
    let all = guest
        .managed
        .iter()
        .flat_map(|range| (range.start.get()..range.end.get()).map(Pfn::new));
    all.filter(|&frame| frames.state(frame) == FrameState::Listed && frames.owner(frame) == id)
        .collect()
}

/// The host has taken the frames that the balloon gave it: afterwards they read as zeroes.
pub(super) fn the_balloon_follows_its_target(guest: &Guest, memory: &mut Memory) -> Outcome {
    let mut held = Vec::new();
    with_balloon(guest, memory, |balloon| {
        held.extend_from_slice(&balloon.held);
        Ok(())
    })?;
    let zero = held
        .iter()
        .filter(|&&frame| GuestPlatform.read_word(frame, 0) == 0)
        .count();
    ensure(zero == held.len(), || {
        alloc::format!("{zero} of {} frames read as zeroes", held.len())
    })
}

/// Each frame of the balloon is moved three times, with two messages for each 256 frames.
pub(super) fn balloon_frames_move(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_balloon(guest, memory, |balloon| {
        let Ballooned {
            driver, mobility, ..
        } = balloon;
        let frames = mobility.frames();
        let cpu = GuestPlatform.cpu();
        let mut now: Vec<Pfn> = balloon.held.clone();
        let before = driver.stats();
        for _ in 0..3 {
            let mut next = Vec::with_capacity(now.len());
            for batch in now.chunks(256) {
                let mut pairs = Vec::with_capacity(256);
                for &from in batch {
                    let to = frames
                        .alloc(cpu, AllocRequest::movable())
                        .map_err(|error| alloc::format!("{error:?}"))?;
                    ensure(mobility.isolate(from), || {
                        alloc::format!("{from} could not be isolated")
                    })?;
                    pairs.push(MovePair::base(from, to));
                }
                mobility.migrate_frames(&mut pairs);
                for pair in pairs {
                    ensure(pair.outcome == Moved::Moved, || {
                        alloc::format!("{} to {}: {:?}", pair.from, pair.to, pair.outcome)
                    })?;
                    next.push(pair.to);
                }
            }
            now = next;
        }
        let after = driver.stats();
        let (moved, messages) = (
            after.frames_moved - before.frames_moved,
            after.migrate_messages - before.migrate_messages,
        );
        ensure(
            moved == 3 * TESTS_BALLOON && messages == moved / 128,
            || alloc::format!("{moved} frames moved with {messages} messages"),
        )?;
        ensure(driver.actual() == TESTS_BALLOON, || {
            "the balloon's size changed".into()
        })
    })
}

pub(super) fn the_balloon_comes_up_again_after_a_reset(
    guest: &Guest,
    memory: &mut Memory,
) -> Outcome {
    for round in 0..2 {
        with_balloon(guest, memory, |_| Ok(()))
            .map_err(|why: String| alloc::format!("round {round}: {why}"))?;
    }
    Ok(())
}

/// A task allocates all memory through the slow path. When there is no more, it gets all frames that the balloon holds,
/// and none that the host still has. The balloon does not take them back at once, though its target has not changed.
pub(super) fn a_task_goes_on_with_what_the_balloon_gives_back(
    guest: &Guest,
    memory: &mut Memory,
) -> Outcome {
    with_balloon(guest, memory, |balloon| {
        let Ballooned {
            driver,
            mobility,
            memory,
            source,
            ..
        } = balloon;
        let platform = &GuestPlatform;
        let pattern = |frame: Pfn| PATTERN ^ frame.get();
        let request = AllocRequest::movable();
        let mut taken = Vec::with_capacity(guest_frames(guest));
        let mut without = None;
        while taken.len() < taken.capacity()
            && let Ok(frame) = memory.alloc(request)
        {
            if driver.stats().oom_deflated > 0 {
                without.get_or_insert(taken.len());
            }
            platform.write_word(frame, 0, pattern(frame));
            taken.push(frame);
        }
        let gained = taken.len() - without.unwrap_or(taken.len());
        ensure(gained as u64 == TESTS_BALLOON, || {
            alloc::format!("the task went on for {gained} frames, not {TESTS_BALLOON}")
        })?;
        let (deflated, actual) = (driver.stats().oom_deflated, driver.actual());
        ensure(deflated == TESTS_BALLOON && actual == 0, || {
            alloc::format!("{deflated} frames were given back, {actual} are held")
        })?;
        let wrong = taken
            .iter()
            .filter(|&&frame| platform.read_word(frame, 0) != pattern(frame))
            .count();
        ensure(wrong == 0, || {
            alloc::format!("{wrong} frames have wrong contents")
        })?;
        for frame in taken {
            memory.free(frame, Order::BASE);
        }
        mobility.frames().drain_cpu_caches();
        let step = driver.step(*source, 4);
        let rests = matches!(step, Step::RetryAt(until) if until > platform.now());
        ensure(rests && driver.actual() == 0, || {
            alloc::format!("the balloon grows back at once: {step:?}")
        })
    })
}

/// The number of frames that the tests' allocator manages.
fn guest_frames(guest: &Guest) -> usize {
    let ranges = guest.managed.iter();
    ranges
        .map(|range| (range.end.get() - range.start.get()) as usize)
        .sum()
}
