//! The accounts of isolation: what went off the owners' books, and where it ended.

use dirigible_frames::sync::{AtomicU64, Ordering};
use dirigible_frames::{CpuId, Event, Events, FrameClass};

/// A count of base frames for each movable class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerClass {
    /// Frames with contents.
    pub movable: u64,
    /// Frames held by balloons.
    pub balloon: u64,
}

impl PerClass {
    /// Both together.
    pub const fn sum(self) -> u64 {
        self.movable + self.balloon
    }
}

/// Which identity does not hold; see [`Mobility::verify`](crate::Mobility::verify).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// `compact_stall` is not `compact_success` + `compact_fail`.
    #[error("compact_stall {stall} is not success {success} + fail {fail}")]
    Stall {
        /// `compact_stall`.
        stall: u64,
        /// `compact_success`.
        success: u64,
        /// `compact_fail`.
        fail: u64,
    },
    /// Frames isolated are not those moved, dropped, put back and still isolated.
    #[error(
        "{isolated} frames isolated, {moved} moved, {dropped} dropped, {put_back} put back, {now} isolated now"
    )]
    Isolated {
        /// Frames isolated since the beginning.
        isolated: u64,
        /// Frames that left their place.
        moved: u64,
        /// Frames dropped.
        dropped: u64,
        /// Frames put back.
        put_back: u64,
        /// Frames isolated now.
        now: u64,
    },
    /// The event counters differ from the accounts: somebody else raises them.
    #[error("the events do not match the accounts of isolation")]
    Events,
    /// `compact_balloon_released` is not `compact_balloon_migrated`.
    #[error("{migrated} balloon frames migrated but {released} released")]
    Released {
        /// `compact_balloon_migrated`.
        migrated: u64,
        /// `compact_balloon_released`.
        released: u64,
    },
}

/// One running count for each movable class.
///
/// All orderings are relaxed: the counts are statistics. What must be seen in order (an owner's frames before its
/// removal) goes through the registry.
#[derive(Default)]
struct Count([AtomicU64; 2]);

impl Count {
    const fn slot(class: FrameClass) -> usize {
        match class {
            FrameClass::Balloon => 1,
            _ => 0,
        }
    }

    fn add(&self, class: FrameClass, n: u64) {
        self.0[Self::slot(class)].fetch_add(n, Ordering::Relaxed);
    }

    fn sub(&self, class: FrameClass, n: u64) {
        let before = self.0[Self::slot(class)].fetch_sub(n, Ordering::Relaxed);
        debug_assert!(before >= n, "more frames settled than were isolated");
    }

    fn get(&self) -> PerClass {
        PerClass {
            movable: self.0[0].load(Ordering::Relaxed),
            balloon: self.0[1].load(Ordering::Relaxed),
        }
    }
}

/// Where isolated frames are and were. Whoever raises `now` lowers it by one of the two ways out.
#[derive(Default)]
pub(crate) struct Accounts {
    now: Count,
    isolated: Count,
    moved: Count,
    put_back: Count,
    /// Of class movable.
    dropped: AtomicU64,
}

impl Accounts {
    /// `n` base frames went off their owner's books.
    pub(crate) fn isolated(&self, events: Events<'_>, cpu: CpuId, class: FrameClass, n: u64) {
        self.now.add(class, n);
        self.isolated.add(class, n);
        events.add(cpu, Event::CompactIsolated, n);
        if class == FrameClass::Balloon {
            events.add(cpu, Event::CompactBalloonIsolated, n);
        }
    }

    /// `n` isolated base frames left their place and were given back to the allocator.
    #[inline(never)]
    pub(crate) fn moved(&self, events: Events<'_>, cpu: CpuId, class: FrameClass, n: u64) {
        self.now.sub(class, n);
        self.moved.add(class, n);
        events.add(cpu, Event::PgmigrateSuccess, n);
        if class == FrameClass::Balloon {
            events.add(cpu, Event::CompactBalloonMigrated, n);
            events.add(cpu, Event::CompactBalloonReleased, n);
        }
    }

    /// `n` isolated base frames went back onto their owner's books.
    #[inline(never)]
    pub(crate) fn put_back(&self, events: Events<'_>, cpu: CpuId, class: FrameClass, n: u64) {
        self.now.sub(class, n);
        self.put_back.add(class, n);
        if class == FrameClass::Balloon {
            events.add(cpu, Event::CompactBalloonReturned, n);
        }
    }

    /// `n` isolated movable base frames were dropped, and given back to the allocator: reclaimed, in the name of
    /// background or of direct reclaim.
    pub(crate) fn dropped(&self, events: Events<'_>, cpu: CpuId, n: u64, background: bool) {
        if n == 0 {
            return;
        }
        self.now.sub(FrameClass::Movable, n);
        self.dropped.fetch_add(n, Ordering::Relaxed);
        let (scan, steal) = match background {
            true => (Event::PgScanKswapd, Event::PgStealKswapd),
            false => (Event::PgScanDirect, Event::PgStealDirect),
        };
        for event in [Event::CompactDropped, scan, steal] {
            events.add(cpu, event, n);
        }
    }

    /// Base frames isolated now, pending ones included.
    pub(crate) fn now(&self) -> PerClass {
        self.now.get()
    }

    /// Checks all identities; only at quiescence do they hold to the frame.
    pub(crate) fn verify(&self, events: Events<'_>) -> Result<(), IdentityError> {
        let stall = count(events, Event::CompactStall);
        let (success, fail) = (
            count(events, Event::CompactSuccess),
            count(events, Event::CompactFail),
        );
        if stall != success + fail {
            return Err(IdentityError::Stall {
                stall,
                success,
                fail,
            });
        }
        let (isolated, moved) = (self.isolated.get(), self.moved.get());
        let (put_back, now) = (self.put_back.get(), self.now.get());
        let dropped = self.dropped.load(Ordering::Relaxed);
        for (isolated, moved, dropped, put_back, now) in [
            (
                isolated.movable,
                moved.movable,
                dropped,
                put_back.movable,
                now.movable,
            ),
            (
                isolated.balloon,
                moved.balloon,
                0,
                put_back.balloon,
                now.balloon,
            ),
        ] {
            if isolated != moved + dropped + put_back + now {
                return Err(IdentityError::Isolated {
                    isolated,
                    moved,
                    dropped,
                    put_back,
                    now,
                });
            }
        }
        let counted = [
            (Event::CompactIsolated, isolated.sum()),
            (Event::PgmigrateSuccess, moved.sum()),
            (Event::CompactDropped, dropped),
            (Event::CompactBalloonIsolated, isolated.balloon),
            (Event::CompactBalloonReturned, put_back.balloon),
        ];
        if counted.iter().any(|&(event, n)| count(events, event) != n) {
            return Err(IdentityError::Events);
        }
        let migrated = count(events, Event::CompactBalloonMigrated);
        let released = count(events, Event::CompactBalloonReleased);
        if migrated != released || migrated != moved.balloon {
            return Err(IdentityError::Released { migrated, released });
        }
        Ok(())
    }
}

/// How often something has happened: a sum over all CPUs, so better a call than a copy for each question.
#[inline(never)]
fn count(events: Events<'_>, event: Event) -> u64 {
    events.get(event)
}
