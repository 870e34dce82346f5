//! The whole machine on disks that fail, are late, fall silent, are too small or damaged: nothing panics, no contents are
//! wrong, and all books of memory balance.
#![allow(missing_docs)]

mod support;

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, BootPlan, Booted, Marks, Tables},
    memory_map::MapEntry,
};
use dirigible_disk::{DiskConfig, VirtioDisk};
use dirigible_files::{Error, FileStore, MountError, Parts, StoreConfig};
use dirigible_frames::{CpuId, FrameAllocator, FrameContents, OwnerId, Pfn, Platform, Watermarks};
use dirigible_hosted::{
    DiskAccess, DiskCounters, DiskFault, DiskFaultPlan, DiskOptions, HostDisk, HostedHal,
    HostedMachine, HostedPlatform, InProcessTransport, MachineBuilder,
    run::{RunError, run_column_on_bad_disk},
};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheParts, Flusher, PageCache};
use dirigible_reclaim::{Generations, ReclaimConfig, Reclaimer};
use dirigible_workload::{
    params::{Column, Params, Profile},
    report::ColumnReport,
};

const SECOND: u64 = 1_000_000_000;
/// Requests that are done well: the store has been made and mounted then.
const MADE: u64 = 100;

fn small() -> Params {
    Params {
        memory: 128 << 20,
        balloon: 32 << 20,
        step: 8 << 20,
        time_scale: 200,
        ..Params::new(Profile::Paper)
    }
}

/// The run on a disk of at most `bytes`.
fn run_on(
    params: &Params,
    bytes: u64,
    faults: Vec<DiskFaultPlan>,
) -> Result<(ColumnReport, DiskCounters), RunError> {
    let (run, disk) = run_column_on_bad_disk(Column::Steered, params, (bytes, faults), &mut ())?;
    Ok((run.report, disk))
}

/// The run on a disk with these faults, which the guest must get over: its books balance, and something is compiled.
fn got_over(params: &Params, faults: Vec<DiskFaultPlan>) -> (ColumnReport, DiskCounters) {
    let what = format!("{faults:?}");
    let (report, disk) =
        run_on(params, u64::MAX, faults).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((report.content_errors, report.device_errors), (0, 0));
    // In real time fewer pages are moved: those that programs read are compared all the same.
    let least = if params.threads == 0 { 300 } else { 10 };
    assert!(
        report.pages_checked > least,
        "{what}: {}",
        report.pages_checked
    );
    assert!(report.vmstat.get("nr_dirtied") > 1000, "{what}");
    assert!(disk.faults > 0, "{what}: {disk:?}");
    let wrong = disk.malformed + disk.out_of_range + disk.broken_rings + disk.host_errors;
    assert_eq!(wrong, 0, "{what}: {disk:?}");
    assert!(report.load.compiled_in_all().0 > 0, "{what}");
    (report, disk)
}

/// Bad from the moment that the store is mounted on.
fn later(fault: DiskFault) -> DiskFaultPlan {
    DiskFaultPlan::always(fault).after(MADE)
}

#[test]
fn programs_get_over_reads_and_writes_that_fail_now_and_then() {
    let reads = later(DiskFault::Error).on(DiskAccess::Read).every(5);
    let writes = later(DiskFault::Error).on(DiskAccess::Write).every(5);
    // Not to the end: what is dirty then must come onto the disk.
    let mut torn = later(DiskFault::Torn).every(4);
    torn.count = 100;
    for faults in [vec![reads], vec![writes], vec![torn], vec![reads, writes]] {
        got_over(&small(), faults);
    }
}

#[test]
fn answers_that_are_late_or_come_never_end_no_run() {
    // Resets at the beginning and at the end.
    let (_, good) = run_on(&small(), u64::MAX, Vec::new()).unwrap();
    let (_, disk) = got_over(
        &small(),
        vec![later(DiskFault::Delay(SECOND / 2)).every(10)],
    );
    assert_eq!(disk.resets, good.resets);
    // The driver waits for 30 s of virtual time and resets the device.
    let mut silent = later(DiskFault::Silent).every(50);
    silent.count = 2;
    let params = Params {
        time_scale: 1000,
        ..small()
    };
    let (_, disk) = got_over(&params, vec![silent]);
    assert!(disk.resets > good.resets, "{disk:?}");
    let mut broken = later(DiskFault::BreakDown).every(200);
    broken.count = 3;
    let (_, disk) = got_over(&small(), vec![broken]);
    assert!(disk.resets > good.resets, "{disk:?}");
}

/// Nothing that is dirty can be written: at the end the run says so, when all books of memory have been balanced.
#[test]
fn a_disk_that_fails_for_good_ends_with_a_clear_error() {
    for access in [DiskAccess::Write, DiskAccess::Read] {
        let plan = DiskFaultPlan::always(DiskFault::Error)
            .on(access)
            .after(MADE);
        match run_on(&small(), u64::MAX, vec![plan]) {
            // Reads: what was written can still be written.
            Ok((report, disk)) => {
                assert_eq!(access, DiskAccess::Read);
                assert_eq!((report.content_errors, report.device_errors), (0, 0));
                assert!(disk.faults > 0);
            }
            Err(RunError::Check { what, .. }) => {
                let all_balanced = "all books balance, but the disk failed: ";
                assert!(what.starts_with(all_balanced), "{access:?}: {what}");
            }
            Err(other) => panic!("{access:?}: {other}"),
        }
    }
}

#[test]
fn a_disk_that_fails_from_the_beginning_or_is_too_small_is_refused() {
    for fault in [DiskFault::Error, DiskFault::Torn] {
        let error = run_on(&small(), u64::MAX, vec![DiskFaultPlan::always(fault)]).unwrap_err();
        assert!(matches!(error, RunError::Files(_)), "{error}");
        assert!(error.to_string().contains("disk"), "{error}");
    }
    let error = run_on(&small(), 16 << 12, Vec::new()).unwrap_err();
    assert!(error.to_string().contains("too few"), "{error}");
    assert!(matches!(
        run_on(&small(), 0, Vec::new()),
        Err(RunError::Machine(_))
    ));
}

#[test]
fn the_guest_goes_on_when_the_disk_is_full() {
    let (large, _) = run_on(&small(), u64::MAX, Vec::new()).unwrap();
    let (full, disk) = run_on(&small(), 6 << 20, Vec::new()).unwrap();
    assert_eq!((full.content_errors, full.device_errors), (0, 0));
    assert_eq!((disk.out_of_range, disk.host_errors), (0, 0));
    let (full, large) = (
        full.load.compiled_in_all().0,
        large.load.compiled_in_all().0,
    );
    assert!(full < large, "{full} of {large}: it was never full");
}

#[test]
fn threads_get_over_faults() {
    let params = Params {
        threads: 2,
        profile: Profile::Quick,
        period_ms: Profile::Quick.period_ms(),
        ..small()
    };
    let reads = later(DiskFault::Error).on(DiskAccess::Read).every(20);
    let writes = later(DiskFault::Torn).on(DiskAccess::Write).every(20);
    got_over(&params, vec![reads, writes]);
}

const FILES: OwnerId = OwnerId::new(3).unwrap();
const CONFIG: StoreConfig = StoreConfig {
    inode_chains: 256,
    name_chains: 256,
};

type Disk<'a> = VirtioDisk<'a, HostedHal, InProcessTransport, HostedPlatform>;

/// A guest with files and reclaim, and without programs or daemons.
struct Guest<'g, 'a> {
    machine: &'a HostedMachine,
    frames: &'g FrameAllocator<'g>,
    cache: &'g PageCache<'g, HostedPlatform>,
    reclaim: &'g Reclaimer<'g, HostedPlatform>,
    parts: &'g dyn Fn() -> Parts<'g, HostedPlatform>,
}

impl<'g> Guest<'g, '_> {
    fn host(&self) -> &HostDisk {
        &self.machine.disks()[0]
    }

    fn mount(&self) -> Result<FileStore<'g, HostedPlatform>, MountError> {
        FileStore::mount((self.parts)(), CONFIG)
    }

    /// What word `index` of page `page` of file `file` holds.
    fn word(file: u64, page: u64, index: usize) -> u64 {
        (file + 1) << 48 | page << 16 | index as u64
    }

    fn fill(&self, file: u64) -> impl FnMut(u64, Pfn) + '_ {
        let platform = self.machine.platform();
        move |page, frame| {
            for index in 0..512 {
                platform.write_word(frame, index, Self::word(file, page, index));
            }
        }
    }

    fn compare(&self, file: u64) -> impl FnMut(u64, Pfn) + '_ {
        let platform = self.machine.platform();
        move |page, frame| {
            for index in 0..512 {
                let found = platform.read_word(frame, index);
                assert_eq!(
                    found,
                    Self::word(file, page, index),
                    "{file}, {page}: {index}"
                );
            }
        }
    }
}

/// Runs `work` in a guest of 32 MiB, and sees that no frame is left when it has ended.
fn guest(machine: &HostedMachine, work: impl FnOnce(&Guest<'_, '_>)) {
    let platform = machine.platform();
    let _binding = platform.bind_cpu(CpuId::new(0)).unwrap();
    let layout = machine.ram().layout();
    let map: Vec<MapEntry> = layout.managed().iter().map(MapEntry::usable).collect();
    let boot = BootConfig {
        cpus: platform.cpus(),
        marks: Marks::Fixed(Watermarks {
            min: 128,
            low: 160,
            high: 192,
        }),
        reserve_blocks: Some(0),
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let memory = machine.ram().table_memory().unwrap();
    let booted = BootPlan::new(&map, boot).unwrap().boot(memory, platform);
    let Booted { frames, room } = booted.unwrap();
    let manager = MemoryManager::new_in(room, frames, platform, ManagerConfig::default()).unwrap();
    let transport = machine.disks()[0].transport().unwrap();
    let disk: Disk<'_> = VirtioDisk::new(transport, platform, DiskConfig::default()).unwrap();
    let generations = Generations::new(frames);
    let reclaim = Reclaimer::new(&generations, platform, ReclaimConfig::default());
    let parts = CacheParts {
        frames,
        platform,
        owner: FILES,
        disk: &disk,
        memory: manager.memory(),
        generations: &generations,
        swap: 0..0,
    };
    // Nobody who makes pages dirty is held up: memory may fill with them.
    let config = CacheConfig {
        dirty_percent: 100,
        background_percent: 100,
        ..CacheConfig::default()
    };
    let cache = PageCache::new(parts, config);
    manager.register(FILES, &cache).unwrap();
    reclaim.register(FILES, &cache).unwrap();
    manager.add_reclaimer(&reclaim).unwrap();
    let parts = || Parts {
        frames,
        platform,
        source: manager.memory(),
        pages: &cache,
    };
    work(&Guest {
        machine,
        frames,
        cache: &cache,
        reclaim: &reclaim,
        parts: &parts,
    });
    cache.forget(0..cache.blocks());
    cache.audit().unwrap();
    manager.verify().unwrap();
    manager.shutdown(0).unwrap();
    assert_eq!(frames.free_frames(), frames.managed_frames());
}

fn machine(bytes: u64) -> HostedMachine {
    let options = DiskOptions {
        bytes,
        ..DiskOptions::default()
    };
    MachineBuilder::new(32 << 20).disk(options).build().unwrap()
}

/// A request never writes: it waits for the flusher, as a program does that tries again.
#[test]
fn reclaim_gets_on_when_all_memory_is_dirty_and_free_frames_are_at_min() {
    const FILES: u64 = 4;
    let machine = machine(64 << 20);
    guest(&machine, |guest| {
        FileStore::format(&(guest.parts)(), 64).unwrap();
        let store = guest.mount().unwrap();
        // Four files of 8 MiB, and twice as many pages as frames.
        let pages = guest.frames.managed_frames() / 2;
        let mut dirtiest = 0;
        let mut flusher = Flusher::new(guest.cache, guest.machine.platform().now());
        for file in 0..FILES {
            let inode = store.create(&format!("/file{file}")).unwrap();
            for first in (0..pages).step_by(32) {
                let range = first..(first + 32).min(pages);
                // What a program does: it waits and tries again. The flusher works meanwhile.
                let mut tries = 0;
                while let Err(error) = store.write(inode, range.clone(), &mut guest.fill(file)) {
                    assert_eq!((error, tries < 100), (Error::NoMemory, true));
                    tries += 1;
                    let platform = guest.machine.platform();
                    flusher.step(platform.now());
                    platform.sleep_until(platform.now() + SECOND / 100);
                }
                dirtiest = dirtiest.max(guest.cache.counts().dirty);
                assert!(guest.frames.free_frames() > 0);
            }
            store.close(inode).unwrap();
        }
        let managed = guest.frames.managed_frames();
        assert!(dirtiest > managed * 9 / 10, "{dirtiest} of {managed}");
        for file in 0..FILES {
            let inode = store.open(&format!("/file{file}")).unwrap();
            store
                .read(inode, 0..pages, &mut guest.compare(file))
                .unwrap();
            store.close(inode).unwrap();
        }
        guest.reclaim.generations().verify().unwrap();
        store.unmount().unwrap();
    });
}

#[test]
fn a_full_disk_refuses_and_takes_again_what_is_deleted() {
    let machine = machine(4 << 20);
    guest(&machine, |guest| {
        FileStore::format(&(guest.parts)(), 64).unwrap();
        let store = guest.mount().unwrap();
        for round in 0..3 {
            let inode = store.create("/large").unwrap();
            let mut pages = 0;
            let refused = loop {
                match store.write(inode, pages..pages + 16, &mut guest.fill(round)) {
                    Ok(()) => pages += 16,
                    Err(error) => break error,
                }
            };
            assert_eq!(refused, Error::NoSpace);
            assert!(pages > 512, "round {round}: {pages}");
            let mut compare = guest.compare(round);
            store.read(inode, 0..pages, &mut compare).unwrap();
            store.close(inode).unwrap();
            store.remove("/large").unwrap();
        }
        store.unmount().unwrap();
    });
}

#[test]
fn a_damaged_header_is_repaired_from_its_copy_or_refused() {
    let machine = machine(8 << 20);
    guest(&machine, |guest| {
        FileStore::format(&(guest.parts)(), 64).unwrap();
        let store = guest.mount().unwrap();
        assert!(!store.was_repaired());
        let inode = store.create("/file").unwrap();
        store.write(inode, 0..8, &mut guest.fill(7)).unwrap();
        store.close(inode).unwrap();
        store.unmount().unwrap();
        let damage = |block: u64| {
            guest.cache.drop_all_clean();
            guest.host().write(block * 4096, &[0x5a; 4096]).unwrap();
        };
        damage(0);
        let store = guest.mount().unwrap();
        assert!(store.was_repaired());
        let inode = store.open("/file").unwrap();
        store.read(inode, 0..8, &mut guest.compare(7)).unwrap();
        store.close(inode).unwrap();
        store.unmount().unwrap();
        damage(0);
        damage(guest.cache.blocks() - 1);
        let refused = guest.mount().err();
        assert!(
            matches!(refused, Some(MountError::Header { .. })),
            "{refused:?}"
        );
    });
}
