//! The state machine: events in, outputs out, no I/O and no waiting.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;

use dirigible_frames::{FrameState, OwnerId, Pfn};
#[cfg(feature = "virtio-drivers")]
use dirigible_mobility::Outcome;

use crate::books::{Books, List, MAX_SPAN};
use crate::request::{
    self, MAX_PFNS, Phase, REQUESTS, RequestId, RequestMemory, Requests, Role, Roles, Slot,
};
use crate::{BalloonConfig, BalloonStats, Fault, Features, Held, Queue};

/// What the caller is to do for the balloon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an output is handed out once"]
pub enum Output {
    /// Put the message's frame numbers on `queue` in one descriptor and notify. When the host has used it, call
    /// [`Balloon::complete`] with both; when the queue does not take it, [`Balloon::send_failed`].
    Send {
        /// Inflate or deflate.
        queue: Queue,
        /// Names the request.
        request: RequestId,
    },
    /// The message's frames are the guest's again: give them to the allocator. They still carry the balloon's owner
    /// number.
    Free,
    /// Write this size to the configuration space.
    WriteActual(u32),
}

/// What the balloon should do next to come nearer to its target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing: the target is reached.
    Idle,
    /// Nothing before the host answers.
    Waiting,
    /// Get up to so many frames and call [`Balloon::begin_inflate`].
    Inflate(usize),
    /// Call [`Balloon::begin_deflate`] for so many frames.
    Deflate(usize),
    /// Nothing before this time.
    RetryAt(u64),
    /// Nothing: see the fault.
    Failed(Fault),
}

/// The device answered a request that it does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device answered a request that it does not have")]
pub struct ProtocolError;

/// One balloon without its device.
///
/// The caller serialises the calls (a lock that is held for the length of one call) and does what
/// [`next_output`](Self::next_output) says with that lock released. So nothing here is ever held while memory is
/// allocated, a request is with the host, or anybody waits.
///
/// A frame is in one of these places, and its state says in which:
///
/// ```text
/// Allocated ─ begin_inflate ─> Entering ─ acknowledged ─> Listed ─ begin_deflate ─> Leaving ─ acknowledged ─> Allocated
///                                                     Listed ─ isolate ─> Isolated ─ putback ─> Listed
/// exchange: new frame like an inflation, and once that is acknowledged, old frame Isolated ─> Leaving ─> Allocated
/// the device was reset: all of them ─> Allocated
/// ```
///
/// `N` is the most frame numbers that a request holds: [`MAX_PFNS`], or more (up to
/// [`LARGE_PFNS`](crate::LARGE_PFNS)) if the guest knows that its host takes more. The numbers are in `M`: in the
/// balloon itself, or elsewhere when that is too large for the stack that it is built on.
#[derive(Debug)]
pub struct Balloon<'a, B: Books + ?Sized, const N: usize = MAX_PFNS, M = RequestMemory<N>> {
    pub(crate) books: &'a B,
    pub(crate) id: OwnerId,
    pub(crate) config: BalloonConfig,
    pub(crate) features: Features,
    pub(crate) list: List,
    /// Isolated frames that the host has.
    pub(crate) isolated: u64,
    /// Isolated frames that it had when its device was reset.
    pub(crate) orphans: u64,
    /// Listed frames whose state says that they were asked back: see [`withhold`](Self::withhold).
    pub(crate) withheld: u64,
    /// Changes with each reset, to tell frames isolated before it from later ones.
    pub(crate) epoch: u32,
    /// The device has been reset and not been started again.
    pub(crate) down: bool,
    /// Frames that the host has been given and has not given back, by its own acknowledgements; exchanges leave it
    /// alone. Kept apart from the list so that a loss is noticed.
    pub(crate) promised: u64,
    target: u64,
    requested: Option<u32>,
    pub(crate) requests: Requests<N, M>,
    pub(crate) retry_at: u64,
    pub(crate) rest_until: u64,
    pub(crate) reported: Option<u64>,
    pub(crate) fatal: Option<Fault>,
    pub(crate) silent: Option<u64>,
    pub(crate) stopping: bool,
    pub(crate) stats: BalloonStats,
    /// Exchanges whose requests are free again.
    pub(crate) exchanges_ended: u64,
    /// Deflations that were undone before the host was told: their frames are on the list again.
    pub(crate) undone: u64,
}

impl<'a, B: Books + ?Sized, const N: usize> Balloon<'a, B, N> {
    /// An empty balloon. `features` are those negotiated.
    ///
    /// # Errors
    /// [`Fault::Setting`] and [`Fault::Range`] for settings out of range, [`Fault::TooLarge`] when frames cannot be
    /// named.
    pub fn new(
        books: &'a B,
        id: OwnerId,
        features: Features,
        config: BalloonConfig,
    ) -> Result<Self, Fault> {
        Self::in_memory(books, id, features, config, [[0; N]; REQUESTS])
    }
}

impl<'a, B: Books + ?Sized, const N: usize, M: BorrowMut<RequestMemory<N>>> Balloon<'a, B, N, M> {
    /// An empty balloon that keeps the numbers of its requests in `memory`: a reference or a box, say.
    ///
    /// # Errors
    /// As [`new`](Balloon::new).
    pub fn in_memory(
        books: &'a B,
        id: OwnerId,
        features: Features,
        config: BalloonConfig,
        memory: M,
    ) -> Result<Self, Fault> {
        check::<B, N>(books, id, &config)?;
        Ok(Self {
            books,
            id,
            config,
            features,
            list: List::new(books),
            isolated: 0,
            orphans: 0,
            withheld: 0,
            epoch: 0,
            down: false,
            promised: 0,
            target: 0,
            requested: None,
            requests: Requests::new(memory),
            retry_at: 0,
            rest_until: 0,
            reported: None,
            fatal: None,
            silent: None,
            stopping: false,
            stats: BalloonStats::default(),
            exchanges_ended: 0,
            undone: 0,
        })
    }

    // --- what it holds

    /// Frames promised to the host: what `actual` says.
    pub fn actual(&self) -> u64 {
        self.list.len() + self.isolated + self.in_deflations()
    }

    /// The target, lowered to what the guest has.
    pub const fn target(&self) -> u64 {
        self.target
    }

    /// The target as the host set it last.
    pub const fn requested(&self) -> u32 {
        match self.requested {
            Some(requested) => requested,
            None => 0,
        }
    }

    /// The settings.
    pub const fn config(&self) -> &BalloonConfig {
        &self.config
    }

    /// The negotiated features.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// What has happened so far.
    pub const fn stats(&self) -> BalloonStats {
        self.stats
    }

    /// Where the frames are.
    #[inline(never)]
    pub fn held(&self) -> Held {
        Held {
            listed: self.list.len().saturating_sub(self.withheld),
            isolated: self.isolated + self.orphans,
            entering: self.in_requests(Roles::ENTERING),
            leaving: self.in_requests(Roles::LEAVING) + self.withheld,
            returning: self.to_be_freed(),
        }
    }

    /// Frames that the host has let go of and [`next_output`](Self::next_output) has not handed out yet.
    fn to_be_freed(&self) -> u64 {
        request::to_be_freed(self.requests.slots())
    }

    /// What is wrong, if anything.
    pub fn fault(&self) -> Option<Fault> {
        self.fatal
            .or(self.silent.map(|waited_ns| Fault::Silent { waited_ns }))
    }

    /// Pairs of exchanges that have not ended.
    pub fn pending_pairs(&self) -> u64 {
        let of = |slot: &Slot| match slot.role {
            Role::ExchangeIn(_) if slot.phase != Phase::Free && !slot.is_settled() => {
                slot.len() as u64
            }
            _ => 0,
        };
        self.requests.slots().iter().map(of).sum()
    }

    /// Pairs that were pending, have ended, and wait for [`take_settled`](Self::take_settled).
    pub fn settled_pairs(&self) -> u64 {
        request::settled(self.requests.slots(), None)
    }

    /// Isolated frames whose move has ended without effect: they come back by `putback`, and nothing else of the
    /// balloon depends on it.
    #[cfg(feature = "virtio-drivers")]
    pub(crate) fn refused_frames(&self) -> u64 {
        request::settled(self.requests.slots(), Some(Outcome::Refused))
    }

    /// A number that moves whenever an exchange ends for good: there is room for another one.
    pub const fn exchanges_ended(&self) -> u64 {
        self.exchanges_ended
    }

    /// Whether frames change the managed count: without `DEFLATE_ON_OOM` they are not the guest's any more.
    pub(crate) fn adjusts_managed(&self) -> bool {
        !self.features.contains(Features::DEFLATE_ON_OOM)
    }

    /// Frames in requests of these roles that the host has or is to have.
    fn in_requests(&self, roles: Roles) -> u64 {
        request::under_way(self.requests.slots(), roles)
    }

    /// The same of all that leave for good.
    pub(crate) fn in_deflations(&self) -> u64 {
        self.in_requests(Roles::DEFLATIONS)
    }

    /// Requests of these roles that have not ended.
    pub(crate) fn in_use(&self, roles: Roles) -> usize {
        request::in_use(self.requests.slots(), roles)
    }

    /// Requests that change the balloon's size and have not ended.
    fn resizing(&self) -> usize {
        self.in_use(Roles::RESIZING)
    }

    /// What stands in the word of a frame that is on no list now: tells the frames isolated before a reset from those
    /// after it, and whether they were taken off the managed count.
    pub(crate) fn mark(&self) -> u32 {
        self.epoch << 1 | u32::from(self.adjusts_managed())
    }

    pub(crate) fn free_slot(&self) -> Option<usize> {
        self.requests
            .slots()
            .iter()
            .position(|slot| slot.phase == Phase::Free)
    }

    /// Whether inflation or deflation waits for the host: then a report of the balloon's size can wait too.
    pub fn is_waiting(&self) -> bool {
        self.fatal.is_none() && self.resizing() > 0
    }

    // --- time and target

    /// Notes the time: a device that has not answered for too long has the fault [`Fault::Silent`].
    pub fn tick(&mut self, now: u64) {
        let oldest = request::oldest_sent(self.requests.slots());
        let waited = oldest.map_or(0, |sent_at| now.saturating_sub(sent_at));
        self.silent = (waited > self.config.request_timeout_ns).then_some(waited);
    }

    /// Adopts the host's target. `limit` is what the guest has (balloon included): a higher target is lowered to
    /// it and counted.
    pub fn set_target(&mut self, requested: u32, limit: u64) {
        if self.requested != Some(requested) {
            if u64::from(requested) > limit {
                self.stats.targets_clamped += 1;
            }
            self.requested = Some(requested);
            // The host asks anew: that ends the rest after an out-of-memory deflation.
            self.rest_until = 0;
        }
        self.target = u64::from(requested).min(limit);
    }

    /// No more inflation, no more isolation; the target is 0 from now on.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether the balloon is being emptied for good.
    pub const fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// What to do next.
    pub fn plan(&mut self, now: u64) -> Work {
        self.tick(now);
        self.audit();
        if let Some(fault) = self.fault() {
            return Work::Failed(fault);
        }
        let target = if self.stopping { 0 } else { self.target };
        let entering = self.in_requests(Roles::INFLATE);
        let coming = self.list.len() + self.isolated + entering;
        if coming < target {
            if now < self.retry_at.max(self.rest_until) {
                return Work::RetryAt(self.retry_at.max(self.rest_until));
            }
            return match self.room(Role::Inflate) {
                0 => Work::Waiting,
                room => Work::Inflate((target - coming).min(room as u64) as usize),
            };
        }
        if coming > target {
            let want = (coming - target).min(self.list.len());
            return match (want, self.room(Role::Deflate)) {
                // What should leave is on its way in, or in compaction's hands. An empty list is not an empty
                // balloon.
                (0, _) if entering > 0 => Work::Waiting,
                (0, _) => Work::RetryAt(now.saturating_add(self.config.retry_delay_ns)),
                (_, 0) => Work::Waiting,
                (want, room) => Work::Deflate(want.min(room as u64) as usize),
            };
        }
        if self.resizing() > 0 {
            Work::Waiting
        } else {
            Work::Idle
        }
    }

    /// Compares the frames promised to the host with those on the books.
    fn audit(&mut self) {
        let found = self.list.len() + self.isolated + self.in_deflations();
        if found != self.promised {
            self.damaged(found.abs_diff(self.promised));
        }
    }

    /// The books do not add up. This replaces a fault of the device, and the first finding stays.
    pub(crate) fn damaged(&mut self, frames: u64) {
        if !matches!(self.fatal, Some(Fault::Books { .. })) {
            self.fatal = Some(Fault::Books { frames });
        }
    }

    pub(crate) fn in_span(&self, frame: Pfn) -> bool {
        frame
            .get()
            .checked_sub(self.list.base().get())
            .is_some_and(|at| at < self.books.span())
    }

    /// Whether the frame is on this balloon's list. Reliable under the balloon's lock: only we move frames of ours to
    /// and from `Listed`; a frame that is not ours is not looked at further, whatever stands in its word.
    pub(crate) fn is_listed_here(&self, frame: Pfn) -> bool {
        self.in_span(frame)
            && self.books.state(frame) == FrameState::Listed
            && self.books.owner(frame) == Some(self.id)
    }

    /// Recounts everything: for tests, with no call running.
    ///
    /// # Errors
    /// What does not fit, as [`Fault::Books`].
    pub fn verify(&self) -> Result<(), Fault> {
        let mut asked_back = 0;
        let walked = self.list.walk(self.books, |frame| {
            if self.is_listed_here(frame) {
                return Ok(());
            }
            asked_back += 1;
            match self.books.state(frame) {
                FrameState::Leaving => Ok(()),
                _ => Err(crate::books::Corrupt),
            }
        });
        if walked.is_err() || asked_back != self.withheld {
            return Err(Fault::Books {
                frames: self.list.len(),
            });
        }
        for at in 0..REQUESTS {
            let Some(state) = state_in(&self.requests[at]) else {
                continue;
            };
            let wrong = (0..self.requests[at].len())
                .filter(|&n| self.books.state(self.requests.frame(at, n)) != state);
            match wrong.count() as u64 {
                0 => {}
                frames => return Err(Fault::Books { frames }),
            }
        }
        let found = self.list.len() + self.isolated + self.in_deflations();
        match found.abs_diff(self.promised) {
            0 => Ok(()),
            frames => Err(Fault::Books { frames }),
        }
    }
}

/// Whether a balloon can be made with these settings.
pub(crate) fn check<B: Books + ?Sized, const N: usize>(
    books: &B,
    id: OwnerId,
    config: &BalloonConfig,
) -> Result<(), Fault> {
    for (setting, value) in [
        ("exchange_batch", config.exchange_batch),
        ("batch", config.batch),
    ] {
        if !(1..=N).contains(&value) {
            let most = N;
            return Err(Fault::Range { setting, most });
        }
    }
    if id == OwnerId::NONE {
        return Err(Fault::Setting("a balloon needs an owner number"));
    }
    let (base, span) = (books.base().get(), books.span());
    // The second test: frame numbers are 32 bits on the wire.
    if span > MAX_SPAN || base.saturating_add(span) > 1 << 32 {
        return Err(Fault::TooLarge { base, span });
    }
    Ok(())
}

/// The state that all frames of a request are in; `None` when the request does not decide it.
fn state_in(slot: &Slot) -> Option<FrameState> {
    match (slot.role, slot.phase) {
        (Role::Inflate | Role::ExchangeIn(_), Phase::Ready | Phase::Sent) => {
            Some(FrameState::Entering)
        }
        (Role::Deflate | Role::Relief | Role::ExchangeOut(_), Phase::Ready | Phase::Sent) => {
            Some(FrameState::Leaving)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::tests::frames;

    #[test]
    fn a_frame_missing_from_the_books_is_noticed() {
        let (books, owned) = frames(3);
        let id = OwnerId::new(1).unwrap();
        let mut balloon: Balloon<'_, _> =
            Balloon::new(books, id, Features::empty(), BalloonConfig::default()).unwrap();
        balloon.set_target(3, 512);
        assert_eq!(balloon.begin_inflate(&owned, 0), 3);
        let mut message = crate::Message::new();
        let Some(Output::Send { queue, request }) = balloon.next_output(0, &mut message) else {
            panic!("nothing to send")
        };
        balloon.complete(queue, request).unwrap();
        assert_eq!(balloon.plan(0), Work::Idle);
        // The host has one more than there is.
        balloon.promised += 1;
        assert_eq!(balloon.plan(0), Work::Failed(Fault::Books { frames: 1 }));
        assert!(!balloon.isolate(owned[0]));
    }
}
