//! Reset, and starting anew.
#![forbid(unsafe_code)]

use dirigible_frames::sync::{MutexGuard, Ordering};
use dirigible_frames::{FrameClass, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::device::{DeviceError, Queues};
use super::jobs::Jobs;
use super::wait::Wait;
use super::wire::Wire;
use super::{BalloonError, VirtioBalloon};
use crate::{BalloonConfig, Fault, Features, Held, Step};

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// Negotiates features and sets the queues up. The device is not started yet.
    pub(super) fn set_up(
        wire: &mut Wire<T>,
        config: &BalloonConfig,
    ) -> Result<(Features, Queues<H, N>), DeviceError> {
        let set_up = wire
            .negotiate(Features::accepted(config.deflate_on_oom))
            .and_then(|features| Ok((features, Queues::set_up(wire, features)?)));
        if set_up.is_err() {
            wire.give_up();
        }
        set_up
    }

    /// Resets the device, whatever it does at the moment, and says what it held.
    ///
    /// A device that confirms it has forgotten everything: before this returns, listed frames and those in requests are back
    /// with the allocator, pairs of exchanges have settled, and frames that are isolated go back to the allocator when they
    /// are put back. [`restart`](Self::restart) starts it anew.
    ///
    /// Of a device that does not confirm it nobody knows what it still has: all frames stay on the books, where nobody ever
    /// gets them, counted as unmovable. (Isolated ones can still be put back.) Another reset that is confirmed gives them
    /// back.
    pub fn reset(&self) -> Held {
        let (held, _) = self.take_down(true);
        self.pump();
        held
    }

    /// Makes the device forget everything; what it held, and whether it confirmed. `for_good`: nobody means to start it
    /// again. A pump is to follow.
    fn take_down(&self, for_good: bool) -> (Held, bool) {
        let mut wire = self.seize();
        if let Some(wire) = &mut wire
            && wire.is_live()
            && for_good
        {
            // Whoever took the last answer may not have come to writing it; after the reset there is nowhere to write.
            let actual = self.state.lock().balloon.actual();
            wire.write_actual(actual as u32);
        }
        let quiet = wire.as_mut().and_then(|wire| wire.reset());
        let mut queues = self.queues.lock();
        // Nothing goes out from here on, and no answer comes in.
        queues.close();
        let held = {
            let mut state = self.state.lock();
            let held = state.balloon.held();
            if for_good {
                state.balloon.removed();
            }
            if quiet.is_some() {
                state.balloon.device_reset();
            }
            if quiet.is_none() && !state.adrift {
                // The next look at the ledger begins a walk, which withholds them.
                state.unmovable = None;
            }
            state.adrift = quiet.is_none();
            held
        };
        let forgotten = quiet.as_ref().map(|quiet| queues.release(quiet));
        drop(queues);
        drop(forgotten);
        // Bells of rings that are gone.
        self.posts.take(Jobs::INFLATE | Jobs::DEFLATE | Jobs::STATS);
        (held, quiet.is_some())
    }

    /// The transport to ourselves, as soon as nobody else is at it: the one place where it is waited for, with a bound and
    /// with [`Platform::relax`].
    fn seize(&self) -> Option<MutexGuard<'_, Wire<T>>> {
        let mut wait = Wait::lasting(self.platform, self.config.shutdown_timeout_ns);
        loop {
            if let Some(wire) = self.wire.try_lock() {
                return Some(wire);
            }
            if !wait.go_on() {
                return None;
            }
        }
    }

    /// Starts the device anew, resetting it before if that has not been done: features are negotiated, queues set up and
    /// the target read as at the first time. The balloon is empty and grows with the next [`step`](Self::step)s.
    ///
    /// Whoever is registered as its owner with a mobility stays so.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`DeviceError::NoReset`] when the device does not confirm its reset; [`Fault::Books`] when the
    /// books are damaged, which no device can mend. It may be tried again.
    pub fn restart(&self) -> Result<(), BalloonError> {
        self.state.lock().restarts = 0;
        let started = self.start_anew(true);
        self.pump();
        started
    }

    /// A pump is to follow: others may have left jobs while the transport was ours.
    fn start_anew(&self, for_good: bool) -> Result<(), BalloonError> {
        let (_, is_quiet) = self.take_down(for_good);
        // Hands everything out that it had.
        self.pump();
        if !is_quiet {
            return Err(DeviceError::NoReset.into());
        }
        let mut wire = self.seize().ok_or(DeviceError::NoReset)?;
        if wire.is_live() {
            // Somebody else was faster.
            return Ok(());
        }
        let (features, set_up) = Self::set_up(&mut wire, &self.config)?;
        let (restarted, former) = {
            let mut queues = self.queues.lock();
            let mut state = self.state.lock();
            let restarted = state.balloon.restart(features);
            state.read_at = None;
            (restarted, core::mem::replace(&mut *queues, set_up))
        };
        drop(former);
        match restarted {
            Ok(()) => wire.start(),
            Err(_) => {
                let quiet = wire.give_up();
                let forgotten = quiet.map(|quiet| self.queues.lock().release(&quiet));
                drop(forgotten);
            }
        }
        restarted?;
        // Pairs with the swap in `read_target`: the next step reads the host's target, whatever it was.
        self.reconfigured.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Repairs a device that says that it needs a reset; what is to be said to the caller if the balloon cannot go on.
    /// A pump is to follow.
    pub(super) fn repair(&self) -> Option<Step> {
        let now = self.platform.now();
        let at = {
            let mut state = self.state.lock();
            if state.balloon.fault() != Some(Fault::NeedsReset) || state.balloon.is_stopping() {
                return None;
            }
            if state.restarts >= self.config.restart_limit {
                return Some(Step::Failed(Fault::NeedsReset));
            }
            if now < state.restart_at {
                return Some(Step::RetryAt(state.restart_at));
            }
            state.restarts += 1;
            state.restart_at = now.saturating_add(self.config.retry_delay_ns);
            state.restart_at
        };
        self.start_anew(false).err().map(|_| Step::RetryAt(at))
    }
}

impl<H: Hal, T: Transport, P: Platform, const N: usize> Drop for VirtioBalloon<'_, H, T, P, N> {
    fn drop(&mut self) {
        self.reset();
        let frames = self.frames;
        let mut state = self.state.lock();
        if state.adrift {
            state
                .balloon
                .abandon(|frame| frames.reclass(frame, FrameClass::Unmovable));
        }
    }
}
