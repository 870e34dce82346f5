//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dirigible_workload::params::{Column, Feature, InflatePlacement, Profile, Schedule};

use crate::{
    names,
    qemu_args::{BalloonMoves, BalloonSpeed, GuestHello, GuestTest, QemuFlags},
    units::{Period, Scale, Size, seed},
};

/// A memory manager and virtio-balloon driver for guests, whose ballooned memory stays movable.
#[derive(Parser, Debug)]
#[command(name = "dirigible", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the command can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// How many huge pages a loaded guest gets while a balloon grows and shrinks in it
    ///
    /// Boots a guest in this process, on real memory and real virtqueues, or with `--machine qemu` a guest kernel in a
    /// virtual machine; loads it, moves its balloon and tries to allocate nearly all of its memory as huge pages: twice
    /// under load and once at rest. Each column is one policy under the same load: `pinned` (balloon pages cannot be
    /// moved), `movable` (they can, nothing else differs) and `steered` (they can, and all of dirigible is on). On demand
    /// there is `smaller`: `steered` in a guest that never had the memory that the balloon holds in the others.
    StressHighalloc(Box<StressHighalloc>),
    /// How fast a balloon grows and shrinks in a virtual machine
    ///
    /// Boots the guest kernel under QEMU, has it write all of its memory, inflates the balloon and deflates it again.
    /// Checks on the host that QEMU's resident memory falls and rises with the balloon, and in the guest that the
    /// balloon's memory comes back as zeroes and all other memory keeps its contents.
    BalloonSpeed(BalloonSpeed),
    /// Moves every frame of a full balloon under load in a virtual machine
    ///
    /// Runs one column, `steered`, of the experiment under QEMU; when the balloon is full for the first time, each of
    /// its frames is moved the given number of times while the load goes on. Fails if a page had wrong contents or a
    /// frame was not moved.
    BalloonMoves(Box<BalloonMoves>),
    /// Runs the guest kernel's own tests in a virtual machine
    GuestTest(GuestTest),
    /// Boots the guest kernel in a virtual machine and prints how long that takes
    GuestHello(GuestHello),
    /// Runs one column; for the command's own use. Reads its task from the first line of standard input, and exits when
    /// standard input is closed.
    #[command(hide = true)]
    RunColumn,
}

const EXAMPLES: &str = "\
Examples:
  dirigible stress-highalloc
      The experiment: a 4 GiB guest, a balloon of 1 GiB that moves 256 MiB each minute, all three columns.
  dirigible stress-highalloc --schedule held --runs 10 --json held.json
      Ten seeds with the balloon held full; median and range on the screen, every run in the file.
  dirigible stress-highalloc --balloon 0 --columns pinned,movable
      The control: without a balloon the two must score the same.
  dirigible stress-highalloc --schedule held --columns steered,smaller
      A full balloon against a guest that never had the balloon's memory.
  dirigible stress-highalloc --memory 1G --balloon 256M --step 64M --profile quick
      A small and quick run; --full adds all figures.
  dirigible stress-highalloc --machine qemu --profile quick
      In virtual machines, one after another, in real time (docs/qemu.md).

Exit status: 0 when the run is done, 1 when it failed, 2 when the command line is wrong.";

/// Flags of `stress-highalloc`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StressHighalloc {
    /// Memory of the guest (suffix K, M, G or T)
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "4G"
    )]
    pub memory: Size,
    /// Size of the balloon at its fullest; 0 for no balloon
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "1G"
    )]
    pub balloon: Size,
    /// What one step of the schedule adds to the balloon or takes from it
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        default_value = "256M"
    )]
    pub step: Size,
    /// Time between two steps (suffix ms, s, m or h); by default 60s, with the profile `quick` 5s
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub period: Option<Period>,
    /// When the balloon moves
    #[arg(long, value_parser = names::schedule(), default_value = "cycle")]
    pub schedule: Schedule,
    /// Length of the phases and kind of the tests
    #[arg(long, value_parser = names::profile(), default_value = "paper")]
    pub profile: Profile,
    /// Seed of the load and of the schedule's phase
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true, value_parser = seed)]
    pub seed: u64,
    /// Runs with the seeds N, N+1, …; the columns then show median and range
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub runs: u64,
    /// Which columns, in which order
    #[arg(
        long,
        value_parser = names::column(),
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "pinned,movable,steered"
    )]
    pub columns: Vec<Column>,
    /// Size of the guest's disk; by default twice its memory, and more with a larger --load-scale
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<Size>,
    /// Swap on the same disk, behind the files; by default three quarters of memory, 0 for none
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub swap: Option<Size>,
    /// The machine to run on
    #[arg(long, value_enum, default_value = "hosted")]
    pub machine: Machine,
    /// Threads of load. On the machine `hosted` 0 by default: the deterministic mode with one thread and a virtual
    /// clock, in which the same seed gives the same result. On the machine `qemu` the guest's CPUs, 2 by default
    #[arg(long, value_name = "N")]
    pub threads: Option<u64>,
    /// Where the balloon takes its frames in the column `steered`
    #[arg(long, alias = "placement", value_parser = names::inflate(), default_value = "fill-holes")]
    pub inflate: InflatePlacement,
    /// What the column `steered` does without, to see what each is worth
    #[arg(
        long,
        value_parser = names::feature(),
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Variants of the experiment"
    )]
    pub without: Vec<Feature>,
    /// Prints all figures: the table of the 2012 patch series in its order, all counters, each pass, memory before it
    #[arg(long)]
    pub full: bool,
    /// Writes everything to FILE as JSON, `-` for standard output (docs/json.md describes it)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leaves out what is measured on the host (times, resident memory): then the same seed prints the same bytes
    #[arg(long)]
    pub no_host: bool,
    /// Multiplies the load (sizes of programs and of what they compile)
    #[arg(
        long,
        value_name = "FACTOR",
        default_value = "1",
        help_heading = "Variants of the experiment"
    )]
    pub load_scale: Scale,
    /// Multiplies the watermarks
    #[arg(
        long,
        value_name = "FACTOR",
        default_value = "1",
        help_heading = "Variants of the experiment"
    )]
    pub watermark_scale: Scale,
    /// Multiplies the disk's speed: 0.1 is a disk ten times slower
    #[arg(
        long,
        value_name = "FACTOR",
        default_value = "1",
        help_heading = "Variants of the experiment"
    )]
    pub disk_speed: Scale,
    /// Lets the balloon deflate before an allocation of the guest fails (VIRTIO_BALLOON_F_DEFLATE_ON_OOM): then its
    /// size does not follow the schedule alone
    #[arg(long, help_heading = "Variants of the experiment")]
    pub deflate_on_oom: bool,
    /// How long the balloon device of the machine `hosted` takes for a request, at most 1s (suffix ms or s)
    #[arg(
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        help_heading = "Variants of the experiment"
    )]
    pub host_answer: Option<Period>,
    /// Multiplies the lengths of the phases, but not the pace of the load; for short trials, 1 is the experiment
    #[arg(
        long,
        value_name = "FACTOR",
        default_value = "1",
        help_heading = "Variants of the experiment"
    )]
    pub time_scale: Scale,
    /// Columns that run at the same time, each in a process of its own; by default 2, on the machine `qemu` 1, because
    /// its columns run in real time and would disturb each other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub jobs: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub qemu: QemuFlags,
}

/// The machine.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// In the command's own processes: guest memory is an mmap, the devices are models over real virtqueues
    Hosted,
    /// A guest kernel in a virtual machine under QEMU: real page tables, real CPUs, real time (docs/qemu.md)
    Qemu,
}

impl Machine {
    /// The name on the command line and in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hosted => "hosted",
            Self::Qemu => "qemu",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_experiment() {
        let cli = Cli::parse_from(["dirigible", "stress-highalloc"]);
        let Command::StressHighalloc(args) = cli.command else {
            panic!("another command");
        };
        assert_eq!(
            (args.memory, args.balloon, args.step),
            (Size(4 << 30), Size(1 << 30), Size(256 << 20))
        );
        assert_eq!(
            args.columns,
            [Column::Pinned, Column::Movable, Column::Steered]
        );
        assert_eq!((args.seed, args.runs), (1, 1));
        assert_eq!((args.threads, args.jobs), (None, None));
        assert_eq!(
            (args.schedule, args.profile),
            (Schedule::Cycle, Profile::Paper)
        );
        assert!(!args.no_host && args.json.is_none());
        assert_eq!((args.machine, args.qemu.first()), (Machine::Hosted, None));
    }
}
