//! Linker arguments of the kernel. Without `--cfg guest` (set by `.cargo/guest.toml`) there is no kernel to link.

use std::{env, path::Path};

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&folder).join("kernel.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_CFG_GUEST").is_none() {
        return;
    }
    // The hosted target links through a C compiler, the bare target calls the linker directly.
    let through_cc = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if through_cc {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
    let prefix = if through_cc { "-Wl," } else { "" };
    let separator = if through_cc { ',' } else { '\n' };
    for argument in [
        "--build-id=none".to_string(),
        format!("-z{separator}norelro"),
        format!("-z{separator}max-page-size=4096"),
        format!("-T{separator}{}", script.display()),
    ] {
        for part in argument.split('\n') {
            println!("cargo::rustc-link-arg-bins={prefix}{part}");
        }
    }
}
