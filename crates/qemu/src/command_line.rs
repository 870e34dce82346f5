//! QEMU's command line.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use dirigible_workload::protocol::APPARATUS;

use crate::options::{Accel, MachineType, QemuMachine};

/// The name of QEMU's control socket in the private directory.
pub(crate) const SOCKET: &str = "qmp.sock";
/// The name of the disk's file there.
pub(crate) const DISK: &str = "disk.img";
/// RAM comes in whole MiB.
const MIB: u64 = 1 << 20;

/// What a task needs of its machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Memory of the experiment in bytes; the apparatus comes on top.
    pub memory: u64,
    /// CPUs.
    pub cpus: u64,
    /// Whether all memory is touched before the guest starts, so that it is resident on the host.
    pub touched: bool,
    /// Whether there is a control socket.
    pub control: bool,
    /// The size of the disk in bytes; 0: there is none.
    ///
    /// It is a sparse file in the private directory. Nothing of it outlives the run, so QEMU leaves it in the host's
    /// page cache and never waits for the host's disk (`cache=unsafe`).
    pub disk_bytes: u64,
    /// Whether the host backs RAM by its base pages alone.
    ///
    /// QEMU asks for huge pages. Then one frame that the guest touches in 2 MiB that the balloon has given back makes
    /// all of them resident again: what the balloon holds could not be compared with what is resident.
    pub base_pages: bool,
}

impl Shape {
    /// RAM of the virtual machine in bytes.
    pub(crate) const fn ram(&self) -> u64 {
        (self.memory + APPARATUS).next_multiple_of(MIB)
    }
}

/// The arguments for a machine of `shape` that does `task`, its files in `folder`.
pub(crate) fn arguments(
    machine: &QemuMachine,
    shape: &Shape,
    task: &str,
    folder: &Path,
) -> Vec<OsString> {
    let ram = shape.ram() / MIB;
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: &str| {
        arguments.push(option.into());
        if !value.is_empty() {
            arguments.push(value.into());
        }
    };
    let kind = match machine.machine {
        MachineType::Q35 => "q35",
        MachineType::Microvm => "microvm,pcie=on",
    };
    add("-M", &format!("{kind},memory-backend=ram"));
    match machine.accel {
        Accel::Tcg => {
            add("-accel", "tcg,thread=multi");
            add("-cpu", "max");
        }
        Accel::Kvm => {
            add("-accel", "kvm");
            add("-cpu", "host,-arch-capabilities");
        }
    }
    add("-smp", &shape.cpus.to_string());
    add("-m", &format!("{ram}M"));
    let touched = match shape.touched {
        true => ",prealloc=on,prealloc-threads=2",
        false => "",
    };
    add(
        "-object",
        &format!("memory-backend-ram,id=ram,size={ram}M{touched}"),
    );
    for option in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        add(option, "");
    }
    add("-display", "none");
    add("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04");
    add("-chardev", "stdio,id=s0,signal=off");
    add("-serial", "chardev:s0");
    add(
        "-device",
        "virtio-balloon-pci,id=b0,disable-legacy=on,deflate-on-oom=on",
    );
    if shape.disk_bytes > 0 {
        // One queue, which the driver uses. Its size is the default of 256: a request takes one entry, as its
        // descriptors are indirect.
        add(
            "-device",
            "virtio-blk-pci,drive=d0,disable-legacy=on,num-queues=1",
        );
        arguments.push("-drive".into());
        arguments.push(with_path(
            "if=none,id=d0,format=raw,cache=unsafe,file=",
            &folder.join(DISK),
            "",
        ));
    }
    if shape.control {
        arguments.push("-qmp".into());
        let socket = folder.join(SOCKET);
        arguments.push(with_path("unix:", &socket, ",server=on,wait=off"));
    }
    arguments.extend(["-kernel".into(), machine.guest.clone().into_os_string()]);
    arguments.extend(["-append".into(), task.into()]);
    arguments
}

/// An option with a path in it: a comma in the path is doubled, since a single one ends it.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::OLDEST_QEMU;

    fn line(accel: Accel, kind: MachineType, shape: &Shape) -> String {
        let machine = QemuMachine {
            program: "qemu".into(),
            version: OLDEST_QEMU,
            guest: "/the/kernel".into(),
            accel,
            machine: kind,
            patience: 1000,
        };
        let words = arguments(&machine, shape, "{\"a\":1}", Path::new("/tmp/a,b"));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_column_has_its_memory_touched_and_a_control_socket() {
        let shape = Shape {
            memory: 1 << 30,
            cpus: 2,
            touched: true,
            control: true,
            disk_bytes: 0,
            base_pages: false,
        };
        let line = line(Accel::Tcg, MachineType::Q35, &shape);
        for part in [
            "-M q35,memory-backend=ram -accel tcg,thread=multi -cpu max -smp 2 -m 1088M",
            "memory-backend-ram,id=ram,size=1088M,prealloc=on,prealloc-threads=2",
            "-qmp unix:/tmp/a,,b/qmp.sock,server=on,wait=off",
            "virtio-balloon-pci,id=b0,disable-legacy=on,deflate-on-oom=on",
            "-kernel /the/kernel -append {\"a\":1}",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-drive"), "{line}");
    }

    #[test]
    fn the_tests_have_a_disk() {
        let shape = Shape {
            memory: (256 << 20) + 4096,
            cpus: 1,
            touched: false,
            control: false,
            disk_bytes: 16 << 20,
            base_pages: false,
        };
        let line = line(Accel::Kvm, MachineType::Microvm, &shape);
        for part in [
            "-M microvm,pcie=on,memory-backend=ram -accel kvm -cpu host,-arch-capabilities",
            "size=321M -nodefaults",
            "-device virtio-blk-pci,drive=d0,disable-legacy=on,num-queues=1",
            "-drive if=none,id=d0,format=raw,cache=unsafe,file=/tmp/a,,b/disk.img",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(
            !line.contains("-qmp") && !line.contains("prealloc"),
            "{line}"
        );
    }
}
