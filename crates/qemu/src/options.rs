//! Options of the machine, and the machine that was found.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    find::{self, FindError, Version},
    limits::Limits,
};

/// What runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// QEMU's translator: works everywhere, and is about ten times slower than the hardware.
    Tcg,
    /// The hardware, through `/dev/kvm`.
    Kvm,
}

impl Accel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Tcg, Self::Kvm];

    /// The name on QEMU's command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// QEMU's machine type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineType {
    /// A PC with PCI express.
    Q35,
    /// The smallest machine that has PCI.
    Microvm,
}

impl MachineType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Q35, Self::Microvm];

    /// The name on QEMU's command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }
}

/// Options of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QemuOptions {
    /// QEMU: a path, or a name to look for on the PATH.
    pub program: PathBuf,
    /// The guest kernel; `None` for the one that `cargo xtask guest` builds.
    pub guest: Option<PathBuf>,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// QEMU's machine type.
    pub machine: MachineType,
    /// All time limits are multiplied by this many thousandths.
    pub patience: u64,
}

/// The name of QEMU's program where none is given.
pub const PROGRAM: &str = "qemu-system-x86_64";

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            program: PROGRAM.into(),
            guest: None,
            accel: Accel::Tcg,
            machine: MachineType::Q35,
            patience: 1000,
        }
    }
}

impl QemuOptions {
    /// Finds QEMU and the guest kernel.
    ///
    /// # Errors
    ///
    /// Names what is missing, too old or unusable, and what to do about it.
    pub fn resolve(&self) -> Result<QemuMachine, FindError> {
        let limits = Limits::new(self.patience);
        let (program, version) = find::qemu(&self.program, limits.answer)?;
        let guest = find::guest(self.guest.as_deref())?;
        if self.accel == Accel::Kvm {
            find::kvm()?;
        }
        Ok(QemuMachine {
            program,
            version,
            guest,
            accel: self.accel,
            machine: self.machine,
            patience: self.patience,
        })
    }
}

/// A QEMU and a guest kernel that were found. It can be sent to another process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QemuMachine {
    /// QEMU's program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// The guest kernel.
    pub guest: PathBuf,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// QEMU's machine type.
    pub machine: MachineType,
    /// All time limits are multiplied by this many thousandths.
    pub patience: u64,
}

impl QemuMachine {
    pub(crate) fn limits(&self) -> Limits {
        Limits::new(self.patience)
    }

    /// One line for people and reports: version, accelerator, machine type.
    pub fn describe(&self) -> String {
        let (version, accel) = (&self.version, self.accel.name());
        format!("QEMU {version}, {accel}, {}", self.machine.name())
    }
}
