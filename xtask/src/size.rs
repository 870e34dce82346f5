//! How much code the crates add to a kernel: the guest's, as it is released.

mod names;
mod symbols;
mod table;

use std::{path::PathBuf, process::Stdio};

use crate::{qemu, step::root};
use names::CRATES;
use symbols::Function;

/// Bytes of text that the crates should have together, in a kernel that uses each generic type with one size.
const AIM: u64 = 110_000;
/// What they must not exceed: what they have reached, with a little room. It comes down with them.
const LIMIT: u64 = 200_000;

/// What is asked for.
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

/// Builds the guest kernel and tells the sizes.
///
/// # Errors
///
/// It does not compile, cannot be read, or the limit is exceeded.
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
    tell(&options)
}

/// Tells the sizes of a guest kernel that is built already.
///
/// # Errors
///
/// As [`run`].
pub fn check() -> Result<(), String> {
    tell(&Options::default())
}

fn tell(options: &Options) -> Result<(), String> {
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
    judge(&functions)
}

/// Demands that there is code of every crate, so that a name that is not understood does not pass for none, and not too much.
fn judge(functions: &[Function]) -> Result<(), String> {
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

/// Where the kernel is built: in the folder that `.cargo/guest.toml` names, unless the environment names one.
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
    fn too_much_is_refused_and_so_is_nothing() {
        let kernel = |bytes| {
            CRATES.map(|name| Function {
                demangled: String::new(),
                name: Name::of(&format!("dirigible_{name}::work")),
                bytes,
            })
        };
        assert_eq!(judge(&kernel(LIMIT / 3)), Ok(()));
        assert!(judge(&kernel(LIMIT / 3 + 1)).is_err());
        assert!(judge(&kernel(LIMIT)[..2]).is_err());
        assert!(judge(&[]).is_err());
    }
}
