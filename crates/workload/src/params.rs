//! What a run is asked to do.

use alloc::vec::Vec;
use core::ops::Range;

use dirigible_frames::FRAME_SIZE;
use serde::{Deserialize, Serialize};

use dirigible::schedule::time::{MILLISECOND, SECOND};

mod error;

pub use error::ParamsError;

/// One run of the experiment: the same for all of its columns.
///
/// The command parses its flags into this, sends it to the guest as it is, and prints it in the report under
/// `parameters`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Length of the phases and kind of the tests.
    pub profile: Profile,
    /// Seed of the load and of the schedule's phase.
    pub seed: u64,
    /// Guest memory in bytes.
    #[serde(rename = "memory_bytes")]
    pub memory: u64,
    /// The balloon at its fullest, in bytes; 0 for none.
    #[serde(rename = "balloon_bytes")]
    pub balloon: u64,
    /// One step of the schedule, in bytes.
    #[serde(rename = "step_bytes")]
    pub step: u64,
    /// Time between two steps, in milliseconds.
    pub period_ms: u64,
    /// When the balloon moves.
    pub schedule: Schedule,
    /// Where the balloon takes its frames in column `steered`.
    pub inflate: InflatePlacement,
    /// What column `steered` does without.
    pub without: Vec<Feature>,
    /// The files' part of the guest's disk, in bytes; 0 for [`default_disk`].
    #[serde(rename = "disk_bytes")]
    pub disk: u64,
    /// Swap on the guest's disk, in bytes, behind the files; `None` for [`default_swap`].
    #[serde(rename = "swap_bytes")]
    pub swap: Option<u64>,
    /// The disk's speed is multiplied by this many thousandths: 100 is a disk ten times slower.
    #[serde(with = "factor")]
    pub disk_speed: u32,
    /// Threads of load; 0 is the deterministic mode. In a virtual machine, the guest's CPUs.
    pub threads: usize,
    /// The load is multiplied by this many thousandths.
    #[serde(with = "factor")]
    pub load_scale: u32,
    /// The watermarks are multiplied by this many thousandths.
    #[serde(with = "factor")]
    pub watermark_scale: u32,
    /// Warm-up, gaps, period and the time between two attempts are multiplied by this many thousandths; the load's pace
    /// is not. For tests: 1000 is the experiment.
    #[serde(with = "factor")]
    pub time_scale: u32,
    /// Whether the balloon deflates before a request of the guest fails: not in the experiment, where the schedule's
    /// target is the balloon's size.
    pub deflate_on_oom: bool,
    /// How long the balloon device takes for a request, in milliseconds, where the machine is its own host; 0: as long
    /// as the machine's host takes.
    pub host_answer_ms: u64,
}

/// Thousandths, printed as the number that they are: 700 is `0.7`.
mod factor {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        thousandths: &u32,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(*thousandths) / 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        // To the nearest; the cast saturates, and `check` refuses what is out of range.
        f64::deserialize(deserializer).map(|factor| (factor * 1000.0 + 0.5) as u32)
    }
}

impl Params {
    /// The experiment's defaults under `profile`.
    pub const fn new(profile: Profile) -> Self {
        Self {
            profile,
            seed: 1,
            memory: 4 << 30,
            balloon: 1 << 30,
            step: 256 << 20,
            period_ms: profile.period_ms(),
            schedule: Schedule::Cycle,
            inflate: InflatePlacement::FillHoles,
            without: Vec::new(),
            disk: 0,
            swap: None,
            disk_speed: 1000,
            threads: 0,
            load_scale: 1000,
            watermark_scale: 1000,
            time_scale: 1000,
            deflate_on_oom: false,
            host_answer_ms: 0,
        }
    }

    /// Guest memory in frames.
    pub const fn memory_frames(&self) -> u64 {
        self.memory / FRAME_SIZE as u64
    }

    /// The full balloon in frames.
    pub const fn balloon_frames(&self) -> u64 {
        self.balloon / FRAME_SIZE as u64
    }

    /// One step in frames.
    pub const fn step_frames(&self) -> u64 {
        self.step / FRAME_SIZE as u64
    }

    /// Swap in bytes.
    pub const fn swap_bytes(&self) -> u64 {
        match self.swap {
            None => default_swap(self.memory),
            Some(bytes) => bytes,
        }
    }

    /// The whole disk in bytes: files and swap.
    pub const fn device_bytes(&self) -> u64 {
        self.disk_bytes().saturating_add(self.swap_bytes())
    }

    /// The blocks of the disk that are swap.
    pub const fn swap_blocks(&self) -> Range<u64> {
        let frame = FRAME_SIZE as u64;
        self.disk_bytes() / frame..self.device_bytes() / frame
    }

    /// The part of the guest's disk that has files, in bytes.
    pub const fn disk_bytes(&self) -> u64 {
        match self.disk {
            0 => default_disk(self.memory, self.load_scale),
            bytes => bytes,
        }
    }

    /// Memory of the machine that `column` runs on, in bytes: the column `smaller` never had what the balloon holds in
    /// the others.
    pub const fn column_memory(&self, column: Column) -> u64 {
        match column {
            Column::Smaller => self.memory - self.balloon,
            Column::Pinned | Column::Movable | Column::Steered => self.memory,
        }
    }

    /// The balloon of `column` at its fullest, in frames.
    pub const fn column_balloon_frames(&self, column: Column) -> u64 {
        match column {
            Column::Smaller => 0,
            Column::Pinned | Column::Movable | Column::Steered => self.balloon_frames(),
        }
    }

    /// Time between two steps, in nanoseconds.
    pub const fn period(&self) -> u64 {
        self.period_ms.saturating_mul(MILLISECOND)
    }

    /// How long the balloon device takes for a request, in nanoseconds.
    pub const fn host_answer(&self) -> u64 {
        self.host_answer_ms.saturating_mul(MILLISECOND)
    }

    /// `duration` on this run's schedule.
    pub const fn scaled_time(&self, duration: u64) -> u64 {
        (duration as u128 * self.time_scale as u128 / 1000) as u64
    }

    /// Whether a run can be made of this.
    ///
    /// # Errors
    ///
    /// Says what is wrong with which parameter.
    pub fn check(&self) -> Result<(), ParamsError> {
        let frame = FRAME_SIZE as u64;
        for (name, bytes) in [
            ("memory", self.memory),
            ("balloon", self.balloon),
            ("step", self.step),
            ("disk", self.disk),
            ("swap", self.swap_bytes()),
        ] {
            if bytes % frame != 0 {
                return Err(ParamsError::NotWholeFrames { name, bytes });
            }
        }
        if self.memory < MIN_MEMORY {
            return Err(ParamsError::TooSmall { bytes: self.memory });
        }
        if self.memory > MAX_MEMORY {
            return Err(ParamsError::TooLarge { bytes: self.memory });
        }
        if self.balloon >= self.memory {
            return Err(ParamsError::BalloonTooLarge {
                bytes: self.balloon,
                memory: self.memory,
            });
        }
        if self.balloon > 0 && (self.step == 0 || self.step > self.balloon) {
            return Err(ParamsError::BadStep {
                bytes: self.step,
                balloon: self.balloon,
            });
        }
        let disk = self.disk_bytes();
        if disk < least_disk(self.memory, self.load_scale) {
            return Err(ParamsError::DiskTooSmall {
                bytes: disk,
                least: least_disk(self.memory, self.load_scale),
            });
        }
        // The files alone first: the message is about what was asked for.
        for bytes in [disk, self.device_bytes()] {
            if bytes > MAX_DISK {
                return Err(ParamsError::DiskTooLarge { bytes });
            }
        }
        if self.period_ms == 0 || self.period() > MAX_SCHEDULE {
            return Err(ParamsError::BadPeriod { ms: self.period_ms });
        }
        if self.balloon > 0 && self.schedule == Schedule::Held {
            let moves = self.balloon.div_ceil(self.step) as u128 * 3;
            if moves * self.period() as u128 > MAX_SCHEDULE as u128 {
                return Err(ParamsError::HeldTooLong);
            }
        }
        if self.threads > MAX_THREADS {
            return Err(ParamsError::TooManyThreads {
                threads: self.threads,
            });
        }
        if self.host_answer() > MAX_HOST_ANSWER {
            return Err(ParamsError::HostTooSlow {
                ms: self.host_answer_ms,
            });
        }
        for (name, scale) in [
            ("load scale", self.load_scale),
            ("watermark scale", self.watermark_scale),
            ("time scale", self.time_scale),
            ("disk speed", self.disk_speed),
        ] {
            if scale == 0 || scale > 100_000 {
                return Err(ParamsError::BadScale {
                    name,
                    thousandths: scale,
                });
            }
        }
        Ok(())
    }

    /// Whether `column` can be run of this, besides what [`check`](Self::check) demands of every column.
    ///
    /// # Errors
    ///
    /// The column `smaller` has a meaning only where the others' balloon is held, and needs enough memory without it.
    pub fn check_column(&self, column: Column) -> Result<(), ParamsError> {
        if column != Column::Smaller {
            return Ok(());
        }
        if self.schedule != Schedule::Held {
            return Err(ParamsError::SmallerNotHeld);
        }
        match self.memory.saturating_sub(self.balloon) {
            bytes if bytes < MIN_MEMORY => Err(ParamsError::SmallerTooSmall { bytes }),
            _ => Ok(()),
        }
    }
}

/// The swap of a guest of `memory` bytes, unless another is asked for: three quarters, in whole frames.
pub const fn default_swap(memory: u64) -> u64 {
    let frames = memory / FRAME_SIZE as u64;
    frames / 4 * 3 * FRAME_SIZE as u64
}

/// The disk of a guest of `memory` bytes under a load of `load_scale` thousandths, unless another is asked for: twice
/// the smallest.
pub const fn default_disk(memory: u64, load_scale: u32) -> u64 {
    least_disk(memory, load_scale).saturating_mul(2)
}

/// The smallest disk of a guest of `memory` bytes under a load of `load_scale` thousandths: the sources are 5/8 of
/// memory at load 1 and grow with it, and with their objects, images and what describes them they come to less than
/// memory.
pub const fn least_disk(memory: u64, load_scale: u32) -> u64 {
    let scale = if load_scale > 1000 { load_scale } else { 1000 };
    let bytes = memory as u128 * scale as u128 / 1000;
    let frame = FRAME_SIZE as u128;
    let bytes = bytes.div_ceil(frame) * frame;
    if bytes > u64::MAX as u128 {
        u64::MAX
    } else {
        bytes as u64
    }
}

/// The largest disk: its blocks of 4 KiB have 32-bit numbers.
pub const MAX_DISK: u64 = 16 << 40;

/// Less memory than this leaves no room for the load beside the reserved part.
pub const MIN_MEMORY: u64 = 64 << 20;
/// The largest guest: page table positions of 28-bit frame numbers, and a host that must hold it.
pub const MAX_MEMORY: u64 = 512 << 30;
/// The longest time that the balloon may take to go up, down and up: a day.
pub const MAX_SCHEDULE: u64 = 86_400 * SECOND;
/// More threads than this are a mistake.
pub const MAX_THREADS: usize = 64;

/// Longer than this is refused. At five times this the driver reports the host as silent.
pub const MAX_HOST_ANSWER: u64 = SECOND;

/// An enumeration whose values have one name each: on the command line, in the protocol and in the report.
macro_rules! named {
    (
        $(#[$about:meta])*
        pub enum $kind:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub enum $kind {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl $kind {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name on the command line and in the report.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

named! {
    /// The policies side by side.
    pub enum Column {
        /// Balloon frames cannot be moved.
        Pinned = "pinned",
        /// They can; nothing else differs from `Pinned`.
        Movable = "movable",
        /// Everything on: what a user gets.
        Steered = "steered",
        /// `Steered` in a guest that never had the memory that the balloon holds in the others.
        Smaller = "smaller",
    }
}

impl Column {
    /// The columns of the experiment. [`Smaller`](Self::Smaller) is run on demand.
    pub const DEFAULT: [Self; 3] = [Self::Pinned, Self::Movable, Self::Steered];
}

named! {
    /// When the balloon moves.
    pub enum Schedule {
        /// Up and down for ever, the phase drawn from the seed; emptied before the rested pass.
        Cycle = "cycle",
        /// Up, down, up before pass 1, then full to the end.
        Held = "held",
    }
}

named! {
    /// Length of the phases and kind of the tests.
    pub enum Profile {
        /// The times of the 2012 patch series: an attempt each 125 ms toward 95 % of memory, three times.
        Paper = "paper",
        /// The compressed schedule of the Linux peer with its two tests.
        Quick = "quick",
    }
}

impl Profile {
    /// Milliseconds between two steps of the balloon if nothing else is said. `quick` halves it before pass 1.
    pub const fn period_ms(self) -> u64 {
        match self {
            Self::Paper => 60_000,
            Self::Quick => 5_000,
        }
    }
}

named! {
    /// Where the balloon takes its frames in column `steered`.
    pub enum InflatePlacement {
        /// From the blocks that are used or spoilt already.
        FillHoles = "fill-holes",
        /// Whole free blocks first.
        WholeBlocks = "whole-blocks",
    }
}

named! {
    /// A policy of column `steered` that can be left out, to see what it is worth.
    pub enum Feature {
        /// One decision of reclaim and compaction: cold pages of a block are dropped, and such blocks are cheap.
        Joint = "joint",
        /// Movable requests go to the fullest blocks, the balloon takes its frames where it does no harm.
        Placement = "placement",
        /// Whole free blocks are kept.
        Reserve = "reserve",
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn the_experiment_is_sound() {
        for profile in Profile::ALL {
            assert_eq!(Params::new(profile).check(), Ok(()));
        }
        let none = Params {
            balloon: 0,
            ..Params::new(Profile::Paper)
        };
        assert_eq!(none.check(), Ok(()));
    }

    #[test]
    fn the_smaller_guest_has_what_a_held_balloon_leaves() {
        let cycle = Params::new(Profile::Paper);
        let held = Params {
            schedule: Schedule::Held,
            ..cycle.clone()
        };
        assert_eq!(held.check_column(Column::Smaller), Ok(()));
        assert_eq!(held.column_memory(Column::Smaller), 3 << 30);
        assert_eq!(held.column_balloon_frames(Column::Smaller), 0);
        assert_eq!(
            cycle.check_column(Column::Smaller),
            Err(ParamsError::SmallerNotHeld)
        );
        let tight = Params {
            balloon: (4 << 30) - (32 << 20),
            ..held
        };
        assert_eq!(
            tight.check_column(Column::Smaller),
            Err(ParamsError::SmallerTooSmall { bytes: 32 << 20 })
        );
        for column in Column::DEFAULT {
            assert_eq!(cycle.check_column(column), Ok(()));
            assert_eq!(tight.column_memory(column), 4 << 30);
            assert_eq!(tight.column_balloon_frames(column), tight.balloon_frames());
        }
    }

    #[test]
    fn a_disk_is_twice_the_memory_unless_another_is_asked_for() {
        let params = Params {
            memory: 128 << 20,
            ..Params::new(Profile::Paper)
        };
        assert_eq!(params.disk_bytes(), 256 << 20);
        let other = Params {
            disk: 1 << 30,
            ..params
        };
        assert_eq!(other.disk_bytes(), 1 << 30);
    }

    #[test]
    fn parameters_survive_the_way_through_json() {
        for thousandths in [1, 3, 333, 700, 1000, 1125, 99_999, 100_000] {
            let params = Params {
                seed: u64::MAX,
                load_scale: thousandths,
                watermark_scale: 100_001 - thousandths,
                time_scale: thousandths,
                disk_speed: thousandths,
                schedule: Schedule::Held,
                inflate: InflatePlacement::WholeBlocks,
                ..Params::new(Profile::Quick)
            };
            let text = serde_json::to_string(&params).unwrap();
            assert_eq!(serde_json::from_str::<Params>(&text).unwrap(), params);
        }
        let mut value = serde_json::to_value(Params::new(Profile::Quick)).unwrap();
        assert_eq!(value["profile"], Profile::Quick.name());
        assert_eq!(value["inflate"], InflatePlacement::FillHoles.name());
        assert_eq!(value["load_scale"], 1.0);
        // Nobody sends what the other end would ignore.
        value["no_such"] = 1.into();
        let refused = serde_json::from_value::<Params>(value).unwrap_err();
        assert!(refused.to_string().contains("no_such"), "{refused}");
    }

    #[test]
    fn bad_parameters_are_named() {
        let good = Params::new(Profile::Paper);
        let bad: [(Params, &str); 15] = [
            (
                Params {
                    memory: 0,
                    ..good.clone()
                },
                "too small",
            ),
            (
                Params {
                    memory: (4 << 30) + 1,
                    ..good.clone()
                },
                "memory of",
            ),
            (
                Params {
                    memory: 1 << 50,
                    ..good.clone()
                },
                "too large",
            ),
            (
                Params {
                    balloon: 4 << 30,
                    ..good.clone()
                },
                "does not fit",
            ),
            (
                Params {
                    balloon: 4097,
                    ..good.clone()
                },
                "balloon of",
            ),
            (
                Params {
                    step: 0,
                    ..good.clone()
                },
                "step of 0",
            ),
            (
                Params {
                    step: 2 << 30,
                    ..good.clone()
                },
                "does not fit",
            ),
            (
                Params {
                    step: 4096,
                    schedule: Schedule::Held,
                    ..good.clone()
                },
                "a day",
            ),
            (
                Params {
                    period_ms: 0,
                    ..good.clone()
                },
                "period",
            ),
            (
                Params {
                    threads: 1000,
                    ..good.clone()
                },
                "threads",
            ),
            (
                Params {
                    host_answer_ms: 2000,
                    ..good.clone()
                },
                "too slow",
            ),
            (
                Params {
                    load_scale: 0,
                    ..good.clone()
                },
                "load scale",
            ),
            (
                Params {
                    disk_speed: 0,
                    ..good.clone()
                },
                "disk speed",
            ),
            (
                Params {
                    disk: 1 << 20,
                    ..good.clone()
                },
                "disk of 1048576 bytes is too small",
            ),
            (
                Params {
                    disk: 32 << 40,
                    ..good.clone()
                },
                "disk of 35184372088832 bytes is too large",
            ),
        ];
        for (params, text) in bad {
            let error = alloc::string::ToString::to_string(&params.check().unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }
}
