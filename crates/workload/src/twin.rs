//! The counts-only twin: the same load, balloon targets and attempts on a machine that keeps totals only.
//!
//! Frames have no addresses in it, so nothing is fragmented. Its result is what the totals of memory allow: the
//! reference for all columns. An attempt succeeds if at least one block remains of managed memory after these are
//! subtracted: the blocks held already, kernel memory at its peak in whole blocks, movable memory that cannot be
//! dropped, the balloon's target, and the min watermark. The filler can be dropped as a whole, so it is not counted.

use alloc::{string::ToString, vec::Vec};
use core::ops::Range;

use dirigible_frames::{FRAMES_PER_BLOCK, Pfn};
use spin::Mutex;

use crate::{
    control::Control,
    director::{Director, Targets},
    load,
    machine::{Check, KernelMemory, KernelRequest, LoadMemory, NoMemory, PassMachine, Space},
    params::Params,
    report::{TwinPass, TwinReport},
    timeline::{PassPlan, PassResult, TargetsHash, Timeline, mem_total_frames},
    tuning::{rested_watermarks, watermarks},
};
use dirigible::schedule::{Engine, FreeClock};

const BLOCK: u64 = FRAMES_PER_BLOCK as u64;

/// Runs the twin of the run `params`: one for all of its columns.
pub fn run_twin(params: &Params) -> TwinReport {
    let timeline = Timeline::new(params);
    let counts = Counts::new(params);
    let control = Control::new();
    let hash = Mutex::new(TargetsHash::default());
    let mut engine = Engine::new();
    engine.add(0, Targets::new(&counts, &timeline, &hash));
    let load = load::actors(&counts, &control, params);
    let actors = load.len() as u64;
    engine.add(0, Director::new(&counts, &control, &timeline, actors));
    for actor in load {
        engine.add_boxed(0, actor);
    }
    engine.run(&FreeClock::default(), control.ended(), |_, _| {});
    drop(engine);
    let targets_hash = hash.into_inner().text();
    TwinReport {
        targets_hash,
        passes: counts.into_passes(),
    }
}

/// The machine that keeps totals only.
#[derive(Debug)]
pub struct Counts {
    rested_min: u64,
    totals: Mutex<Totals>,
}

#[derive(Debug)]
struct Totals {
    managed: u64,
    min: u64,
    target: u64,
    blocks: u64,
    anonymous: u64,
    kernel: u64,
    kernel_peak: u64,
    spaces: Vec<Option<SpaceCounts>>,
    passes: Vec<TwinPass>,
}

impl Totals {
    /// Frames that requests for single frames may take.
    fn spare(&self) -> u64 {
        let used = self.blocks * BLOCK + self.kernel + self.anonymous + self.target + self.min;
        self.managed.saturating_sub(used)
    }

    /// Whether an attempt succeeds.
    fn block_spare(&self) -> bool {
        let kernel = self.kernel_peak.next_multiple_of(BLOCK);
        let used = self.blocks * BLOCK + kernel + self.anonymous + self.target + self.min;
        self.managed >= used + BLOCK
    }

    fn take_kernel(&mut self, frames: u64) -> Result<(), NoMemory> {
        if self.spare() < frames {
            return Err(NoMemory);
        }
        self.kernel += frames;
        self.kernel_peak = self.kernel_peak.max(self.kernel);
        Ok(())
    }

    fn space(&mut self, space: Space) -> Option<&mut SpaceCounts> {
        self.spaces.get_mut(space.0 as usize)?.as_mut()
    }
}

/// Which pages of an address space are present, and how many page tables they need.
#[derive(Debug, Default)]
struct SpaceCounts {
    /// One bit per page.
    present: Vec<u64>,
    /// Present pages in each range of 2 MiB; a range in use needs one table.
    regions: Vec<u16>,
    /// Ranges in use in each GiB; a GiB in use needs one more table.
    gigs: Vec<u16>,
    pages: u64,
}

impl SpaceCounts {
    fn is_present(&self, page: u64) -> bool {
        self.present
            .get((page / 64) as usize)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Tables that a page in `region` needs beside the present ones.
    fn tables_for(&self, region: usize) -> u64 {
        let used = |counts: &[u16], index: usize| counts.get(index).is_some_and(|&n| n > 0);
        let top = u64::from(self.pages == 0);
        let gig = u64::from(!used(&self.gigs, region / FRAMES_PER_BLOCK));
        top + gig + u64::from(!used(&self.regions, region))
    }

    fn add(&mut self, pages: Range<u64>) {
        let region = (pages.start / BLOCK) as usize;
        let gig = region / FRAMES_PER_BLOCK;
        grow(&mut self.present, (pages.end / 64) as usize + 1);
        grow(&mut self.regions, region + 1);
        grow(&mut self.gigs, gig + 1);
        self.gigs[gig] += u16::from(self.regions[region] == 0);
        for page in pages {
            self.present[(page / 64) as usize] |= 1 << (page % 64);
            self.regions[region] += 1;
            self.pages += 1;
        }
    }

    /// Removes a page. Returns how many frames and how many tables became free.
    fn remove(&mut self, page: u64) -> (u64, u64) {
        if !self.is_present(page) {
            return (0, 0);
        }
        self.present[(page / 64) as usize] &= !(1 << (page % 64));
        let region = (page / BLOCK) as usize;
        self.regions[region] -= 1;
        self.pages -= 1;
        if self.regions[region] == 0 {
            self.gigs[region / FRAMES_PER_BLOCK] -= 1;
        }
        // The tables that it would need to be added again.
        (1, self.tables_for(region))
    }
}

fn grow<T: Default + Clone>(vector: &mut Vec<T>, length: usize) {
    if vector.len() < length {
        vector.resize(length, T::default());
    }
}

impl Counts {
    /// An empty machine for `params`.
    pub fn new(params: &Params) -> Self {
        Self {
            rested_min: rested_watermarks(params).min,
            totals: Mutex::new(Totals {
                managed: mem_total_frames(params),
                min: watermarks(params).min,
                target: 0,
                blocks: 0,
                anonymous: 0,
                kernel: 0,
                kernel_peak: 0,
                spaces: Vec::new(),
                passes: Vec::new(),
            }),
        }
    }

    /// Anonymous and kernel frames of the load, in this order.
    pub fn held(&self) -> (u64, u64) {
        let totals = self.totals.lock();
        (totals.anonymous, totals.kernel)
    }

    fn into_passes(self) -> Vec<TwinPass> {
        self.totals.into_inner().passes
    }
}

impl LoadMemory for Counts {
    fn create_space(&self) -> Result<Space, NoMemory> {
        let mut totals = self.totals.lock();
        totals.take_kernel(1)?;
        let free = totals.spaces.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            totals.spaces.push(None);
            totals.spaces.len() - 1
        });
        totals.spaces[index] = Some(SpaceCounts::default());
        Ok(Space(index as u32))
    }

    fn fault(&self, space: Space, page: u64, huge: bool) -> Result<u64, NoMemory> {
        let mut totals = self.totals.lock();
        let region = (page / BLOCK) as usize;
        let Some(counts) = totals.space(space) else {
            return Err(NoMemory);
        };
        if counts.is_present(page) {
            return Ok(1);
        }
        let tables = counts.tables_for(region);
        let empty = counts.regions.get(region).is_none_or(|&n| n == 0);
        let pages = if huge && empty && totals.block_spare() {
            BLOCK
        } else {
            1
        };
        if totals.spare() < tables + pages {
            return Err(NoMemory);
        }
        totals.take_kernel(tables)?;
        totals.anonymous += pages;
        if let Some(counts) = totals.space(space) {
            counts.add(page..page + pages);
        }
        Ok(pages)
    }

    fn reuse(&self, _: Space, _: u64, _: u32) {}

    fn check(&self, _: Space, _: Range<u64>, _: Check) {}

    fn give_back(&self, space: Space, pages: Range<u64>) {
        let mut totals = self.totals.lock();
        let Some(counts) = totals.space(space) else {
            return;
        };
        let (mut frames, mut tables) = (0, 0);
        for page in pages {
            let (frame, table) = counts.remove(page);
            frames += frame;
            tables += table;
        }
        totals.anonymous -= frames;
        totals.kernel -= tables;
    }

    fn exit(&self, space: Space) {
        let pages = self
            .totals
            .lock()
            .space(space)
            .map_or(0, |s| s.present.len() as u64 * 64);
        self.give_back(space, 0..pages);
        let mut totals = self.totals.lock();
        if totals.space(space).is_some() {
            totals.spaces[space.0 as usize] = None;
            totals.kernel -= 1;
        }
    }

    fn kernel_alloc(&self, request: KernelRequest) -> Result<KernelMemory, NoMemory> {
        self.totals
            .lock()
            .take_kernel(request.order.frames() as u64)?;
        Ok(KernelMemory {
            request,
            first: Pfn::new(0),
            serial: 0,
        })
    }

    fn kernel_free(&self, memory: KernelMemory, _: Check) {
        self.totals.lock().kernel -= memory.request.order.frames() as u64;
    }
}

impl PassMachine for Counts {
    type Block = ();

    fn attempt(&self) -> Result<(), NoMemory> {
        let mut totals = self.totals.lock();
        if !totals.block_spare() {
            return Err(NoMemory);
        }
        totals.blocks += 1;
        Ok(())
    }

    fn release(&self, (): ()) {
        self.totals.lock().blocks -= 1;
    }

    fn set_balloon_target(&self, frames: u64) {
        self.totals.lock().target = frames;
    }

    fn balloon_target(&self) -> u64 {
        self.totals.lock().target
    }

    fn balloon_actual(&self) -> u64 {
        self.balloon_target()
    }

    fn drop_filler(&self) {}

    fn rest_watermarks(&self) {
        self.totals.lock().min = self.rested_min;
    }

    fn begin_pass(&self, _: &PassPlan) {}

    fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        self.totals.lock().passes.push(TwinPass {
            name: pass.name.to_string(),
            asked: pass.test.asked(),
            attainable: result.allocated,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Profile;
    use dirigible_frames::Order;

    fn counts() -> Counts {
        // 64 MiB: 15,872 managed frames, min watermark 32.
        Counts::new(&Params {
            memory: 64 << 20,
            balloon: 16 << 20,
            step: 4 << 20,
            ..Params::new(Profile::Paper)
        })
    }

    fn attempts(counts: &Counts) -> u64 {
        (0..).take_while(|_| counts.attempt().is_ok()).count() as u64
    }

    #[test]
    fn an_empty_machine_gives_all_but_the_watermark() {
        assert_eq!(attempts(&counts()), (15_872 - 32) / 512);
    }

    #[test]
    fn an_attempt_counts_the_target_not_what_the_balloon_holds() {
        let counts = counts();
        counts.set_balloon_target(4096);
        assert_eq!(attempts(&counts), (15_872 - 32 - 4096) / 512);
    }

    #[test]
    fn kernel_memory_counts_in_whole_blocks_at_its_peak() {
        let counts = counts();
        let request = KernelRequest {
            reclaimable: true,
            order: Order::new(2).unwrap(),
        };
        let memory: Vec<_> = (0..200)
            .map(|_| counts.kernel_alloc(request).unwrap())
            .collect();
        memory
            .into_iter()
            .for_each(|memory| counts.kernel_free(memory, Check::Whole));
        // 800 frames at the peak: two blocks, though none is in use now.
        assert_eq!(attempts(&counts), (15_872 - 32 - 1024) / 512);
    }

    #[test]
    fn pages_tables_and_blocks_go_and_come_back() {
        let counts = counts();
        let space = counts.create_space().unwrap();
        for page in 512..512 + 700 {
            assert_eq!(counts.fault(space, page, false), Ok(1));
            assert_eq!(counts.fault(space, page, false), Ok(1), "there already");
        }
        let now = |counts: &Counts| {
            let totals = counts.totals.lock();
            (totals.anonymous, totals.kernel)
        };
        // Root, one for the top, one for the GiB, two for the ranges.
        assert_eq!(now(&counts), (700, 5));
        counts.give_back(space, 600..700);
        assert_eq!(now(&counts), (600, 5));
        counts.give_back(space, 1024..2048);
        assert_eq!(now(&counts), (412, 4));
        assert_eq!(counts.fault(space, 2048, true), Ok(512));
        assert_eq!(now(&counts), (924, 5));
        counts.exit(space);
        assert_eq!(now(&counts), (0, 0));
    }

    #[test]
    fn a_request_that_finds_no_memory_by_totals_is_refused_and_changes_nothing() {
        let counts = counts();
        counts.set_balloon_target(15_872 - 32 - 3);
        let space = counts.create_space().unwrap();
        assert_eq!(counts.fault(space, 512, false), Err(NoMemory));
        assert_eq!(counts.totals.lock().kernel, 1);
        counts.set_balloon_target(0);
        assert_eq!(counts.fault(space, 512, false), Ok(1));
    }
}
