//! The allocator on real CPUs.

use alloc::vec::Vec;

use dirigible_frames::{
    AllocRequest, FRAME_SIZE, FrameClass, FrameContents, Order, Pfn, Platform, Watermark,
};

use super::{
    deadline::{MILLISECOND, is_over},
    manager::{Memory, allocator},
    numbers::Numbers,
    outcome::{Outcome, Verdict, ensure},
};
use crate::kernel::{arch::smp, machine::Guest, platform::GuestPlatform};

/// All CPUs allocate and free runs of several orders at the same time. Contents are kept while a run is held, and all
/// frames are free at the end.
pub(super) fn frames_under_all_cpus(guest: &Guest, memory: &mut Memory) -> Outcome {
    let frames = allocator(guest, memory)?;
    let platform = GuestPlatform;
    let free = frames.free_frames();
    let verdict = Verdict::default();
    smp::on_all(&|cpu| {
        let mut numbers = Numbers(0x1234_5678 + cpu.index() as u64 * 77);
        let mut held: Vec<(Pfn, Order, u64)> = Vec::with_capacity(4096);
        let deadline = platform.now() + 1000 * MILLISECOND;
        let give_back = |(first, order, stamp): (Pfn, Order, u64)| {
            for offset in [0, order.frames() as u64 - 1] {
                let found = platform.read_word(first.plus(offset), 5);
                verdict.note(ensure(found == stamp + offset, || {
                    alloc::format!("{first}: {found:#x} where {stamp:#x} was written")
                }));
            }
            verdict.note(
                frames
                    .free(cpu, first, order)
                    .map_err(|error| alloc::format!("{first}: {error:?}")),
            );
        };
        while !is_over(&platform, deadline) && !verdict.has_failed() {
            for _ in 0..256 {
                let full = held.len() == held.capacity();
                if full || (!held.is_empty() && numbers.below(5) < 2) {
                    let index = numbers.below(held.len() as u64) as usize;
                    give_back(held.swap_remove(index));
                    continue;
                }
                let order = match numbers.below(64) {
                    0 => 9,
                    n if n < 8 => n as u8,
                    _ => 0,
                };
                let class = match numbers.below(4) {
                    0 if order < 9 => FrameClass::Unmovable,
                    1 if order < 9 => FrameClass::Reclaimable,
                    _ => FrameClass::Movable,
                };
                let Some(order) = Order::new(order) else {
                    continue;
                };
                let Ok(first) = frames.alloc(cpu, AllocRequest::new(order, class)) else {
                    continue;
                };
                let stamp = numbers.next() >> 1;
                for offset in [0, order.frames() as u64 - 1] {
                    platform.write_word(first.plus(offset), 5, stamp + offset);
                }
                held.push((first, order, stamp));
            }
        }
        held.drain(..).for_each(give_back);
    });
    verdict.outcome()?;
    frames.drain_cpu_caches();
    frames.verify().map_err(|error| alloc::format!("{error}"))?;
    ensure(frames.free_frames() == free, || {
        alloc::format!("{} of {free} frames are free", frames.free_frames())
    })
}

/// RAM above 4 GiB is managed, can be accessed, and is distinct from the RAM below.
pub(super) fn memory_above_4_gib_is_used(guest: &Guest, memory: &mut Memory) -> Outcome {
    const BORDER: u64 = (4 << 30) / FRAME_SIZE as u64;
    let above = guest.managed.iter().any(|range| range.end.get() > BORDER);
    ensure(above, || {
        "the machine has no RAM above 4 GiB: give it 3 GiB (-m 3G)".into()
    })?;
    let frames = allocator(guest, memory)?;
    let platform = GuestPlatform;
    let cpu = platform.cpu();
    let mut blocks = Vec::new();
    let request =
        AllocRequest::new(Order::HUGE, FrameClass::Movable).with_watermark(Watermark::None);
    while let Ok(first) = frames.alloc(cpu, request) {
        platform.write_word(first.plus(511), 511, first.get());
        blocks.push(first);
    }
    let managed: u64 = guest
        .managed
        .iter()
        .map(|range| range.end.get() - range.start.get())
        .sum();
    ensure(blocks.len() as u64 == managed / 512, || {
        alloc::format!("{} blocks of {managed} frames", blocks.len())
    })?;
    for &first in &blocks {
        let found = platform.read_word(first.plus(511), 511);
        ensure(found == first.get(), || {
            alloc::format!("{first} reads as {found:#x}: two addresses name the same memory")
        })?;
        frames
            .free(cpu, first, Order::HUGE)
            .map_err(|error| alloc::format!("{error:?}"))?;
    }
    frames.verify().map_err(|error| alloc::format!("{error}"))
}
