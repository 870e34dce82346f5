//! A memory manager from boot to shutdown: two CPUs, a balloon that grows between their pages, and huge pages all the
//! same.
//!
//!     cargo run --release -p dirigible --example two_cpus
//!
//! The machine is the hosted one: real memory, and a balloon device behind real virtqueues. A kernel brings its own
//! `Platform`, transport and memory map, and writes the rest as it stands here.

use std::{
    error::Error,
    thread,
    time::{Duration, Instant},
};

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, BootPlan, Booted, Tables},
    daemon::{Daemon, Next},
    memory_map::{MapEntry, MemoryKind},
};
use dirigible_balloon::{BalloonConfig, VirtioBalloon};
use dirigible_frames::{AllocRequest, CpuId, Event, Order, OwnerId, Platform};
use dirigible_hosted::{BalloonOptions, HostedHal, HostedPlatform, MachineBuilder, Mode};
use dirigible_paging::{FaultKind, Page, PageSource, Paging, SpaceId};

const PAGING: OwnerId = OwnerId::new(1).unwrap();
const BALLOON: OwnerId = OwnerId::new(2).unwrap();
/// Pages that each CPU's program touches; every third one it keeps.
const PAGES: u64 = 15_500;
const BALLOON_FRAMES: u64 = 15_000;
const HUGE_PAGES: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    // What the hardware and the boot loader give.
    let machine = MachineBuilder::new(128 << 20)
        .cpus(2)
        .mode(Mode::Threads)
        .balloon(BalloonOptions::default())
        .build()?;
    let (platform, device) = (machine.platform(), &machine.balloons()[0]);
    let boot_cpu = platform.bind_cpu(CpuId::new(0))?;
    let usable = machine.ram().layout().managed().iter();
    let map: Vec<MapEntry> = usable
        .map(|range| {
            MapEntry::new(
                range.start.address()..range.end.address(),
                MemoryKind::Usable,
            )
        })
        .collect();

    // Boot: an allocator from the map. The hosted machine keeps memory for tables outside of its map.
    let config = BootConfig {
        cpus: 2,
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&map, config)?;
    let memory = machine
        .ram()
        .table_memory()
        .ok_or("the memory for tables is taken")?;
    let Booted { frames, room } = plan.boot(memory, platform)?;

    // Owners, and the manager that moves their frames.
    let paging = Paging::new(frames, platform, PAGING, 8);
    let transport = device
        .transport()
        .ok_or("the device has a driver already")?;
    let balloon: VirtioBalloon<'_, HostedHal, _, _> = VirtioBalloon::new(
        transport,
        frames,
        platform,
        BALLOON,
        BalloonConfig::default(),
    )?;
    let manager = MemoryManager::new_in(room, frames, platform, ManagerConfig::for_frames(frames))?;
    manager.register_paging(&paging)?;
    manager.register_balloon(&balloon)?;

    // Two programs leave memory full of holes: no block is free any more.
    drop(boot_cpu);
    let programs = thread::scope(|scope| {
        let programs = [0, 1].map(|cpu| {
            let (manager, paging) = (&manager, &paging);
            scope.spawn(move || {
                program(manager, paging, CpuId::new(cpu)).map_err(|error| error.to_string())
            })
        });
        let [first, second] =
            programs.map(|program| program.join().map_err(|_| "a program panicked"));
        Ok::<[SpaceId; 2], Box<dyn Error>>([first??, second??])
    })?;
    let _cpu = platform.bind_cpu(CpuId::new(0))?;
    println!(
        "two programs run: {} of {} blocks are whole",
        frames.free_blocks(),
        frames.block_count()
    );

    // The host asks for memory, and the balloon's worker gives it.
    device.set_target(BALLOON_FRAMES)?;
    let mut worker = manager.balloon_worker(&balloon);
    let deadline = Instant::now() + Duration::from_secs(10);
    while balloon.actual() < BALLOON_FRAMES {
        balloon.handle_interrupt();
        let (now, next) = (platform.now(), worker.step(platform.now()));
        let (Next::At(time) | Next::Event { latest: time }) = next else {
            break;
        };
        thread::sleep(Duration::from_nanos(time.saturating_sub(now)).min(Duration::from_millis(1)));
        if Instant::now() > deadline {
            return Err(format!(
                "the balloon has {} of {BALLOON_FRAMES} frames",
                balloon.actual()
            )
            .into());
        }
    }
    println!("the balloon holds {} frames", balloon.actual());

    // Huge pages: compaction moves the programs' pages, and the balloon's where they are in the way.
    let huge: Vec<_> = (0..HUGE_PAGES)
        .map_while(|_| manager.alloc(AllocRequest::huge()).ok())
        .collect();
    let moved = |event| frames.events().get(event);
    println!(
        "{} of {HUGE_PAGES} huge pages: {} pages moved, {} of them the balloon's, in {} messages to the host",
        huge.len(),
        moved(Event::PgmigrateSuccess),
        moved(Event::BalloonMigrate),
        moved(Event::BalloonMigrateMessages),
    );

    // The end: everything comes back, and every book balances.
    for first in huge {
        manager.free(first, Order::HUGE);
    }
    for space in programs {
        paging.destroy_space(space);
    }
    manager.shutdown(0)?;
    println!(
        "shut down: {} of {} frames are free",
        frames.free_frames(),
        frames.managed_frames()
    );
    Ok(())
}

/// Touches pages on `cpu`, and gives two of three back.
fn program(
    manager: &MemoryManager<'_, HostedPlatform>,
    paging: &Paging<'_, HostedPlatform>,
    cpu: CpuId,
) -> Result<SpaceId, Box<dyn Error>> {
    manager.admit_cpu(cpu)?;
    let _cpu = manager.platform().bind_cpu(cpu)?;
    let space = paging.create_space(manager)?;
    for page in (0..PAGES).map(Page::new) {
        paging.fault(space, page, FaultKind::Base, manager)?;
    }
    for page in (0..PAGES).filter(|page| page % 3 != 0) {
        paging.unmap(space, Page::new(page)..Page::new(page + 1));
    }
    Ok(space)
}
