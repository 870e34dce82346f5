//! Flags of the machine `qemu`, and of the commands that need it.

use std::path::PathBuf;

use clap::Args;
use dirigible_qemu::{Accel, MachineType, QemuMachine, QemuOptions};

use crate::{
    failure::Failure,
    names,
    units::{Scale, Size, seed},
};

const HEADING: &str = "The machine `qemu`";

/// Flags of the machine `qemu`. They have no default values here, so that a flag that is given for another machine can
/// be refused.
#[derive(Args, Clone, Debug, Default)]
pub struct QemuFlags {
    /// What runs the guest's instructions: QEMU's translator or the hardware; tcg by default
    #[arg(long, value_parser = names::accel(), help_heading = HEADING)]
    pub accel: Option<Accel>,
    /// QEMU, version 7.0 or later: a path, or a name on the PATH; qemu-system-x86_64 by default
    #[arg(long, value_name = "PATH", help_heading = HEADING)]
    pub qemu: Option<PathBuf>,
    /// The guest kernel; by default the one that `cargo xtask guest` has built
    #[arg(long, value_name = "ELF", help_heading = HEADING)]
    pub guest: Option<PathBuf>,
    /// QEMU's machine type; q35 by default
    #[arg(long, value_parser = names::machine_type(), help_heading = HEADING)]
    pub qemu_machine: Option<MachineType>,
    /// Multiplies all time limits, for a slow host; 1 by default
    #[arg(long, value_name = "FACTOR", help_heading = HEADING)]
    pub patience: Option<Scale>,
}

impl QemuFlags {
    /// The first flag that is given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            (self.accel.is_some(), "--accel"),
            (self.qemu.is_some(), "--qemu"),
            (self.guest.is_some(), "--guest"),
            (self.qemu_machine.is_some(), "--qemu-machine"),
            (self.patience.is_some(), "--patience"),
        ];
        given
            .iter()
            .find(|(given, _)| *given)
            .map(|&(_, flag)| flag)
    }

    /// Finds QEMU and the guest kernel.
    ///
    /// # Errors
    ///
    /// Names what is missing and what to do about it.
    pub fn find(&self) -> Result<QemuMachine, Failure> {
        let usual = QemuOptions::default();
        let options = QemuOptions {
            program: self.qemu.clone().unwrap_or(usual.program),
            guest: self.guest.clone(),
            accel: self.accel.unwrap_or(usual.accel),
            machine: self.qemu_machine.unwrap_or(usual.machine),
            patience: self
                .patience
                .map_or(usual.patience, |patience| patience.thousandths.into()),
        };
        let found = options.resolve();
        found.map_err(|error| Failure::Run(error.to_string()))
    }
}

/// Flags of `guest-hello`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dirigible guest-hello
      Boots the guest kernel with QEMU's translator.
  dirigible guest-hello --accel kvm --qemu-machine microvm
      The same on the hardware, with the machine type microvm.")]
pub struct GuestHello {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub qemu: QemuFlags,
}

/// Flags of `guest-test`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dirigible guest-test
      Runs all of the guest's tests in a virtual machine.
  dirigible guest-test balloon
      Those whose names contain `balloon`.")]
pub struct GuestTest {
    /// Runs only the tests whose names contain this
    #[arg(value_name = "FILTER", default_value = "", hide_default_value = true)]
    pub filter: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub qemu: QemuFlags,
}

/// Flags of `balloon-speed`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dirigible balloon-speed
      1 GiB into the balloon and out of it, three times, in a guest of 2 GiB.
  dirigible balloon-speed --batch 1
      One frame in each message, to compare with batches.
  dirigible balloon-speed --accel kvm --rounds 10 --json speed.json
      On the hardware, ten rounds, all figures in the file.")]
pub struct BalloonSpeed {
    /// Memory of the guest (suffix K, M, G or T)
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "2G"
    )]
    pub memory: Size,
    /// Size of the full balloon
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "1G"
    )]
    pub balloon: Size,
    /// The most frames in one message to the host; Linux sends 256, dirigible at most 4096
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub batch: u64,
    /// How often the balloon grows and shrinks
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub rounds: u64,
    /// Writes everything to FILE as JSON, `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub qemu: QemuFlags,
}

/// Flags of `balloon-moves`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dirigible balloon-moves
      A balloon of 256 MiB, each of its frames moved three times under load.
  dirigible balloon-moves --moves 20 --accel kvm
      Longer, on the hardware.

Exit status: 0 when every frame was moved and nothing was wrong, 1 otherwise, 2 when the command line is wrong.")]
pub struct BalloonMoves {
    /// How often every frame of the full balloon is moved
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub moves: u64,
    /// Memory of the guest (suffix K, M, G or T)
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "1G"
    )]
    pub memory: Size,
    /// Size of the balloon at its fullest
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "256M"
    )]
    pub balloon: Size,
    /// What one step of the schedule adds to the balloon or takes from it
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "64M"
    )]
    pub step: Size,
    /// Multiplies the lengths of the run's phases
    #[arg(long, value_name = "FACTOR", default_value = "0.5")]
    pub time_scale: Scale,
    /// Seed of the load
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true, value_parser = seed)]
    pub seed: u64,
    /// CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = dirigible_qemu::DEFAULT_CPUS, value_parser = clap::value_parser!(u64).range(1..=dirigible_qemu::MAX_CPUS))]
    pub threads: u64,
    /// Writes the column's report to FILE as JSON, `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub qemu: QemuFlags,
}
