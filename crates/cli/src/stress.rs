//! `stress-highalloc`: from flags to table and JSON.

use std::time::Instant;

use dirigible_workload::{
    attainable::set_attainable,
    params::Params,
    report::{ColumnRun, HostReport, Report, SCHEMA},
};
use serde_json::{Map, Value};

use crate::{
    args::{Machine, StressHighalloc},
    checks,
    children::run_all,
    failure::Failure,
    json_file::JsonFile,
    plan::{self, ChildTask, Host, Place, RunPlan},
    print,
    progress::Bars,
    screen, show, summary,
};

/// Runs the experiment.
///
/// # Errors
///
/// Flags that no run can use, a column that failed, a result with faults.
pub fn run(args: &StressHighalloc) -> Result<(), Failure> {
    let started = Instant::now();
    let host = Host::probe();
    let params = plan::check(args, &host).map_err(Failure::Usage)?;
    let mut json = match &args.json {
        Some(path) => Some(JsonFile::open(path).map_err(Failure::Usage)?),
        None => None,
    };
    let place = match args.machine {
        Machine::Hosted => Place::Hosted,
        Machine::Qemu => Place::Qemu(args.qemu.find()?),
    };
    let at_once = plan::at_once(args.jobs, &params, args.machine, &host);
    let plan = RunPlan { params, place };
    let tasks = tasks(args, &plan);
    let outputs = {
        let mut bars = Bars::new(&tasks);
        run_all(&tasks, at_once, |news| bars.update(news))?
    };
    let mut reports = assemble(args, &tasks, &outputs)?;
    for report in &mut reports {
        match &mut report.host {
            host if args.no_host => *host = None,
            Some(host) => host.wall_ms = started.elapsed().as_millis() as u64,
            None => {}
        }
    }
    let headline = plan.headline(args.runs);
    let text = match args.full {
        true => show::text(&headline, &reports),
        false => screen::text(&headline, &reports),
    };
    let stdout_taken = json.as_ref().is_some_and(JsonFile::is_stdout);
    print::whole(&text, stdout_taken)?;
    if let Some(file) = &mut json {
        file.write_text(json_text(&reports))?;
    }
    let faults: Vec<String> = reports.iter().flat_map(checks::faults).collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::Run(format!(
            "the result cannot be trusted: {}",
            faults.join("; ")
        ))),
    }
}

/// What the children do: seed after seed, the columns.
fn tasks(args: &StressHighalloc, plan: &RunPlan) -> Vec<ChildTask> {
    let of_seed = |run: u64| {
        let params = Params {
            seed: plan.params.seed + run,
            ..plan.params.clone()
        };
        args.columns.iter().map(move |&column| ChildTask {
            params: params.clone(),
            column,
            place: plan.place.clone(),
        })
    };
    (0..args.runs).flat_map(of_seed).collect()
}

/// One report for each seed, from what the children printed.
fn assemble(
    args: &StressHighalloc,
    tasks: &[ChildTask],
    outputs: &[Vec<u8>],
) -> Result<Vec<Report>, Failure> {
    let columns = args.columns.len().max(1);
    let seeds = tasks.chunks(columns).zip(outputs.chunks(columns));
    let of_tasks = |(tasks, outputs): (&[ChildTask], &[Vec<u8>])| {
        let read = |(task, output): (&ChildTask, &Vec<u8>)| -> Result<ColumnRun, Failure> {
            serde_json::from_slice(output).map_err(|error| {
                let name = task.name();
                Failure::Run(format!("{name}: its report cannot be read: {error}"))
            })
        };
        let runs: Vec<ColumnRun> = tasks
            .iter()
            .zip(outputs)
            .map(read)
            .collect::<Result<_, _>>()?;
        let mut report = of_seed(args.machine, &tasks[0].params, runs);
        set_attainable(&report.parameters, &mut report.columns).map_err(Failure::Run)?;
        Ok(report)
    };
    seeds.map(of_tasks).collect()
}

fn of_seed(machine: Machine, params: &Params, runs: Vec<ColumnRun>) -> Report {
    let facts = runs.first().map(|run| run.facts.clone());
    let (columns, hosts) = runs.into_iter().map(|run| (run.report, run.host)).unzip();
    Report {
        schema: SCHEMA,
        machine: machine.name().into(),
        parameters: params.clone(),
        columns,
        host: facts.map(|facts| HostReport {
            facts,
            wall_ms: 0,
            columns: hosts,
        }),
    }
}

/// The JSON report: one run as it is, several under `runs` with their `summary`.
pub fn json_text(reports: &[Report]) -> serde_json::Result<String> {
    if let [report] = reports {
        return serde_json::to_string_pretty(report);
    }
    let values: Vec<Value> = reports
        .iter()
        .map(serde_json::to_value)
        .collect::<serde_json::Result<_>>()?;
    let mut whole = Map::new();
    for key in ["schema", "machine", "parameters"] {
        if let Some(of_first) = values.first().and_then(|run| run.get(key)) {
            whole.insert(key.into(), of_first.clone());
        }
    }
    let mut folded = Map::new();
    for key in ["columns", "host"] {
        let parts: Vec<&Value> = values.iter().filter_map(|run| run.get(key)).collect();
        if !parts.is_empty() {
            folded.insert(key.into(), summary::of_values(&parts));
        }
    }
    whole.insert("summary".into(), Value::Object(folded));
    whole.insert("runs".into(), Value::Array(values));
    serde_json::to_string_pretty(&Value::Object(whole))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dirigible_workload::report::{ColumnHost, ColumnReport};

    use super::*;
    use crate::fixture;

    fn plan() -> RunPlan {
        let host = Host {
            memory: u64::MAX,
            available: u64::MAX,
            cpus: 2,
        };
        RunPlan {
            params: plan::check(&args(), &host).unwrap(),
            place: Place::Hosted,
        }
    }

    fn args() -> StressHighalloc {
        use clap::Parser;
        let cli = crate::args::Cli::parse_from(["dirigible", "stress-highalloc", "--runs", "2"]);
        match cli.command {
            crate::args::Command::StressHighalloc(args) => *args,
            _ => panic!("another command"),
        }
    }

    fn keys(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    found.insert(key.clone());
                    if key != "vmstat" {
                        keys(value, found);
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_field_is_documented() {
        let document = include_str!("../../../docs/json.md");
        let mut found = BTreeSet::new();
        keys(
            &serde_json::to_value(fixture::report(1)).unwrap(),
            &mut found,
        );
        let missing: Vec<_> = found
            .iter()
            .filter(|key| !document.contains(&format!("`{key}`")))
            .collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn one_run_is_the_schemas_object() {
        let text = json_text(&[fixture::report(1)]).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        assert!(read == fixture::report(1));
        let start = "{\n  \"schema\": 3,\n  \"machine\": \"hosted\",\n  \"parameters\": {\n    \"profile\": \"paper\",";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn several_runs_have_a_summary() {
        let text = json_text(&[fixture::report(1), fixture::report(3)]).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["runs"].as_array().map(Vec::len), Some(2));
        assert_eq!(value["runs"][1]["parameters"]["seed"], 3);
        let spread = &value["summary"]["columns"][0]["passes"][0]["allocated"];
        assert_eq!(
            *spread,
            serde_json::json!({"median": 902, "min": 901, "max": 903})
        );
        assert_eq!(value["summary"]["columns"][2]["policy"]["deflate"], "heal");
    }

    #[test]
    fn a_run_has_its_columns() {
        let tasks = tasks(&args(), &plan());
        let names: Vec<_> = tasks
            .iter()
            .map(|task| (task.params.seed, task.name()))
            .collect();
        let of = |seed| [(seed, "pinned"), (seed, "movable"), (seed, "steered")];
        assert_eq!(names, [of(1), of(2)].concat());
    }

    #[test]
    fn reports_are_put_together_from_what_children_print() {
        let tasks = &tasks(&args(), &plan())[..3];
        let report = fixture::report(1);
        let hosts = report.host.clone().unwrap();
        let run = |column: &ColumnReport, host: &ColumnHost| {
            let run = ColumnRun {
                report: column.clone(),
                host: host.clone(),
                facts: hosts.facts.clone(),
            };
            serde_json::to_vec(&run).unwrap()
        };
        let mut outputs: Vec<Vec<u8>> = Vec::new();
        for (column, host) in report.columns.iter().zip(&hosts.columns) {
            outputs.push(run(column, host));
        }
        let mut expected = report.clone();
        expected.host.as_mut().unwrap().wall_ms = 0;
        assert!(assemble(&args(), tasks, &outputs).unwrap() == [expected]);

        // A column with other targets cannot be compared.
        let mut column = report.columns[1].clone();
        column.targets_hash = "other".into();
        outputs[1] = run(&column, &hosts.columns[1]);
        let error = assemble(&args(), tasks, &outputs).unwrap_err().to_string();
        assert!(error.contains("targets differ"), "{error}");
        outputs[1] = b"{}".to_vec();
        let error = assemble(&args(), tasks, &outputs).unwrap_err().to_string();
        assert!(
            error.contains("movable: its report cannot be read"),
            "{error}"
        );
    }
}
