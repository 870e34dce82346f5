//! `balloon-moves`: each frame of a full balloon, moved under load.

use dirigible_workload::report::ColumnReport;

use crate::{
    args::{Column, Machine, Placement, Profile, Schedule},
    checks,
    failure::Failure,
    json_file::JsonFile,
    machine,
    plan::{self, Host, Job, Plan},
    print,
    progress::OneBar,
    qemu_args::BalloonMoves,
};

/// Runs the column and prints what was moved.
///
/// # Errors
///
/// Flags that cannot be used, no QEMU, no kernel, a guest that fails, wrong contents, frames that were not moved.
pub fn run(args: &BalloonMoves) -> Result<(), Failure> {
    let mut plan = check(args, &Host::probe()).map_err(Failure::Usage)?;
    let json = args.json.as_deref().map(JsonFile::open).transpose();
    let mut json = json.map_err(Failure::Usage)?;
    let qemu = args.qemu.find()?;
    plan.qemu = Some(qemu.clone());
    let params = machine::params(&job(plan.clone()));
    let report = {
        let mut bar = OneBar::new(Column::Steered.name());
        dirigible_qemu::run_column(&params, &qemu, args.moves, &mut bar)
            .map_err(|error| Failure::Run(error.to_string()))?
    };
    let text = format!("{}\n{}", plan.headline(1), text(&report));
    print::whole(&text, json.as_ref().is_some_and(JsonFile::is_stdout))?;
    if let Some(file) = &mut json {
        file.write_text(serde_json::to_string_pretty(&report))?;
    }
    let faults = faults(args, &report);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::Run(faults.join("; "))),
    }
}

fn check(args: &BalloonMoves, host: &Host) -> Result<Plan, String> {
    plan::check_sizes(args.memory, args.balloon, Machine::Qemu, host)?;
    plan::check_step(args.step, args.balloon)?;
    if args.balloon.0 == 0 {
        return Err("--balloon 0: there is nothing to move".into());
    }
    let plan = Plan {
        memory: args.memory.0,
        balloon: args.balloon.0,
        step: args.step.0,
        period_ms: plan::default_period(Profile::Quick).ms,
        schedule: Schedule::Cycle,
        profile: Profile::Quick,
        seed: args.seed,
        machine: Machine::Qemu,
        placement: Placement::FillHoles,
        threads: args.threads,
        load_scale: 1000,
        watermark_scale: 1000,
        filler: true,
        time_scale: args.time_scale.thousandths,
        deflate_on_oom: false,
        host_answer_ms: 0,
        qemu: None,
    };
    let params = machine::params(&job(plan.clone()));
    params.check().map_err(|error| error.to_string())?;
    Ok(plan)
}

fn job(plan: Plan) -> Job {
    Job {
        plan,
        column: Some(Column::Steered),
    }
}

fn text(report: &ColumnReport) -> String {
    let residency = report.host.as_ref().map(|host| &host.residency);
    let residency = residency.map_or(String::new(), |residency| {
        format!(
            "resident, balloon empty, MiB   {}\nresident, balloon full, MiB    {}\n  in the balloon then          {}\n",
            residency.empty_balloon_mib, residency.full_balloon_mib, residency.balloon_mib
        )
    });
    format!(
        "every frame moved, times       {}\n\
         balloon frames moved           {}\n\
         host messages for them         {}\n\
         host messages per frame        {}\n\
         content errors                 {}\n\
         pages checked whole            {}\n\
         {residency}",
        report.balloon_rounds,
        report.balloon_frames_moved,
        report.host_messages,
        report.messages_per_frame_moved,
        report.content_errors,
        report.pages_checked,
    )
}

/// What must not be.
fn faults(args: &BalloonMoves, report: &ColumnReport) -> Vec<String> {
    let mut faults = checks::column_faults(report);
    if report.balloon_rounds < args.moves {
        faults.push(format!(
            "every frame was moved {} times, not {}",
            report.balloon_rounds, args.moves
        ));
    }
    let full = report.host.as_ref().map(|host| host.residency.balloon_mib);
    if full.is_none_or(|full| full.value() == 0.0) {
        faults.push("the balloon was never full".into());
    }
    faults
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        args::{Cli, Command},
        fixture,
    };

    const HOST: Host = Host {
        memory: 16 << 30,
        available: 9 << 30,
        cpus: 2,
    };

    fn args(flags: &str) -> BalloonMoves {
        let words = ["dirigible", "balloon-moves"].into_iter();
        match Cli::parse_from(words.chain(flags.split_whitespace())).command {
            Command::BalloonMoves(args) => *args,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn flags_become_a_plan() {
        let plan = check(&args("--time-scale 0.25 --threads 3"), &HOST).unwrap();
        assert_eq!((plan.memory, plan.balloon), (1 << 30, 256 << 20));
        assert_eq!((plan.time_scale, plan.threads), (250, 3));
        for (flags, refusal) in [
            ("--balloon 0", "--balloon 0: there is nothing to move"),
            ("--step 1G", "--step 1G: larger than the balloon"),
            (
                "--memory 128M --balloon 16M",
                "--memory 128M: a guest in QEMU needs",
            ),
            (
                "--memory 17G",
                "--memory 17G: larger than the host's memory",
            ),
        ] {
            let error = check(&args(flags), &HOST).unwrap_err();
            assert!(error.starts_with(refusal), "{error}");
        }
    }

    #[test]
    fn too_few_moves_are_a_fault() {
        let run = fixture::report(1);
        let mut report = run.columns[2].clone();
        report.host = run.host.map(|host| host.columns[2].clone());
        report.balloon_rounds = 2;
        assert_eq!(faults(&args("--moves 2"), &report), [""; 0]);
        let found = faults(&args("--moves 3"), &report);
        assert_eq!(found, ["every frame was moved 2 times, not 3"]);
        report.host = None;
        report.content_errors = 1;
        let found = faults(&args("--moves 1"), &report);
        assert_eq!(
            found,
            ["steered: 1 content errors", "the balloon was never full"]
        );
        assert!(text(&report).contains("content errors                 1\n"));
    }
}
