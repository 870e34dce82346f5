//! A device that fails, is reset, and starts anew.
//!
//! A device that has been reset has forgotten everything: all frames are the guest's. If it does not confirm its
//! reset, it may still have them all, and none is given out.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;

use dirigible_frames::{FrameState, Pfn};

use crate::balloon::Balloon;
use crate::books::Books;
use crate::request::{Message, Phase, REQUESTS, RequestMemory, Role};
use crate::{Fault, Features};

/// How many forgotten frames go off the list in one call: others wait for the lock meanwhile.
const DRAIN: usize = 256;

impl<B: Books + ?Sized, const N: usize, M: BorrowMut<RequestMemory<N>>> Balloon<'_, B, N, M> {
    /// The device reports that it cannot go on without a reset. Nothing is sent any more. Reset it and call
    /// [`device_reset`](Self::device_reset), then [`restart`](Self::restart).
    pub fn needs_reset(&mut self) {
        if self.fatal.is_none() && !self.down {
            self.fatal = Some(Fault::NeedsReset);
        }
    }

    /// The device is gone, and it is unknown whether it still has its frames: nothing is sent any more, and all
    /// frames stay on the books, in the states they have.
    ///
    /// A [`device_reset`](Self::device_reset) afterwards gives them back.
    pub fn removed(&mut self) {
        if !matches!(self.fatal, Some(Fault::Books { .. })) {
            self.fatal = Some(Fault::Removed);
        }
    }

    /// The device has been reset, has confirmed it (its status reads 0), and has forgotten everything: all frames are
    /// the guest's again.
    ///
    /// What follows comes out through [`next_output`](Self::next_output): listed frames, and those of inflations and
    /// deflations, as [`Output::Free`](crate::Output::Free), at most 256 listed ones at a time. Pairs of exchanges
    /// have settled ([`take_settled`](Self::take_settled)): `Refused` when the new frames were not acknowledged, else
    /// `Moved`. Frames that are isolated at this moment come back by [`putback`](Self::putback), which reports that
    /// they are to be freed. Nothing is sent before [`restart`](Self::restart).
    pub fn device_reset(&mut self) {
        for at in 0..REQUESTS {
            if !matches!(self.requests[at].phase, Phase::Ready | Phase::Sent) {
                continue;
            }
            match self.requests[at].role {
                Role::Inflate => {
                    self.unclaim(at);
                    self.requests[at].phase = Phase::Done;
                }
                Role::Deflate | Role::Relief => {
                    let back = self.leave(at);
                    self.forget(back);
                    self.requests[at].phase = Phase::Done;
                }
                Role::ExchangeIn(_) => {
                    self.unclaim(at);
                    self.exchange_refused(at);
                }
                Role::ExchangeOut(new) => self.exchange_left(at, usize::from(new)),
            }
        }
        let isolated = core::mem::take(&mut self.isolated);
        self.orphans += isolated;
        self.forget(isolated);
        self.epoch = self.epoch.wrapping_add(1);
        self.down = true;
        self.silent = None;
        if self.fatal.is_none() {
            self.fatal = Some(Fault::Removed);
        }
    }

    fn forget(&mut self, frames: u64) {
        self.stats.forgotten += frames;
        self.promised = self.promised.saturating_sub(frames);
    }

    /// Whether the device has been reset and not been started again.
    pub const fn is_down(&self) -> bool {
        self.down
    }

    /// Whether there are listed frames that the device has forgotten.
    pub(crate) const fn is_draining(&self) -> bool {
        self.down && self.list.len() > 0
    }

    /// Takes forgotten frames off the list, up to [`DRAIN`] of them; whether there were any.
    pub(crate) fn drain(&mut self, message: &mut Message<N>) -> bool {
        message.clear();
        while message.pfns().len() < N.min(DRAIN) {
            let Some(frame) = self.take_newest() else {
                break;
            };
            let pushed = message.push(frame);
            debug_assert!(pushed, "frames on the list have numbers of 32 bits");
        }
        message.sort();
        let drained = message.pfns().len();
        if drained > 0 && self.adjusts_managed() {
            self.books.adjust_managed(&mut message.frames(), 1);
        }
        self.forget(drained as u64);
        drained > 0
    }

    /// Takes the newest frame off the list, for good: Listed, or Leaving where it was withheld, -> Allocated. `None`
    /// when there is none, or the list is damaged.
    fn take_newest(&mut self) -> Option<Pfn> {
        loop {
            let Ok(newest) = self.list.newest(self.books) else {
                return self.lost_list();
            };
            let frame = newest?;
            if self.list.unlink(self.books, frame, self.mark()).is_err() {
                return self.lost_list();
            }
            let books = self.books;
            let owned = |from| books.transition(frame, from, FrameState::Allocated);
            match owned(FrameState::Listed) {
                Ok(()) => return Some(frame),
                Err(FrameState::Leaving) if owned(FrameState::Leaving).is_ok() => {
                    self.withheld = self.withheld.saturating_sub(1);
                    return Some(frame);
                }
                // In a foreign state: it stays lost, and the others follow.
                Err(_) => {
                    self.damaged(1);
                    self.promised = self.promised.saturating_sub(1);
                }
            }
        }
    }

    /// The rest of the list cannot be followed: it stays lost, and that is the fault from now on.
    fn lost_list(&mut self) -> Option<Pfn> {
        self.fatal = Some(Fault::Books {
            frames: self.list.len(),
        });
        self.list = crate::books::List::new(self.books);
        self.promised = 0;
        self.withheld = 0;
        None
    }

    /// The device has been set up again, with these features: the balloon starts anew, empty, toward the next target. A
    /// [`stop`](Self::stop) is cancelled.
    ///
    /// # Errors
    /// The fault that stays: [`Fault::Books`], or whatever there is when there was no
    /// [`device_reset`](Self::device_reset); [`Fault::StillHeld`] when [`next_output`](Self::next_output) has not
    /// handed out everything yet.
    pub fn restart(&mut self, features: Features) -> Result<(), Fault> {
        if let Some(fault) = self
            .fatal
            .filter(|fault| matches!(fault, Fault::Books { .. }))
        {
            return Err(fault);
        }
        if !self.down {
            return self.fault().map_or(Ok(()), Err);
        }
        if self.list.len() > 0 {
            return Err(Fault::StillHeld {
                listed: self.list.len(),
                isolated: self.orphans,
                with_host: 0,
            });
        }
        self.features = features;
        self.down = false;
        self.fatal = None;
        self.stopping = false;
        self.reported = None;
        self.retry_at = 0;
        self.stats.restarts += 1;
        Ok(())
    }

    /// The device did not confirm its reset, so this listed frame may be the host's for ever: it is asked back
    /// (`Listed` -> `Leaving`) without a request. Then neither compaction nor another balloon takes it for one that
    /// it could have. It stays on the list, and [`device_reset`](Self::device_reset) gives it back. Whether the frame
    /// was listed.
    pub fn withhold(&mut self, frame: Pfn) -> bool {
        let withheld = self.is_listed_here(frame)
            && self
                .books
                .transition(frame, FrameState::Listed, FrameState::Leaving)
                .is_ok();
        self.withheld += u64::from(withheld);
        withheld
    }

    /// The balloon goes away and its device has not confirmed a reset: all its frames but the isolated ones become
    /// nobody's, in state `Allocated`, and are lost for good. `lost` gets each of them.
    pub fn abandon(&mut self, mut lost: impl FnMut(Pfn)) {
        self.removed();
        while let Some(frame) = self.take_newest() {
            self.books.disown(frame);
            lost(frame);
        }
        self.promised = self.isolated;
        for at in 0..REQUESTS {
            let from = match (self.requests[at].role, self.requests[at].phase) {
                (Role::Inflate | Role::ExchangeIn(_), Phase::Ready | Phase::Sent) => {
                    FrameState::Entering
                }
                (
                    Role::Deflate | Role::Relief | Role::ExchangeOut(_),
                    Phase::Ready | Phase::Sent,
                ) => FrameState::Leaving,
                _ => continue,
            };
            for n in 0..self.requests[at].len() {
                let frame = self.requests.frame(at, n);
                if self
                    .books
                    .transition(frame, from, FrameState::Allocated)
                    .is_ok()
                {
                    self.books.disown(frame);
                    lost(frame);
                }
            }
            self.requests[at].release();
        }
    }
}
