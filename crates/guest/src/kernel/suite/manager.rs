//! The memory manager that the tests run on.

use alloc::string::{String, ToString};
use core::mem::MaybeUninit;

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, Booted, Marks},
};
use dirigible_frames::{FrameAllocator, OwnerId, Watermarks};
use dirigible_mobility::Mobility;
use dirigible_paging::{Paging, SlowPath};

use super::outcome::{Outcome, ensure};
use crate::kernel::{
    arch::{cpu, shoot_down},
    machine::Guest,
    platform::GuestPlatform,
};

/// Memory for the tables of a test's memory manager.
pub(super) type Memory = [MaybeUninit<u8>];

/// How the tests boot: small watermarks, and no reserve.
pub(super) fn config(guest: &Guest) -> BootConfig<'static> {
    BootConfig {
        cpus: guest.cpus,
        marks: Marks::Fixed(Watermarks {
            min: 256,
            low: 512,
            high: 1024,
        }),
        reserve_blocks: Some(0),
        ..BootConfig::default()
    }
}

/// Boots over all managed memory, with tables in `memory`.
pub(super) fn boot<'m>(guest: &Guest, memory: &'m mut Memory) -> Result<Booted<'m>, String> {
    let booted = guest.plan(config(guest))?.boot(memory, &GuestPlatform);
    booted.map_err(|error| error.to_string())
}

/// The same, for tests of the allocator alone.
pub(super) fn allocator<'m>(
    guest: &Guest,
    memory: &'m mut Memory,
) -> Result<&'m FrameAllocator<'m>, String> {
    Ok(boot(guest, memory)?.frames)
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
    memory: &mut Memory,
    test: impl FnOnce(&Manager<'_>) -> Outcome,
) -> Outcome {
    let Booted { frames, room } = boot(guest, memory)?;
    let platform = GuestPlatform;
    let owner = OwnerId::new(1).ok_or("no owner id")?;
    let paging = Paging::new(frames, &platform, owner, 16).with_kernel_half(guest.kernel_root);
    let manager = MemoryManager::new_in(room, frames, &platform, ManagerConfig::default());
    let manager = manager.map_err(|error| error.to_string())?;
    let added = manager.register_paging(&paging);
    added.map_err(|error| error.to_string())?;
    let outcome = test(&Manager {
        frames,
        platform: &platform,
        paging: &paging,
        mobility: manager.mobility(),
        memory: manager.memory(),
    });
    // A test that failed may have left its root table loaded, in memory that the next test uses.
    shoot_down::leave_program(cpu::current());
    outcome?;
    let (free, all) = (|| frames.free_frames(), frames.managed_frames());
    manager.shutdown(0).map_err(|error| error.to_string())?;
    ensure(free() == all, || {
        alloc::format!("{} of {all} frames are free", free())
    })
}
