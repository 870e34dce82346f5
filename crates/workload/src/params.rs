//! What a run is asked to do.

use dirigible_frames::FRAME_SIZE;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use dirigible::schedule::time::SECOND;

/// One column of one run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Params {
    /// The policies.
    pub column: Column,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The balloon at its fullest, in bytes; 0 for none.
    pub balloon: u64,
    /// One step of the schedule, in bytes.
    pub step: u64,
    /// Time between two steps, in nanoseconds.
    pub period: u64,
    /// When the balloon moves.
    pub schedule: Schedule,
    /// Length of the phases and kind of the tests.
    pub profile: Profile,
    /// Seed of the load and of the schedule's phase.
    pub seed: u64,
    /// Threads of load; 0 is the deterministic mode.
    pub threads: usize,
    /// Where the balloon takes its frames in column `steered`.
    pub placement: InflatePlacement,
    /// The load is multiplied by this many thousandths.
    pub load_scale: u32,
    /// The watermarks are multiplied by this many thousandths.
    pub watermark_scale: u32,
    /// Whether the filler keeps memory full.
    pub filler: bool,
    /// Warm-up, gaps, period and the time between two attempts are multiplied by this many thousandths; the load's pace is
    /// not. For tests: 1000 is the experiment.
    pub time_scale: u32,
    /// Whether the balloon deflates before a request of the guest fails: not in the experiment, where the schedule's target
    /// is the balloon's size.
    pub deflate_on_oom: bool,
    /// How long the balloon device takes for a request, in nanoseconds, where the machine is its own host; 0: as long as the
    /// machine says that a host's work takes.
    pub host_answer: u64,
}

impl Params {
    /// The experiment's defaults for `column` under `profile`.
    pub const fn new(column: Column, profile: Profile) -> Self {
        Self {
            column,
            memory: 4 << 30,
            balloon: 1 << 30,
            step: 256 << 20,
            period: profile.period(),
            schedule: Schedule::Cycle,
            profile,
            seed: 1,
            threads: 0,
            placement: InflatePlacement::FillHoles,
            load_scale: 1000,
            watermark_scale: 1000,
            filler: true,
            time_scale: 1000,
            deflate_on_oom: false,
            host_answer: 0,
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
        if self.period < SECOND / 1000 || self.period > MAX_SCHEDULE {
            return Err(ParamsError::BadPeriod { ns: self.period });
        }
        if self.balloon > 0 && self.schedule == Schedule::Held {
            let moves = self.balloon.div_ceil(self.step) as u128 * 3;
            if moves * self.period as u128 > MAX_SCHEDULE as u128 {
                return Err(ParamsError::HeldTooLong);
            }
        }
        if self.threads > MAX_THREADS {
            return Err(ParamsError::TooManyThreads {
                threads: self.threads,
            });
        }
        if self.host_answer > MAX_HOST_ANSWER {
            return Err(ParamsError::HostTooSlow {
                ns: self.host_answer,
            });
        }
        for (name, scale) in [
            ("load scale", self.load_scale),
            ("watermark scale", self.watermark_scale),
            ("time scale", self.time_scale),
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
}

/// Less memory than this leaves no room for the load beside the reserved part.
pub const MIN_MEMORY: u64 = 64 << 20;
/// The largest guest: page table positions of 28-bit frame numbers, and a host that must hold it.
pub const MAX_MEMORY: u64 = 512 << 30;
/// The longest time that the balloon may take to go up, down and up: a day.
pub const MAX_SCHEDULE: u64 = 86_400 * SECOND;
/// More threads than this are a mistake.
pub const MAX_THREADS: usize = 64;

/// A host that takes longer than this is no host: five times as long, and the driver calls it silent.
pub const MAX_HOST_ANSWER: u64 = SECOND;

/// A parameter that no run can be made of.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParamsError {
    /// A size that is not a multiple of 4,096.
    #[error("the {name} of {bytes} bytes is not a whole number of 4096-byte frames")]
    NotWholeFrames {
        /// Which size.
        name: &'static str,
        /// The size.
        bytes: u64,
    },
    /// Too little guest memory.
    #[error("a guest of {bytes} bytes is too small: the experiment needs at least {MIN_MEMORY}")]
    TooSmall {
        /// The size.
        bytes: u64,
    },
    /// Too much guest memory.
    #[error("a guest of {bytes} bytes is too large: at most {MAX_MEMORY}")]
    TooLarge {
        /// The size.
        bytes: u64,
    },
    /// A balloon that would leave the guest nothing to run in.
    #[error("a balloon of {bytes} bytes does not fit into a guest of {memory}")]
    BalloonTooLarge {
        /// The balloon.
        bytes: u64,
        /// The guest.
        memory: u64,
    },
    /// A step of nothing or of more than the balloon.
    #[error("a step of {bytes} bytes does not fit a balloon of {balloon} bytes")]
    BadStep {
        /// The step.
        bytes: u64,
        /// The balloon.
        balloon: u64,
    },
    /// A period out of range.
    #[error("a period of {ns} ns is out of range: from 1 ms to a day")]
    BadPeriod {
        /// The period.
        ns: u64,
    },
    /// Steps so small or a period so long that the balloon would need more than a day before pass 1.
    #[error(
        "with the schedule `held` these steps and this period would keep the balloon busy for more than a day before pass 1"
    )]
    HeldTooLong,
    /// Too many threads.
    #[error("{threads} threads are too many: at most {MAX_THREADS}")]
    TooManyThreads {
        /// The threads.
        threads: usize,
    },
    /// A host that hardly answers.
    #[error("a host that takes {ns} ns for an answer is too slow: at most a second")]
    HostTooSlow {
        /// The time.
        ns: u64,
    },
    /// A factor out of range.
    #[error("the {name} of {thousandths} thousandths is out of range: from 1 to 100,000")]
    BadScale {
        /// Which factor.
        name: &'static str,
        /// The factor.
        thousandths: u32,
    },
}

/// The policies side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Column {
    /// Balloon frames cannot be moved: before the series.
    Pinned,
    /// They can; nothing else differs from `Pinned`: the series.
    Movable,
    /// Everything on: what a user gets.
    Steered,
}

impl Column {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pinned, Self::Movable, Self::Steered];

    /// The name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Movable => "movable",
            Self::Steered => "steered",
        }
    }
}

/// When the balloon moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Schedule {
    /// Up and down for ever, the phase drawn from the seed; emptied before the rested pass.
    Cycle,
    /// Up, down, up before pass 1, then full to the end.
    Held,
}

impl Schedule {
    /// The name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cycle => "cycle",
            Self::Held => "held",
        }
    }
}

/// Length of the phases and kind of the tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Profile {
    /// The series' times: an attempt each 125 ms toward 95 % of memory, three times.
    Paper,
    /// The compressed schedule of the Linux peer with its two tests.
    Quick,
}

impl Profile {
    /// The name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Quick => "quick",
        }
    }

    /// Time between two steps of the balloon if nothing else is said. `quick` halves it before pass 1.
    pub const fn period(self) -> u64 {
        match self {
            Self::Paper => 60 * SECOND,
            Self::Quick => 5 * SECOND,
        }
    }
}

/// Where the balloon takes its frames in column `steered`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InflatePlacement {
    /// From the blocks that are used or spoilt already.
    FillHoles,
    /// Whole free blocks first.
    WholeBlocks,
}

impl InflatePlacement {
    /// The name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FillHoles => "fill-holes",
            Self::WholeBlocks => "whole-blocks",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_is_sound() {
        for column in Column::ALL {
            for profile in [Profile::Paper, Profile::Quick] {
                assert_eq!(Params::new(column, profile).check(), Ok(()));
            }
        }
        let none = Params {
            balloon: 0,
            ..Params::new(Column::Pinned, Profile::Paper)
        };
        assert_eq!(none.check(), Ok(()));
    }

    #[test]
    fn bad_parameters_are_named() {
        let good = Params::new(Column::Steered, Profile::Paper);
        let bad: [(Params, &str); 12] = [
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
                    period: 0,
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
                    host_answer: 2 * SECOND,
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
        ];
        for (params, text) in bad {
            let error = alloc::string::ToString::to_string(&params.check().unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }
}
