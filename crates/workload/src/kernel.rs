//! Kernel memory beside that of the compile jobs: unmovable and reclaimable allocations that live for seconds or
//! minutes.
//!
//! Reclaim does not shrink it. A shrinker would free more in the column that reclaims more; that column would then
//! carry a smaller load, and its result would look better than it is.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::Reverse;

use crate::{
    control::{Control, Stage},
    jobs::draw_request,
    machine::{Check, KernelMemory, KernelRequest, LoadMemory},
    rng::{Rng, Source},
    tuning::{KernelTuning, STALL},
};
use dirigible::schedule::{Actor, Next};

/// A steady source of kernel memory: random bursts of requests; each allocation is freed after its drawn lifetime.
pub struct KernelLoad<'a, M: LoadMemory> {
    memory: &'a M,
    control: &'a Control,
    tuning: KernelTuning,
    rng: Rng,
    drop_rng: Rng,
    due: u64,
    /// Requests left of the present burst; the first one is drawn already.
    left: u64,
    request: Option<(KernelRequest, u64)>,
    /// By how many thousandths of a request the bursts so far fall short of the level.
    owed: u64,
    /// When the allocations end: (time, slot).
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    slots: Vec<Option<KernelMemory>>,
    free_slots: Vec<u32>,
    acknowledged: Stage,
}

impl<'a, M: LoadMemory> KernelLoad<'a, M> {
    /// The source that draws from `source`.
    pub fn new(
        memory: &'a M,
        control: &'a Control,
        tuning: KernelTuning,
        seed: u64,
        source: Source,
    ) -> Self {
        Self {
            memory,
            control,
            tuning,
            rng: Rng::stream(seed, source),
            drop_rng: Rng::stream(seed, Source::DropCaches),
            due: 0,
            left: 0,
            request: None,
            owed: 0,
            ends: BinaryHeap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            acknowledged: Stage::Loaded,
        }
    }

    /// Requests per tick, in thousandths, that keep up the level: by Little's law, at 1.25 frames per request (85 x 1,
    /// 10 x 2, 5 x 4).
    fn rate(&self) -> u64 {
        let life = (self.tuning.life.0 + self.tuning.life.1) / 2;
        (self.tuning.level as u128 * 1000 * 100 * self.tuning.tick as u128
            / (125 * life as u128).max(1)) as u64
    }

    fn burst(&mut self) {
        // From zero to twice the mean, so that the level varies.
        let mean = self.rate();
        self.owed += self.rng.range(0, mean * 2);
        self.left = self.owed / 1000;
        self.owed %= 1000;
        self.draw();
    }

    fn draw(&mut self) {
        self.request = None;
        if self.left > 0 {
            self.left -= 1;
            let request = draw_request(&mut self.rng, self.tuning.reclaimable);
            let life = self.rng.range(self.tuning.life.0, self.tuning.life.1);
            self.request = Some((request, life));
        }
    }

    fn keep(&mut self, until: u64, memory: KernelMemory) {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(memory);
        self.ends.push(Reverse((until, slot)));
    }

    fn expire(&mut self, now: u64) {
        while let Some(&Reverse((until, slot))) = self.ends.peek()
            && until <= now
        {
            self.ends.pop();
            if let Some(memory) = self.slots[slot as usize].take() {
                self.memory
                    .kernel_free(memory, Check::Four(memory.serial as u32));
            }
            self.free_slots.push(slot);
        }
    }

    /// The load has ended: frees all but what the tuning lets survive.
    fn drop_caches(&mut self) {
        let survivors = self.tuning.survivors;
        for slot in &mut self.slots {
            let survives = survivors == 0 || self.drop_rng.below(survivors) == 0;
            if let Some(memory) = slot.take_if(|_| !survives) {
                self.memory.kernel_free(memory, Check::Whole);
            }
        }
        self.ends.clear();
    }

    fn free_all(&mut self) {
        for memory in self.slots.drain(..).flatten() {
            self.memory.kernel_free(memory, Check::Whole);
        }
    }
}

impl<M: LoadMemory> Actor for KernelLoad<'_, M> {
    fn step(&mut self, now: u64) -> Next {
        let stage = self.control.stage();
        if stage != self.acknowledged {
            self.acknowledged = stage;
            match stage {
                Stage::Loaded => {}
                Stage::Rested => self.drop_caches(),
                Stage::Over => self.free_all(),
            }
            self.control.acknowledge();
        }
        match stage {
            Stage::Loaded => {}
            Stage::Rested => return Next::At(now + self.tuning.tick),
            Stage::Over => return Next::Done,
        }
        self.expire(now);
        while self.due <= now {
            match self.request {
                None => {
                    self.due += self.tuning.tick;
                    self.burst();
                    break;
                }
                Some((request, life)) => match self.memory.kernel_alloc(request) {
                    Ok(memory) => {
                        self.keep(now + life, memory);
                        self.draw();
                    }
                    Err(_) => {
                        self.control.count_wait(STALL);
                        self.due = now + STALL;
                    }
                },
            }
        }
        Next::At(self.due.max(now))
    }
}
