//! `balloon-speed`: how fast a balloon grows and shrinks.

use dirigible_qemu::{DEFAULT_CPUS, SpeedParams, SpeedReport, SpeedRound};
use serde_json::{Value, json};

use crate::{
    args::Machine,
    failure::Failure,
    json_file::JsonFile,
    plan::{self, Host},
    print,
    qemu_args::BalloonSpeed,
    summary::{Spread, spread},
};

/// Measures and prints.
///
/// # Errors
///
/// Flags that cannot be used, no QEMU, no kernel, a guest that fails, a balloon whose memory the host does not have.
pub fn run(args: &BalloonSpeed) -> Result<(), Failure> {
    check(args, &Host::probe()).map_err(Failure::Usage)?;
    let json = args.json.as_deref().map(JsonFile::open).transpose();
    let mut json = json.map_err(Failure::Usage)?;
    let machine = args.qemu.find()?;
    let params = SpeedParams {
        memory: args.memory.0,
        balloon: args.balloon.0,
        batch: args.batch,
        rounds: args.rounds,
        cpus: DEFAULT_CPUS,
    };
    let to_stderr = json.as_ref().is_some_and(JsonFile::is_stdout);
    let head = format!(
        "balloon-speed: guest {}, balloon {}, {} frames a message; {}\n",
        args.memory,
        args.balloon,
        args.batch,
        machine.describe()
    );
    print::whole(&head, to_stderr)?;
    let mut number = 0;
    let report = dirigible_qemu::balloon_speed(&machine, &params, &mut |round| {
        number += 1;
        // If standard output is closed, the last print returns the error.
        let _ = print::whole(&round_line(number, round), to_stderr);
    })
    .map_err(|error| Failure::Run(error.to_string()))?;
    print::whole(&summary_lines(&report), to_stderr)?;
    match &mut json {
        Some(file) => file.write_text(serde_json::to_string_pretty(&json_of(&report))),
        None => Ok(()),
    }
}

fn check(args: &BalloonSpeed, host: &Host) -> Result<(), String> {
    plan::check_sizes(args.memory, args.balloon, Machine::Qemu, host)?;
    match args.balloon.0 {
        0 => Err("--balloon 0: there is nothing to measure".into()),
        _ => Ok(()),
    }
}

fn round_line(number: u64, round: &SpeedRound) -> String {
    format!(
        "round {number}: inflated in {:.1} ms, {:.1} MiB resident; deflated in {:.1} ms, {} frames came back as zeroes; {:.1} MiB \
         resident\n",
        round.inflate_ms,
        round.resident_full_mib,
        round.deflate_ms,
        round.zero_frames,
        round.resident_after_mib
    )
}

type Rate = fn(&SpeedReport) -> Vec<f64>;
/// The rates: the name in JSON, the name in the table, the figures.
const RATES: [(&str, &str, Rate); 4] = [
    (
        "fresh_inflate_mib_per_s",
        "inflate, memory that nobody has touched",
        |report| rates(&report.fresh_rounds, |round| round.inflate_mib_per_s),
    ),
    (
        "fresh_deflate_mib_per_s",
        "deflate, memory that nobody has touched",
        |report| rates(&report.fresh_rounds, |round| round.deflate_mib_per_s),
    ),
    ("inflate_mib_per_s", "inflate, memory in use", |report| {
        rates(&report.rounds, |round| round.inflate_mib_per_s)
    }),
    ("deflate_mib_per_s", "deflate, memory in use", |report| {
        rates(&report.rounds, |round| round.deflate_mib_per_s)
    }),
];

fn rates<R>(rounds: &[R], of: fn(&R) -> f64) -> Vec<f64> {
    rounds.iter().map(of).collect()
}

fn summary_lines(report: &SpeedReport) -> String {
    let line = |(_, what, of): (&str, &str, Rate)| {
        let Spread { median, min, max } = spread(&of(report))?;
        Some(format!(
            "{what:<40} median {median:.0} MiB/s [{min:.0}-{max:.0}]\n"
        ))
    };
    RATES.into_iter().filter_map(line).collect()
}

/// The report with the spread of its rates.
fn json_of(report: &SpeedReport) -> Value {
    let mut value = json!(report);
    if let Value::Object(fields) = &mut value {
        for (name, _, of) in RATES {
            if let Some(Spread { median, min, max }) = spread(&of(report)) {
                let spread = json!({ "median": median, "min": min, "max": max });
                fields.insert(name.into(), spread);
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use dirigible_qemu::FreshRound;

    use super::*;

    fn report() -> SpeedReport {
        let round = |inflate_mib_per_s| SpeedRound {
            inflate_ms: 100.0,
            inflate_mib_per_s,
            resident_full_mib: 1088.0,
            deflate_ms: 50.0,
            deflate_mib_per_s: 2000.0,
            zero_frames: 262_144,
            resident_after_mib: 2112.0,
        };
        SpeedReport {
            host: "Linux, QEMU".into(),
            cpus: 2,
            memory_bytes: 2 << 30,
            balloon_bytes: 1 << 30,
            batch: 256,
            fresh_rounds: vec![FreshRound {
                inflate_ms: 100.0,
                inflate_mib_per_s: 3000.0,
                deflate_ms: 50.0,
                deflate_mib_per_s: 4000.0,
            }],
            resident_mib: 2112.0,
            rounds: [900.0, 1200.0, 1000.0].map(round).to_vec(),
        }
    }

    #[test]
    fn medians_and_ranges() {
        insta::assert_snapshot!(summary_lines(&report()), @r"
        inflate, memory that nobody has touched  median 3000 MiB/s [3000-3000]
        deflate, memory that nobody has touched  median 4000 MiB/s [4000-4000]
        inflate, memory in use                   median 1000 MiB/s [900-1200]
        deflate, memory in use                   median 2000 MiB/s [2000-2000]
        ");
        let json = json_of(&report());
        assert_eq!(json["inflate_mib_per_s"]["median"], 1000.0);
        assert_eq!(json["rounds"].as_array().map(Vec::len), Some(3));
        assert!(round_line(1, &report().rounds[0]).contains("262144 frames came back as zeroes"));
    }

    #[test]
    fn every_field_is_documented() {
        let document = include_str!("../../../docs/qemu.md");
        let json = json_of(&report());
        let rounds = json["rounds"][0].as_object().unwrap();
        for key in json.as_object().unwrap().keys().chain(rounds.keys()) {
            assert!(document.contains(&format!("`{key}`")), "{key}");
        }
    }
}
