//! The kernel's own tests: what only real CPUs, page tables and devices can show.

mod balloon;
mod cpus;
mod disk;
mod frames;
mod handlers;
mod programs;
mod waiting;

use alloc::{string::String, vec::Vec};

use dirigible_frames::{
    Config, ConfigError, Fallback, FrameAllocator, OwnerId, Placement, Platform, Watermarks,
    ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::{NoReclaim, Paging, SlowPath, SlowPathConfig};
use dirigible_workload::protocol::Message;

use super::{
    arch::{self, clock, exit, masking::Masking},
    machine::Guest,
    platform::GuestPlatform,
    talk::say,
};

/// A test: what went wrong, if anything.
type Outcome = Result<(), String>;
type Test = fn(&Guest, &mut [u8]) -> Outcome;

const TESTS: &[(&str, Test)] = &[
    ("clocks_agree_across_cpus", cpus::clocks_agree_across_cpus),
    ("the_timer_ticks", cpus::the_timer_ticks),
    ("interrupts_keep_registers", cpus::interrupts_keep_registers),
    ("all_cpus_work_together", cpus::all_cpus_work_together),
    ("frames_under_all_cpus", frames::frames_under_all_cpus),
    (
        "handlers_allocate_and_free",
        handlers::handlers_allocate_and_free,
    ),
    (
        "memory_above_4_gib_is_used",
        frames::memory_above_4_gib_is_used,
    ),
    ("page_faults_map_pages", programs::page_faults_map_pages),
    (
        "an_unserved_fault_ends_the_access",
        programs::an_unserved_fault_ends_the_access,
    ),
    (
        "a_huge_page_takes_one_fault",
        programs::a_huge_page_takes_one_fault,
    ),
    (
        "the_kernel_half_is_no_programs",
        programs::the_kernel_half_is_no_programs,
    ),
    ("spaces_are_apart", programs::spaces_are_apart),
    ("unmapping_shoots_down", programs::unmapping_shoots_down),
    (
        "pages_migrate_while_touched",
        programs::pages_migrate_while_touched,
    ),
    (
        "huge_pages_migrate_while_touched",
        programs::huge_pages_migrate_while_touched,
    ),
    (
        "blocks_evacuate_while_touched",
        programs::blocks_evacuate_while_touched,
    ),
    (
        "a_program_allocates_while_another_waits",
        waiting::a_program_allocates_while_another_waits,
    ),
    (
        "a_fault_waits_while_others_fault",
        waiting::a_fault_waits_while_others_fault,
    ),
    (
        "the_balloon_follows_its_target",
        balloon::the_balloon_follows_its_target,
    ),
    ("balloon_frames_move", balloon::balloon_frames_move),
    (
        "a_task_goes_on_with_what_the_balloon_gives_back",
        balloon::a_task_goes_on_with_what_the_balloon_gives_back,
    ),
    (
        "the_balloon_comes_up_again_after_a_reset",
        balloon::the_balloon_comes_up_again_after_a_reset,
    ),
    (
        "the_disk_keeps_what_is_written",
        disk::the_disk_keeps_what_is_written,
    ),
];

/// What a kernel does that fails, for the command's own tests: each only when asked for by its whole name.
const MISBEHAVIOUR: &[(&str, fn() -> !)] = &[
    ("!panic", || panic!("asked to panic")),
    ("!fault", || {
        // A kernel address that is not mapped: beyond the window.
        arch::user::touch_kernel(0xffff_f000_0000_0000);
        exit::well()
    }),
    ("!reset", || exit::triple_fault()),
    ("!hang", || {
        loop {
            arch::interrupts::idle();
        }
    }),
];

/// Runs the tests whose names contain `only`.
///
/// # Errors
///
/// How many failed.
pub fn run(guest: &Guest, only: &str) -> Result<(), String> {
    if let Some((_, misbehave)) = MISBEHAVIOUR.iter().find(|(name, _)| *name == only) {
        misbehave();
    }
    let bytes = with_config(guest, FrameAllocator::metadata_bytes)
        .map_err(|error| alloc::format!("no allocator: {error}"))?;
    let metadata = Guest::metadata(bytes);
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| name.contains(only))
        .collect();
    if chosen.is_empty() {
        return Err(alloc::format!("no test has \"{only}\" in its name"));
    }
    let mut failed = 0;
    for (name, test) in chosen {
        let start = clock::now();
        let failure = test(guest, metadata).err();
        failed += u64::from(failure.is_some());
        say(&Message::Test {
            name: (*name).into(),
            ms: (clock::now() - start) / 1_000_000,
            failure,
        });
    }
    match failed {
        0 => Ok(()),
        failed => Err(alloc::format!("{failed} tests failed")),
    }
}

fn with_config<T>(guest: &Guest, run: impl FnOnce(&Config<'_>) -> T) -> T {
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

/// An allocator over all managed memory.
fn allocator<'m>(guest: &Guest, metadata: &'m mut [u8]) -> Result<FrameAllocator<'m>, String> {
    let made: Result<_, ConfigError> =
        with_config(guest, |config| FrameAllocator::new(config, metadata));
    made.map_err(|error| alloc::format!("no allocator: {error}"))
}

/// A whole memory manager without a balloon.
struct Manager<'a> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a GuestPlatform,
    paging: &'a Paging<'a, GuestPlatform>,
    mobility: &'a Mobility<'a, GuestPlatform>,
    memory: &'a SlowPath<'a, GuestPlatform>,
}

/// Runs `test` on a memory manager of its own, whose books must balance afterwards.
fn with_manager(
    guest: &Guest,
    metadata: &mut [u8],
    test: impl FnOnce(&Manager<'_>) -> Outcome,
) -> Outcome {
    let text = |error: &dyn core::fmt::Display| alloc::format!("{error}");
    let frames = allocator(guest, metadata)?;
    let platform = GuestPlatform;
    let class = OwnerId::new(1).ok_or("no owner number")?;
    let paging = Paging::new(&frames, &platform, class, 16).with_kernel_half(guest.kernel_root);
    let mobility = alloc::boxed::Box::new(Mobility::new(
        &frames,
        &platform,
        CompactionConfig::default(),
    ));
    mobility
        .register(class, &paging)
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
    // A test that has failed may have left its space loaded, in memory that the next one uses.
    arch::shoot_down::leave_program(arch::cpu::current());
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

/// `why` unless `holds`.
fn ensure(holds: bool, why: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(why()) }
}

/// A small generator of numbers: xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What one CPU found wrong first, for a test in which all take part.
#[derive(Default)]
struct Verdict(spin::Mutex<Option<String>>);

impl Verdict {
    fn note(&self, outcome: Outcome) {
        if let Err(why) = outcome {
            self.0.lock().get_or_insert(why);
        }
    }

    fn is_spoken(&self) -> bool {
        self.0.lock().is_some()
    }

    fn outcome(self) -> Outcome {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}

/// Milliseconds in the platform's unit.
const MILLISECOND: u64 = 1_000_000;

/// Whether `deadline` has passed, by the machine's clock.
fn is_over(platform: &GuestPlatform, deadline: u64) -> bool {
    platform.now() >= deadline
}
