//! The task that measures the balloon: follows its target as fast as it can.

use alloc::{string::String, vec::Vec};

use dirigible::boot::{BootConfig, Booted, Marks};
use dirigible_balloon::{AllocatorSource, BalloonConfig, Deflate, LARGE_PFNS, MAX_PFNS, Step};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, FrameAllocator, FrameContents, Order, OwnerId, Pfn, Platform,
    Watermark, Watermarks,
};
use dirigible_workload::protocol::{Message, ask};

use super::{
    arch::{interrupts, serial::SERIAL},
    balloon::{Driver, device},
    console::send,
    machine::Guest,
    platform::GuestPlatform,
};

/// Most messages in one step of the driver.
const MESSAGES: usize = 16;
const PATTERN: u64 = 0x7061_7474_6572_6e00;

/// Follows the balloon target until the command sends `ask::END`. A message holds at most `batch` frame numbers.
///
/// # Errors
///
/// `batch` is out of range, the balloon cannot be set up, or a check of its books fails.
pub fn run(guest: &Guest, batch: u64) -> Result<(), String> {
    match batch as usize {
        batch @ 1..=MAX_PFNS => follow::<MAX_PFNS>(guest, batch),
        batch @ ..=LARGE_PFNS if batch > 0 => follow::<LARGE_PFNS>(guest, batch),
        _ => Err(alloc::format!(
            "a message holds 1 to {LARGE_PFNS} frame numbers, not {batch}"
        )),
    }
}

fn follow<const N: usize>(guest: &Guest, batch: usize) -> Result<(), String> {
    let text = |error: &dyn core::fmt::Display| alloc::format!("{error}");
    let Booted { frames, .. } = guest.boot(BootConfig {
        cpus: guest.cpus,
        marks: Marks::Fixed(Watermarks::default()),
        reserve_blocks: Some(0),
        ..BootConfig::default()
    })?;
    let platform = GuestPlatform;
    let transport = device()?;
    let line = transport.line();
    let id = OwnerId::new(1).ok_or("no owner number")?;
    let settings = BalloonConfig {
        placement: BalloonPlacement::FillHoles,
        deflate: Deflate::NewestFirst,
        batch,
        ..BalloonConfig::default()
    };
    let driver: Driver<'_, N> =
        Driver::new(transport, frames, &platform, id, settings).map_err(|error| text(&error))?;
    let source = AllocatorSource {
        frames,
        platform: &platform,
        watermark: Watermark::None,
    };
    loop {
        if line.is_none_or(|line| line.is_pending()) {
            driver.handle_interrupt();
        }
        match driver.step(&source, MESSAGES) {
            Step::Busy => continue,
            Step::Failed(fault) => return Err(text(&fault)),
            _ => {}
        }
        let held = driver.held();
        if held.entering + held.leaving > 0 {
            // An answer arrives sooner than a halted CPU would wake.
            core::hint::spin_loop();
            continue;
        }
        let asked = SERIAL.lock().receive();
        match asked {
            Some(ask::WRITE) => touch(frames, true),
            Some(ask::READ) => touch(frames, false),
            Some(ask::END) => break,
            _ if line.is_some() => interrupts::idle(),
            _ => platform.relax(),
        }
    }
    driver.verify().map_err(|error| text(&error))?;
    driver.shutdown().map_err(|error| text(&error))?;
    frames.drain_cpu_caches();
    frames.verify().map_err(|error| text(&error))
}

/// Writes or checks the first word of all free frames, and sends how many it found.
fn touch(frames: &FrameAllocator<'_>, write: bool) {
    let platform = GuestPlatform;
    let cpu = platform.cpu();
    let mut taken: Vec<(Pfn, Order)> = Vec::new();
    for order in [Order::HUGE, Order::BASE] {
        let request = AllocRequest::new(order, dirigible_frames::FrameClass::Movable)
            .with_watermark(Watermark::None);
        while let Ok(first) = frames.alloc(cpu, request) {
            taken.push((first, order));
        }
    }
    let (mut count, mut zero, mut wrong) = (0, 0, 0);
    for &(first, order) in &taken {
        for frame in (0..order.frames() as u64).map(|offset| first.plus(offset)) {
            count += 1;
            let pattern = PATTERN ^ frame.get();
            if write {
                platform.write_word(frame, 0, pattern);
                continue;
            }
            match platform.read_word(frame, 0) {
                0 => zero += 1,
                found if found != pattern => wrong += 1,
                _ => {}
            }
        }
    }
    for (first, order) in taken {
        if frames.free(cpu, first, order).is_err() {
            wrong += 1;
        }
    }
    frames.drain_cpu_caches();
    send(&Message::Touched {
        frames: count,
        zero,
        wrong,
    });
}
