//! The kernel's own tests, for what needs real CPUs, page tables and devices.

mod balloon;
mod cpus;
mod deadline;
mod disk;
mod frames;
mod handlers;
mod manager;
mod numbers;
mod outcome;
mod programs;
mod waiting;

use core::mem::MaybeUninit;

use alloc::{string::String, vec::Vec};

use dirigible_workload::protocol::Message;

use super::{
    arch::{self, clock, exit},
    console::send,
    machine::Guest,
};
use manager::{Memory, config};
use outcome::Outcome;

/// A test. The memory is for the tables of its memory manager.
type Test = fn(&Guest, &mut Memory) -> Outcome;

/// All tests, in the order in which they run.
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

/// Ways in which a kernel fails, for the command's own tests. Each runs only if its whole name is asked for.
const FAILURES: &[(&str, fn() -> !)] = &[
    ("!panic", || panic!("asked to panic")),
    ("!fault", || {
        // A kernel address beyond the window: it is not mapped.
        arch::user::touch_kernel(0xffff_f000_0000_0000);
        exit::success()
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
/// How many tests failed.
pub fn run(guest: &Guest, only: &str) -> Result<(), String> {
    if let Some((_, fail)) = FAILURES.iter().find(|(name, _)| *name == only) {
        fail();
    }
    let bytes = guest.plan(config(guest))?.bytes();
    let memory = alloc::vec![MaybeUninit::uninit(); bytes].leak();
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
        let failure = test(guest, memory).err();
        failed += u64::from(failure.is_some());
        send(&Message::Test {
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
