//! The lowest Rust version that the manifests promise, tried where it is installed.

use std::{fs, process::Command};

use crate::step::{Step, root, target};

/// What is checked: the whole workspace, and the guest's kernel, which is built for another target.
const CHECKED: [(&str, &[&str]); 2] = [
    ("rust-version", &["--workspace"]),
    (
        "rust-version of the guest",
        &[
            "--package",
            "dirigible-guest",
            "--profile",
            "kernel",
            "--config",
            ".cargo/guest.toml",
        ],
    ),
];

/// Checks the whole workspace, and the guest's kernel, with the version that the workspace's manifest names, in a
/// target folder of its own.
///
/// # Errors
///
/// The manifest names none, or what it names does not compile the workspace.
pub fn check() -> Result<(), String> {
    let manifest = root().join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
    let version = promised(&text).ok_or("Cargo.toml names no rust-version")?;
    let Some(toolchain) = installed(version) else {
        println!(
            "==> rust-version: skipped, Rust {version} is not installed (rustup toolchain install {version})"
        );
        return Ok(());
    };
    CHECKED.iter().try_for_each(|(name, what)| {
        let mut command = Command::new("rustup");
        command
            .args(["run", &toolchain, "cargo", "check", "--quiet"])
            .args(*what)
            .current_dir(root())
            // Set by the cargo that started us, for its own version.
            .env_remove("CARGO")
            .env_remove("RUSTC")
            .env_remove("RUSTUP_TOOLCHAIN")
            // Not by the environment: the guest's configuration would go first.
            .arg("--target-dir")
            .arg(target().join("rust-version"));
        Step::new(name, &mut command).run()
    })
}

/// The version in a workspace's manifest.
fn promised(manifest: &str) -> Option<&str> {
    let mut lines = manifest.lines();
    lines.find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
}

/// The toolchain of that version, if there is one.
fn installed(version: &str) -> Option<String> {
    let output = Command::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .ok()?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names
        .map(str::to_owned)
        .find(|name| is_version(name, version))
}

/// Whether a toolchain's name (`1.88.0-x86_64-…`) is that of a version (`1.88`).
fn is_version(toolchain: &str, version: &str) -> bool {
    let rest = toolchain.strip_prefix(version);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-') || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_promise_is_found() {
        let manifest = "[workspace.package]\nedition = \"2024\"\nrust-version = \"1.88\"\n";
        assert_eq!(promised(manifest), Some("1.88"));
        assert_eq!(promised("rust-version.workspace = true\n"), None);
    }

    #[test]
    fn a_toolchain_is_of_a_version_or_not() {
        assert!(is_version("1.88.0-x86_64-unknown-linux-gnu", "1.88"));
        assert!(is_version("1.88-x86_64-unknown-linux-gnu", "1.88"));
        assert!(!is_version("1.880.0-x86_64-unknown-linux-gnu", "1.88"));
        assert!(!is_version("stable-x86_64-unknown-linux-gnu", "1.88"));
    }
}
