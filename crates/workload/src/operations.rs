//! The operator's means on the real machine.

use dirigible_frames::{FRAMES_PER_BLOCK, PageTables};
use dirigible_paging::SpaceId;
use spin::Mutex;

use crate::{
    calls::Failure,
    operator::{NoMemory, Operator},
    processes::Processes,
    programs::{Program, run},
    system::{ProbeBlock, System},
    timeline::{PassPlan, PassResult},
};

/// The operator of a machine with programs.
pub struct Operations<'e, 'a, P: PageTables> {
    system: &'e System<'a, P>,
    processes: &'e Processes<'e, 'a, P>,
    /// The address space of huge faults.
    faults: Mutex<Option<SpaceId>>,
}

impl<'e, 'a, P: PageTables> Operations<'e, 'a, P> {
    /// The operator of `system`, where `processes` run.
    pub fn new(system: &'e System<'a, P>, processes: &'e Processes<'e, 'a, P>) -> Self {
        Self {
            system,
            processes,
            faults: Mutex::new(None),
        }
    }
}

impl<P: PageTables> Operator for Operations<'_, '_, P> {
    type Block = ProbeBlock;

    fn attempt(&self) -> Result<ProbeBlock, NoMemory> {
        self.system.attempt()
    }

    fn release(&self, block: ProbeBlock) {
        self.system.release(block);
    }

    fn huge_fault(&self, range: u64) -> bool {
        let parts = self.system.parts();
        // Not under the lock: it waits.
        let space = *self.faults.lock();
        let space = match space {
            Some(space) => space,
            None => match parts.paging.create_space(parts.memory) {
                Ok(space) => {
                    // What was got is counted, and must stay.
                    let kept = parts.paging.keep_in_memory(space);
                    debug_assert!(kept, "the space was just made");
                    *self.faults.lock().insert(space)
                }
                Err(_) => return false,
            },
        };
        let page = (range + 1) * FRAMES_PER_BLOCK as u64;
        self.system.fault(space, page, true) == Ok(true)
    }

    fn end_faults(&self) {
        let space = self.faults.lock().take();
        if let Some(space) = space {
            self.system.parts().paging.destroy_space(space);
        }
    }

    fn set_balloon_target(&self, frames: u64) {
        self.system.parts().balloon.set_target(frames);
    }

    fn balloon_target(&self) -> u64 {
        self.system.parts().balloon.target()
    }

    fn balloon_actual(&self) -> u64 {
        self.system.parts().balloon.actual()
    }

    fn kill_load(&self) -> bool {
        self.processes.kill_all();
        self.processes.alive() == 0
    }

    fn clean_up(&self) {
        let parts = self.system.parts();
        // The report names what could not be deleted or written: the rested passes ran with it.
        let failed = |failure| {
            self.processes
                .count_failure(&Program::Delete { tree: 0 }, failure)
        };
        match self.processes.operator() {
            Ok(process) => {
                let plan = self.processes.plan();
                for tree in 0..plan.trees {
                    if let Err(failure) = run(&Program::Delete { tree }, plan, &process) {
                        failed(failure);
                    }
                }
            }
            Err(failure) => failed(failure),
        }
        if parts.files.sync_all().is_err() {
            failed(Failure::Io);
        }
        parts.reclaim.shrink_all();
        parts.cache.drop_all_clean();
        self.system.rest_watermarks();
    }

    fn begin_pass(&self, pass: &PassPlan, now: u64) {
        self.system.begin_pass(pass, now);
    }

    fn sample_pass(&self, now: u64) {
        self.system.sample_pass(now);
    }

    fn faulted(&self, at: u64, got: bool) {
        self.system.faulted(at, got);
    }

    fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        self.system.end_pass(pass, result);
    }
}
