//! An invented report without faults, for tests.

use dirigible_workload::{
    attainable::set_attainable,
    params::{Params, Profile},
    report::{
        AttemptHost, Attempts, BlockCensus, ColumnHost, ColumnReport, Compiled, DiskReport,
        FailureCauses, HostFacts, HostReport, LoadReport, MemoryState, OracleReport, PassReport,
        Policy, Report, Residency, SCHEMA, Spread, StallFigures, StallReport, TenThousandths,
        Tenths, TypeState, VmStat,
    },
    timeline::{Phase, Timeline, What},
};

/// A report of three columns and three passes; `seed` shifts the scores a little.
pub fn report(seed: u64) -> Report {
    let parameters = Params {
        seed,
        disk: 8 << 30,
        swap: Some(3 << 30),
        ..Params::new(Profile::Paper)
    };
    let timeline = Timeline::new(&parameters);
    let mut columns = vec![
        column("pinned", &timeline, 900 + seed, 40),
        column("movable", &timeline, 1640 + seed, 25),
        column("steered", &timeline, 1700 - seed, 0),
    ];
    set_attainable(&parameters, &mut columns).expect("the columns ran by the plan");
    let hosts = columns.iter().map(|column| host(&column.name)).collect();
    Report {
        schema: SCHEMA,
        machine: "hosted".into(),
        parameters,
        columns,
        host: Some(HostReport {
            facts: HostFacts {
                kernel: "Linux 6.12.0".into(),
                cpus: 2,
                process_madvise: true,
            },
            wall_ms: 61_000,
            columns: hosts,
        }),
    }
}

fn column(name: &str, timeline: &Timeline, score: u64, hybrids: u64) -> ColumnReport {
    let passes = vec![
        pass("pass1", timeline, score, hybrids),
        pass("pass2", timeline, score - 300, hybrids),
        pass("rested", timeline, score + 200, hybrids / 5),
    ];
    let steered = name == "steered";
    let moved = if name == "pinned" { 0 } else { 140_000 };
    let messages = if steered { moved / 64 } else { moved * 2 };
    ColumnReport {
        name: name.into(),
        policy: Policy {
            balloon_movable: name != "pinned",
            fallback: if steered { "evacuate" } else { "steal" }.into(),
            placement: if steered {
                "fullest-first"
            } else {
                "lowest-first"
            }
            .into(),
            inflate: if steered { "fill-holes" } else { "ordinary" }.into(),
            deflate: if steered { "heal" } else { "newest-first" }.into(),
            exchange_batch: if steered { 256 } else { 1 },
            reserve_blocks: if steered { 8 } else { 0 },
            drops_cold: steered,
        },
        mem_total_mib: Tenths::ratio(4064, 1),
        elapsed_ms: 1_218_000,
        huge_pages: passes.iter().map(|pass| pass.allocated).sum(),
        passes,
        vmstat: VmStat(
            [
                ("pgmigrate_success", 700_000 + moved),
                ("pgmigrate_fail", 0),
                ("compact_stall", 2000),
                ("compact_fail", 2000 - score),
                ("compact_success", score),
                ("compact_balloon_isolated", moved),
                ("compact_balloon_migrated", moved),
                ("compact_balloon_released", moved),
                ("compact_balloon_returned", 0),
            ]
            .map(|(name, count)| (name.to_string(), count))
            .to_vec(),
        ),
        content_errors: 0,
        pages_checked: 5_000_000,
        host_messages: messages,
        balloon_frames_moved: moved,
        balloon_rounds: 0,
        messages_per_frame_moved: TenThousandths::ratio(messages, moved),
        host_messages_total: messages + 12_288,
        balloon_lock_refusals: 0,
        pages_moved: 700_000 + moved,
        moved_per_huge_page: Tenths::ratio(700_000 + moved, 3 * score - 100),
        choice: OracleReport::new(3 * score, 700_000, 640_000),
        targets_hash: timeline.targets_hash().text(),
        balloon_mean_mib: Tenths::ratio(505, 1),
        balloon_target_mean_mib: Tenths::ratio(512, 1),
        balloon_max_mib: Tenths::ratio(1024, 1),
        oom_deflated: 0,
        device_errors: 0,
        disk: DiskReport::default(),
        stalls: StallReport {
            base: StallFigures {
                count: 52_000,
                failed: 31,
                p999_ns: 210_000,
                max_ns: 1_400_000,
            },
            huge: StallFigures {
                count: 5500,
                failed: 1200,
                p999_ns: 3_900_000,
                max_ns: 7_300_000,
            },
            min_failed: 0,
        },
        load: LoadReport {
            failures: Vec::new(),
            waits: 31,
            waited_ms: 8_200,
            compiled: vec![
                compiled("warm-up", 160, 300_000),
                compiled("pass1", 31, 241_250),
            ],
        },
    }
}

fn compiled(phase: &str, files: u64, ms: u64) -> Compiled {
    Compiled {
        phase: phase.into(),
        files,
        ms,
    }
}

fn host(name: &str) -> ColumnHost {
    ColumnHost {
        name: name.into(),
        wall_ms: 29_500,
        user_ms: 24_000,
        system_ms: 5_000,
        discard_calls: 4_100,
        residency: Residency {
            empty_balloon_mib: Tenths::ratio(4096, 1),
            full_balloon_mib: Tenths::ratio(3073, 1),
            balloon_mib: Tenths::ratio(1024, 1),
        },
        attempts: ["pass1", "pass2", "rested"]
            .map(|pass| AttemptHost {
                pass: pass.into(),
                ns: spread(31_000),
            })
            .to_vec(),
    }
}

fn pass(name: &str, timeline: &Timeline, allocated: u64, hybrids: u64) -> PassReport {
    let begins = |phase: &&Phase| phase.name == name && matches!(phase.what, What::Pass(_));
    let start = timeline
        .phases
        .iter()
        .find(begins)
        .map_or(0, |phase| phase.at);
    let mut attempted = Attempts::default();
    (0..1930).for_each(|k| attempted.push(k * 125, k < allocated));
    PassReport {
        name: name.into(),
        start_ms: start / 1_000_000,
        asked: 1930,
        attempts: 1930,
        allocated,
        attainable: 0,
        percent_asked: Tenths::percent(allocated, 1930),
        percent_attainable: Tenths::default(),
        balloon_mean_mib: Tenths::ratio(3822, 10),
        balloon_target_mean_mib: Tenths::ratio(383, 1),
        balloon_shortfall: Tenths::ratio(2, 10),
        disqualified: false,
        load_mib: Tenths::ratio(1300, 1),
        load_anonymous_mib: Tenths::ratio(1130, 1),
        load_kernel_mib: Tenths::ratio(170, 1),
        files_mib: Tenths::ratio(120, 1),
        hybrid_blocks: hybrids,
        before: memory(hybrids + 3),
        after: MemoryState {
            census: BlockCensus {
                huge: allocated,
                free: 1,
                ..memory(hybrids).census
            },
            ..memory(hybrids)
        },
        attempt_cost_ns: spread(450_000),
        attempted,
        unmovable: vec![30_000; 242],
        got_free: 100,
        got_compaction: allocated - 300,
        got_reclaim: 200,
        failed: FailureCauses {
            watermark: 20,
            deferred: 0,
            no_block: 1930 - 20 - allocated.min(1910),
            aborted: 0,
        },
        moved_direct: 380 * allocated,
        moved_background: 40 * allocated,
        moved_per_huge_page: Tenths::ratio(420, 1),
        choice: OracleReport::new(allocated, 420 * allocated, 350 * allocated),
        host_messages: 2048,
        balloon_frames_moved: 50_000,
        vmstat: VmStat(vec![("compact_stall".into(), 1900)]),
    }
}

fn spread(median: u64) -> Spread {
    Spread {
        median,
        p99: 4 * median,
        max: 11 * median,
    }
}

fn memory(hybrids: u64) -> MemoryState {
    let runs = |scale: u64| {
        (0..=10)
            .map(|order| scale * (11 - order))
            .collect::<Vec<u64>>()
    };
    let kind = |name: &str, blocks, scale| TypeState {
        name: name.into(),
        blocks,
        free: runs(scale),
    };
    MemoryState {
        free_frames: 9_000,
        free_blocks: 4,
        hybrid_blocks: hybrids,
        balloon_frames: 98_304,
        buddyinfo: runs(60),
        pagetypeinfo: vec![
            kind("Unmovable", 100, 10),
            kind("Movable", 1800, 40),
            kind("Reclaimable", 140, 10),
        ],
        unusable_permille: (0..=10).map(|order| 95 * order).collect(),
        census: BlockCensus {
            huge: 0,
            free: 4,
            movable: 1850 - hybrids,
            kernel: 170,
            hybrid: hybrids,
            isolated: 0,
            reserved: 16,
            stranded_free_frames: 5_000,
        },
    }
}
