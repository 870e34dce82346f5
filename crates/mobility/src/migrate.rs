//! Isolation, migration and putback of frames, whoever owns them.

use arrayvec::ArrayVec;
use dirigible_frames::{
    CpuId, FrameAllocator, FrameClass, FrameFlags, FrameState, FreeError, Order, OwnerId, Pfn,
    Platform,
};

use dirigible_frames::Event;
use dirigible_frames::sync::Ordering;

use crate::{Mobility, MovableOwner, MovePair, Outcome};

/// How many settled pairs are taken from an owner at once, on the stack.
const SETTLED_BATCH: usize = 32;

/// What became of a batch, in base frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MigrateStats {
    /// Moved to their targets.
    pub moved: u64,
    /// Refused, and put back.
    pub failed: u64,
    /// No longer needed by their owners, and freed.
    pub released: u64,
    /// Under way.
    pub pending: u64,
}

impl MigrateStats {
    pub(crate) fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.failed += other.failed;
        self.released += other.released;
        self.pending += other.pending;
    }
}

/// What an isolated frame is: it cannot change while the frame stays isolated, so it is read once and carried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) owner: OwnerId,
    pub(crate) class: FrameClass,
}

/// Frames on their way back to the allocator, many at a time.
pub(crate) struct Freed<'f, 'm> {
    frames: &'f FrameAllocator<'m>,
    cpu: CpuId,
    base: ArrayVec<Pfn, 64>,
}

impl<'f, 'm> Freed<'f, 'm> {
    pub(crate) fn new(frames: &'f FrameAllocator<'m>, cpu: CpuId) -> Self {
        Self {
            frames,
            cpu,
            base: ArrayVec::new(),
        }
    }

    #[inline(never)]
    pub(crate) fn push(&mut self, frame: Pfn, order: Order) {
        if order != Order::BASE {
            let freed = self.frames.free(self.cpu, frame, order);
            debug_assert!(
                freed.is_ok(),
                "{frame} of order {order:?} is not ours to free"
            );
            return;
        }
        if self.base.is_full() {
            self.flush();
        }
        self.base.push(frame);
    }

    /// The targets of those pairs that got one: until then a pair leads from a frame to itself.
    #[inline(never)]
    pub(crate) fn targets(&mut self, pairs: &[MovePair]) {
        for pair in pairs.iter().filter(|pair| pair.to != pair.from) {
            self.push(pair.to, Order::BASE);
        }
    }

    #[inline(never)]
    fn flush(&mut self) {
        let mut left = &self.base[..];
        while !left.is_empty() {
            let freed = self.frames.free_bulk(self.cpu, left);
            debug_assert!(freed.is_ok(), "a frame of {left:?} is not ours to free");
            // A frame that is not ours is somebody's fault; those behind it are not lost for it.
            let Err(
                FreeError::Unknown(bad)
                | FreeError::NotAllocated(bad)
                | FreeError::WrongOrder(bad)
                | FreeError::Pinned(bad)
                | FreeError::Referenced(bad),
            ) = freed
            else {
                break;
            };
            let at = left.iter().position(|&frame| frame == bad);
            left = &left[at.map_or(left.len(), |at| at + 1)..];
        }
        self.base.clear();
    }
}

impl Drop for Freed<'_, '_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Brings the pairs for which `belongs` holds to the front, in their order; gives how many they are.
#[inline(never)]
pub(crate) fn gather(pairs: &mut [MovePair], belongs: &dyn Fn(&MovePair) -> bool) -> usize {
    let mut front = 0;
    for at in 0..pairs.len() {
        if belongs(&pairs[at]) {
            pairs.swap(front, at);
            front += 1;
        }
    }
    front
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Takes one frame (or huge frame, by its head) off its owner's books, for
    /// [`migrate_frames`](Self::migrate_frames) or [`putback_movable_frames`](Self::putback_movable_frames).
    ///
    /// Refused (`false`, nothing changed): frames that are not `Listed`, pinned ones, frames of a class that cannot
    /// move or of an owner that is not registered, and whatever the owner itself refuses.
    pub fn isolate(&self, frame: Pfn) -> bool {
        let cpu = self.platform.cpu();
        let Some((kind, order)) = self.isolate_frame(frame) else {
            return false;
        };
        self.accounts
            .isolated(self.frames.events(), cpu, kind.class, order.frames() as u64);
        true
    }

    /// Isolates without counting: the caller counts, for many at a time.
    pub(crate) fn isolate_frame(&self, frame: Pfn) -> Option<(Kind, Order)> {
        let seen = self.frames.frame(frame)?;
        if seen.state != FrameState::Listed || seen.flags.contains(FrameFlags::PINNED) {
            return None;
        }
        let owner = self.registry.enter(seen.owner)?;
        if !owner.isolate(frame) {
            return None;
        }
        // What was read before may be outdated; this holds until the frame leaves the isolated state.
        let now = self.frames.frame(frame)?;
        debug_assert_eq!(
            now.state,
            FrameState::Isolated,
            "the owner of {frame} reported that it isolated it"
        );
        debug_assert_eq!(
            now.owner, seen.owner,
            "an owner isolated a frame of another"
        );
        if now.flags.contains(FrameFlags::PINNED) || !now.class.is_movable() {
            owner.putback(frame);
            return None;
        }
        owner.keep();
        Some((
            Kind {
                owner: now.owner,
                class: now.class,
            },
            now.order,
        ))
    }

    /// Moves isolated frames to their targets: groups the pairs by owner, in place, and hands each owner its whole
    /// group.
    ///
    /// Every `from` was isolated by [`isolate`](Self::isolate); every `to` is the caller's (`Allocated`) and of the
    /// same order; its class becomes that of `from`. Afterwards none of the frames is the caller's any more: sources
    /// that moved and targets that were not used are freed, refused sources are put back, pending pairs are their
    /// owner's until they settle and are [drained](Self::drain_settled). Each pair's `outcome` tells which. A pair
    /// whose `from` is not isolated is refused, and so is one whose owner has no room ([`Outcome::Busy`]) for
    /// [`pending_timeout_ns`](crate::CompactionConfig::pending_timeout_ns).
    pub fn migrate_frames(&self, pairs: &mut [MovePair]) -> MigrateStats {
        let cpu = self.platform.cpu();
        let mut stats = MigrateStats::default();
        let alive = gather(pairs, &|pair| self.isolated_kind(pair.from).is_some());
        let (mut rest, strays) = pairs.split_at_mut(alive);
        let mut freed = Freed::new(self.frames, cpu);
        for pair in strays {
            pair.outcome = Outcome::Refused;
            stats.failed += pair.frames() as u64;
            freed.push(pair.to, pair.order);
        }
        drop(freed);
        let deadline = self.deadline();
        while let Some(kind) = rest.first().and_then(|pair| self.isolated_kind(pair.from)) {
            let group = gather(rest, &|pair| self.isolated_kind(pair.from) == Some(kind));
            let (mut batch, others) = rest.split_at_mut(group);
            rest = others;
            loop {
                stats.add(self.migrate_batch(cpu, kind, batch));
                let busy = gather(batch, &|pair| pair.outcome == Outcome::Todo);
                batch = &mut batch[..busy];
                if busy == 0 {
                    break;
                }
                if !self.wait_for_room(kind.owner, deadline) {
                    stats.failed += self.refuse_pairs(cpu, batch);
                    break;
                }
            }
        }
        stats
    }

    /// Undoes pairs that their owner had no room for, and counts them as failed.
    fn refuse_pairs(&self, cpu: CpuId, pairs: &mut [MovePair]) -> u64 {
        let failed: u64 = pairs.iter().map(|pair| pair.frames() as u64).sum();
        self.put_back(cpu, pairs);
        self.frames.events().add(cpu, Event::PgmigrateFail, failed);
        failed
    }

    /// Owner and class of `frame` if it is isolated and can move.
    pub(crate) fn isolated_kind(&self, frame: Pfn) -> Option<Kind> {
        let info = self.frames.frame(frame)?;
        (info.state == FrameState::Isolated && info.class.is_movable()).then_some(Kind {
            owner: info.owner,
            class: info.class,
        })
    }

    /// Hands one owner a batch, all of it isolated and of `kind`, and settles what is not pending. Pairs that the
    /// owner has no room for are `Todo` again, and still isolated.
    pub(crate) fn migrate_batch(
        &self,
        cpu: CpuId,
        kind: Kind,
        batch: &mut [MovePair],
    ) -> MigrateStats {
        for pair in batch.iter_mut() {
            pair.outcome = Outcome::Todo;
            self.frames.reclass(pair.to, kind.class);
        }
        // Isolated frames keep their owner in the table; without one (a caller's mistake) nothing moves.
        match self.registry.enter(kind.owner) {
            Some(owner) => owner.migrate(batch),
            None => batch
                .iter_mut()
                .for_each(|pair| pair.outcome = Outcome::Refused),
        }
        let mut stats = MigrateStats::default();
        let mut settled = 0;
        let mut freed = Freed::new(self.frames, cpu);
        for pair in batch.iter_mut() {
            let n = pair.frames() as u64;
            match pair.outcome {
                Outcome::Moved => {
                    stats.moved += n;
                    freed.push(pair.from, pair.order);
                }
                Outcome::Released => {
                    stats.released += n;
                    freed.push(pair.from, pair.order);
                    freed.push(pair.to, pair.order);
                }
                Outcome::Pending => {
                    stats.pending += n;
                    continue;
                }
                Outcome::Busy => {
                    pair.outcome = Outcome::Todo;
                    continue;
                }
                Outcome::Todo | Outcome::Refused => {
                    pair.outcome = Outcome::Refused;
                    stats.failed += n;
                    self.hand_back(kind, pair.from);
                    freed.push(pair.to, pair.order);
                }
            }
            settled += 1;
        }
        drop(freed);
        self.registry.let_go(kind.owner, settled);
        let events = self.frames.events();
        if stats.moved + stats.released > 0 {
            self.accounts
                .moved(events, cpu, kind.class, stats.moved + stats.released);
        }
        if stats.failed > 0 {
            events.add(cpu, Event::PgmigrateFail, stats.failed);
            self.accounts
                .put_back(events, cpu, kind.class, stats.failed);
        }
        stats
    }

    /// Gives isolated frames back to their owners, unmoved. Frames that are not isolated are left alone.
    pub fn putback_movable_frames(&self, frames: &[Pfn]) {
        let cpu = self.platform.cpu();
        for &frame in frames {
            self.putback_frame(cpu, frame);
        }
    }

    #[inline(never)]
    pub(crate) fn putback_frame(&self, cpu: CpuId, frame: Pfn) {
        // Read before the putback: a moment later the frame may be anybody's.
        let Some(kind) = self.isolated_kind(frame) else {
            return;
        };
        let n = self
            .frames
            .frame(frame)
            .map_or(1, |info| info.order.frames() as u64);
        self.hand_back(kind, frame);
        self.registry.let_go(kind.owner, 1);
        self.accounts
            .put_back(self.frames.events(), cpu, kind.class, n);
    }

    #[inline(never)]
    fn hand_back(&self, kind: Kind, frame: Pfn) {
        match self.registry.enter(kind.owner) {
            Some(owner) => owner.putback(frame),
            None => debug_assert!(false, "an isolated frame keeps its owner registered"),
        }
    }

    /// Ends all pairs that `owner`, registered as `id`, has to give at the moment; gives how many.
    #[inline(never)]
    pub(crate) fn drain_owner(&self, id: OwnerId, owner: &dyn MovableOwner) -> usize {
        let mut pairs = [MovePair::base(Pfn::new(0), Pfn::new(0)); SETTLED_BATCH];
        let mut ended = 0;
        loop {
            let taken = owner.take_settled(&mut pairs).min(SETTLED_BATCH);
            for pair in &pairs[..taken] {
                ended += usize::from(self.complete(id, owner, pair));
            }
            if taken < SETTLED_BATCH {
                return ended;
            }
        }
    }

    /// Ends one pair that was pending. With frames that are not in the states that its outcome names, or not `owner`'s,
    /// nothing is done and the answer is `false`: a pair that is given twice frees nothing twice.
    #[inline(never)]
    fn complete(&self, id: OwnerId, owner: &dyn MovableOwner, pair: &MovePair) -> bool {
        let cpu = self.platform.cpu();
        let MovePair { from, to, .. } = *pair;
        let Some(info) = self.frames.frame(from).filter(|info| info.owner == id) else {
            return false;
        };
        let n = info.order.frames() as u64;
        let events = self.frames.events();
        match pair.outcome {
            Outcome::Moved | Outcome::Released => {
                match self.frames.free(cpu, from, info.order) {
                    Ok(()) => {}
                    // Somebody pins or counts a frame that is not his: it is lost to him, as it would be in `migrate`,
                    // and the accounts balance all the same.
                    Err(FreeError::Pinned(_) | FreeError::Referenced(_)) => {}
                    Err(_) => return false,
                }
                if pair.outcome == Outcome::Released {
                    Freed::new(self.frames, cpu).push(to, info.order);
                }
                self.accounts.moved(events, cpu, info.class, n);
            }
            Outcome::Refused => {
                if info.state != FrameState::Isolated {
                    return false;
                }
                owner.putback(from);
                Freed::new(self.frames, cpu).push(to, info.order);
                events.add(cpu, Event::PgmigrateFail, n);
                self.accounts.put_back(events, cpu, info.class, n);
            }
            Outcome::Todo | Outcome::Busy | Outcome::Pending => return false,
        }
        // After the accounts: who removes the owner finds them balanced.
        self.registry.let_go(id, 1);
        // Release pairs with the acquire of whoever waits for the block.
        self.settled.fetch_add(1, Ordering::Release);
        true
    }
}
