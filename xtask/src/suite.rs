//! `cargo xtask test`: everything that a change must pass.

use std::{fs, path::PathBuf, process::Stdio, time::Instant};

use crate::{
    calls, no_std, pitfalls, qemu, rust_version, soak,
    step::{Step, cargo, root, seconds, target, timed},
    totals::{Totals, tests},
};

/// Runs all steps, the cheapest first, and ends with a closing line that sums up all tests. If a step fails, the others
/// still run, so that one run reports all failures.
///
/// # Errors
///
/// The steps that failed.
pub fn run(quick: bool) -> Result<(), String> {
    let started = Instant::now();
    let mut failures = Vec::new();
    let mut total = Totals::default();
    let mut note = |result: Result<(), String>| failures.extend(result.err());
    note(Step::new("format", &mut cargo(&["fmt", "--all", "--check"])).run());
    note(timed("pitfalls", pitfalls::check));
    note(timed("calls", calls::check));
    note(timed("no_std", no_std::check));
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    note(Step::new("clippy", &mut cargo(&clippy)).run());
    let docs = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    note(Step::new("docs", cargo(&docs).env("RUSTDOCFLAGS", "-D warnings")).run());
    note(deny());
    note(rust_version::check());
    if !quick {
        note(timed("model checks", || model_checks(&mut total)));
        note(smoke());
        note(soak::smoke());
    }
    if !quick {
        qemu::suite(&mut total, &mut note);
    }
    // On its own: with the features of the whole workspace the stacks from the heap and their canary are not compiled.
    let mut stacks = cargo(&["test", "--package", "dirigible-stacks", "--no-fail-fast"]);
    note(timed("tests of the stacks", || {
        tests(&mut stacks, &mut total)
    }));
    let mut all = cargo(&["test", "--workspace", "--no-fail-fast"]);
    note(timed("tests", || tests(&mut all, &mut total)));
    let elapsed = started.elapsed();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    println!(
        "{} of the steps failed, {} in all\n",
        failures.len(),
        seconds(elapsed)
    );
    println!("{}", total.closing_line(failures.is_empty(), elapsed));
    match failures.is_empty() {
        true => Ok(()),
        false => Err(format!("{} steps failed", failures.len())),
    }
}

/// Licences, bans and sources, if cargo-deny is installed. It runs offline, without the advisories.
fn deny() -> Result<(), String> {
    let installed = cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        println!("==> deny: skipped, cargo-deny is not installed");
        return Ok(());
    }
    let checks = ["deny", "--offline", "check", "bans", "licenses", "sources"];
    Step::new("deny", &mut cargo(&checks)).run()
}

/// The tests that need `--cfg shuttle`. They have a target folder of their own, because the flag rebuilds everything.
fn model_checks(total: &mut Totals) -> Result<(), String> {
    for (folder, test) in model_checked()? {
        let manifest = folder.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
        let mut command = cargo(&["test", "--test", &test, "--manifest-path"]);
        command.arg(&manifest);
        if has_shuttle_feature(&text) {
            command.args(["--features", "shuttle"]);
        }
        command
            .env("RUSTFLAGS", "--cfg shuttle")
            .env("CARGO_TARGET_DIR", target().join("shuttle"));
        tests(&mut command, total)?;
    }
    Ok(())
}

/// The crates and names of the tests whose names begin with `shuttle`.
fn model_checked() -> Result<Vec<(PathBuf, String)>, String> {
    let mut found = Vec::new();
    let crates = root().join("crates");
    let folders = fs::read_dir(&crates)
        .map_err(|error| format!("cannot read {}: {error}", crates.display()))?;
    for folder in folders.filter_map(Result::ok).map(|entry| entry.path()) {
        let Ok(tests) = fs::read_dir(folder.join("tests")) else {
            continue;
        };
        for test in tests.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = test.file_stem().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| name.starts_with("shuttle")) else {
                continue;
            };
            if test.extension().is_some_and(|extension| extension == "rs") {
                found.push((folder.clone(), name.to_string()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a manifest has a feature `shuttle`, explicit or through an optional dependency.
fn has_shuttle_feature(manifest: &str) -> bool {
    manifest.lines().any(|line| {
        line.starts_with("shuttle = [")
            || (line.starts_with("shuttle = {") && line.contains("optional = true"))
    })
}

/// A small run of the command, started as a user starts it.
fn smoke() -> Result<(), String> {
    let run = "run --release --quiet -- stress-highalloc --memory 256M --balloon 64M --step 16M --profile quick";
    Step::new(
        "a run of the command",
        &mut cargo(&run.split(' ').collect::<Vec<_>>()),
    )
    .run()
}
