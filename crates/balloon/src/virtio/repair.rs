//! Reset, and starting anew.
#![forbid(unsafe_code)]

use dirigible_frames::sync::{MutexGuard, Ordering};
use dirigible_frames::{FrameClass, Pfn, Platform};
use dirigible_mobility::{MovePair, Outcome};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::VirtioBalloon;
use super::device::Queues;
use super::error::{BalloonError, DeviceError};
use super::posted::TransportWork;
use super::wait::Wait;
use super::wire::Wire;
use crate::{BalloonConfig, Fault, Features, Held, Step};

/// Who takes the device down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A caller that wants it gone.
    Reset,
    /// A caller that starts it again.
    Restart,
    /// The worker, because the device asks for it.
    Repair,
}

/// What taking the device down has come to.
struct Down {
    /// What it held.
    held: Held,
    /// It has confirmed the reset.
    is_quiet: bool,
    /// `State::ends` at that moment.
    ends: u64,
}

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// Negotiates features and sets the queues up. The device is not started yet.
    pub(super) fn set_up(
        wire: &mut Wire<'_, T, P>,
        config: &BalloonConfig,
    ) -> Result<(Features, Queues<H, N>), DeviceError> {
        let mut queues = Queues::new()?;
        let negotiated = wire
            .negotiate(Features::accepted(config.deflate_on_oom))
            .and_then(|features| queues.set_up(wire, features).map(|()| features));
        match negotiated {
            Ok(features) => Ok((features, queues)),
            Err(error) => {
                // The device may have addresses of ours. Without the proof that it has forgotten them they are leaked.
                if let Some(quiet) = wire.give_up() {
                    drop(queues.release(&quiet));
                }
                Err(error)
            }
        }
    }

    /// Resets the device, even in the middle of its work, and gives what it held.
    ///
    /// A device that confirms it has forgotten everything: before this returns, listed frames and those in requests
    /// are back with the allocator, pairs of exchanges have settled and wait to be
    /// [taken](dirigible_mobility::MovableOwner::take_settled), and frames that are isolated go back to the allocator
    /// when they are put back. [`restart`](Self::restart) starts it anew.
    ///
    /// If the device does not confirm it, it may still have everything: all frames stay on the books, counted as
    /// unmovable, and are never given out. (Isolated ones can still be put back.) A later reset that is confirmed
    /// gives them back.
    ///
    /// A [`step`](Self::step) or a [`restart`](Self::restart) that is starting the device at the moment gives up.
    pub fn reset(&self) -> Held {
        self.end().0
    }

    /// Resets the device; what it held, and whether it has confirmed that.
    pub(super) fn end(&self) -> (Held, bool) {
        let down = self.take_down(Why::Reset);
        self.pump();
        // Other CPUs may still be freeing what they were handed out.
        let mut wait = Wait::lasting(self.platform, self.config.shutdown_timeout_ns);
        while self.held().returning > 0 && wait.go_on() {}
        down.map_or((Held::default(), false), |down| (down.held, down.is_quiet))
    }

    /// Makes the device forget everything. A pump is to follow.
    ///
    /// `None`, and nothing has changed: a restart or a repair did not get the transport, or there is nothing to
    /// repair any more. A reset goes on without the transport, as one that is not confirmed.
    fn take_down(&self, why: Why) -> Option<Down> {
        let mut wire = self.seize();
        if wire.is_none() && why != Why::Reset {
            return None;
        }
        if why == Why::Repair && !self.state.lock().needs_repair() {
            // Somebody has reset the device, or has repaired it already.
            return None;
        }
        if let Some(wire) = &mut wire
            && wire.is_live()
            && why != Why::Repair
        {
            // The size after the last answer may not be written yet, and after the reset it cannot be.
            let actual = self.state.lock().balloon.actual();
            wire.write_actual(actual as u32);
        }
        let quiet = wire.as_mut().and_then(|wire| wire.reset());
        let mut queues = self.queues.lock();
        // Nothing goes out from here on, and no answer comes in.
        queues.close();
        let (held, ends) = {
            let mut state = self.state.lock();
            let held = state.held();
            if why != Why::Repair {
                state.balloon.removed();
            }
            state.ends += u64::from(why == Why::Reset);
            if quiet.is_some() {
                state.balloon.device_reset();
            }
            if quiet.is_none() && !state.adrift {
                // The next look at the ledger begins a walk, which withholds them.
                state.unmovable = None;
            }
            state.adrift = quiet.is_none();
            self.note_settled(&state);
            (held, state.ends)
        };
        let forgotten = quiet.as_ref().map(|quiet| queues.release(quiet));
        drop(queues);
        drop(forgotten);
        // Bells of rings that are gone.
        self.posted
            .take(TransportWork::INFLATE | TransportWork::DEFLATE | TransportWork::STATS);
        Some(Down {
            held,
            is_quiet: quiet.is_some(),
            ends,
        })
    }

    /// Takes the transport as soon as it is free. This is the one place where it is waited for, with a bound and with
    /// [`Platform::relax`].
    fn seize(&self) -> Option<MutexGuard<'_, Wire<'a, T, P>>> {
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

    /// Starts the device anew, resetting it before if that has not been done: features are negotiated, queues set up
    /// and the target read as at the first time. The balloon is empty and grows with the next [`step`](Self::step)s.
    ///
    /// Its registration with a mobility stays valid.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`DeviceError::NoReset`] when the device does not confirm its reset; [`Fault::Books`]
    /// when the books are damaged, which no device can mend; [`Fault::Removed`] when somebody calls
    /// [`reset`](Self::reset) or [`shutdown`](Self::shutdown) meanwhile. It may be tried again.
    pub fn restart(&self) -> Result<(), BalloonError> {
        self.state.lock().restarts = 0;
        let started = self.start_anew(Why::Restart);
        self.pump();
        started
    }

    /// A pump is to follow: other CPUs may have posted work while the transport was ours.
    fn start_anew(&self, why: Why) -> Result<(), BalloonError> {
        let Some(Down { is_quiet, ends, .. }) = self.take_down(why) else {
            return Err(DeviceError::NoReset.into());
        };
        // Hands out everything that the device had.
        self.pump();
        if !is_quiet {
            return Err(DeviceError::NoReset.into());
        }
        let mut wire = self.seize().ok_or(DeviceError::NoReset)?;
        if wire.is_live() {
            // Another CPU has started it.
            return Ok(());
        }
        let (features, mut set_up) = Self::set_up(&mut wire, &self.config)?;
        let restarted = {
            let mut queues = self.queues.lock();
            let mut state = self.state.lock();
            // A reset or a shutdown that came between stays in force: only a later restart undoes it.
            let is_wanted = match why {
                Why::Repair => state.needs_repair(),
                Why::Reset | Why::Restart => state.ends == ends,
            };
            let restarted = match is_wanted {
                true => state.balloon.restart(features),
                false => Err(Fault::Removed),
            };
            if restarted.is_ok() {
                state.read_at = None;
                // The device has confirmed a reset, and nobody has had the transport since.
                state.adrift = false;
                core::mem::swap(&mut *queues, &mut set_up);
            }
            restarted
        };
        if let Err(fault) = restarted {
            if let Some(quiet) = wire.give_up() {
                drop(set_up.release(&quiet));
                self.state.lock().adrift = false;
            }
            return Err(fault.into());
        }
        wire.start();
        // Pairs with the swap in `read_target`: the next step reads the host's target, whatever it was.
        self.reconfigured.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Repairs a device that reports that it needs a reset. `Some` when `step` ends with that. A pump is to follow.
    pub(super) fn repair(&self) -> Option<Step> {
        let now = self.platform.now();
        let limit = self.config.restart_limit;
        let (at, is_last) = {
            let mut state = self.state.lock();
            if !state.needs_repair() {
                return None;
            }
            let is_last = state.restarts >= limit;
            if is_last {
                // Once, or until the device confirms it.
                let is_done = state.balloon.is_down() || state.adrift && now < state.restart_at;
                if is_done || limit == 0 {
                    return Some(Step::Failed(Fault::NeedsReset));
                }
            } else {
                if now < state.restart_at {
                    return Some(Step::RetryAt(state.restart_at));
                }
                state.restarts += 1;
            }
            state.restart_at = now.saturating_add(self.config.retry_delay_ns);
            (state.restart_at, is_last)
        };
        if is_last {
            // A device that stays broken gives back what it has.
            self.take_down(Why::Repair);
            return self
                .state
                .lock()
                .needs_repair()
                .then_some(Step::Failed(Fault::NeedsReset));
        }
        self.start_anew(Why::Repair).err()?;
        // Or somebody has ended the balloon meanwhile.
        let is_still_broken = self.state.lock().needs_repair();
        is_still_broken.then_some(Step::RetryAt(at))
    }
}

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// Ends settled pairs that nobody will take any more, as mobility would.
    #[inline(never)]
    fn end_settled(&self) {
        let mut pairs = [MovePair::base(Pfn::new(0), Pfn::new(0)); 32];
        loop {
            let taken = self.state.lock().balloon.take_settled(&mut pairs);
            for pair in &pairs[..taken] {
                let back = match pair.outcome {
                    Outcome::Moved => pair.from,
                    _ => {
                        self.take_back(pair.from);
                        pair.to
                    }
                };
                self.state.lock().returning += 1;
                self.give_back(&[back]);
            }
            if taken < pairs.len() {
                return;
            }
        }
    }
}

impl<H: Hal, T: Transport, P: Platform, const N: usize> Drop for VirtioBalloon<'_, H, T, P, N> {
    fn drop(&mut self) {
        self.reset();
        self.end_settled();
        let frames = self.frames;
        let mut state = self.state.lock();
        if state.adrift {
            state
                .balloon
                .abandon(|frame| frames.reclass(frame, FrameClass::Unmovable));
        }
    }
}
