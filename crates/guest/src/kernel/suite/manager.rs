//! The memory manager that the tests run on.

use alloc::string::String;

use dirigible_frames::{
    Config, ConfigError, Fallback, FrameAllocator, OwnerId, Placement, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::{NoReclaim, Paging, SlowPath, SlowPathConfig};

use super::outcome::{Outcome, ensure};
use crate::kernel::{
    arch::{cpu, masking::Masking, shoot_down},
    machine::Guest,
    platform::GuestPlatform,
};

/// Calls `run` with the configuration of the tests' allocator, over all managed memory.
pub(super) fn with_config<T>(guest: &Guest, run: impl FnOnce(&Config<'_>) -> T) -> T {
    let zone = ZoneConfig {
        name: "Normal",
        ranges: &guest.managed,
        watermarks: Watermarks {
            min: 256,
            low: 512,
            high: 1024,
        },
        reserve_blocks: 0,
    };
    run(&Config {
        zones: &[zone],
        reserved: &[],
        cpus: guest.cpus,
        placement: Placement::FullestFirst,
        fallback: Fallback::Evacuate,
        interrupts: Some(&Masking),
        ..Config::default()
    })
}

/// An allocator over all managed memory, whose metadata is in `metadata`.
pub(super) fn allocator<'m>(
    guest: &Guest,
    metadata: &'m mut [u8],
) -> Result<FrameAllocator<'m>, String> {
    let made: Result<_, ConfigError> =
        with_config(guest, |config| FrameAllocator::new(config, metadata));
    made.map_err(|error| alloc::format!("no allocator: {error}"))
}

/// A memory manager without a balloon.
pub(super) struct Manager<'a> {
    pub(super) frames: &'a FrameAllocator<'a>,
    pub(super) platform: &'a GuestPlatform,
    pub(super) paging: &'a Paging<'a, GuestPlatform>,
    pub(super) mobility: &'a Mobility<'a, GuestPlatform>,
    pub(super) memory: &'a SlowPath<'a, GuestPlatform>,
}

/// Runs `test` on a memory manager of its own. Afterwards all frames must be free again, and all counts right.
pub(super) fn with_manager(
    guest: &Guest,
    metadata: &mut [u8],
    test: impl FnOnce(&Manager<'_>) -> Outcome,
) -> Outcome {
    let text = |error: &dyn core::fmt::Display| alloc::format!("{error}");
    let frames = allocator(guest, metadata)?;
    let platform = GuestPlatform;
    let owner = OwnerId::new(1).ok_or("no owner id")?;
    let paging = Paging::new(&frames, &platform, owner, 16).with_kernel_half(guest.kernel_root);
    let mobility = alloc::boxed::Box::new(Mobility::new(
        &frames,
        &platform,
        CompactionConfig::default(),
    ));
    mobility
        .register(owner, &paging)
        .map_err(|error| text(&error))?;
    let memory = SlowPath::new(&mobility, &NoReclaim, SlowPathConfig::default());
    let free = frames.free_frames();
    let outcome = test(&Manager {
        frames: &frames,
        platform: &platform,
        paging: &paging,
        mobility: &mobility,
        memory: &memory,
    });
    // A test that failed may have left its root table loaded, in memory that the next test uses.
    shoot_down::leave_program(cpu::current());
    outcome?;
    let audit = paging.audit().map_err(|error| text(&error))?;
    ensure(audit.spaces == 0, || "address spaces are left".into())?;
    mobility.verify().map_err(|error| text(&error))?;
    frames.drain_cpu_caches();
    frames.verify().map_err(|error| text(&error))?;
    ensure(frames.free_frames() == free, || {
        alloc::format!("{} of {free} frames are free", frames.free_frames())
    })
}
