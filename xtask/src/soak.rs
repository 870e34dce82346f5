//! `cargo xtask soak`: threads in real time in a full guest, with hosts that answer at once and late.
//!
//! Each part is a run of the command whose report is kept in a file, so an interrupted soak continues where it stopped.
//! A stamp beside each report records the build and the flags that made it; if the stamp differs, the part runs again.

use std::{
    env::consts::EXE_SUFFIX,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::step::{Step, cargo, root, target, timed};

/// Length of the profile `quick` in seconds.
const QUICK_SECONDS: u64 = 256;
/// The flags that all parts have in common.
const FLAGS: &str = "stress-highalloc --threads 2 --profile quick --memory 1G --seed 1";
/// The flags of a part that takes an hour of virtual time: memory is full for most of it. The time scale follows.
const HOUR: &str = "stress-highalloc --profile paper --memory 1G --seed 1 --time-scale";
/// A longer stall of a base request is noted, and is no fault: the slow path waits for compaction for at most 200 ms,
/// the rest may be due to busy CPUs of the host.
const LONG_NS: u64 = 250_000_000;

/// The options of a call.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    seconds: u64,
    columns: Vec<&'static str>,
    schedules: Vec<&'static str>,
    answers_ms: Vec<u64>,
    fresh: bool,
    /// An hour of virtual time for each column and both schedules, in place of real time.
    hour: bool,
    out: PathBuf,
}

impl Plan {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let timed = ["--seconds", "--answer-ms", "--schedule"];
        if words.contains(&"--hour")
            && let Some(flag) = timed.iter().find(|flag| words.contains(flag))
        {
            return Err(format!(
                "{flag} with --hour: its parts are an hour of virtual time each, under both schedules"
            ));
        }
        let mut plan = Self {
            seconds: 180,
            columns: vec!["steered", "movable"],
            schedules: vec!["held"],
            answers_ms: vec![0, 1, 20],
            fresh: false,
            hour: false,
            out: target().join("soak"),
        };
        let mut words = words.iter();
        while let Some(&flag) = words.next() {
            if flag == "--fresh" {
                plan.fresh = true;
                continue;
            }
            if flag == "--hour" {
                plan.hour = true;
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
                "--columns" => plan.columns = names(flag, value, &["steered", "movable"])?,
                "--schedule" => plan.schedules = names(flag, value, &["held", "cycle"])?,
                "--out" => plan.out = PathBuf::from(value),
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(plan)
    }

    /// All combinations, and once more the first column and schedule, with the slowest host and a balloon that deflates
    /// on out-of-memory.
    fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.hour {
            for &column in &self.columns {
                parts.extend(["held", "cycle"].map(|schedule| Part {
                    column,
                    schedule,
                    answer_ms: 0,
                    seconds: 3600,
                    deflates: false,
                    hour: true,
                }));
            }
            return parts;
        }
        for &column in &self.columns {
            for &schedule in &self.schedules {
                parts.extend(self.answers_ms.iter().map(|&answer_ms| Part {
                    column,
                    schedule,
                    answer_ms,
                    seconds: self.seconds,
                    deflates: false,
                    hour: false,
                }));
            }
        }
        let first = parts.first().copied();
        let slowest = self.answers_ms.iter().max().copied();
        if let (Some(first), Some(answer_ms)) = (first, slowest) {
            parts.push(Part {
                answer_ms,
                deflates: true,
                ..first
            });
        }
        parts
    }
}

/// The names in `value`, each one of `known`.
fn names(flag: &str, value: &str, known: &[&'static str; 2]) -> Result<Vec<&'static str>, String> {
    let name = |text| {
        let found = known.iter().copied().find(|&name| name == text);
        found.ok_or_else(|| format!("{flag} {value}: {}, {} or both", known[0], known[1]))
    };
    value.split(',').map(name).collect()
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    column: &'static str,
    schedule: &'static str,
    answer_ms: u64,
    seconds: u64,
    /// Whether the balloon deflates on out-of-memory. It is then so large that memory runs out.
    deflates: bool,
    /// Whether its time is virtual.
    hour: bool,
}

impl Part {
    /// The name of its files.
    fn name(&self) -> String {
        let Self {
            column,
            schedule,
            answer_ms,
            seconds,
            deflates,
            hour,
        } = self;
        if *hour {
            return format!("{column}-{schedule}-hour");
        }
        let deflates = if *deflates { "-oom" } else { "" };
        format!("{column}-{schedule}-answer-{answer_ms}ms-{seconds}s{deflates}")
    }

    /// The balloon at its fullest in MiB.
    fn balloon_mib(&self) -> u64 {
        if self.deflates { 768 } else { 256 }
    }

    /// The command's flags, without the path of the report.
    fn flags(&self) -> String {
        if self.hour {
            let (column, schedule, full) = (self.column, self.schedule, self.balloon_mib());
            let step = full / 4;
            // The balloon that is held is filled before pass 1, which takes as long again.
            let scale = if schedule == "held" { 3 } else { 6 };
            return format!(
                "{HOUR} {scale} --balloon {full}M --step {step}M --columns {column} --schedule {schedule}"
            );
        }
        let thousandths = (self.seconds * 1000 / QUICK_SECONDS).max(1);
        let mut flags = format!(
            "{FLAGS} --balloon {}M --step {}M --columns {} --schedule {} --time-scale {}.{:03} --host-answer {}ms",
            self.balloon_mib(),
            self.balloon_mib() / 4,
            self.column,
            self.schedule,
            thousandths / 1000,
            thousandths % 1000,
            self.answer_ms
        );
        if self.deflates {
            flags += " --deflate-on-oom";
        }
        flags
    }

    /// Runs the part, unless there is a report of the same run, and reads the report.
    fn run(&self, plan: &Plan, build: &Build) -> Result<Figures, String> {
        let name = self.name();
        let json = std::path::absolute(plan.out.join(format!("{name}.json")))
            .map_err(|error| format!("{name}: no such place: {error}"))?;
        let failed = |what: &str, error: std::io::Error| format!("{name}: cannot {what}: {error}");
        let (stamp, wanted) = (json.with_extension("stamp"), build.stamp(self));
        if json.exists() {
            if !plan.fresh {
                // A report without a stamp may be of any run.
                if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
                    println!("==> {name}: there already ({})", json.display());
                    return Figures::read(&json);
                }
                println!("==> {name}: of another build or with other flags, so again");
            }
            // If the run fails, the old report must not be taken for its own.
            fs::remove_file(&json).map_err(|error| failed("remove its old report", error))?;
        }
        // If the run fails, its report is not kept, so the part runs again.
        let draft = json.with_extension("draft");
        timed(&name, || {
            let table = fs::File::create(json.with_extension("txt"))
                .map_err(|error| failed("write its table", error))?;
            let status = Command::new(&build.program)
                .args(self.flags().split(' '))
                .arg("--json")
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
        // The stamp is written first, so that a report never has the stamp of another run.
        fs::write(&stamp, wanted).map_err(|error| failed("write its stamp", error))?;
        fs::rename(&draft, &json).map_err(|error| failed("keep its report", error))?;
        Figures::read(&json)
    }
}

/// The command under test.
struct Build {
    program: PathBuf,
    hash: u64,
}

impl Build {
    /// Builds the command and copies it, so that all parts run the same program even if the sources change.
    fn new(out: &Path) -> Result<Self, String> {
        let mut build = cargo(&["build", "--release", "--package", "dirigible-cli"]);
        Step::new("build", &mut build).run()?;
        let built = target().join(format!("release/dirigible{EXE_SUFFIX}"));
        let program = std::path::absolute(out.join(format!("dirigible{EXE_SUFFIX}")))
            .map_err(|error| format!("no such place: {error}"))?;
        let wrong = |error: std::io::Error| format!("{}: {error}", built.display());
        // A running program cannot be overwritten, but it can be replaced.
        let copy = program.with_extension("new");
        fs::copy(&built, &copy).map_err(wrong)?;
        fs::rename(&copy, &program).map_err(wrong)?;
        let hash = hash(&fs::read(&program).map_err(wrong)?);
        Ok(Self { program, hash })
    }

    /// What identifies a run of a part: the build and the flags.
    fn stamp(&self, part: &Part) -> String {
        format!("{:016x} {}\n", self.hash, part.flags())
    }
}

/// FNV-1a, which does not depend on the version of the standard library.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The figures of a part.
struct Figures(Value);

impl Figures {
    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        let figures = Self(report["columns"][0].clone());
        // A file that is not a report must not count as one without faults.
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

    /// Figures that must be 0 and are not, and events that must have happened and have not.
    fn faults(&self, part: &Part) -> Vec<String> {
        let wrong = MUST_BE_NONE
            .iter()
            .filter(|(pointer, _)| self.number(pointer) != Some(0))
            .map(|(pointer, what)| format!("{what}: {}", self.text(pointer)));
        let mut faults: Vec<String> = wrong.collect();
        let happened = |pointer| self.number(pointer).is_some_and(|number| number > 0);
        for (pointer, what) in MUST_HAPPEN {
            if !happened(pointer) {
                faults.push(what.into());
            }
        }
        if part.deflates {
            // It need not have been full: memory may run out before.
            if !happened("/oom_deflated") {
                faults.push("the balloon never gave anything back".into());
            }
            return faults;
        }
        let most = self.0.pointer("/balloon_max_mib").and_then(Value::as_f64);
        let wanted = part.balloon_mib();
        if most.is_none_or(|most| most < wanted as f64) {
            let most = most.map_or_else(|| "?".into(), |most| most.to_string());
            faults.push(format!(
                "the balloon was never full: {most} of {wanted} MiB"
            ));
        }
        faults
    }

    /// A note on what is no fault but worth attention.
    fn note(&self) -> Option<String> {
        let longest = "/stalls/base/max_ns";
        (self.number(longest)? > LONG_NS).then(|| {
            let most = LONG_NS / 1_000_000;
            format!(
                "a base request stalled for {} ms, more than {most}",
                self.ms(longest)
            )
        })
    }

    fn row(&self, name: &str) -> String {
        let cells = [
            self.text("/stalls/base/count"),
            self.ms("/stalls/base/p999_ns"),
            self.ms("/stalls/base/max_ns"),
            self.text("/stalls/base/failed"),
            self.text("/stalls/huge/count"),
            self.ms("/stalls/huge/p999_ns"),
            self.ms("/stalls/huge/max_ns"),
            self.text("/balloon_frames_moved"),
            self.text("/oom_deflated"),
        ];
        let none = MUST_BE_NONE.iter().map(|(pointer, _)| self.text(pointer));
        let cells: Vec<String> = cells.into_iter().chain(none).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    }
}

const MUST_BE_NONE: [(&str, &str); 3] = [
    ("/stalls/min_failed", "starved by compaction at min"),
    ("/content_errors", "content errors"),
    ("/device_errors", "device errors"),
];

/// If one of these did not happen, the part has tested nothing.
const MUST_HAPPEN: [(&str, &str); 3] = [
    ("/stalls/base/count", "no base request stalled"),
    ("/balloon_frames_moved", "no frame of the balloon was moved"),
    ("/vmstat/compact_block_emptied", "no block was emptied"),
];

const HEAD: &str = "\
| part | base stalls | 99.9 %, ms | longest, ms | failed | huge stalls | 99.9 %, ms | longest, ms | balloon frames moved | deflated | starved by compaction at min | content errors | device errors |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// Runs the parts that are missing and prints the figures of all of them.
///
/// # Errors
///
/// Parts that failed (wrong contents, counters or books), figures that must be 0 and are not, and parts that have
/// tested nothing.
pub fn run(words: &[&str]) -> Result<(), String> {
    let plan = Plan::parse(words)?;
    fs::create_dir_all(&plan.out)
        .map_err(|error| format!("cannot make {}: {error}", plan.out.display()))?;
    let build = Build::new(&plan.out)?;
    let (mut table, mut notes, mut faults) = (String::from(HEAD), String::new(), Vec::new());
    for part in plan.parts() {
        let name = part.name();
        match part.run(&plan, &build) {
            Ok(figures) => {
                table += &figures.row(&name);
                if let Some(note) = figures.note() {
                    notes += &format!("{name}: {note}\n");
                }
                let found = figures.faults(&part).into_iter();
                faults.extend(found.map(|what| format!("{name}: {what}")));
            }
            Err(why) => faults.push(why),
        }
    }
    println!("\n{table}\n{notes}");
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults.join("\n       ")),
    }
}

/// The shortest soak, always run again.
///
/// # Errors
///
/// As [`run`].
pub fn smoke() -> Result<(), String> {
    let out = target().join("soak/smoke");
    let out = out.to_str().ok_or("the target folder has no name")?;
    let flags = "--fresh --seconds 10 --columns steered --answer-ms 1 --out";
    run(&flags.split(' ').chain([out]).collect::<Vec<_>>())
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
                "steered-held-answer-0ms-180s",
                "steered-held-answer-1ms-180s",
                "steered-held-answer-20ms-180s",
                "movable-held-answer-0ms-180s",
                "movable-held-answer-1ms-180s",
                "movable-held-answer-20ms-180s",
                "steered-held-answer-20ms-180s-oom",
            ]
        );
        let words = "--schedule held,cycle --columns movable --answer-ms 5 --seconds 20";
        assert_eq!(
            names(&words.split(' ').collect::<Vec<_>>()).unwrap(),
            [
                "movable-held-answer-5ms-20s",
                "movable-cycle-answer-5ms-20s",
                "movable-held-answer-5ms-20s-oom",
            ]
        );
        for words in [
            &["--seconds"][..],
            &["--seconds", "9"],
            &["--seconds", "3601"],
            &["--seconds", "x"],
            &["--answer-ms", "1,"],
            &["--answer-ms", "1001"],
            &["--schedule", "up"],
            &["--columns", "pinned"],
            &["--fast", "1"],
        ] {
            assert!(names(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn another_build_or_other_flags_make_another_stamp() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        let build = |hash| Build {
            program: PathBuf::new(),
            hash,
        };
        let parts = Plan::parse(&[]).unwrap().parts();
        let mut stamps: Vec<String> = parts.iter().map(|part| build(1).stamp(part)).collect();
        stamps.push(build(2).stamp(&parts[0]));
        let all = stamps.len();
        stamps.sort();
        stamps.dedup();
        assert_eq!(stamps.len(), all);
        assert!(stamps.iter().all(|stamp| stamp.contains("--seed 1 ")));
        assert_eq!(build(1).stamp(&parts[0]), build(1).stamp(&parts[0]));
    }

    #[test]
    fn a_report_is_taken_only_for_the_build_and_flags_that_made_it() {
        let out = std::env::temp_dir().join(format!("dirigible-soak-{}", std::process::id()));
        fs::create_dir_all(&out).unwrap();
        let plan = Plan {
            out: out.clone(),
            ..Plan::parse(&[]).unwrap()
        };
        // The program does not exist, so a part that is run fails.
        let build = |hash| Build {
            program: out.join("none"),
            hash,
        };
        let part = plan.parts()[0];
        let json = out.join(format!("{}.json", part.name()));
        let report = r#"{ "columns": [{ "stalls": { "min_failed": 0 } }] }"#;
        let keep = |stamp: Option<String>| {
            fs::write(&json, report).unwrap();
            let place = json.with_extension("stamp");
            match stamp {
                Some(stamp) => fs::write(place, stamp).unwrap(),
                None => drop(fs::remove_file(place)),
            }
        };
        keep(Some(build(1).stamp(&part)));
        assert!(part.run(&plan, &build(1)).is_ok());
        assert!(part.run(&plan, &build(2)).is_err());
        assert!(!json.exists(), "it stands for nothing any more");
        for stamp in [None, Some(build(1).stamp(&plan.parts()[1]))] {
            keep(stamp);
            assert!(part.run(&plan, &build(1)).is_err());
        }
        fs::remove_dir_all(out).unwrap();
    }

    #[test]
    fn an_hour_is_virtual_time_under_both_schedules() {
        let plan = Plan::parse(&["--hour", "--columns", "steered"]).unwrap();
        let parts = plan.parts();
        let names: Vec<String> = parts.iter().map(Part::name).collect();
        assert_eq!(names, ["steered-held-hour", "steered-cycle-hour"]);
        for (part, (schedule, scale)) in parts.iter().zip([("held", 3), ("cycle", 6)]) {
            let flags = part.flags();
            let wanted = format!(
                "--time-scale {scale} --balloon 256M --step 64M --columns steered --schedule {schedule}"
            );
            assert!(
                flags.ends_with(&wanted) && !flags.contains("--threads"),
                "{flags}"
            );
        }
        for flag in ["--seconds", "--answer-ms", "--schedule"] {
            let refusal = Plan::parse(&["--hour", flag, "20"]).unwrap_err();
            assert!(refusal.contains(flag), "{refusal}");
        }
    }

    fn part(deflates: bool) -> Part {
        Part {
            deflates,
            hour: false,
            ..Plan::parse(&[]).unwrap().parts()[0]
        }
    }

    fn figures() -> Value {
        serde_json::json!({
            "stalls": {
                "min_failed": 0,
                "base": { "count": 3, "failed": 1, "max_ns": 1_500_000 },
            },
            "vmstat": { "compact_block_emptied": 1 },
            "balloon_frames_moved": 7,
            "balloon_max_mib": 256.0,
            "oom_deflated": 0,
            "content_errors": 0,
            "device_errors": 0,
        })
    }

    #[test]
    fn faults_are_reported_and_missing_figures_are_faults() {
        let good = Figures(figures());
        assert_eq!(good.faults(&part(false)), [""; 0]);
        let row = "| x | 3 | ? | 1.500 | 1 | ? | ? | ? | 7 | 0 | 0 | 0 | 0 |\n";
        assert_eq!(good.row("x"), row);
        let columns = |line: &str| line.matches('|').count();
        assert!(HEAD.lines().all(|line| columns(line) == columns(row)));
        let mut bad = Figures(figures());
        bad.0["stalls"]["min_failed"] = 2.into();
        bad.0["content_errors"] = 1.into();
        assert_eq!(
            bad.faults(&part(false)),
            ["starved by compaction at min: 2", "content errors: 1"]
        );
        assert_eq!(Figures(Value::Null).faults(&part(false)).len(), 7);
    }

    #[test]
    fn a_part_in_which_nothing_happened_is_a_fault() {
        for pointer in [
            "/stalls/base/count",
            "/balloon_frames_moved",
            "/vmstat/compact_block_emptied",
            "/balloon_max_mib",
        ] {
            let mut empty = Figures(figures());
            *empty.0.pointer_mut(pointer).unwrap() = 0.into();
            assert_eq!(empty.faults(&part(false)).len(), 1, "{pointer}");
        }
        assert_eq!(
            Figures(figures()).faults(&part(true)),
            ["the balloon never gave anything back"]
        );
    }

    #[test]
    fn a_long_stall_is_noted_and_no_fault() {
        let mut figures = Figures(figures());
        assert_eq!(figures.note(), None);
        figures.0["stalls"]["base"]["max_ns"] = (LONG_NS + 1).into();
        let note = "a base request stalled for 250.000 ms, more than 250";
        assert_eq!(figures.note().as_deref(), Some(note));
        assert_eq!(figures.faults(&part(false)), [""; 0]);
    }
}
