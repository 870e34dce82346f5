//! What a run hands back: plain data, in the order in which the JSON report prints it (schema 3, `docs/json.md`).
//!
//! Who fills what:
//!
//! - the engine of this crate fills a [`ColumnReport`], with `attainable` and `percent_attainable` left 0;
//! - the machine adds what it measured on the host: a [`ColumnHost`] for the column, and the [`HostFacts`]. All three
//!   are a [`ColumnRun`];
//! - the command puts the runs of all columns together, a [`Report`], and computes the reference from them
//!   ([`attainable`](crate::attainable)).
//!
//! Everything outside `host` is a function of the parameters in deterministic mode. That is why fractions are
//! integers of a fixed number of places ([`Decimal`]) and why nothing here is a hash map: the same run prints the same
//! bytes.

mod attempts;
mod host;
mod load;
mod numbers;
mod oracle;
mod stalls;

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

pub use attempts::{Attempt, Attempts};
pub use host::{AttemptHost, ColumnHost, HostFacts, HostReport, Residency};
pub use load::{Compiled, DiskReport, LoadReport, ProgramFailure};
pub use numbers::{Decimal, Spread, TenThousandths, Tenths, VmStat};
pub use oracle::OracleReport;
pub use stalls::{StallFigures, StallReport};

use crate::params::Params;

/// The number of the schema, raised when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 3;

/// A run of one or more columns with one seed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The machine that the run was made on: `hosted` or `qemu`.
    pub machine: String,
    /// The parameters.
    pub parameters: Params,
    /// The columns, in the order in which they were asked for.
    pub columns: Vec<ColumnReport>,
    /// What was measured on the host; absent with `--no-host`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<HostReport>,
}

/// What a machine hands back for one column.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ColumnRun {
    /// The guest's part.
    pub report: ColumnReport,
    /// The host's part.
    pub host: ColumnHost,
    /// The host itself.
    pub facts: HostFacts,
}

/// One column: one policy under the load.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ColumnReport {
    /// `pinned`, `movable`, `steered` or `smaller`.
    pub name: String,
    /// The policies that make the column.
    pub policy: Policy,
    /// MemTotal at boot, before any balloon, in MiB.
    pub mem_total_mib: Tenths,
    /// Length of the run on the guest's clock, in milliseconds.
    pub elapsed_ms: u64,
    /// The passes, in order. Profile `paper`: `pass1`, `pass2`, `rested`. Profile `quick`: each pass has two tests:
    /// `pass1`, `pass1-thp`, `pass2`, `pass2-thp`, `rested`, `rested-thp`.
    pub passes: Vec<PassReport>,
    /// All vm events of the run.
    pub vmstat: VmStat,
    /// Pages whose contents were not what their owner had written. Anything but 0 is a fault of ours.
    pub content_errors: u64,
    /// Pages whose contents were checked whole.
    pub pages_checked: u64,
    /// Requests sent to the balloon device to move frames (an exchange of one batch is two).
    pub host_messages: u64,
    /// Balloon frames moved by compaction.
    pub balloon_frames_moved: u64,
    /// `host_messages / balloon_frames_moved`.
    pub messages_per_frame_moved: TenThousandths,
    /// Rounds in which every frame of the balloon was moved, where the run was asked for such.
    pub balloon_rounds: u64,
    /// All requests sent to the balloon device.
    pub host_messages_total: u64,
    /// Migrations refused because the balloon's lock was taken.
    pub balloon_lock_refusals: u64,
    /// Frames moved over the whole run, direct and background, every owner.
    pub pages_moved: u64,
    /// Huge pages that the passes got, together.
    pub huge_pages: u64,
    /// `pages_moved / huge_pages`: the moves of the whole run.
    pub moved_per_huge_page: Tenths,
    /// What the emptied blocks of the whole run cost, beside the best choice.
    pub choice: OracleReport,
    /// FNV-1a over all (time, target) pairs that the balloon was set to, in hexadecimal: equal in all columns but
    /// `smaller`, whose balloon stays empty.
    pub targets_hash: String,
    /// The balloon's mean size from boot to the end of the load.
    pub balloon_mean_mib: Tenths,
    /// The mean of its targets over the same time.
    pub balloon_target_mean_mib: Tenths,
    /// The largest number of MiB that the balloon ever held.
    pub balloon_max_mib: Tenths,
    /// Frames that the balloon gave back because the guest was out of memory.
    pub oom_deflated: u64,
    /// Errors of the protocol that the device counted. Anything but 0 is a fault of ours.
    pub device_errors: u64,
    /// What went wrong at the disk.
    pub disk: DiskReport,
    /// How long allocations waited.
    pub stalls: StallReport,
    /// What the load did.
    pub load: LoadReport,
}

/// The policies of a column: settings of one system.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Whether the balloon's frames can be moved.
    pub balloon_movable: bool,
    /// `steal` or `evacuate`.
    pub fallback: String,
    /// Where movable requests go: `lowest-first` or `fullest-first`.
    pub placement: String,
    /// Where the balloon takes its frames: `ordinary`, `unmovable`, `fill-holes` or `whole-blocks`.
    pub inflate: String,
    /// Which frames the balloon gives back first: `newest-first` or `heal`.
    pub deflate: String,
    /// Frames that one exchange moves at most; 1 means two messages for each frame.
    pub exchange_batch: u64,
    /// Whole free blocks kept from movable order-0 requests.
    pub reserve_blocks: u64,
    /// Whether compaction drops cold clean pages instead of moving them.
    pub drops_cold: bool,
}

/// One test of the probe in one pass.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PassReport {
    /// `pass1`, `pass2`, `rested`; the THP tests of profile `quick` end in `-thp`.
    pub name: String,
    /// When it began, in milliseconds of the guest's clock.
    pub start_ms: u64,
    /// Huge pages asked for.
    pub asked: u64,
    /// Attempts made: `asked` in profile `paper`, writes or ranges in profile `quick`.
    pub attempts: u64,
    /// Huge pages got.
    pub allocated: u64,
    /// Huge pages that could be had: the reference for all columns ([`attainable`](crate::attainable)).
    pub attainable: u64,
    /// `100 * allocated / asked`.
    pub percent_asked: Tenths,
    /// `100 * allocated / attainable`; above 100 is printed as it is.
    pub percent_attainable: Tenths,
    /// The balloon's mean size over the pass.
    pub balloon_mean_mib: Tenths,
    /// The mean of the balloon's targets over the pass.
    pub balloon_target_mean_mib: Tenths,
    /// What the balloon's mean size lacks of the mean of its targets, in per cent of the latter; 0 if it lacks nothing.
    pub balloon_shortfall: Tenths,
    /// Whether the shortfall is above [`MOST_SHORTFALL`]: the column may have its huge pages from a balloon that did
    /// not grow, so the row does not count.
    pub disqualified: bool,
    /// The load held at the end of the pass, without pages of files: `load_anonymous_mib + load_kernel_mib`.
    pub load_mib: Tenths,
    /// Anonymous memory of the jobs, their page tables not counted.
    pub load_anonymous_mib: Tenths,
    /// Unmovable and reclaimable memory, page tables included.
    pub load_kernel_mib: Tenths,
    /// Pages of files.
    pub files_mib: Tenths,
    /// Hybrid blocks at the end of the pass.
    pub hybrid_blocks: u64,
    /// Memory just before the pass.
    pub before: MemoryState,
    /// Memory at the end of the pass, the probe's pages still held.
    pub after: MemoryState,
    /// Cost of an attempt on the guest's clock.
    pub attempt_cost_ns: Spread,
    /// When each attempt began, and whether it got a huge page.
    pub attempted: Attempts,
    /// Unmovable memory in frames, once a second from the pass's begin on: kernel memory, reclaimable or not, and page
    /// tables, without the balloon and without what is reserved at boot.
    pub unmovable: Vec<u64>,
    /// Attempts that got a free block at once.
    pub got_free: u64,
    /// Attempts that compaction served.
    pub got_compaction: u64,
    /// Attempts that compaction served after reclaim.
    pub got_reclaim: u64,
    /// Attempts that failed, by cause.
    pub failed: FailureCauses,
    /// Frames moved during the pass by direct compaction.
    pub moved_direct: u64,
    /// Frames moved during the pass by background compaction.
    pub moved_background: u64,
    /// `(moved_direct + moved_background) / allocated`.
    pub moved_per_huge_page: Tenths,
    /// What the blocks that were emptied in the pass cost, beside the best choice.
    pub choice: OracleReport,
    /// Requests sent to the balloon device to move frames.
    pub host_messages: u64,
    /// Balloon frames moved.
    pub balloon_frames_moved: u64,
    /// vm events of the pass.
    pub vmstat: VmStat,
}

/// The largest shortfall of the balloon with which a pass counts, in per cent.
pub const MOST_SHORTFALL: Tenths = Tenths::ratio(2, 1);

/// Why attempts failed; the sum is `attempts - allocated` where one attempt asks for one page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FailureCauses {
    /// Too little memory free for a whole block above the watermark, even after reclaim.
    pub watermark: u64,
    /// Compaction was put off after earlier failures.
    pub deferred: u64,
    /// No block without unmovable frames was left, or none within the budget.
    pub no_block: u64,
    /// A block was chosen and could not be emptied: an owner refused, or targets ran out.
    pub aborted: u64,
}

/// A look at the guest's memory.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct MemoryState {
    /// Free frames.
    pub free_frames: u64,
    /// Wholly free blocks.
    pub free_blocks: u64,
    /// Hybrid blocks.
    pub hybrid_blocks: u64,
    /// What the balloon holds.
    pub balloon_frames: u64,
    /// Maximal aligned free runs of each order, 0 to 10, as `/proc/buddyinfo` prints them.
    pub buddyinfo: Vec<u64>,
    /// Blocks and free runs of each migratetype, as `/proc/pagetypeinfo` prints them.
    pub pagetypeinfo: Vec<TypeState>,
    /// Share of the free memory that a request of order 0, 1, … 10 cannot use, in thousandths.
    pub unusable_permille: Vec<u64>,
    /// Blocks by what is in them.
    pub census: BlockCensus,
}

/// One row of `/proc/pagetypeinfo`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TypeState {
    /// `Unmovable`, `Movable` or `Reclaimable`.
    pub name: String,
    /// Blocks of the type.
    pub blocks: u64,
    /// Maximal aligned free runs of each order, 0 to 10, within blocks of the type.
    pub free: Vec<u64>,
}

/// Every pageblock of the guest, counted by what stands between it and a huge page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct BlockCensus {
    /// Held whole as a huge page.
    pub huge: u64,
    /// Wholly free.
    pub free: u64,
    /// Movable and balloon frames only: can be emptied.
    pub movable: u64,
    /// Unmovable or reclaimable frames, nothing movable beside them.
    pub kernel: u64,
    /// Both: hybrid.
    pub hybrid: u64,
    /// Isolated at this moment.
    pub isolated: u64,
    /// Holding reserved frames or holes.
    pub reserved: u64,
    /// Free frames in `kernel`, `hybrid` and `reserved` blocks: free memory that no huge page can use.
    pub stranded_free_frames: u64,
}

/// Where a run stands, for a progress bar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is going on: `boot`, `warm-up`, `pass1`, …
    pub phase: &'static str,
    /// The guest's clock in milliseconds since boot.
    pub now_ms: u64,
    /// When the run will end on that clock, as far as is known.
    pub end_ms: u64,
}

/// Hears how a run gets on. Called about once in a second of the guest's clock; must not block.
pub trait Observer {
    /// The run has come this far.
    fn progress(&mut self, progress: Progress);
}

/// Hears nothing.
impl Observer for () {
    fn progress(&mut self, _: Progress) {}
}
