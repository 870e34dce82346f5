//! The command end to end, on a guest small enough for a test.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use serde_json::Value;

/// A guest of a few blocks and a schedule of seconds.
const SMALL: &str = "stress-highalloc --memory 128M --step 8M --profile quick --time-scale 0.2";

fn run(flags: &str) -> (String, String) {
    let mut command = Command::cargo_bin("dirigible").expect("the command is built");
    let balloon = if flags.contains("--balloon") {
        ""
    } else {
        "--balloon 32M"
    };
    let words = [SMALL, balloon, flags]
        .into_iter()
        .flat_map(str::split_whitespace);
    let output = command.args(words).assert().success().get_output().clone();
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (text(output.stdout), text(output.stderr))
}

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("dirigible-{name}-{}.json", std::process::id()))
}

fn json(flags: &str, name: &str) -> (String, String) {
    let path = place(name);
    let (table, _) = run(&format!("{flags} --json {}", path.display()));
    let text = fs::read_to_string(&path).expect("the report was written");
    fs::remove_file(&path).expect("it can be removed");
    (table, text)
}

/// The same seed gives the same bytes, another seed other ones.
#[test]
fn pitfall_91_the_same_seed_gives_the_same_bytes() {
    let (table, first) = json("--no-host --seed 7", "first");
    let (again, second) = json("--no-host --seed 7", "second");
    assert!(first == second, "the reports differ");
    assert_eq!(table, again);
    let (_, other) = json("--no-host --seed 8", "other");
    assert!(first != other, "two seeds gave the same report");
}

#[test]
fn the_report_holds_what_the_table_shows() {
    let (table, text) = json("--full", "report");
    let report: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(report["schema"], 3);
    let columns = report["columns"].as_array().expect("there are columns");
    let names: Vec<_> = columns
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pinned", "movable", "steered"]);
    for column in columns {
        assert_eq!(column["content_errors"], 0);
        assert_eq!(column["device_errors"], 0);
        assert!(column["pages_checked"].as_u64() > Some(0));
        assert_eq!(column["passes"].as_array().map(Vec::len), Some(6));
        assert_eq!(column["targets_hash"], columns[0]["targets_hash"]);
        assert!(column["vmstat"]["pgalloc"].as_u64() > Some(0));
        for pass in column["passes"].as_array().unwrap() {
            let (asked, got) = (pass["asked"].as_u64(), pass["allocated"].as_u64());
            assert!(asked > Some(0) && got <= asked, "{pass}");
        }
    }
    for name in [
        "pinned",
        "movable",
        "steered",
        "Pass 1",
        "while Rested",
        "compact_stall",
        "Host:",
    ] {
        assert!(table.contains(name), "{name} is missing:\n{table}");
    }
    // The balloon's memory goes back to the host.
    for host in report["host"]["columns"]
        .as_array()
        .expect("the host was measured")
    {
        let mib = |key: &str| host["residency"][key].as_f64().unwrap();
        let fallen = mib("empty_balloon_mib") - mib("full_balloon_mib");
        let balloon = mib("balloon_mib");
        assert!(
            balloon > 0.0 && (fallen - balloon).abs() <= 0.02 * balloon,
            "{host}"
        );
    }
}

/// A result is shown with its spread over seeds.
#[test]
fn pitfall_93_several_runs_show_median_and_range() {
    let (table, text) = json("--runs 3 --columns movable,steered --no-host", "runs");
    let verdict = table.find("DISQUALIFIED").unwrap_or(table.len());
    assert!(table[..verdict].lines().count() <= 24, "{table}");
    assert!(table.contains("seeds 1 to 3"), "{table}");
    assert!(table.contains('['), "{table}");
    let report: Value = serde_json::from_str(&text).expect("it is JSON");
    let seeds: Vec<_> = report["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["parameters"]["seed"].as_u64())
        .collect();
    assert_eq!(seeds, [Some(1), Some(2), Some(3)]);
    let spread = &report["summary"]["columns"][0]["passes"][0]["allocated"];
    let of = |key: &str| spread[key].as_f64().unwrap();
    assert!(
        of("min") <= of("median") && of("median") <= of("max"),
        "{spread}"
    );
}

#[test]
fn json_on_standard_output_is_nothing_but_json() {
    let (stdout, stderr) = run("--columns steered --no-host --json -");
    serde_json::from_str::<Value>(&stdout).expect("standard output is JSON");
    assert!(stderr.contains("could be had"), "{stderr}");
}

/// Without a balloon there is nothing in which `pinned` and `movable` differ.
#[test]
fn pitfall_94_without_a_balloon_pinned_scores_what_movable_scores() {
    let (table, text) = json("--balloon 0 --columns pinned,movable --no-host", "control");
    assert!(table.contains("no balloon"), "{table}");
    assert!(!table.contains("DISQUALIFIED"), "{table}");
    let report: Value = serde_json::from_str(&text).expect("it is JSON");
    let passes = |column: usize| report["columns"][column]["passes"].as_array().unwrap();
    for (pinned, movable) in passes(0).iter().zip(passes(1)) {
        assert_eq!(
            pinned["allocated"], movable["allocated"],
            "{}",
            pinned["name"]
        );
    }
}
