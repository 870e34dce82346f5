//! What is run, in one line.

use crate::{
    args::Placement,
    plan::Plan,
    units::{Period, Scale, Size},
};

impl Plan {
    /// One line that says what is run, for the head of the table.
    pub fn headline(&self, runs: u64) -> String {
        let seeds = match runs {
            1 => format!("seed {}", self.seed),
            _ => format!("seeds {} to {}", self.seed, self.seed + (runs - 1)),
        };
        let balloon = match self.balloon {
            0 => "no balloon".to_string(),
            bytes => format!(
                "balloon {} in steps of {}, one each {}, {}",
                Size(bytes),
                Size(self.step),
                Period { ms: self.period_ms },
                self.schedule.name(),
            ),
        };
        let mut line = format!(
            "{} machine, profile {}, {seeds}; memory {}; {balloon}",
            self.machine.name(),
            self.profile.name(),
            Size(self.memory),
        );
        if self.placement != Placement::FillHoles {
            line += &format!("; placement {}", self.placement.name());
        }
        match (&self.qemu, self.threads) {
            (_, 0) => {}
            (None, threads) => line += &format!("; {threads} threads of load"),
            (Some(machine), cpus) => {
                line += &format!("; {cpus} CPUs; {}", machine.describe());
            }
        }
        for (what, thousandths) in [
            ("load", self.load_scale),
            ("watermarks", self.watermark_scale),
            ("times", self.time_scale),
        ] {
            if thousandths != 1000 {
                line += &format!("; {what} x {}", Scale { thousandths });
            }
        }
        if !self.filler {
            line += "; no filler";
        }
        if self.deflate_on_oom {
            line += "; deflates on out of memory";
        }
        if self.host_answer_ms > 0 {
            let answer = Period {
                ms: self.host_answer_ms,
            };
            line += &format!("; the host answers after {answer}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::tests::checked;

    #[test]
    fn headlines() {
        insta::assert_snapshot!(
            checked("").unwrap().headline(1),
            @"hosted machine, profile paper, seed 1; memory 4G; balloon 1G in steps of 256M, one each 60s, cycle"
        );
        insta::assert_snapshot!(
            checked("--balloon 0 --no-filler --load-scale 0.7 --threads 2").unwrap().headline(10),
            @"hosted machine, profile paper, seeds 1 to 10; memory 4G; no balloon; 2 threads of load; load x 0.7; no filler"
        );
        insta::assert_snapshot!(
            checked("--balloon 0 --host-answer 20ms --deflate-on-oom").unwrap().headline(1),
            @"hosted machine, profile paper, seed 1; memory 4G; no balloon; deflates on out of memory; the host answers after 20ms"
        );
    }
}
