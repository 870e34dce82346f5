//! Checks that the crates that run in kernels, and their dependencies, do without the standard library.

use std::{fs, process::Command};

use crate::step::{cargo, root};

/// The crates, by folder under `crates/`.
const CRATES: &[&str] = &[
    "prefetch",
    "stacks",
    "frames",
    "mobility",
    "balloon",
    "paging",
    "disk",
    "slab",
    "reclaim",
    "pagecache",
    "swap",
    "files",
    "dirigible",
    "workload",
];
/// A target without a standard library: what builds for it does not need one.
const BARE: &str = "x86_64-unknown-none";

/// Checks that each crate declares `no_std`. If the bare target is installed, builds the crates for it; otherwise
/// checks that no dependency has a feature called `std` enabled.
///
/// # Errors
///
/// The crate, and why it is not `no_std`.
pub fn check() -> Result<(), String> {
    for folder in CRATES {
        let path = root().join("crates").join(folder).join("src/lib.rs");
        let source = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let declared = source.lines().any(|line| {
            matches!(
                line.trim(),
                "#![no_std]" | "#![cfg_attr(not(test), no_std)]"
            )
        });
        if !declared {
            return Err(format!("{}: does not declare #![no_std]", path.display()));
        }
    }
    if bare_target_installed() {
        // The facade once more by itself: beside the load it has the feature `schedule`, which wants a heap.
        return bare(CRATES).and_then(|()| bare(&["dirigible"]));
    }
    println!("{BARE} is not installed (rustup target add {BARE}): checking features instead");
    CRATES
        .iter()
        .try_for_each(|folder| no_std_features(&package(folder)))
}

/// Checks the crates of these folders for the bare target, in one command.
fn bare(folders: &[&str]) -> Result<(), String> {
    let mut build = cargo(&["check", "--target", BARE, "--lib"]);
    for folder in folders {
        build.args(["--package", &package(folder)]);
    }
    let status = build
        .status()
        .map_err(|error| format!("cannot run {build:?}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("a crate needs the standard library: {build:?}")),
    }
}

/// The package of a folder under `crates/`.
fn package(folder: &str) -> String {
    match folder {
        "dirigible" => folder.to_string(),
        _ => format!("dirigible-{folder}"),
    }
}

fn bare_target_installed() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", BARE])
        .output();
    output.is_ok_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success() && fs::exists(path.trim()).unwrap_or(false)
    })
}

/// Checks that no dependency of `package` has a feature `std` enabled.
fn no_std_features(package: &str) -> Result<(), String> {
    let tree = [
        "tree",
        "--package",
        package,
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
    ];
    let output = cargo(&tree)
        .args(["--format", "{p}|{f}"])
        .output()
        .map_err(|error| format!("cannot run cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((dependency, features)) = line.split_once('|') else {
            continue;
        };
        if features
            .trim_end_matches(" (*)")
            .split(',')
            .any(|feature| feature == "std")
        {
            return Err(format!(
                "{package}: its dependency {dependency} has the feature std on"
            ));
        }
    }
    Ok(())
}
