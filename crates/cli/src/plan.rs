//! Turns flags into checked parameters: what no run can use is refused here, before anything starts.

use std::fs;

use dirigible_qemu::{DEFAULT_CPUS, MAX_CPUS, QemuMachine};
use dirigible_workload::{
    params::{
        Column, Feature, MAX_DISK, MAX_HOST_ANSWER, MAX_SCHEDULE, MAX_THREADS, Params,
        default_disk, default_swap, least_disk,
    },
    protocol::APPARATUS,
};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Machine, StressHighalloc},
    units::{Period, Scale, Size},
};

/// A run that the command makes: what, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunPlan {
    /// The parameters.
    pub params: Params,
    /// Where the columns run.
    pub place: Place,
}

/// Where columns run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the command's own processes.
    Hosted,
    /// In virtual machines under the QEMU and with the guest kernel that were found.
    Qemu(QemuMachine),
}

impl Place {
    /// The machine.
    pub const fn machine(&self) -> Machine {
        match self {
            Self::Hosted => Machine::Hosted,
            Self::Qemu(_) => Machine::Qemu,
        }
    }
}

/// What a child process does: a column of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChildTask {
    /// The run that it is a part of.
    pub params: Params,
    /// Which column.
    pub column: Column,
    /// Where it runs.
    pub place: Place,
}

impl ChildTask {
    /// The column's name in messages.
    pub const fn name(&self) -> &'static str {
        self.column.name()
    }
}

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// All memory that the process may ever use, in bytes.
    pub memory: u64,
    /// The part of it that is not in use now.
    pub available: u64,
    /// CPUs that the process may use.
    pub cpus: u64,
}

impl Host {
    /// Reads `/proc`. Without `/proc` memory has no limit.
    pub fn probe() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let of = |key| meminfo_bytes(&meminfo, key).unwrap_or(u64::MAX);
        let group = fs::read_to_string("/sys/fs/cgroup/memory.max")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(u64::MAX);
        Self {
            memory: of("MemTotal:").min(group),
            available: of("MemAvailable:").min(group),
            cpus,
        }
    }
}

/// The smallest guest: it has room for metadata, page tables, watermarks and some blocks.
pub const LEAST_MEMORY: Size = Size(64 << 20);

/// The smallest guest in a virtual machine.
const LEAST_QEMU_MEMORY: Size = Size(dirigible_qemu::LEAST_MEMORY);

/// Checks the sizes that several commands have, against each other and the host.
///
/// # Errors
///
/// A sentence that names the flag, what it was given and what it may be.
pub fn check_sizes(
    memory: Size,
    balloon: Size,
    machine: Machine,
    host: &Host,
) -> Result<(), String> {
    whole_frames("--memory", memory)?;
    whole_frames("--balloon", balloon)?;
    if memory.0 == 0 {
        return Err("--memory 0: a guest needs memory".into());
    }
    if needed(memory.0, machine) > host.memory {
        let host = host.memory >> 20;
        let beside = match machine {
            Machine::Hosted => String::new(),
            Machine::Qemu => format!(", with {} for the guest's kernel", Size(APPARATUS)),
        };
        return Err(format!(
            "--memory {memory}: larger than the host's memory ({host} MiB){beside}"
        ));
    }
    let (least, place) = match machine {
        Machine::Hosted => (LEAST_MEMORY, ""),
        Machine::Qemu => (LEAST_QEMU_MEMORY, " in QEMU"),
    };
    if memory < least {
        return Err(format!(
            "--memory {memory}: a guest{place} needs at least {least}"
        ));
    }
    if balloon >= memory {
        return Err(format!(
            "--balloon {balloon}: must be smaller than the guest's memory (--memory {memory})"
        ));
    }
    Ok(())
}

/// Checks a step against the balloon.
///
/// # Errors
///
/// As for [`check_sizes`].
pub fn check_step(step: Size, balloon: Size) -> Result<(), String> {
    whole_frames("--step", step)?;
    // Without a balloon the step means nothing.
    if balloon.0 == 0 {
        return Ok(());
    }
    if step.0 == 0 {
        return Err(
            "--step 0: the balloon would never move; give --balloon 0 for no balloon".into(),
        );
    }
    if step > balloon {
        return Err(format!(
            "--step {step}: larger than the balloon (--balloon {balloon})"
        ));
    }
    Ok(())
}

/// The guest's disk: what was asked for, or twice what the load needs.
fn check_disk(asked: Option<Size>, memory: Size, load: Scale) -> Result<Size, String> {
    let load = load.thousandths;
    let disk = asked.unwrap_or(Size(default_disk(memory.0, load)));
    whole_frames("--disk", disk)?;
    let (least, most) = (Size(least_disk(memory.0, load)), Size(MAX_DISK));
    if disk < least {
        let under = if load > 1000 { " under this load" } else { "" };
        return Err(format!(
            "--disk {disk}: too small for the files of a guest with --memory {memory}{under}: at least {least}"
        ));
    }
    if disk > most {
        return Err(format!("--disk {disk}: at most {most}"));
    }
    Ok(disk)
}

/// The guest's swap: what was asked for, or three quarters of memory.
fn check_swap(asked: Option<Size>, memory: Size, disk: Size) -> Result<Size, String> {
    let swap = asked.unwrap_or(Size(default_swap(memory.0)));
    whole_frames("--swap", swap)?;
    let most = Size(MAX_DISK - disk.0);
    if swap > most {
        return Err(format!(
            "--swap {swap}: at most {most} behind a disk of {disk} for files"
        ));
    }
    Ok(swap)
}

fn whole_frames(flag: &str, size: Size) -> Result<(), String> {
    if size.is_whole_frames() {
        return Ok(());
    }
    Err(format!(
        "{flag} {size}: not a whole number of frames (a frame has {} bytes)",
        Size::FRAME
    ))
}

/// Memory of the host that a guest of `memory` bytes needs.
const fn needed(memory: u64, machine: Machine) -> u64 {
    match machine {
        Machine::Hosted => memory,
        Machine::Qemu => memory.saturating_add(APPARATUS),
    }
}

/// Threads of load.
fn check_threads(args: &StressHighalloc, host: &Host) -> Result<usize, String> {
    let threads = match (args.machine, args.threads.unwrap_or(0)) {
        (Machine::Hosted, threads) if threads > host.cpus => {
            return Err(format!(
                "--threads {threads}: more than the host's {} CPUs",
                host.cpus
            ));
        }
        (Machine::Hosted, threads) if threads > MAX_THREADS as u64 => {
            return Err(format!("--threads {threads}: at most {MAX_THREADS}"));
        }
        (Machine::Qemu, threads) if threads > MAX_CPUS => {
            return Err(format!(
                "--threads {threads}: a guest in QEMU has at most {MAX_CPUS} CPUs"
            ));
        }
        // A virtual machine has no deterministic mode.
        (Machine::Qemu, 0) => DEFAULT_CPUS,
        (_, threads) => threads,
    };
    // Too many for `usize` are too many for the run.
    Ok(usize::try_from(threads).unwrap_or(usize::MAX))
}

/// The longest time between two steps of the balloon, in milliseconds.
const MAX_PERIOD_MS: u64 = MAX_SCHEDULE / 1_000_000;

/// The longest answer time of the host, in milliseconds.
const MAX_HOST_ANSWER_MS: u64 = MAX_HOST_ANSWER / 1_000_000;

/// The host's answer time.
fn check_answer(args: &StressHighalloc) -> Result<u64, String> {
    match (args.host_answer, args.machine) {
        (None, _) => Ok(0),
        // The delay of QEMU's device cannot be set.
        (Some(_), Machine::Qemu) => Err("--host-answer: only with --machine hosted".into()),
        (Some(answer), Machine::Hosted) if answer.ms > MAX_HOST_ANSWER_MS => Err(format!(
            "--host-answer {answer}: at most {}",
            Period {
                ms: MAX_HOST_ANSWER_MS
            }
        )),
        (Some(answer), Machine::Hosted) => Ok(answer.ms),
    }
}

/// Checks the flags against each other and the host.
///
/// # Errors
///
/// A sentence that names the flag, what it was given and what it may be.
pub fn check(args: &StressHighalloc, host: &Host) -> Result<Params, String> {
    let StressHighalloc {
        memory,
        balloon,
        step,
        machine,
        ..
    } = *args;
    check_sizes(memory, balloon, machine, host)?;
    check_step(step, balloon)?;
    if machine != Machine::Qemu
        && let Some(flag) = args.qemu.first()
    {
        return Err(format!("{flag}: only with --machine qemu"));
    }
    if args.period.is_some_and(|period| period.ms == 0) {
        return Err("--period 0: the balloon needs time between two steps".into());
    }
    if let Some(period) = args.period.filter(|period| period.ms > MAX_PERIOD_MS) {
        return Err(format!("--period {period}: at most a day"));
    }
    let threads = check_threads(args, host)?;
    let host_answer_ms = check_answer(args)?;
    if args.seed.checked_add(args.runs - 1).is_none() {
        return Err(format!(
            "--seed {} with --runs {}: the last seed would be above {}",
            args.seed,
            args.runs,
            u64::MAX
        ));
    }
    if args.columns.is_empty() {
        return Err("--columns: names no column".into());
    }
    named_once("--columns", &args.columns, Column::name)?;
    let disk = check_disk(args.disk, memory, args.load_scale)?;
    let swap = check_swap(args.swap, memory, disk)?;
    let params = Params {
        disk: disk.0,
        swap: Some(swap.0),
        disk_speed: args.disk_speed.thousandths,
        seed: args.seed,
        memory: memory.0,
        balloon: balloon.0,
        step: step.0,
        period_ms: args
            .period
            .map_or(args.profile.period_ms(), |period| period.ms),
        schedule: args.schedule,
        inflate: args.inflate,
        without: named_once("--without", &args.without, Feature::name)?,
        threads,
        load_scale: args.load_scale.thousandths,
        watermark_scale: args.watermark_scale.thousandths,
        time_scale: args.time_scale.thousandths,
        deflate_on_oom: args.deflate_on_oom,
        host_answer_ms,
        ..Params::new(args.profile)
    };
    // The experiment has limits that the flags one by one do not show.
    params.check().map_err(|error| error.to_string())?;
    for &column in &args.columns {
        let refused = |error| format!("--columns {}: {error}", column.name());
        params.check_column(column).map_err(refused)?;
    }
    Ok(params)
}

/// The values of a flag, each of which may be named once.
fn named_once<T: Copy + PartialEq>(
    flag: &str,
    values: &[T],
    name: fn(T) -> &'static str,
) -> Result<Vec<T>, String> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            return Err(format!("{flag}: {} is named twice", name(*value)));
        }
    }
    Ok(values.to_vec())
}

/// How many columns run at once: `asked`, as far as memory and CPUs allow.
pub fn at_once(asked: Option<u64>, params: &Params, machine: Machine, host: &Host) -> usize {
    let usual = match machine {
        Machine::Hosted => 2,
        Machine::Qemu => 1,
    };
    let asked = asked.unwrap_or(usual);
    // All of the guest's memory is resident while a column runs; the rest of a process is small.
    let by_memory = host.available / needed(params.memory, machine).max(1);
    let by_cpus = match params.threads {
        0 => host.cpus,
        threads => host.cpus / threads as u64,
    };
    asked.min(by_memory).min(by_cpus).max(1) as usize
}

/// The value of a line of `/proc/meminfo`, which counts in KiB.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    const HOST: Host = Host {
        memory: 16 << 30,
        available: 9 << 30,
        cpus: 2,
    };

    pub(crate) fn checked(flags: &str) -> Result<Params, String> {
        checked_on(flags, &HOST)
    }

    fn checked_on(flags: &str, host: &Host) -> Result<Params, String> {
        let words = ["dirigible", "stress-highalloc"]
            .into_iter()
            .chain(flags.split_whitespace());
        match Cli::try_parse_from(words)
            .expect("clap takes these")
            .command
        {
            Command::StressHighalloc(args) => check(&args, host),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn refusals_name_the_flag() {
        for (flags, message) in [
            ("--memory 0", "--memory 0: a guest needs memory"),
            (
                "--memory 5000",
                "--memory 5000: not a whole number of frames",
            ),
            (
                "--memory 1T",
                "--memory 1T: larger than the host's memory (16384 MiB)",
            ),
            ("--memory 4M", "--memory 4M: a guest needs at least 64M"),
            (
                "--balloon 4G",
                "--balloon 4G: must be smaller than the guest's memory (--memory 4G)",
            ),
            ("--balloon 8G", "--balloon 8G: must be smaller"),
            (
                "--balloon 4097",
                "--balloon 4097: not a whole number of frames",
            ),
            ("--step 0", "--step 0: the balloon would never move"),
            ("--step 1K", "--step 1K: not a whole number of frames"),
            (
                "--step 2G",
                "--step 2G: larger than the balloon (--balloon 1G)",
            ),
            ("--period 0s", "--period 0: the balloon needs time"),
            ("--period 1441m", "--period 86460s: at most a day"),
            ("--threads 3", "--threads 3: more than the host's 2 CPUs"),
            (
                "--machine qemu --memory 64M --balloon 16M --step 4M",
                "--memory 64M: a guest in QEMU needs at least 256M",
            ),
            (
                "--machine qemu --memory 16G",
                "--memory 16G: larger than the host's memory (16384 MiB), with 64M for the guest's kernel",
            ),
            (
                "--machine qemu --threads 17",
                "--threads 17: a guest in QEMU has at most 16 CPUs",
            ),
            ("--accel kvm", "--accel: only with --machine qemu"),
            ("--patience 2", "--patience: only with --machine qemu"),
            (
                "--machine qemu --host-answer 20ms",
                "--host-answer: only with --machine hosted",
            ),
            ("--host-answer 1001ms", "--host-answer 1001ms: at most 1s"),
            (
                "--disk 2G",
                "--disk 2G: too small for the files of a guest with --memory 4G: at least 4G",
            ),
            ("--disk 5000", "--disk 5000: not a whole number of frames"),
            ("--disk 0", "--disk 0: too small"),
            ("--disk 17T", "--disk 17T: at most 16T"),
            ("--swap 5000", "--swap 5000: not a whole number of frames"),
            (
                "--swap 16T",
                "--swap 16T: at most 16376G behind a disk of 8G for files",
            ),
            (
                "--columns steered,smaller",
                "--columns smaller: the column smaller needs the schedule held",
            ),
            (
                "--load-scale 4 --disk 8G",
                "--disk 8G: too small for the files of a guest with --memory 4G under this load: at least 16G",
            ),
            (
                "--columns smaller --schedule held --memory 128M --balloon 96M --step 32M",
                "--columns smaller: the column smaller has 33554432 bytes",
            ),
            (
                "--columns pinned,pinned",
                "--columns: pinned is named twice",
            ),
            ("--without joint,joint", "--without: joint is named twice"),
            (
                "--seed 18446744073709551615 --runs 2",
                "--seed 18446744073709551615 with --runs 2",
            ),
        ] {
            let refusal = checked(flags).unwrap_err();
            assert!(refusal.starts_with(message), "{flags}: {refusal}");
        }
        let large = Host { cpus: 128, ..HOST };
        assert_eq!(
            checked_on("--threads 100", &large).unwrap_err(),
            "--threads 100: at most 64"
        );
        assert!(checked_on("--threads 64", &large).is_ok());
    }

    #[test]
    fn what_is_sound_passes() {
        let params = checked("").unwrap();
        assert_eq!(
            (params.memory, params.balloon, params.step),
            (4 << 30, 1 << 30, 256 << 20)
        );
        assert_eq!((params.period_ms, params.load_scale), (60_000, 1000));
        assert_eq!((params.disk, params.disk_speed), (8 << 30, 1000));
        assert_eq!(params.swap_bytes(), 3 << 30);
        assert_eq!(checked("--swap 0").unwrap().swap, Some(0));
        let slow = checked("--disk 4G --disk-speed 0.1").unwrap();
        assert_eq!((slow.disk, slow.disk_speed), (4 << 30, 100));
        assert_eq!(checked("--memory 2G").unwrap().disk, 4 << 30);
        assert!(checked("--columns smaller --schedule held").is_ok());
        assert_eq!(checked("--profile quick").unwrap().period_ms, 5000);
        assert_eq!(
            checked("--profile quick --period 2m").unwrap().period_ms,
            120_000
        );
        assert_eq!(checked("").unwrap().threads, 0);
        for (flags, cpus) in [("", 2), ("--threads 0", 2), ("--threads 16", 16)] {
            let params = checked(&format!("--machine qemu --accel kvm {flags}")).unwrap();
            assert_eq!(params.threads, cpus);
        }
        let params = checked("--host-answer 20ms --deflate-on-oom").unwrap();
        assert_eq!((params.host_answer_ms, params.deflate_on_oom), (20, true));
        assert!(checked("--machine qemu --deflate-on-oom").is_ok());
        let params = checked("--without joint,reserve").unwrap();
        assert_eq!(params.without, [Feature::Joint, Feature::Reserve]);
        // Without a balloon the step means nothing.
        assert_eq!(checked("--balloon 0").unwrap().balloon, 0);
        assert_eq!(checked("--balloon 0 --step 0").unwrap().step, 0);
        assert_eq!(checked("--period 1440m").unwrap().period_ms, 24 * 3_600_000);
        assert_eq!(
            checked("--seed 18446744073709551615").unwrap().seed,
            u64::MAX
        );
    }

    #[test]
    fn columns_run_at_once_as_far_as_the_host_allows() {
        let params = checked("").unwrap();
        let hosted = |asked, host: &Host| at_once(asked, &params, Machine::Hosted, host);
        assert_eq!(hosted(None, &HOST), 2);
        assert_eq!(hosted(Some(8), &HOST), 2);
        let with = |available| Host { available, ..HOST };
        assert_eq!(hosted(Some(2), &with(5 << 30)), 1);
        assert_eq!(hosted(Some(2), &with(0)), 1);
        let threads = checked("--threads 2").unwrap();
        assert_eq!(at_once(None, &threads, Machine::Hosted, &HOST), 1);
        let params = checked("--machine qemu --threads 1").unwrap();
        let qemu = |asked, host: &Host| at_once(asked, &params, Machine::Qemu, host);
        assert_eq!(qemu(None, &HOST), 1);
        assert_eq!(qemu(Some(2), &HOST), 2);
        assert_eq!(qemu(Some(2), &with(8 << 30)), 1);
    }

    #[test]
    fn meminfo_lines() {
        let text = "MemTotal:       24689764 kB\nMemFree:         123 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), Some(24_689_764 * 1024));
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), None);
        assert_eq!(meminfo_bytes("MemTotal: x kB", "MemTotal:"), None);
    }
}
