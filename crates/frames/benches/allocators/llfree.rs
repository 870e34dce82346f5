//! LLFree (luhsra/llfree-rs), which is in no registry and is not run here: what can be quoted of it.

use crate::peers::Contestant;

/// The peer that both runs had, ours and the one with LLFree in it.
pub const YARDSTICK: Contestant = Contestant::BuddySystem;

/// By order and threads, in the order of [`MEASURES`](crate::scenario::MEASURES).
type Rows = &'static [(u8, usize, [f64; 4])];

/// LLFree 0.2.0 (git 441c8d1) divided by `buddy_system_allocator` 0.13.0, in an interleaved run of this same load on
/// 2 CPUs of an AMD EPYC (Zen 4).
const MEASURED: Rows = &[
    (0, 1, [21.3 / 28.4, 17.6 / 15.1, 34.9 / 450.0, 17.6 / 285.0]),
    (
        0,
        2,
        [26.7 / 131.0, 22.1 / 149.0, 37.8 / 902.0, 40.2 / 634.0],
    ),
    (9, 1, [35.5 / 27.8, 13.8 / 15.1, 28.3 / 238.0, 15.5 / 108.0]),
    (9, 2, [46.8 / 68.3, 18.1 / 71.6, 29.1 / 592.0, 29.2 / 191.0]),
];

/// LLFree as a module in Linux 6.0, ns: Wrenger et al., LLFree, USENIX ATC 2023, raw data in luhsra/llfree-bench.
const PUBLISHED: Rows = &[
    (0, 1, [83.0, 92.0, 183.0, 137.0]),
    (0, 2, [83.0, 91.0, 183.0, 196.0]),
    (0, 4, [83.0, 94.0, 187.0, 214.0]),
    (9, 1, [272.0, 403.0, 402.0, 394.0]),
    (9, 2, [271.0, 438.0, 396.0, 452.0]),
    (9, 4, [351.0, 452.0, 400.0, 465.0]),
];

/// Linux' own buddy beside it.
const PUBLISHED_LINUX: Rows = &[
    (0, 1, [94.0, 90.0, 112.0, 257.0]),
    (0, 2, [104.0, 96.0, 112.0, 304.0]),
    (0, 4, [150.0, 172.0, 112.0, 588.0]),
    (9, 1, [2615.0, 444.0, 362.0, 512.0]),
    (9, 2, [5394.0, 504.0, 360.0, 568.0]),
    (9, 4, [11141.0, 625.0, 363.0, 868.0]),
];

/// Whole 2 MiB areas at the beginning and the end of their aging run, with LLFree and with Linux (the same source): a
/// guest of 128 GiB half full, 8 threads, 10 % reallocated in each of 100 rounds.
pub const AGING: [(&str, u64, u64); 2] = [("LLFree", 5024, 31967), ("Linux 6.0", 5108, 5107)];

/// As many whole areas a guest of 128 GiB has that is half full, at most.
pub const AGING_POSSIBLE: u64 = 32768;

/// The row of `rows` for an order and a number of threads.
pub fn row(rows: &[(u8, usize, [f64; 4])], order: u8, threads: usize) -> [Option<f64>; 4] {
    let found = rows.iter().find(|row| (row.0, row.1) == (order, threads));
    found.map_or([None; 4], |row| row.2.map(Some))
}

/// LLFree divided by the [`YARDSTICK`].
pub fn by_yardstick(order: u8, threads: usize) -> [Option<f64>; 4] {
    row(MEASURED, order, threads)
}

/// What was published of LLFree and of Linux, ns.
pub fn published(order: u8, threads: usize) -> [[Option<f64>; 4]; 2] {
    [PUBLISHED, PUBLISHED_LINUX].map(|rows| row(rows, order, threads))
}

/// What the marks in the table stand for.
pub const NOTES: &str = "\
(*) not run here: LLFree 0.2.0 was measured beside buddy_system_allocator with this load on 2 CPUs of an AMD EPYC.
    \"By way of\" is dirigible/buddy here divided by LLFree/buddy there: an estimate across two machines.
(**) Wrenger et al., LLFree, USENIX ATC 2023, raw data in luhsra/llfree-bench: inside the kernel, 2 x Xeon Gold 5320,
    4 KiB and 2 MiB pages, beside Linux' own allocator. Another machine and another way in: only ratios are shown.
";
