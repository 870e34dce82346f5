//! How much stack a boot takes: kernels have 16 to 32 KiB.
#![allow(missing_docs)]

mod machine;

use core::{mem::MaybeUninit, sync::atomic::AtomicBool};

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, BootPlan, Booted},
    memory_map::{MapEntry, MemoryKind},
    schedule::{Actor, Engine, FreeClock, Next},
};
use dirigible_frames::CpuId;
use machine::Machine;

/// Boots on a stack of its own, which then tells how deep that went.
struct Boot(Vec<MaybeUninit<u8>>);

impl Actor for Boot {
    fn step(&mut self, _: u64) -> Next {
        let map = [
            MapEntry::new(0..0x9_fc00, MemoryKind::Usable),
            MapEntry::new(0x10_0000..64 << 20, MemoryKind::Usable),
            MapEntry::new(0x10_0000..0x30_0123, MemoryKind::InUse),
            MapEntry::new(32 << 20..33 << 20, MemoryKind::Reserved),
        ];
        let plan = BootPlan::new(&map, BootConfig::default()).unwrap();
        let Booted { frames, room } = plan.boot(&mut self.0, &Machine).unwrap();
        let config = ManagerConfig::for_frames(frames);
        let manager = MemoryManager::new_in(room, frames, &Machine, config).unwrap();
        assert!(frames.free_frames() > 0);
        assert!(manager.admit_cpu(CpuId::new(0)).is_ok());
        Next::Done
    }
}

#[test]
fn a_boot_fits_on_a_kernels_stack() {
    let mut engine = Engine::new();
    let memory = vec![MaybeUninit::uninit(); 4 << 20];
    engine.add_program(0, Box::new(Boot(memory))).unwrap();
    engine.run(&FreeClock::default(), &AtomicBool::new(false), |_, _| {});
    let deepest = engine.deepest_stack();
    println!("{deepest} bytes of stack");
    assert!((4 << 10..LIMIT).contains(&deepest), "{deepest} bytes");
}

/// Measured: 20 KiB with checks on.
const LIMIT: usize = 24 << 10;
