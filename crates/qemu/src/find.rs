//! Finding QEMU and the guest kernel.

use std::{
    env, fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::process::Process;

/// The oldest QEMU that is known to work.
pub const OLDEST_QEMU: Version = Version {
    major: 7,
    minor: 0,
    micro: 0,
};
/// Where `cargo xtask guest` puts the kernel, in the workspace.
const GUEST: &str = "target/guest/x86_64-unknown-linux-gnu/kernel/dirigible-guest";
/// The most bytes that are read of a program's answer to `--version`.
const LONGEST_ANSWER: u64 = 4096;

/// A version of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third; 0 where there is none.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Why QEMU or the guest kernel cannot be used.
#[derive(Debug, Error)]
pub enum FindError {
    /// No such program.
    #[error(
        "no QEMU: {} {}; install the Debian package qemu-system-x86, or name a QEMU with --qemu", .program.display(),
        if .program.components().count() > 1 { "does not exist" } else { "is not on the PATH" }
    )]
    NoQemu {
        /// What was looked for.
        program: PathBuf,
    },
    /// The program cannot be run.
    #[error("QEMU cannot be run: {}: {error}", .program.display())]
    CannotRun {
        /// The program.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program does not print a version of QEMU.
    #[error("{} --version prints {answer:?}: that is not QEMU", .program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// The beginning of what it prints.
        answer: String,
    },
    /// The program is too old.
    #[error("{} is QEMU {found}: at least {} is needed", .program.display(), OLDEST_QEMU)]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: Version,
    },
    /// There is no guest kernel.
    #[error("no guest kernel at {}: build it with `cargo xtask guest`", .path.display())]
    NoGuest {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file is not a guest kernel.
    #[error("the guest kernel {}: {what}", .path.display())]
    BadGuest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// KVM cannot be used.
    #[error(
        "KVM cannot be used: /dev/kvm: {error}; check that KVM is enabled and that you may open it, or use --accel tcg"
    )]
    NoKvm {
        /// The host's error.
        error: io::Error,
    },
}

/// The path of QEMU and its version, if it can be used. It must print its version within `patience`.
pub(crate) fn qemu(program: &Path, patience: Duration) -> Result<(PathBuf, Version), FindError> {
    let found = on_path(program).ok_or_else(|| FindError::NoQemu {
        program: program.into(),
    })?;
    let answer = ask_version(&found, patience).map_err(|error| FindError::CannotRun {
        program: found.clone(),
        error,
    })?;
    let Some(version) = version_of(&answer) else {
        let first = answer.lines().next().unwrap_or_default();
        return Err(FindError::NoVersion {
            program: found,
            answer: first.chars().take(80).collect(),
        });
    };
    if version < OLDEST_QEMU {
        return Err(FindError::TooOld {
            program: found,
            found: version,
        });
    }
    Ok((found, version))
}

/// Where `program` is, as an absolute path: a child process may have another working directory one day.
fn on_path(program: &Path) -> Option<PathBuf> {
    let absolute = |path: &Path| std::path::absolute(path).ok().filter(|path| path.is_file());
    if program.components().count() > 1 || program.is_absolute() {
        return absolute(program);
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).find_map(|folder| absolute(&folder.join(program)))
}

fn ask_version(program: &Path, patience: Duration) -> io::Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    let (mut process, stdout) = Process::start(&mut command)?;
    if process.wait(patience).is_none() {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer to --version",
        ));
    }
    let mut answer = Vec::new();
    stdout.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The version in a text like `QEMU emulator version 7.2.22 (Debian …)`.
fn version_of(answer: &str) -> Option<Version> {
    let (_, rest) = answer.split_once("QEMU emulator version ")?;
    let number = rest
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    let mut parts = number.split('.').map(str::parse);
    Some(Version {
        major: parts.next()?.ok()?,
        minor: parts.next()?.ok()?,
        micro: parts.next().and_then(Result::ok).unwrap_or(0),
    })
}

/// The guest kernel: the file that was named, else the one that this workspace builds.
pub(crate) fn guest(named: Option<&Path>) -> Result<PathBuf, FindError> {
    let candidates = match named {
        Some(path) => vec![path.to_path_buf()],
        None => usual_places(),
    };
    let known = candidates.iter().find(|path| path.exists());
    let Some(path) = known else {
        return Err(FindError::NoGuest {
            path: candidates
                .into_iter()
                .next()
                .unwrap_or_else(|| GUEST.into()),
        });
    };
    let bad = |what: String| FindError::BadGuest {
        path: path.clone(),
        what,
    };
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    if magic != *b"\x7fELF" {
        return Err(bad("is no ELF file".into()));
    }
    fs::canonicalize(path).map_err(|error| bad(error.to_string()))
}

/// In the current directory's workspace, or in the one that this program was built in: `target/release/dirigible`.
fn usual_places() -> Vec<PathBuf> {
    let here = env::current_dir().unwrap_or_default();
    let this = env::current_exe().unwrap_or_default();
    let built = this
        .ancestors()
        .skip(1)
        .filter(|folder| folder.ends_with("target"));
    let roots = here.ancestors().chain(built.filter_map(Path::parent));
    let mut places: Vec<PathBuf> = roots.map(|root| root.join(GUEST)).collect();
    places.dedup();
    places
}

/// Whether `/dev/kvm` can be used.
pub(crate) fn kvm() -> Result<(), FindError> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.map(drop).map_err(|error| FindError::NoKvm { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version = |major, minor, micro| {
            Some(Version {
                major,
                minor,
                micro,
            })
        };
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)\n";
        assert_eq!(version_of(debian), version(7, 2, 22));
        assert_eq!(
            version_of("QEMU emulator version 10.1\n"),
            version(10, 1, 0)
        );
        assert_eq!(version_of("QEMU emulator version x\n"), None);
        assert_eq!(version_of("bash 5.2"), None);
        assert!(version(6, 2, 9) < Some(OLDEST_QEMU) && Some(OLDEST_QEMU) < version(10, 0, 0));
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let missing = |name: &str| {
            let error = qemu(Path::new(name), Duration::from_secs(5)).unwrap_err();
            error.to_string()
        };
        let text = missing("qemu-of-nobody");
        assert!(
            text.contains("not on the PATH") && text.contains("qemu-system-x86,"),
            "{text}"
        );
        let text = missing("/nowhere/qemu");
        assert!(text.contains("/nowhere/qemu does not exist"), "{text}");
        let text = missing("/bin/echo");
        assert!(text.contains("that is not QEMU"), "{text}");
        let text = missing("/proc/version");
        assert!(text.contains("cannot be run"), "{text}");
    }

    #[test]
    fn a_program_that_does_not_answer_is_given_up() {
        // `tail --version` answers; `yes --version` does, too; a shell that sleeps has to be asked through a file.
        let script = env::temp_dir().join(format!("dirigible-mute-{}", std::process::id()));
        fs::write(&script, "#!/bin/sh\nexec sleep 30\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&script, mode).unwrap();
        let error = qemu(&script, Duration::from_millis(200)).unwrap_err();
        fs::remove_file(&script).unwrap();
        // Another test's child may still have the file open for writing: then it is busy, and cannot be run either.
        assert!(error.to_string().contains("cannot be run"), "{error}");
    }

    #[test]
    fn a_kernel_that_is_none() {
        let error = guest(Some(Path::new("/nowhere/kernel"))).unwrap_err();
        let text = error.to_string();
        assert!(
            text == "no guest kernel at /nowhere/kernel: build it with `cargo xtask guest`",
            "{text}"
        );
        let error = guest(Some(Path::new("/etc/passwd"))).unwrap_err();
        assert!(error.to_string().contains("is no ELF file"), "{error}");
        let error = guest(Some(Path::new("/"))).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        assert!(guest(Some(Path::new("/proc/self/exe"))).is_ok());
    }
}
