//! `balloon-moves`: moves every frame of a full balloon under load.

use dirigible_workload::{
    params::{Column, Params, Profile},
    report::ColumnRun,
};

use crate::{
    args::Machine,
    checks,
    failure::Failure,
    json_file::JsonFile,
    plan::{self, Host, Place, RunPlan},
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
    let params = check(args, &Host::probe()).map_err(Failure::Usage)?;
    let json = args.json.as_deref().map(JsonFile::open).transpose();
    let mut json = json.map_err(Failure::Usage)?;
    let qemu = args.qemu.find()?;
    let run = {
        let mut bar = OneBar::new(Column::Steered.name());
        dirigible_qemu::run_column(Column::Steered, &params, &qemu, args.moves, &mut bar)
            .map_err(|error| Failure::Run(error.to_string()))?
    };
    let plan = RunPlan {
        params,
        place: Place::Qemu(qemu),
    };
    let text = format!("{}\n{}", plan.headline(1), text(&run));
    print::whole(&text, json.as_ref().is_some_and(JsonFile::is_stdout))?;
    if let Some(file) = &mut json {
        file.write_text(serde_json::to_string_pretty(&run))?;
    }
    let faults = faults(args, &run);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::Run(faults.join("; "))),
    }
}

fn check(args: &BalloonMoves, host: &Host) -> Result<Params, String> {
    plan::check_sizes(args.memory, args.balloon, Machine::Qemu, host)?;
    plan::check_step(args.step, args.balloon)?;
    if args.balloon.0 == 0 {
        return Err("--balloon 0: there is nothing to move".into());
    }
    let params = Params {
        memory: args.memory.0,
        balloon: args.balloon.0,
        step: args.step.0,
        seed: args.seed,
        // At most `MAX_CPUS`.
        threads: args.threads as usize,
        time_scale: args.time_scale.thousandths,
        ..Params::new(Profile::Quick)
    };
    params.check().map_err(|error| error.to_string())?;
    Ok(params)
}

fn text(run: &ColumnRun) -> String {
    let (report, residency) = (&run.report, &run.host.residency);
    format!(
        "every frame moved, times       {}\n\
         balloon frames moved           {}\n\
         host messages for them         {}\n\
         host messages per frame        {}\n\
         content errors                 {}\n\
         pages checked whole            {}\n\
         resident, balloon empty, MiB   {}\n\
         resident, balloon full, MiB    {}\n  \
           in the balloon then          {}\n",
        report.balloon_rounds,
        report.balloon_frames_moved,
        report.host_messages,
        report.messages_per_frame_moved,
        report.content_errors,
        report.pages_checked,
        residency.empty_balloon_mib,
        residency.full_balloon_mib,
        residency.balloon_mib,
    )
}

/// What makes the run fail.
fn faults(args: &BalloonMoves, run: &ColumnRun) -> Vec<String> {
    let mut faults = checks::column_faults(&run.report);
    let rounds = run.report.balloon_rounds;
    if rounds < args.moves {
        faults.push(format!(
            "every frame was moved {rounds} times, not {}",
            args.moves
        ));
    }
    if run.host.residency.balloon_mib.value() == 0.0 {
        faults.push("the balloon was never full".into());
    }
    faults
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use dirigible_workload::report::Residency;

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
    fn flags_become_parameters() {
        let params = check(&args("--time-scale 0.25 --threads 3"), &HOST).unwrap();
        assert_eq!((params.memory, params.balloon), (1 << 30, 256 << 20));
        assert_eq!((params.time_scale, params.threads), (250, 3));
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
        let report = fixture::report(1);
        let host = report.host.unwrap();
        let mut run = ColumnRun {
            report: report.columns[2].clone(),
            host: host.columns[2].clone(),
            facts: host.facts,
        };
        run.report.balloon_rounds = 2;
        assert_eq!(faults(&args("--moves 2"), &run), [""; 0]);
        let found = faults(&args("--moves 3"), &run);
        assert_eq!(found, ["every frame was moved 2 times, not 3"]);
        run.host.residency = Residency::default();
        run.report.content_errors = 1;
        let found = faults(&args("--moves 1"), &run);
        assert_eq!(
            found,
            ["steered: 1 content errors", "the balloon was never full"]
        );
        let text = text(&run);
        assert!(text.contains("\ncontent errors                 1\n"));
        assert!(text.ends_with("\n  in the balloon then          0.0\n"));
    }
}
