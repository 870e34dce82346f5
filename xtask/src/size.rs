//! How much code the crates add to a kernel, measured in the release build of the guest's.

mod names;
mod symbols;
mod table;

use std::{path::PathBuf, process::Stdio};

use crate::{qemu, step::root};
use names::CRATES;
use symbols::Function;

/// Bytes of text that the crates together should have at most, in a kernel that uses each generic type with one size.
const AIM: u64 = 110_000;
/// The limit: the present size with a small margin. It is lowered as the size falls.
const LIMIT: u64 = 200_000;

/// The options of a call.
#[derive(PartialEq, Eq, Default, Debug)]
struct Options {
    json: bool,
    functions: usize,
}

impl Options {
    fn of(words: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--json" => options.json = true,
                "--functions" => {
                    let count = words.next().and_then(|count| count.parse().ok());
                    options.functions = count.ok_or("--functions wants a number")?;
                }
                _ => return Err(format!("size has no option {word}")),
            }
        }
        Ok(options)
    }
}

/// Builds the guest kernel and prints the sizes.
///
/// # Errors
///
/// The kernel does not compile or cannot be read, or the limit is exceeded.
pub fn run(words: &[&str]) -> Result<(), String> {
    let options = Options::of(words)?;
    let mut build = qemu::guest_build();
    let status = build
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {build:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the guest does not compile: {build:?}"));
    }
    print(&options)
}

/// Prints the sizes of a guest kernel that is built already.
///
/// # Errors
///
/// As [`run`].
pub fn check() -> Result<(), String> {
    print(&Options::default())
}

fn print(options: &Options) -> Result<(), String> {
    let functions = symbols::functions(&kernel())?;
    if options.json {
        println!(
            "{:#}",
            table::json(&functions, [AIM, LIMIT], options.functions)
        );
    } else {
        print!(
            "{}",
            table::text(&functions, [AIM, LIMIT], options.functions)
        );
    }
    check_sizes(&functions)
}

/// Checks that the sizes do not exceed the limit, and that each crate has code: if names were misread, it would seem to
/// have none.
fn check_sizes(functions: &[Function]) -> Result<(), String> {
    let shares = table::shares(functions);
    for (name, share) in CRATES.iter().zip(&shares) {
        if share.bytes == 0 {
            return Err(format!("the kernel has no function of {name}"));
        }
    }
    let bytes = table::sum(&shares).one_size;
    match bytes <= LIMIT {
        true => Ok(()),
        false => Err(format!(
            "the crates have {bytes} bytes of text, the limit is {LIMIT}; `cargo xtask size --functions 20` shows the largest, \
             docs/size.md how they are kept small"
        )),
    }
}

/// The path of the kernel: in the target directory of the environment, else in that of `.cargo/guest.toml`.
fn kernel() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target/guest"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/kernel/dirigible-guest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use names::Name;

    #[test]
    fn options() {
        let all = Options {
            json: true,
            functions: 20,
        };
        assert_eq!(Options::of(&["--json", "--functions", "20"]), Ok(all));
        assert_eq!(Options::of(&[]), Ok(Options::default()));
        assert!(Options::of(&["--functions"]).is_err());
        assert!(Options::of(&["--functions", "many"]).is_err());
        assert!(Options::of(&["--jsn"]).is_err());
    }

    #[test]
    fn sizes_above_the_limit_and_missing_crates_are_refused() {
        let kernel = |bytes| {
            CRATES.map(|name| Function {
                demangled: String::new(),
                name: Name::of(&format!("dirigible_{name}::work")),
                bytes,
            })
        };
        assert_eq!(check_sizes(&kernel(LIMIT / 3)), Ok(()));
        assert!(check_sizes(&kernel(LIMIT / 3 + 1)).is_err());
        assert!(check_sizes(&kernel(LIMIT)[..2]).is_err());
        assert!(check_sizes(&[]).is_err());
    }
}
