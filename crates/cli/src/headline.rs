//! The line above the table, which describes the run.

use dirigible_workload::params::{InflatePlacement, default_disk, default_swap};

use crate::{
    plan::{Place, RunPlan},
    units::{Period, Scale, Size},
};

impl RunPlan {
    /// Describes the run and `runs` seeds in one line.
    pub fn headline(&self, runs: u64) -> String {
        let Self { params, place } = self;
        let seeds = match runs {
            1 => format!("seed {}", params.seed),
            _ => format!("seeds {} to {}", params.seed, params.seed + (runs - 1)),
        };
        let balloon = match params.balloon {
            0 => "no balloon".to_string(),
            bytes => format!(
                "balloon {} in steps of {}, one each {}, {}",
                Size(bytes),
                Size(params.step),
                Period {
                    ms: params.period_ms
                },
                params.schedule.name(),
            ),
        };
        let mut line = format!(
            "{} machine, profile {}, {seeds}; memory {}; {balloon}",
            place.machine().name(),
            params.profile.name(),
            Size(params.memory),
        );
        if params.disk_bytes() != default_disk(params.memory, params.load_scale) {
            line += &format!("; disk {}", Size(params.disk_bytes()));
        }
        if params.swap_bytes() != default_swap(params.memory) {
            line += &match params.swap_bytes() {
                0 => "; no swap".into(),
                bytes => format!("; swap {}", Size(bytes)),
            };
        }
        if params.inflate != InflatePlacement::FillHoles {
            line += &format!("; inflate {}", params.inflate.name());
        }
        if !params.without.is_empty() {
            let names: Vec<_> = params.without.iter().map(|&one| one.name()).collect();
            line += &format!("; without {}", names.join(", "));
        }
        match (place, params.threads) {
            (_, 0) => {}
            (Place::Hosted, threads) => line += &format!("; {threads} threads of load"),
            (Place::Qemu(machine), cpus) => {
                line += &format!("; {cpus} CPUs; {}", machine.describe());
            }
        }
        for (what, thousandths) in [
            ("load", params.load_scale),
            ("watermarks", params.watermark_scale),
            ("disk speed", params.disk_speed),
            ("times", params.time_scale),
        ] {
            if thousandths != 1000 {
                line += &format!("; {what} x {}", Scale { thousandths });
            }
        }
        if params.deflate_on_oom {
            line += "; deflates on out of memory";
        }
        if params.host_answer_ms > 0 {
            let answer = Period {
                ms: params.host_answer_ms,
            };
            line += &format!("; the host answers after {answer}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::{Place, RunPlan, tests::checked};

    fn headline(flags: &str, runs: u64) -> String {
        let plan = RunPlan {
            params: checked(flags).unwrap(),
            place: Place::Hosted,
        };
        plan.headline(runs)
    }

    #[test]
    fn headlines() {
        insta::assert_snapshot!(
            headline("", 1),
            @"hosted machine, profile paper, seed 1; memory 4G; balloon 1G in steps of 256M, one each 60s, cycle"
        );
        insta::assert_snapshot!(
            headline("--balloon 0 --load-scale 0.7 --threads 2", 10),
            @"hosted machine, profile paper, seeds 1 to 10; memory 4G; no balloon; 2 threads of load; load x 0.7"
        );
        insta::assert_snapshot!(
            headline("--balloon 0 --host-answer 20ms --deflate-on-oom", 1),
            @"hosted machine, profile paper, seed 1; memory 4G; no balloon; deflates on out of memory; the host answers after 20ms"
        );
        insta::assert_snapshot!(
            headline("--balloon 0 --disk 16G --disk-speed 0.1", 1),
            @"hosted machine, profile paper, seed 1; memory 4G; no balloon; disk 16G; disk speed x 0.1"
        );
        insta::assert_snapshot!(
            headline("--balloon 0 --inflate whole-blocks", 1),
            @"hosted machine, profile paper, seed 1; memory 4G; no balloon; inflate whole-blocks"
        );
        assert_eq!(
            checked("--placement whole-blocks"),
            checked("--inflate whole-blocks")
        );
    }
}
