//! Toward the target, one bounded piece at a time; out-of-memory deflation; removal.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{BlockId, FrameClass, FrameState, Pfn, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::posted::TransportWork;
use super::pump::CHUNK;
use super::wait::Wait;
use super::{Core, VirtioBalloon};
use crate::balloon::Work;
use crate::source::FrameSource;
use crate::{Deflate, Fault, Features, MAX_PFNS, Step};

/// The most blocks that a healing deflation looks at for one message.
const HEALING_LOOK: usize = 64;
/// When to look again for what another CPU is doing at the device.
const CONFIG_LOOK_NS: u64 = 1_000_000;

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// One bounded piece of work toward the target that the device asks for now: at most `max_messages` requests.
    ///
    /// The target is read at the beginning, and again when an interrupt says that it has changed. Only while the host
    /// is busy with earlier requests, and was asked a moment ago, it is not asked: it would answer when it has served
    /// them. The balloon's size is written at the end.
    ///
    /// `source` is asked for frames with no lock held, for at most 256 at a time.
    ///
    /// A device that needs a reset is reset and started anew before that: at most
    /// [`restart_limit`](crate::BalloonConfig::restart_limit) times in a row, and once in every
    /// [`retry_delay_ns`](crate::BalloonConfig::retry_delay_ns). If it fails once more, it is reset and left so: its
    /// frames are the guest's, and the step reports [`Fault::NeedsReset`].
    pub fn step(&self, source: &dyn FrameSource, max_messages: usize) -> Step {
        self.turn(TransportWork::all());
        if let Some(step) = self.repair() {
            self.pump();
            return step;
        }
        let was_read = self.read_target(true);
        let mut step = self.approach(source, max_messages);
        if step == Step::Idle && !was_read {
            // The host was busy when we began, and is not any more: now it is asked.
            self.read_target(true);
            step = self.approach(source, max_messages);
        }
        self.pump();
        let soon = self.platform.now().saturating_add(CONFIG_LOOK_NS);
        match step {
            Step::Idle | Step::Waiting if self.is_news_due() => Step::RetryAt(soon),
            Step::RetryAt(at) if self.is_news_due() => Step::RetryAt(at.min(soon)),
            step => step,
        }
    }

    /// Whether there will be something to do though no further interrupt says so: somebody else is at the device and
    /// reads the target or the interrupt status for us, or work is posted that compaction does not do.
    fn is_news_due(&self) -> bool {
        // The flag last. Pairs with the store in `note_interrupt`, which comes before the work there is done.
        self.posted.is_target_awaited()
            || self.posted.is_unfinished()
            || self.reconfigured.load(Ordering::SeqCst)
    }

    /// Frames that stand in the way of an end.
    fn awaited(&self) -> u64 {
        self.state.lock().awaited()
    }

    fn approach(&self, source: &dyn FrameSource, max_messages: usize) -> Step {
        for left in (0..=max_messages).rev() {
            match self.plan() {
                Work::Idle => return Step::Idle,
                Work::Waiting => return Step::Waiting,
                Work::RetryAt(time) => return Step::RetryAt(time),
                Work::Failed(fault) => return Step::Failed(fault),
                Work::Inflate(_) | Work::Deflate(_) if left == 0 => break,
                Work::Inflate(want) => {
                    if let Some(retry_at) = self.inflate(source, want) {
                        return Step::RetryAt(retry_at);
                    }
                }
                Work::Deflate(want) => {
                    self.deflate(want);
                }
            }
        }
        Step::Busy
    }

    /// Asks the state machine what follows.
    #[inline(never)]
    fn plan(&self) -> Work {
        self.read_target(false);
        let mut state = self.state.lock();
        // A balloon that is emptied for good needs no target.
        let stopping = state.balloon.is_stopping().then_some(0);
        let Some(requested) = state.target.or(stopping) else {
            return Work::Failed(state.balloon.fault().unwrap_or(Fault::Config));
        };
        // What the guest has, the balloon included: where ballooned frames lower the managed count, add them again.
        let mut limit = self.frames.managed_frames();
        if !state.balloon.features().contains(Features::DEFLATE_ON_OOM) {
            let held = state.balloon.held();
            limit += held.listed + held.isolated + held.leaving;
        }
        state.balloon.set_target(requested, limit);
        state.balloon.plan(self.platform.now())
    }

    /// One inflate message; the time of the next attempt when there was no frame to be had.
    fn inflate(&self, source: &dyn FrameSource, want: usize) -> Option<u64> {
        let mut frames = [Pfn::default(); CHUNK];
        let how = self.config.effective_placement();
        let mut begun = 0;
        while begun < want {
            let part = CHUNK.min(want - begun);
            let got = source.take(how, &mut frames[..part]).min(part);
            if got == 0 && begun == 0 {
                let now = self.platform.now();
                return Some(self.state.lock().balloon.inflate_failed(now));
            }
            // Finding frames may have taken long: the target may be another one now.
            self.plan();
            let used = self
                .state
                .lock()
                .balloon
                .begin_inflate(&frames[..got], self.platform.now());
            if used < got {
                source.give_back(&frames[used..got]);
            }
            begun += used;
            if used < part {
                break;
            }
        }
        self.turn(TransportWork::all());
        None
    }

    /// One deflate message; how many frames it asks back.
    fn deflate(&self, want: usize) -> usize {
        let begun = self.ask_back(want, Core::begin_deflate);
        self.turn(TransportWork::all());
        begun
    }

    /// Begins to take up to `want` frames back by `begin`, those first whose return makes blocks whole soonest; gives
    /// how many.
    #[inline(never)]
    fn ask_back(
        &self,
        want: usize,
        begin: fn(&mut Core<'a, H, N>, usize, &[Pfn], u64) -> usize,
    ) -> usize {
        let mut blocks = [BlockId::new(0); HEALING_LOOK];
        let mut healing = self.healing(&mut blocks);
        let mut begun = 0;
        loop {
            let left = want - begun;
            let preferred: ArrayVec<_, CHUNK> = healing.by_ref().take(left.min(CHUNK)).collect();
            // Where no more are preferred the others complete the message.
            let part = if preferred.is_full() { CHUNK } else { left };
            let got = begin(
                &mut self.state.lock().balloon,
                part,
                &preferred,
                self.platform.now(),
            );
            begun += got;
            if got < part || begun == want {
                return begun;
            }
        }
    }

    /// Frames whose return makes blocks whole soonest: a hint, looked up without a lock.
    fn healing<'b>(
        &'b self,
        blocks: &'b mut [BlockId; HEALING_LOOK],
    ) -> impl Iterator<Item = Pfn> + 'b {
        let look = match (self.config.deflate, self.config.batch) {
            (Deflate::NewestFirst, _) => 0,
            (Deflate::Heal, ..=MAX_PFNS) => HEALING_LOOK / 2,
            (Deflate::Heal, _) => HEALING_LOOK,
        };
        let found = self.frames.healing_blocks(&mut blocks[..look]);
        blocks[..found]
            .iter()
            .flat_map(|&block| self.frames.used_frames(block))
            // The class first: most frames that are not ours have another.
            .filter(|&frame| {
                self.frames.class(frame) == FrameClass::Balloon
                    && self.frames.owner(frame) == self.id
                    && self.frames.state(frame) == FrameState::Listed
            })
    }

    /// The guest is out of memory: takes up to `want` frames back (at most what one message holds) and gives how many
    /// are with the allocator. 0 without `DEFLATE_ON_OOM`. Inflation then rests until the host sets another target or
    /// [`oom_rest_ns`](crate::BalloonConfig::oom_rest_ns) is over.
    ///
    /// No lock of the balloon is held by an allocation, so this may be called from within
    /// [`FrameSource::take`].
    pub fn deflate_on_oom(&self, want: usize) -> usize {
        let want = want.min(self.config.batch);
        if want == 0 || !self.features().contains(Features::DEFLATE_ON_OOM) {
            return 0;
        }
        let given_back = || self.state.lock().given_back;
        let before = given_back();
        let mut wait = Wait::lasting(self.platform, self.config.wait_ns);
        let mut begun = 0;
        loop {
            if begun == 0 {
                // 0 also when another CPU has the request that is kept for this; its answer frees it.
                begun = self.ask_back(want, Core::begin_oom_deflate);
            }
            self.pump();
            // Not those acknowledged: another CPU may have them in its hands.
            let back = (given_back() - before) as usize;
            let can_come = begun > 0 || self.held().listed > 0 && self.fault().is_none();
            let is_over = !can_come || begun > 0 && back >= begun;
            if is_over || !wait.go_on() {
                return back.min(begun);
            }
        }
    }

    /// Gives every frame back to the guest and then resets the device. Isolated frames are waited for, and so is the
    /// host, both at most [`shutdown_timeout_ns`](crate::BalloonConfig::shutdown_timeout_ns). Settled pairs that nobody
    /// has taken are not waited for: they can be taken afterwards.
    ///
    /// From this call on the balloon takes no more frames and compaction gets none of it any more.
    ///
    /// # Errors
    /// [`Fault::StillHeld`] when frames are still out at the end of the wait, or the fault that prevents deflation.
    /// The device is then left as it is: call again, or [`reset`](Self::reset). [`Fault::NoReset`] when all frames
    /// are back and the device does not confirm the reset that follows.
    pub fn shutdown(&self) -> Result<(), Fault> {
        {
            let mut state = self.state.lock();
            state.balloon.stop();
            state.ends += 1;
        }
        let mut wait = Wait::lasting(self.platform, self.config.shutdown_timeout_ns);
        loop {
            self.pump();
            let work = loop {
                match self.plan() {
                    Work::Deflate(want) if self.deflate(want) > 0 => {}
                    work => break work,
                }
            };
            self.pump();
            match work {
                // An answer may end this one.
                Work::Failed(Fault::Silent { .. }) => {}
                // Only isolated frames and those being freed are left. Both come back.
                Work::Failed(_) if self.state.lock().balloon.is_down() => {}
                // Everything comes back, if the device can do this much.
                Work::Failed(Fault::NeedsReset) => {
                    self.reset();
                }
                Work::Failed(fault) if self.awaited() > 0 => return Err(fault),
                _ => {}
            }
            if self.awaited() == 0 {
                break;
            }
            if !wait.go_on() {
                let held = self.held();
                return Err(self.fault().unwrap_or(Fault::StillHeld {
                    listed: held.listed,
                    isolated: held.isolated,
                    with_host: held.entering + held.leaving,
                }));
            }
        }
        if let Some(fault @ Fault::Books { .. }) = self.fault() {
            return Err(fault);
        }
        match self.end() {
            (_, true) => Ok(()),
            (_, false) => Err(Fault::NoReset),
        }
    }
}
