//! What an owner of movable frames implements, and the pairs that are handed to it.

use dirigible_frames::{Order, Pfn};

use crate::Fate;

/// How one pair of a migration ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Outcome {
    /// Not looked at yet: what the owner finds. A pair left so counts as [`Outcome::Refused`].
    Todo,
    /// `to` is on the owner's books (`Listed`); `from` is `Allocated`, still carries the owner's number and is on
    /// nobody's books: the core frees it.
    Moved,
    /// Nothing changed: `from` is still `Isolated` and `to` `Allocated`; the core puts `from` back and frees `to`.
    Refused,
    /// The owner needs neither: `from` is `Allocated`, still carries the owner's number and is on nobody's books, `to`
    /// is untouched: the core frees both.
    Released,
    /// The owner has no room at the moment, and nothing changed: `from` is still `Isolated` and `to` `Allocated`. The
    /// core hands the pair over again after [`MovableOwner::poll`], or puts it back if it cannot wait.
    Busy,
    /// Under way: the core leaves both alone. `from` stays isolated and `to` is charged to the owner until the pair has
    /// ended and the owner hands it over in [`MovableOwner::take_settled`].
    Pending,
}

/// One allocation that is to move, and where to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MovePair {
    /// Head of the allocation that leaves; `Isolated`.
    pub from: Pfn,
    /// Head of the allocation that takes its place; `Allocated`, of the same order and class as `from`.
    pub to: Pfn,
    /// Order of both: 0 or 9.
    pub order: Order,
    /// The owner's answer.
    pub outcome: Outcome,
}

impl MovePair {
    /// A pair of single frames, not looked at yet.
    pub const fn base(from: Pfn, to: Pfn) -> Self {
        Self {
            from,
            to,
            order: Order::BASE,
            outcome: Outcome::Todo,
        }
    }

    /// A pair of huge frames, not looked at yet.
    pub const fn huge(from: Pfn, to: Pfn) -> Self {
        Self {
            from,
            to,
            order: Order::HUGE,
            outcome: Outcome::Todo,
        }
    }

    /// Base frames on either side.
    pub const fn frames(&self) -> usize {
        self.order.frames()
    }
}

/// Somebody who has movable frames: user memory, page cache, a balloon.
///
/// The owner's number stands in the descriptor of each of its frames (`FrameAllocator::set_owner`); that is how the
/// core finds the owner of a frame. All calls come from any CPU, several at once; `isolate` and `putback` perhaps with
/// the lock of a zone's compaction held (`plan`, `drop_frame` and `write_frames` too), `migrate`, `poll` and `take_settled` with no
/// lock at all. An owner may take its own books' lock in each of them.
///
/// An owner does not know the core: it never calls it. What it has to report later it keeps until it is asked.
///
/// The core never asks what kind of frames an owner has; it never follows anything found in a frame's owner word.
pub trait MovableOwner: Sync {
    /// Takes `frame` off the books, or refuses (`false`, nothing changed).
    ///
    /// The decision is one step, `FrameAllocator::transition` from `Listed` to `Isolated`: whoever else wanted the
    /// frame at that moment (a dequeue, an unmap) sees either state, never something between. The frame may have
    /// changed hands since the core looked at it: an owner that meets a frame that is not its own refuses.
    fn isolate(&self, frame: Pfn) -> bool;

    /// Moves a batch, all of it this owner's and isolated; writes each pair's [`Outcome`].
    ///
    /// The owner allocates nothing here, and does not wait longer than its own books' lock: what takes longer is
    /// [`Outcome::Pending`], and what cannot be begun yet [`Outcome::Busy`].
    ///
    /// A pair may be left pending only if there is a place to keep it until it is taken: an owner whose places are
    /// full, with pairs under way or with settled ones, reports `Busy`, and the core takes the settled ones before it
    /// tries again.
    fn migrate(&self, pairs: &mut [MovePair]);

    /// Takes an isolated frame back onto the books: `Isolated` to `Listed`. Cannot fail.
    fn putback(&self, frame: Pfn);

    /// Whether this base frame should rather be dropped than moved, because its contents are somewhere else too and are
    /// of an age that reclaim takes next. A hint: it costs a look at the frame's marks, and the frame may change until
    /// [`drop_frame`](Self::drop_frame). Asked only with [`drops_cold`](crate::CompactionConfig::drops_cold), and of no
    /// balloon. Owners of frames whose contents are nowhere else keep this default.
    ///
    /// The frame is isolated, or compaction looks at it before it chooses a block: then it was `Listed` and the owner's a
    /// moment ago, and may be anybody's by now. Whatever the answer is then, it must not rely on that.
    fn plan(&self, frame: Pfn) -> Fate {
        let _ = frame;
        Fate::Move
    }

    /// Drops an isolated frame that was planned so, if that is still possible: it is `Allocated` then, still carries
    /// the owner's number and is on nobody's books, and the core frees it. `false`: nothing changed, the frame is
    /// isolated and the core moves it or puts it back.
    fn drop_frame(&self, frame: Pfn) -> bool {
        let _ = frame;
        false
    }

    /// Begins to write isolated base frames that were planned so ([`Fate::Write`]). None is isolated afterwards: each was
    /// put back, or has become another owner's, which drops it when it is asked after the write. Gives how many are being
    /// written: they carry the mark `WRITEBACK` until that is over, and whoever owns them then is
    /// [polled](Self::poll) meanwhile.
    fn write_frames(&self, frames: &[Pfn]) -> usize {
        frames.iter().for_each(|&frame| self.putback(frame));
        0
    }

    /// Lets pending pairs make progress: one step of a device that is driven by polling, or a wait that ends at
    /// `deadline` (on the clock of `Platform::now`). Gives whether any pair settled or is there to be taken; then it
    /// does not wait. Owners that are never pending keep this default.
    fn poll(&self, deadline: u64) -> bool {
        let _ = deadline;
        false
    }

    /// Hands over pairs that `migrate` left [`Outcome::Pending`] and that have ended since: writes them to the front of
    /// `out` and gives how many. Fewer than `out` holds: there are no more at the moment. Owners that are never pending
    /// keep this default.
    ///
    /// Each pair is given once, with the outcome `Moved`, `Refused` or `Released` and its frames in the states that
    /// the outcome names; that may be before the `migrate` that began it has returned, and long after whoever asked
    /// for the move gave up. Until then the owner keeps both frames as they are. From then on they are the core's: it
    /// frees what is to be freed, puts a refused `from` back by [`putback`](Self::putback), and balances its
    /// accounts. Nobody else may take pairs of an owner that is registered.
    ///
    /// It is called by [`Mobility::drain_settled`](crate::Mobility::drain_settled) and wherever the core waits for an
    /// answer or for room, from several CPUs at once, with no lock held. With nothing to give it costs one load of an
    /// atomic: it is called often. It allocates nothing and does not wait for a device.
    fn take_settled(&self, out: &mut [MovePair]) -> usize {
        let _ = out;
        0
    }
}
