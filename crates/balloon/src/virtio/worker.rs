//! Toward the target, one bounded piece at a time; deflation for want of memory; removal.
#![forbid(unsafe_code)]

use dirigible_frames::{BlockId, FrameClass, FrameState, Pfn, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::VirtioBalloon;
use super::wait::Wait;
use crate::balloon::Work;
use crate::source::FrameSource;
use crate::{Deflate, Fault, Features, Held, MAX_PFNS, Step};

/// How many blocks a healing deflation looks at for one message.
const HEALING_LOOK: usize = 32;

impl<H: Hal, T: Transport, P: Platform> VirtioBalloon<'_, H, T, P> {
    /// One bounded piece of work toward the target that the device asks for now: at most `max_messages` requests.
    ///
    /// `source` is asked for frames with no lock held.
    pub fn step(&self, source: &dyn FrameSource, max_messages: usize) -> Step {
        self.pump();
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

    /// Reads the target and asks the state machine what follows.
    fn plan(&self) -> Work {
        let requested = self.device.lock().read_target();
        self.look_again();
        let mut state = self.state.lock();
        let requested = match requested {
            Ok(requested) => requested,
            Err(_) => return Work::Failed(state.balloon.fault().unwrap_or(Fault::Config)),
        };
        // What the guest has, the balloon included: where ballooned frames lower the managed count, add them again.
        let mut limit = self.frames.managed_frames();
        if !self.features.contains(Features::DEFLATE_ON_OOM) {
            let held = state.balloon.held();
            limit += held.listed + held.isolated + held.leaving;
        }
        state.balloon.set_target(requested, limit);
        state.balloon.plan(self.platform.now())
    }

    /// One inflate message; the time of the next attempt when there was no frame to be had.
    fn inflate(&self, source: &dyn FrameSource, want: usize) -> Option<u64> {
        let mut frames = [Pfn::default(); MAX_PFNS];
        let want = want.min(MAX_PFNS);
        let how = self.config.effective_placement();
        let got = source.take(how, &mut frames[..want]).min(want);
        if got == 0 {
            let retry_at = self
                .state
                .lock()
                .balloon
                .inflate_failed(self.platform.now());
            self.publish();
            return Some(retry_at);
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
        self.pump();
        None
    }

    /// One deflate message; how many frames it asks back.
    fn deflate(&self, want: usize) -> usize {
        let mut preferred = [Pfn::default(); MAX_PFNS];
        let found = self.preferred(want, &mut preferred);
        let now = self.platform.now();
        let begun = self
            .state
            .lock()
            .balloon
            .begin_deflate(want, &preferred[..found], now);
        self.pump();
        begun
    }

    /// Frames whose return makes blocks whole soonest: a hint, looked up without a lock.
    fn preferred(&self, want: usize, out: &mut [Pfn; MAX_PFNS]) -> usize {
        if self.config.deflate != Deflate::Heal {
            return 0;
        }
        let mut blocks = [BlockId::new(0); HEALING_LOOK];
        let looked_at = self.frames.healing_blocks(&mut blocks);
        let ours = |frame: &Pfn| {
            self.frames.frame(*frame).is_some_and(|info| {
                info.state == FrameState::Listed
                    && info.owner == self.class
                    && info.class == FrameClass::Balloon
            })
        };
        let frames = blocks[..looked_at]
            .iter()
            .flat_map(|&block| self.frames.used_frames(block))
            .filter(ours);
        let mut found = 0;
        for (place, frame) in out.iter_mut().take(want).zip(frames) {
            *place = frame;
            found += 1;
        }
        found
    }

    /// The guest is out of memory: takes up to `want` frames back (at most one message) and says how many of them the
    /// host has let go of. 0 without `DEFLATE_ON_OOM`. Inflation then rests until the host sets another target or
    /// [`oom_rest_ns`](crate::BalloonConfig::oom_rest_ns) is over.
    ///
    /// No lock of the balloon is held by an allocation, so this may be called from within
    /// [`FrameSource::take`].
    pub fn deflate_on_oom(&self, want: usize) -> usize {
        let mut preferred = [Pfn::default(); MAX_PFNS];
        let found = self.preferred(want.min(MAX_PFNS), &mut preferred);
        let (before, begun) = {
            let mut state = self.state.lock();
            let before = state.balloon.stats().deflated;
            let now = self.platform.now();
            (
                before,
                state
                    .balloon
                    .begin_oom_deflate(want, &preferred[..found], now),
            )
        };
        let mut wait = Wait::lasting(self.platform, self.config.wait_ns);
        loop {
            self.pump();
            let back = (self.stats().deflated - before) as usize;
            if back >= begun || !wait.go_on() {
                return back.min(begun);
            }
        }
    }

    /// Gives every frame back to the guest and then resets the device. Isolated frames are waited for, and so is the
    /// host, both at most [`shutdown_timeout_ns`](crate::BalloonConfig::shutdown_timeout_ns).
    ///
    /// From this call on the balloon takes no more frames and compaction gets none of it any more.
    ///
    /// # Errors
    /// [`Fault::StillHeld`] when frames are still out at the end of the wait, or the fault that prevents deflation.
    /// The device is then left as it is: call again, or [`reset`](Self::reset).
    pub fn shutdown(&self) -> Result<(), Fault> {
        self.state.lock().balloon.stop();
        let mut wait = Wait::lasting(self.platform, self.config.shutdown_timeout_ns);
        loop {
            self.pump();
            let work = loop {
                match self.plan() {
                    Work::Deflate(want) if self.deflate(want) > 0 => {}
                    work => break work,
                }
            };
            match work {
                // An answer may end this one.
                Work::Failed(Fault::Silent { .. }) => {}
                Work::Failed(fault) if self.held().total() > 0 => return Err(fault),
                _ => {}
            }
            let held = self.held();
            if held.total() == 0 {
                break;
            }
            if !wait.go_on() {
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
        self.reset();
        Ok(())
    }

    /// Resets the device, whatever it does at the moment, and says what it still held. Those frames stay on the books,
    /// in the states they have: the host may have them, so nobody ever gets them. Isolated ones can still be put back.
    pub fn reset(&self) -> Held {
        let mut device = self.device.lock();
        let actual = self.state.lock().balloon.actual();
        // Whoever took the last answer may not have come to writing it; after the reset there is nowhere to write.
        device.write_actual(actual as u32);
        device.reset();
        drop(device);
        let mut state = self.state.lock();
        state.balloon.removed();
        state.balloon.held()
    }
}
