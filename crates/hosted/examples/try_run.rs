//! try
#![allow(missing_docs)]
use dirigible_hosted::run::run_column;
use dirigible_workload::params::{Column, Params, Profile, Schedule};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let column = match a[1].as_str() {
        "pinned" => Column::Pinned,
        "movable" => Column::Movable,
        "smaller" => Column::Smaller,
        _ => Column::Steered,
    };
    let mib: u64 = a[2].parse().unwrap();
    let schedule = if a[3] == "held" {
        Schedule::Held
    } else {
        Schedule::Cycle
    };
    let profile = if a.get(4).is_some_and(|p| p == "quick") {
        Profile::Quick
    } else {
        Profile::Paper
    };
    let params = Params {
        memory: mib << 20,
        balloon: (mib << 20) / 4,
        step: (mib << 20) / 16,
        schedule,
        ..Params::new(profile)
    };
    let t = std::time::Instant::now();
    let run = run_column(column, &params, &mut ());
    println!("{:?}", t.elapsed());
    match run {
        Ok(r) => {
            let r = r.report;
            for p in &r.passes {
                println!(
                    "{} asked {} got {} {:?} files {} kernel {} anon {} free {} failed {:?} got_free {} comp {} recl {} moved {} before: hybrid {} free {} freeblk {} census {:?}",
                    p.name,
                    p.asked,
                    p.allocated,
                    p.percent_asked,
                    p.files_mib,
                    p.load_kernel_mib,
                    p.load_anonymous_mib,
                    p.after.free_frames,
                    p.failed,
                    p.got_free,
                    p.got_compaction,
                    p.got_reclaim,
                    p.moved_direct + p.moved_background,
                    p.before.hybrid_blocks,
                    p.before.free_frames,
                    p.before.free_blocks,
                    p.before.census
                );
            }
            for (n, c) in &r.vmstat.0 {
                print!("{n} {c}; ");
            }
            println!(
                "\n{:?} errors {} balloon mean {} target {}",
                r.load, r.content_errors, r.balloon_mean_mib, r.balloon_target_mean_mib
            );
        }
        Err(e) => println!("ERR {e}"),
    }
}
