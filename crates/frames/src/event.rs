//! vm events: what the counters of `/proc/vmstat` count.
//!
//! Names are those that Linux prints, so that its tools can read them. Events that Linux does not have follow its
//! style.

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A countable event.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(usize)]
        #[non_exhaustive]
        pub enum Event { $($(#[$doc])* $variant,)* }

        impl Event {
            /// All events, in the order in which they are printed.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that `/proc/vmstat` prints, or one in its style.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

events! {
    /// Frames allocated, 2^order for each allocation.
    PgAlloc = "pgalloc",
    /// Frames freed, 2^order for each free.
    PgFree = "pgfree",
    /// Page faults served.
    PgFault = "pgfault",
    /// Frames moved to their new place, for any reason.
    PgmigrateSuccess = "pgmigrate_success",
    /// Frames that could not be moved.
    PgmigrateFail = "pgmigrate_fail",
    /// Frames taken off their owners' books by compaction.
    CompactIsolated = "compact_isolated",
    /// Direct compactions begun: always success + fail.
    CompactStall = "compact_stall",
    /// Direct compactions that gave no block.
    CompactFail = "compact_fail",
    /// Direct compactions that gave a block.
    CompactSuccess = "compact_success",
    /// Requests that did not begin direct compaction because of the watermark.
    CompactSkipped = "compact_skipped",
    /// Requests that did not begin direct compaction: deferred after failures.
    CompactDeferred = "compact_deferred",
    /// Times that background compaction was woken.
    CompactDaemonWake = "compact_daemon_wake",
    /// Frames moved by background compaction (a part of `pgmigrate_success`).
    CompactDaemonMigrated = "compact_daemon_migrated",
    /// Blocks wholly emptied by evacuation, direct or background.
    CompactBlockEmptied = "compact_block_emptied",
    /// Blocks given up by evacuation after it began.
    CompactBlockAborted = "compact_block_aborted",
    /// Blocks given up because an owner refused a frame.
    CompactRefusedOwner = "compact_refused_owner",
    /// Blocks given up because a frame was between two holders.
    CompactRefusedUnderWay = "compact_refused_under_way",
    /// Blocks given up because the host had not answered in time.
    CompactRefusedLate = "compact_refused_late",
    /// Blocks given up because they did not become wholly free.
    CompactRefusedNotEmpty = "compact_refused_not_empty",
    /// Balloon frames isolated by compaction. This counter and the next three are named as in the Linux patches that
    /// made balloon pages movable (2012).
    CompactBalloonIsolated = "compact_balloon_isolated",
    /// Balloon frames replaced after both acknowledgements.
    CompactBalloonMigrated = "compact_balloon_migrated",
    /// Old balloon frames given back to the allocator.
    CompactBalloonReleased = "compact_balloon_released",
    /// Balloon frames isolated and put back.
    CompactBalloonReturned = "compact_balloon_returned",
    /// Frames given to the host.
    BalloonInflate = "balloon_inflate",
    /// Frames taken back from the host.
    BalloonDeflate = "balloon_deflate",
    /// Balloon frames moved.
    BalloonMigrate = "balloon_migrate",
    /// Requests sent on the inflate and deflate queues.
    BalloonMessages = "balloon_messages",
    /// Requests among them that an exchange of moved frames sent.
    BalloonMigrateMessages = "balloon_migrate_messages",
    /// Inflations put off because no frame was available.
    BalloonRetry = "balloon_retry",
    /// Huge pages installed at a fault.
    ThpFaultAlloc = "thp_fault_alloc",
    /// Faults that asked for a huge page and got base pages.
    ThpFaultFallback = "thp_fault_fallback",
    /// Huge pages split into base pages.
    ThpSplit = "thp_split_page",
    /// Whole free blocks claimed by a migratetype.
    BlockClaimed = "pageblock_claimed",
    /// Blocks whose type was changed by stealing (fallback policy `steal`).
    BlockStolen = "pageblock_stolen",
    /// Allocations from a block of another type that left it a hybrid.
    BlockPolluted = "pageblock_polluted",
    /// Blocks evacuated to serve an unmovable or reclaimable request (fallback policy `evacuate`).
    BlockEvacuated = "pageblock_evacuated",
    /// Times that a movable request broke the whole-block reserve.
    ReserveBroken = "reserve_broken",
    /// Requests that had to reclaim.
    AllocStall = "allocstall",
    /// Frames given back by reclaim.
    PgReclaimed = "pgreclaimed",
    /// Requests that ended without memory.
    OutOfMemory = "alloc_failed",
}

impl Event {
    /// How many events there are.
    pub const COUNT: usize = Self::ALL.len();
}
