//! The guest's own tests.

use std::time::{Duration, Instant};

use dirigible_workload::protocol::{GuestTask, Message, TESTS_BALLOON};

use crate::{
    DEFAULT_CPUS,
    command_line::Shape,
    diagnosis::unexpected,
    error::{Cause, RunError},
    options::QemuMachine,
    vm::Vm,
};

/// Memory of this guest in bytes: enough to have some above 4 GiB, behind the hole in which devices have their
/// registers.
const MEMORY: u64 = 3 << 30;
/// Its disk in bytes. The tests write all of it.
const DISK: u64 = 32 << 20;

/// A test that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndedTest {
    /// Its name.
    pub name: String,
    /// How long it ran, in milliseconds of the guest's clock.
    pub ms: u64,
    /// What went wrong, if anything.
    pub failure: Option<String>,
}

/// The results of all tests.
#[derive(Debug)]
pub struct TestTotals {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, including one that hung or crashed the kernel.
    pub failed: u64,
    /// From QEMU's start to its end.
    pub elapsed: Duration,
    /// An error if tests failed or the guest did not end.
    pub result: Result<(), RunError>,
}

/// Boots the guest and has it run those of its tests whose names contain `only`; calls `ended` for each as it ends.
pub fn guest_tests(
    machine: &QemuMachine,
    only: &str,
    ended: &mut dyn FnMut(&EndedTest),
) -> TestTotals {
    let started = Instant::now();
    let mut counts = Counts::default();
    let shape = Shape {
        memory: MEMORY,
        cpus: DEFAULT_CPUS,
        touched: false,
        control: true,
        disk_bytes: DISK,
        base_pages: false,
    };
    let task = GuestTask::Tests { only: only.into() };
    let result = Vm::start(machine, shape, &task, "tests").and_then(|mut vm| {
        let result = match follow(&mut vm, &mut counts, ended) {
            // The guest's own failure at the end is not one more test.
            Ok(()) | Err(Cause::EndedBadly | Cause::Failed { .. }) if counts.failed > 0 => {
                let failed = counts.failed;
                Err(Cause::TestsFailed { failed })
            }
            Ok(()) => Ok(()),
            Err(cause) => {
                // Counts the test that was running. A guest that sends `Failed` runs none.
                counts.failed += u64::from(!matches!(cause, Cause::Failed { .. }));
                Err(cause)
            }
        };
        vm.conclude(result)
    });
    TestTotals {
        passed: counts.passed,
        failed: counts.failed,
        elapsed: started.elapsed(),
        result,
    }
}

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    last: Option<String>,
}

fn follow(
    vm: &mut Vm<'_>,
    counts: &mut Counts,
    ended: &mut dyn FnMut(&EndedTest),
) -> Result<(), Cause> {
    if let Err(cause) = vm.set_balloon(TESTS_BALLOON)
        // A few quick tests may be over by now; their messages are still to be read.
        && !vm.has_ended()
    {
        return Err(cause);
    }
    vm.hello()?;
    let limit = vm.limits().tests;
    let until = Instant::now() + limit;
    loop {
        match vm.next(until) {
            Ok(Some((_, Message::Test { name, ms, failure }))) => {
                match failure {
                    None => counts.passed += 1,
                    Some(_) => counts.failed += 1,
                }
                counts.last = Some(name.clone());
                ended(&EndedTest { name, ms, failure });
            }
            Ok(Some((_, Message::Ready { .. } | Message::Start | Message::Progress { .. }))) => {}
            Ok(Some((_, other))) => return Err(unexpected(&other, "the end of a test")),
            Ok(None) => {
                return Err(Cause::TestsHang {
                    limit,
                    after: counts.last.take(),
                });
            }
            // The guest ends with success: it sends no message for that.
            Err(Cause::EndedEarly) => return Ok(()),
            Err(cause) => return Err(cause),
        }
    }
}
