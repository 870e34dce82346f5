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
    /// KiB read from disk.
    PgPgIn = "pgpgin",
    /// KiB written to disk.
    PgPgOut = "pgpgout",
    /// Frames read from swap.
    PswpIn = "pswpin",
    /// Frames written to swap.
    PswpOut = "pswpout",
    /// Of the frames read from swap, those that were read ahead.
    SwapAhead = "swap_ra",
    /// Pages of programs that are not in memory when they are wanted, and come back from swap.
    SwapFault = "pgmajfault_swap",
    /// Pages of programs that reclaim wanted to put into swap when it was full.
    SwapFull = "swap_full",
    /// Frames made young again by reclaim, or at once, because they were used.
    PgActivate = "pgactivate",
    /// Frames made older.
    PgDeactivate = "pgdeactivate",
    /// Frames looked at to see whether they have aged.
    PgRefill = "pgrefill",
    /// Frames that background reclaim isolated and looked at.
    PgScanKswapd = "pgscan_kswapd",
    /// Frames that direct reclaim isolated and looked at.
    PgScanDirect = "pgscan_direct",
    /// Frames of these that background reclaim freed.
    PgStealKswapd = "pgsteal_kswapd",
    /// Frames of these that direct reclaim freed.
    PgStealDirect = "pgsteal_direct",
    /// Dirty frames whose writing reclaim itself began.
    VmscanWrite = "nr_vmscan_write",
    /// Dirty or written frames that reclaim met and marked: they are freed as soon as they have been written.
    VmscanImmediate = "nr_vmscan_immediate_reclaim",
    /// Objects offered to shrinkers.
    SlabsScanned = "slabs_scanned",
    /// Frames of files freed because direct reclaim dropped their inode.
    PgInodeSteal = "pginodesteal",
    /// Frames of files freed because background reclaim dropped their inode.
    KswapdInodeSteal = "kswapd_inodesteal",
    /// Background reclaim in trouble did not pause, because a zone was below its min watermark.
    KswapdSkipWait = "kswapd_skip_congestion_wait",
    /// Times that background reclaim began.
    KswapdWake = "kswapd_wake",
    /// Requests that direct reclaim held up because too much was under writeback.
    ReclaimThrottled = "reclaim_throttled",
    /// Frames of files dirtied.
    NrDirtied = "nr_dirtied",
    /// Frames of files written to disk.
    NrWritten = "nr_written",
    /// Frames of files read again after reclaim had taken them.
    WorkingsetRefault = "workingset_refault_file",
    /// Of these, those that came back soon enough to be in use.
    WorkingsetActivate = "workingset_activate_file",
    /// Frames of programs read from swap again after reclaim had taken them.
    RefaultAnon = "workingset_refault_anon",
    /// Of these, those that came back soon enough to be in use.
    ActivateAnon = "workingset_activate_anon",
    /// Frames of files freed at the operator's wish.
    DropPagecache = "drop_pagecache",
    /// Huge pages allocated by khugepaged.
    ThpCollapseAlloc = "thp_collapse_alloc",
    /// Huge pages that khugepaged could not allocate.
    ThpCollapseAllocFailed = "thp_collapse_alloc_failed",
    /// Huge pages that replaced base pages at last.
    ThpCollapse = "thp_collapse",
    /// Clean frames that compaction dropped instead of moving them.
    CompactDropped = "compact_dropped",
    /// Programs killed because memory had ended.
    OomKill = "oom_kill",
    /// Requests that ended without memory.
    OutOfMemory = "alloc_failed",
}

impl Event {
    /// How many events there are.
    pub const COUNT: usize = Self::ALL.len();
}
