//! Runs one column without a process of its own, for profiling: `column <pinned|movable|steered|smaller> [MiB] [seed] [quick]`.

use dirigible_hosted::run::run_column;
use dirigible_workload::{
    attainable::set_attainable,
    params::{Column, Params, Profile, Schedule},
    report::ColumnRun,
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    let value = |key: &str| {
        words
            .iter()
            .find_map(|w| w.strip_prefix(key))
            .and_then(|v| v.parse::<u64>().ok())
    };
    let profile = if has("quick") {
        Profile::Quick
    } else {
        Profile::Paper
    };
    let mib = value("mib=").unwrap_or(4096);
    for column in Column::ALL.into_iter().filter(|column| has(column.name())) {
        let params = Params {
            memory: mib << 20,
            balloon: value("balloon=").map_or((mib << 20) / 4, |mib| mib << 20),
            step: (mib << 20) / 16,
            seed: value("seed=").unwrap_or(1),
            threads: value("threads=").unwrap_or(0) as usize,
            load_scale: value("load=").unwrap_or(1000) as u32,
            watermark_scale: value("mark=").unwrap_or(1000) as u32,
            time_scale: value("time=").unwrap_or(1000) as u32,
            schedule: if has("held") {
                Schedule::Held
            } else {
                Schedule::Cycle
            },
            ..Params::new(profile)
        };
        let start = std::time::Instant::now();
        match run_column(column, &params, &mut ()) {
            Ok(ColumnRun { report, host, .. }) => {
                let mut alone = [report];
                let known = set_attainable(&params, &mut alone);
                known.unwrap_or_else(|why| eprintln!("{why}"));
                let [report] = alone;
                let ms = start.elapsed().as_millis();
                println!(
                    "{} seed {} in {ms} ms: errors {} device {} checked {} messages/moved {}/{} moved {} huge {}",
                    report.name,
                    params.seed,
                    report.content_errors,
                    report.device_errors,
                    report.pages_checked,
                    report.host_messages,
                    report.balloon_frames_moved,
                    report.pages_moved,
                    report.huge_pages
                );
                for p in &report.passes {
                    println!(
                        "  {:10} {:4}/{:4} of {:4} {:5}% {:5}% bal {}/{} anon {} kern {} fill {} hyb {}->{} free/comp/recl {}/{}/{} fail {:?} moved {}+{} cost {:?}",
                        p.name,
                        p.allocated,
                        p.asked,
                        p.attainable,
                        p.percent_asked,
                        p.percent_attainable,
                        p.balloon_mean_mib,
                        p.balloon_target_mean_mib,
                        p.load_anonymous_mib,
                        p.load_kernel_mib,
                        p.files_mib,
                        p.before.hybrid_blocks,
                        p.hybrid_blocks,
                        p.got_free,
                        p.got_compaction,
                        p.got_reclaim,
                        p.failed,
                        p.moved_direct,
                        p.moved_background,
                        p.attempt_cost_ns
                    );
                    println!(
                        "      before {:?} free {} after {:?} free {}",
                        p.before.census, p.before.free_frames, p.after.census, p.after.free_frames
                    );
                }
                if has("vm") {
                    for (name, count) in &report.vmstat.0 {
                        print!("{name}={count} ");
                    }
                    println!("\n{:?}\n{:?}", report.load, host);
                }
            }
            Err(error) => println!("{} seed {}: {error}", column.name(), params.seed),
        }
    }
}
