//! Access sections against shoot-downs, with real threads.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_frames::{CpuId, FrameContents, PageTables};
use dirigible_hosted::{MachineBuilder, Mode};

/// A page-table entry names one of two frames. A writer moves it back and forth: it replaces the entry, shoots down,
/// then spoils the frame that nobody may use any more. Readers look the entry up and read the frame inside a section:
/// what they read must never be spoilt.
#[test]
fn nobody_uses_a_translation_after_the_shoot_down() {
    const ROUNDS: u64 = 20_000;
    const SPOILT: u64 = u64::MAX;
    let machine = MachineBuilder::new(32 << 20)
        .cpus(3)
        .mode(Mode::Threads)
        .build()
        .unwrap();
    let platform = machine.platform();
    let table = machine.ram().layout().managed()[0].start;
    let frames = [table.plus(1), table.plus(2)];
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    platform.swap_entry(table, 0, 0);
    platform.zero_frames(frames[0], 1);

    std::thread::scope(|scope| {
        for cpu in 1..3 {
            let (done, reads) = (&done, &reads);
            scope.spawn(move || {
                let _binding = platform.bind_cpu(CpuId::new(cpu)).unwrap();
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    platform.enter_access();
                    let frame = frames[platform.load_entry(table, 0) as usize];
                    if count % 16 == 0 {
                        // Losing the processor just here is what the shoot-down must wait out.
                        std::thread::yield_now();
                    }
                    let words = [0, 100, 511].map(|index| platform.read_word(frame, index));
                    platform.leave_access();
                    assert!(
                        !words.contains(&SPOILT),
                        "read a frame after its shoot-down"
                    );
                    count += 1;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _binding = platform.bind_cpu(CpuId::new(0)).unwrap();
        // A busy host may let the readers begin late.
        let mut round = 0;
        while round < ROUNDS || reads.load(Ordering::Relaxed) == 0 {
            let (old, new) = (round % 2, (round + 1) % 2);
            for index in [0, 100, 511] {
                platform.write_word(frames[new as usize], index, round);
            }
            assert_eq!(platform.swap_entry(table, 0, new), old);
            platform.shoot_down(0, 0);
            for index in [0, 100, 511] {
                platform.write_word(frames[old as usize], index, SPOILT);
            }
            if round % 500 == 0 || round >= ROUNDS {
                std::thread::yield_now();
            }
            round += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// A shoot-down waits for a section that is long, too, and does not wait for those entered later.
#[test]
fn a_shoot_down_waits_for_those_inside_only() {
    let machine = MachineBuilder::new(32 << 20)
        .cpus(2)
        .mode(Mode::Threads)
        .build()
        .unwrap();
    let platform = machine.platform();
    let (inside, left) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _binding = platform.bind_cpu(CpuId::new(1)).unwrap();
            platform.enter_access();
            inside.store(true, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(30));
            left.store(true, Ordering::SeqCst);
            platform.leave_access();
            platform.enter_access();
            std::thread::sleep(std::time::Duration::from_millis(1));
            platform.leave_access();
        });
        let _binding = platform.bind_cpu(CpuId::new(0)).unwrap();
        while !inside.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        platform.shoot_down(0, 0);
        assert!(left.load(Ordering::SeqCst));
    });
}
