//! Compile jobs: memory is allocated in pieces, partly given back, used again, and all of it given back at the end.
//!
//! A job draws its whole plan from its own random stream, independent of which requests succeed. If a request fails,
//! the job waits and repeats the same request. So the jobs of all columns make the same requests in
//! the same order.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use dirigible_frames::{FRAMES_PER_BLOCK, Order};

use crate::{
    control::{Control, Stage},
    machine::{Check, KernelMemory, KernelRequest, LoadMemory, NoMemory, Space},
    rng::{Rng, Source},
    tuning::{JobTuning, KERNEL_ORDERS, STALL},
};
use dirigible::schedule::{Actor, Next, time::MILLISECOND};

/// A job checks at least this often whether the load has ended.
const NAP: u64 = 250 * MILLISECOND;
const HUGE: u64 = FRAMES_PER_BLOCK as u64;

/// One slot of compile jobs: they run in it one after the other.
pub struct CompileJob<'a, M: LoadMemory> {
    memory: &'a M,
    control: &'a Control,
    tuning: JobTuning,
    rng: Rng,
    state: State,
    /// When the present state ends. The next time is computed from here, not from when the step happened to run.
    due: u64,
    plan: Plan,
    space: Option<Space>,
    /// The first page that has never been used.
    end: u64,
    pieces: Vec<Range<u64>>,
    held: u64,
    kernel: Vec<(u64, KernelMemory)>,
}

#[derive(Clone, Copy, Default)]
struct Plan {
    pages: u64,
    /// From one piece to the next.
    pace: u64,
    stay: u64,
    thp: bool,
}

#[derive(Clone, Copy)]
enum State {
    /// Between two jobs.
    Away,
    /// Wants its address space.
    Starting,
    /// Wants its next piece.
    Between,
    /// Faulting pages of the newest piece from `next` on.
    Filling { next: u64, huge: bool },
    /// Allocating kernel memory: `left` requests remain, and the next one is drawn already.
    Asking {
        left: u64,
        request: KernelRequest,
        life: u64,
    },
    /// All pieces are allocated.
    Staying,
    /// Has acknowledged the end of the load.
    Gone,
}

impl<'a, M: LoadMemory> CompileJob<'a, M> {
    /// Job slot `number`, whose first job begins within two pauses.
    pub fn new(
        memory: &'a M,
        control: &'a Control,
        tuning: JobTuning,
        seed: u64,
        number: u32,
    ) -> Self {
        let mut rng = Rng::stream(seed, Source::Job(number));
        let due = rng.range(0, tuning.pause.1 * 2);
        Self {
            memory,
            control,
            tuning,
            rng,
            state: State::Away,
            due,
            plan: Plan::default(),
            space: None,
            end: 0,
            pieces: Vec::new(),
            held: 0,
            kernel: Vec::new(),
        }
    }

    fn start(&mut self) {
        let t = &self.tuning;
        let rng = &mut self.rng;
        let (low, high) = if rng.chance(3, 4) { t.small } else { t.large };
        let pages = rng.range(low, high);
        let build = rng.range(t.build.0, t.build.1);
        let stay = rng.range(t.stay.0, t.stay.1);
        let thp = rng.below(t.thp_jobs) == 0 && pages >= 4 * HUGE;
        let mean_piece = (t.piece.0 + t.piece.1) / 2;
        let pace = build / (pages / mean_piece).max(1);
        self.plan = Plan {
            pages,
            pace,
            stay,
            thp,
        };
        self.pieces.clear();
        self.held = 0;
        self.end = HUGE;
        self.state = State::Starting;
        self.control.jobs_started.fetch_add(1, Ordering::Relaxed);
    }

    /// Draws the next piece; its pages are faulted in afterwards.
    fn next_piece(&mut self) {
        let thp = self.rng.below(self.tuning.thp_pieces) == 0 && self.plan.thp;
        let size = self.rng.range(self.tuning.piece.0, self.tuning.piece.1);
        let (first, pages) = if thp {
            (self.end.next_multiple_of(HUGE), HUGE)
        } else {
            (self.end, size)
        };
        self.end = first + pages;
        self.held += pages;
        self.pieces.push(first..first + pages);
        self.state = State::Filling {
            next: first,
            huge: thp,
        };
    }

    /// A piece is complete: older ones are used, partly or wholly given back; then kernel memory is allocated.
    fn after_piece(&mut self, space: Space) {
        if self.pieces.len() > 8 && self.rng.chance(1, 5) {
            let index = self.rng.below(self.pieces.len() as u64) as usize;
            let piece = self.pieces.swap_remove(index);
            self.held -= piece.end - piece.start;
            self.memory
                .check(space, piece.clone(), Check::Four(self.rng.bits() as u32));
            self.memory.give_back(space, piece);
        }
        if self.pieces.len() > 4 && self.rng.chance(1, 2) {
            let piece = self.any_piece();
            for _ in 0..4 {
                let page = piece.start + self.rng.below(piece.end - piece.start);
                self.memory.give_back(space, page..page + 1);
            }
        }
        let piece = self.any_piece();
        for _ in 0..8 {
            let page = piece.start + self.rng.below(piece.end - piece.start);
            self.memory.reuse(space, page, self.rng.bits() as u32);
        }
        let left = self.rng.range(0, self.tuning.kernel_requests);
        self.ask(left);
    }

    fn any_piece(&mut self) -> Range<u64> {
        let index = self.rng.below(self.pieces.len() as u64) as usize;
        self.pieces[index].clone()
    }

    fn ask(&mut self, left: u64) {
        if left == 0 {
            let (low, high) = (self.plan.pace / 2, self.plan.pace * 3 / 2);
            self.due += self.rng.range(low, high);
            self.state = State::Between;
            return;
        }
        let request = draw_request(&mut self.rng, left.is_multiple_of(2));
        let life = self
            .rng
            .range(self.tuning.kernel_life.0, self.tuning.kernel_life.1);
        self.state = State::Asking {
            left,
            request,
            life,
        };
    }

    /// Advances the present state until memory or time runs out.
    fn advance(&mut self, now: u64) -> Result<(), NoMemory> {
        match self.state {
            State::Away => self.start(),
            State::Starting => {
                self.space = Some(self.memory.create_space()?);
                self.state = State::Between;
            }
            State::Between if self.held < self.plan.pages => self.next_piece(),
            State::Between => {
                self.due += self.plan.stay;
                self.state = State::Staying;
            }
            State::Filling { next, huge } => {
                let (Some(space), Some(piece)) = (self.space, self.pieces.last().cloned()) else {
                    return Ok(());
                };
                let mut page = next;
                while page < piece.end {
                    let aligned = huge && page.is_multiple_of(HUGE);
                    match self.memory.fault(space, page, aligned) {
                        Ok(pages) => page += pages,
                        Err(NoMemory) => {
                            self.state = State::Filling { next: page, huge };
                            return Err(NoMemory);
                        }
                    }
                }
                self.after_piece(space);
            }
            State::Asking {
                left,
                request,
                life,
            } => {
                let memory = self.memory.kernel_alloc(request)?;
                self.kernel.push((now + life, memory));
                self.ask(left - 1);
            }
            State::Staying => {
                let draw = self.rng.bits() as u32;
                self.finish(Check::Four(draw));
                self.due += self.rng.range(self.tuning.pause.0, self.tuning.pause.1);
                self.state = State::Away;
            }
            State::Gone => {}
        }
        Ok(())
    }

    fn finish(&mut self, check: Check) {
        if let Some(space) = self.space.take() {
            for piece in self.pieces.drain(..) {
                self.memory.check(space, piece, check);
            }
            self.memory.exit(space);
            self.control.jobs_finished.fetch_add(1, Ordering::Relaxed);
            self.control.count_compiled();
        }
        self.held = 0;
        for (_, memory) in self.kernel.drain(..) {
            self.memory.kernel_free(memory, check);
        }
    }

    fn expire_kernel(&mut self, now: u64) {
        let mut index = 0;
        while let Some(&(until, memory)) = self.kernel.get(index) {
            if until <= now {
                self.kernel.swap_remove(index);
                self.memory
                    .kernel_free(memory, Check::Four(memory.serial as u32));
            } else {
                index += 1;
            }
        }
    }
}

/// Draws one request for kernel memory.
pub(crate) fn draw_request(rng: &mut Rng, reclaimable: bool) -> KernelRequest {
    let mut draw = rng.below(KERNEL_ORDERS.iter().sum());
    let mut order = 0;
    for (candidate, &weight) in KERNEL_ORDERS.iter().enumerate() {
        if draw < weight {
            order = candidate as u8;
            break;
        }
        draw -= weight;
    }
    KernelRequest {
        reclaimable,
        order: Order::new(order).unwrap_or(Order::BASE),
    }
}

impl<M: LoadMemory> Actor for CompileJob<'_, M> {
    fn step(&mut self, now: u64) -> Next {
        if matches!(self.state, State::Gone) {
            if self.control.stage() == Stage::Over {
                self.control.acknowledge();
                return Next::Done;
            }
            return Next::At(now + NAP);
        }
        if self.control.stage() != Stage::Loaded {
            self.finish(Check::Whole);
            self.state = State::Gone;
            self.control.acknowledge();
            return Next::At(now + NAP);
        }
        self.expire_kernel(now);
        while self.due <= now {
            if self.advance(now).is_err() {
                self.control.count_wait(STALL);
                self.due = now + STALL;
            }
            // One piece per step: other actors run between two pieces of a job that is late.
            if matches!(self.state, State::Between) {
                break;
            }
        }
        Next::At(self.due.max(now).min(now + NAP))
    }
}
