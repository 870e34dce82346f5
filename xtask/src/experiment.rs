//! `cargo xtask experiment`: all figures of docs/experiment.md, in one folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    step::{Step, cargo, root, target, timed},
    verdict,
};

/// One cell of the matrix: a name, and the flags of `stress-highalloc`.
struct Cell {
    name: &'static str,
    flags: &'static str,
    /// Whether it runs with all seeds, or with the number of seeds of a variant.
    main: bool,
}

const fn main_cell(name: &'static str, flags: &'static str) -> Cell {
    Cell {
        name,
        flags,
        main: true,
    }
}

const fn variant(name: &'static str, flags: &'static str) -> Cell {
    Cell {
        name,
        flags,
        main: false,
    }
}

const MATRIX: &[Cell] = &[
    main_cell("cycle", "--schedule cycle"),
    main_cell("held", "--schedule held"),
    variant("no-balloon", "--balloon 0"),
    variant("cycle-load-0.7", "--schedule cycle --load-scale 0.7"),
    variant("held-load-0.7", "--schedule held --load-scale 0.7"),
    variant("cycle-watermark-4", "--schedule cycle --watermark-scale 4"),
    variant("held-watermark-4", "--schedule held --watermark-scale 4"),
    variant("cycle-disk-0.1", "--schedule cycle --disk-speed 0.1"),
    variant("held-disk-0.1", "--schedule held --disk-speed 0.1"),
    variant("cycle-disk-10", "--schedule cycle --disk-speed 10"),
    variant("held-disk-10", "--schedule held --disk-speed 10"),
    variant(
        "cycle-whole-blocks",
        "--schedule cycle --inflate whole-blocks",
    ),
    variant(
        "held-whole-blocks",
        "--schedule held --inflate whole-blocks",
    ),
    variant("quick-cycle", "--profile quick --schedule cycle"),
    variant("quick-held", "--profile quick --schedule held"),
];

/// The options of a call.
struct Plan {
    runs: u64,
    variant_runs: u64,
    out: PathBuf,
    only: Vec<String>,
}

impl Plan {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut plan = Self {
            runs: 10,
            variant_runs: 3,
            out: target().join("experiment"),
            only: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(flag) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || {
                value
                    .parse()
                    .ok()
                    .filter(|&n| n > 0)
                    .ok_or(format!("{flag} {value}: no number"))
            };
            match *flag {
                "--runs" => plan.runs = number()?,
                "--variant-runs" => plan.variant_runs = number()?,
                "--out" => plan.out = PathBuf::from(value),
                "--only" if MATRIX.iter().any(|cell| cell.name == *value) => {
                    plan.only.push(value.to_string());
                }
                "--only" => {
                    let names: Vec<&str> = MATRIX.iter().map(|cell| cell.name).collect();
                    return Err(format!("--only {value}: one of {}", names.join(", ")));
                }
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(plan)
    }
}

/// Runs the cells of the matrix that are missing, and writes the verdict.
///
/// # Errors
///
/// The first cell that failed.
pub fn run(words: &[&str]) -> Result<(), String> {
    let plan = Plan::parse(words)?;
    fs::create_dir_all(&plan.out)
        .map_err(|error| format!("cannot make {}: {error}", plan.out.display()))?;
    Step::new(
        "build",
        &mut cargo(&["build", "--release", "--package", "dirigible-cli"]),
    )
    .run()?;
    for cell in MATRIX {
        if plan.only.is_empty() || plan.only.iter().any(|name| name == cell.name) {
            run_cell(cell, &plan)?;
        }
    }
    let text = verdict::of_folder(&plan.out)?;
    println!("{text}");
    let path = plan.out.join("verdict.md");
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn run_cell(cell: &Cell, plan: &Plan) -> Result<(), String> {
    let (json, table) = (path(plan, cell, "json"), path(plan, cell, "txt"));
    if json.exists() {
        println!("==> {}: there already ({})", cell.name, json.display());
        return Ok(());
    }
    let runs = if cell.main {
        plan.runs
    } else {
        plan.variant_runs
    };
    let failed =
        |what: &str, error: std::io::Error| format!("{}: cannot {what}: {error}", cell.name);
    timed(cell.name, || {
        let output = fs::File::create(&table).map_err(|error| failed("write its table", error))?;
        let mut command = Command::new(target().join("release/dirigible"));
        command
            .arg("stress-highalloc")
            .args(cell.flags.split(' '))
            .args(["--runs", &runs.to_string(), "--json"])
            .arg(absolute(&json))
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(output);
        let status = command.status().map_err(|error| failed("run", error))?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("{} failed ({status}): {command:?}", cell.name)),
        }
    })
}

fn path(plan: &Plan, cell: &Cell, extension: &str) -> PathBuf {
    plan.out.join(format!("{}.{extension}", cell.name))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
