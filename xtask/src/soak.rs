//! `cargo xtask soak`: threads in real time under a full guest, with hosts that answer at once and late.
//!
//! Each part is a run of the command, its report a file: a soak that was interrupted goes on where it stopped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;

use crate::step::{Step, cargo, root, target, timed};

/// Length of the profile `quick` in seconds.
const QUICK_SECONDS: u64 = 256;
/// What all parts have in common.
const FLAGS: &str = "stress-highalloc --threads 2 --profile quick --memory 1G --balloon 256M --step 64M --columns steered";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    seconds: u64,
    schedules: Vec<&'static str>,
    answers_ms: Vec<u64>,
    fresh: bool,
    out: PathBuf,
}

impl Plan {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut plan = Self {
            seconds: 180,
            schedules: vec!["held"],
            answers_ms: vec![0, 1, 20],
            fresh: false,
            out: target().join("soak"),
        };
        let mut words = words.iter();
        while let Some(&flag) = words.next() {
            if flag == "--fresh" {
                plan.fresh = true;
                continue;
            }
            let value = *words
                .next()
                .ok_or_else(|| format!("{flag}: unknown, or without its value"))?;
            let number = |text: &str, least, most| {
                text.parse()
                    .ok()
                    .filter(|n| (least..=most).contains(n))
                    .ok_or_else(|| format!("{flag} {value}: a number from {least} to {most}"))
            };
            match flag {
                "--seconds" => plan.seconds = number(value, 10, 3600)?,
                "--answer-ms" => {
                    let numbers = value.split(',').map(|text| number(text, 0, 1000));
                    plan.answers_ms = numbers.collect::<Result<_, _>>()?;
                }
                "--schedule" => {
                    let names = value.split(',').map(|name| match name {
                        "held" => Ok("held"),
                        "cycle" => Ok("cycle"),
                        _ => Err(format!("--schedule {value}: held, cycle or both")),
                    });
                    plan.schedules = names.collect::<Result<_, _>>()?;
                }
                "--out" => plan.out = PathBuf::from(value),
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(plan)
    }

    fn parts(&self) -> Vec<Part> {
        let part = |&schedule, &answer_ms| Part {
            schedule,
            answer_ms,
            seconds: self.seconds,
        };
        let schedules = self.schedules.iter();
        schedules
            .flat_map(|schedule| self.answers_ms.iter().map(move |ms| part(schedule, ms)))
            .collect()
    }
}

/// One run.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    schedule: &'static str,
    answer_ms: u64,
    seconds: u64,
}

impl Part {
    /// Names the file: whatever makes it another run is in it.
    fn name(&self) -> String {
        format!(
            "{}-answer-{}ms-{}s",
            self.schedule, self.answer_ms, self.seconds
        )
    }

    /// Runs it, if its report is not there, and reads the report.
    fn run(&self, plan: &Plan) -> Result<Figures, String> {
        let name = self.name();
        let json = std::path::absolute(plan.out.join(format!("{name}.json")))
            .map_err(|error| format!("{name}: no such place: {error}"))?;
        let failed = |what: &str, error: std::io::Error| format!("{name}: cannot {what}: {error}");
        if json.exists() {
            if !plan.fresh {
                println!("==> {name}: there already ({})", json.display());
                return Figures::read(&json);
            }
            // Should the run fail, the old report must not stand for it.
            fs::remove_file(&json).map_err(|error| failed("remove its old report", error))?;
        }
        // The report of a run that fails is not that of the part: it is run again.
        let draft = json.with_extension("draft");
        timed(&name, || {
            let table = fs::File::create(json.with_extension("txt"))
                .map_err(|error| failed("write its table", error))?;
            let thousandths = (self.seconds * 1000 / QUICK_SECONDS).max(1);
            let status = cargo(&["run", "--release", "--quiet", "--"])
                .args(FLAGS.split(' '))
                .args(["--schedule", self.schedule, "--time-scale"])
                .arg(format!("{}.{:03}", thousandths / 1000, thousandths % 1000))
                .args(["--host-answer", &format!("{}ms", self.answer_ms), "--json"])
                .arg(&draft)
                .current_dir(root())
                .stdin(Stdio::null())
                .stdout(table)
                .status()
                .map_err(|error| failed("run", error))?;
            match status.success() {
                true => Ok(()),
                false => Err(format!("{name} failed ({status})")),
            }
        })?;
        fs::rename(&draft, &json).map_err(|error| failed("keep its report", error))?;
        Figures::read(&json)
    }
}

/// What a part found.
struct Figures(Value);

impl Figures {
    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        let figures = Self(report["columns"][0].clone());
        // A file that is no report must not pass for one without faults.
        match figures.number("/stalls/min_failed") {
            Some(_) => Ok(figures),
            None => Err(wrong(&"no report of a soak; --fresh runs it again")),
        }
    }

    fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer)?.as_u64()
    }

    fn text(&self, pointer: &str) -> String {
        self.number(pointer)
            .map_or_else(|| "?".into(), |number| number.to_string())
    }

    fn ms(&self, pointer: &str) -> String {
        let ms = |ns| format!("{:.3}", ns as f64 / 1e6);
        self.number(pointer).map_or_else(|| "?".into(), ms)
    }

    /// What must be 0 and is not.
    fn faults(&self) -> Vec<String> {
        MUST_BE_NONE
            .iter()
            .filter(|(pointer, _)| self.number(pointer) != Some(0))
            .map(|(pointer, what)| format!("{what}: {}", self.text(pointer)))
            .collect()
    }

    fn row(&self, name: &str) -> String {
        let cells = [
            self.text("/stalls/base/count"),
            self.ms("/stalls/base/p999_ns"),
            self.ms("/stalls/base/max_ns"),
            self.text("/stalls/huge/count"),
            self.ms("/stalls/huge/p999_ns"),
            self.ms("/stalls/huge/max_ns"),
        ];
        let none = MUST_BE_NONE.iter().map(|(pointer, _)| self.text(pointer));
        let cells: Vec<String> = cells.into_iter().chain(none).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    }
}

const MUST_BE_NONE: [(&str, &str); 3] = [
    ("/stalls/min_failed", "failed Min allocations"),
    ("/content_errors", "content errors"),
    ("/device_errors", "device errors"),
];

const HEAD: &str = "\
| part | base stalls | 99.9 %, ms | longest, ms | huge stalls | 99.9 %, ms | longest, ms | failed Min | content errors | device errors |
|---|---|---|---|---|---|---|---|---|---|
";

/// Runs the parts that are missing and prints what all of them found.
///
/// # Errors
///
/// Parts that failed (wrong contents, counters or books), and figures that must be 0 and are not.
pub fn run(words: &[&str]) -> Result<(), String> {
    let plan = Plan::parse(words)?;
    fs::create_dir_all(&plan.out)
        .map_err(|error| format!("cannot make {}: {error}", plan.out.display()))?;
    Step::new(
        "build",
        &mut cargo(&["build", "--release", "--package", "dirigible"]),
    )
    .run()?;
    let (mut table, mut faults) = (String::from(HEAD), Vec::new());
    for part in plan.parts() {
        match part.run(&plan) {
            Ok(figures) => {
                table += &figures.row(&part.name());
                let found = figures.faults().into_iter();
                faults.extend(found.map(|what| format!("{}: {what}", part.name())));
            }
            Err(why) => faults.push(why),
        }
    }
    println!("\n{table}");
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults.join("\n       ")),
    }
}

/// The shortest soak, anew.
///
/// # Errors
///
/// As [`run`].
pub fn smoke() -> Result<(), String> {
    let out = target().join("soak/smoke");
    let out = out.to_str().ok_or("the target folder has no name")?;
    run(&[
        "--fresh",
        "--seconds",
        "10",
        "--answer-ms",
        "1",
        "--out",
        out,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_parts() {
        let names = |words: &[&str]| -> Result<Vec<String>, String> {
            Ok(Plan::parse(words)?.parts().iter().map(Part::name).collect())
        };
        assert_eq!(
            names(&[]).unwrap(),
            [
                "held-answer-0ms-180s",
                "held-answer-1ms-180s",
                "held-answer-20ms-180s"
            ]
        );
        let words = [
            "--schedule",
            "held,cycle",
            "--answer-ms",
            "5",
            "--seconds",
            "20",
        ];
        assert_eq!(
            names(&words).unwrap(),
            ["held-answer-5ms-20s", "cycle-answer-5ms-20s"]
        );
        for words in [
            &["--seconds"][..],
            &["--seconds", "9"],
            &["--seconds", "3601"],
            &["--seconds", "x"],
            &["--answer-ms", "1,"],
            &["--answer-ms", "1001"],
            &["--schedule", "up"],
            &["--fast", "1"],
        ] {
            assert!(names(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn faults_are_told_and_missing_figures_are_none() {
        let figures = |min, content| {
            Figures(serde_json::json!({
                "stalls": { "min_failed": min, "base": { "count": 3, "max_ns": 1_500_000 } },
                "content_errors": content,
                "device_errors": 0,
            }))
        };
        assert_eq!(figures(0, 0).faults(), [""; 0]);
        assert_eq!(
            figures(2, 1).faults(),
            ["failed Min allocations: 2", "content errors: 1"]
        );
        let row = figures(0, 0).row("x");
        assert_eq!(row, "| x | 3 | ? | 1.500 | ? | ? | ? | 0 | 0 | 0 |\n");
        assert_eq!(Figures(Value::Null).faults().len(), 3);
    }
}
