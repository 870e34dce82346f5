//! Values of flags that are one of a few names: the names belong to the enumerations, the help texts stand here.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use dirigible_qemu::{Accel, MachineType};
use dirigible_workload::params::{Column, Feature, InflatePlacement, Profile, Schedule};

/// A parser of the names of `all`.
fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
    help: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let values = all
        .iter()
        .map(|&value| PossibleValue::new(name(value)).help(help(value)));
    PossibleValuesParser::new(values).try_map(move |text| {
        let found = all.iter().copied().find(|&value| name(value) == text);
        found.ok_or("no such name")
    })
}

/// `--schedule`.
pub fn schedule() -> impl TypedValueParser<Value = Schedule> {
    one_of(&Schedule::ALL, Schedule::name, |schedule| match schedule {
        Schedule::Cycle => {
            "Up and down for ever, a step each period, the phase drawn from the seed; emptied before the rested pass"
        }
        Schedule::Held => "Up, down and up before pass 1, then full to the end",
    })
}

/// `--profile`.
pub fn profile() -> impl TypedValueParser<Value = Profile> {
    one_of(&Profile::ALL, Profile::name, |profile| match profile {
        Profile::Paper => {
            "stress-highalloc: five minutes of warm-up, three passes with an attempt each 125 ms, on the virtual clock"
        }
        Profile::Quick => {
            "The compressed schedule of the Linux peer: hugetlb and THP tests, seconds in place of minutes"
        }
    })
}

/// `--columns`.
pub fn column() -> impl TypedValueParser<Value = Column> {
    one_of(&Column::ALL, Column::name, |column| match column {
        Column::Pinned => "Balloon pages cannot be moved",
        Column::Movable => "Balloon pages can be moved, nothing else differs from `pinned`",
        Column::Steered => "Everything on: what a user of dirigible gets",
        Column::Smaller => {
            "`steered` in a guest that never had the balloon's memory; only with --schedule held"
        }
    })
}

/// `--inflate`.
pub fn inflate() -> impl TypedValueParser<Value = InflatePlacement> {
    one_of(
        &InflatePlacement::ALL,
        InflatePlacement::name,
        |inflate| match inflate {
            InflatePlacement::FillHoles => {
                "From the blocks that are used or spoilt already: the guest keeps its huge pages"
            }
            InflatePlacement::WholeBlocks => {
                "Whole free blocks first: the host keeps its huge pages"
            }
        },
    )
}

/// `--without`.
pub fn feature() -> impl TypedValueParser<Value = Feature> {
    one_of(&Feature::ALL, Feature::name, |feature| match feature {
        Feature::Joint => {
            "The joint decision of reclaim and compaction: cold pages of a block are moved like others"
        }
        Feature::Placement => {
            "Placement: movable requests and the balloon go where they go in `movable`"
        }
        Feature::Reserve => "The reserve of whole free blocks",
    })
}

/// `--accel`.
pub fn accel() -> impl TypedValueParser<Value = Accel> {
    one_of(&Accel::ALL, Accel::name, |accel| match accel {
        Accel::Tcg => "QEMU's translator: works everywhere",
        Accel::Kvm => "The hardware, through /dev/kvm",
    })
}

/// `--qemu-machine`.
pub fn machine_type() -> impl TypedValueParser<Value = MachineType> {
    one_of(
        &MachineType::ALL,
        MachineType::name,
        |machine| match machine {
            MachineType::Q35 => "A PC",
            MachineType::Microvm => "The smallest machine with PCI",
        },
    )
}
