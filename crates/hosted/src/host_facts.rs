//! What is known about the host that a machine runs on.

use std::{fs, thread};

use serde::Serialize;

use crate::memory::discard::process_madvise_handle;

/// The host, as far as it bears on results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Kernel name and release.
    pub kernel: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Bytes of a page.
    pub page_size: usize,
    /// Whether `process_madvise` can discard memory of this process.
    pub process_madvise: bool,
    /// Mode of transparent huge pages: `always`, `madvise` or `never`; `none` where the kernel does not have them.
    pub transparent_hugepages: String,
    /// Bytes of memory that can be had without swapping.
    pub available_bytes: u64,
}

impl HostFacts {
    /// Looks at the host.
    pub fn gather() -> Self {
        let name = rustix::system::uname();
        Self {
            kernel: format!(
                "{} {}",
                name.sysname().to_string_lossy(),
                name.release().to_string_lossy()
            ),
            cores: thread::available_parallelism().map_or(1, usize::from),
            page_size: rustix::param::page_size(),
            process_madvise: process_madvise_handle().is_some(),
            transparent_hugepages: fs::read_to_string(
                "/sys/kernel/mm/transparent_hugepage/enabled",
            )
            .ok()
            .and_then(|modes| chosen(&modes).map(str::to_owned))
            .unwrap_or_else(|| "none".to_owned()),
            available_bytes: available_bytes(),
        }
    }
}

/// Bytes of memory that can be had without swapping; `u64::MAX` when the host does not report it.
pub(crate) fn available_bytes() -> u64 {
    let host = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo_bytes(&text, "MemAvailable:"));
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| {
            // "max" is no number and no limit.
            let limit: u64 = text.trim().parse().ok()?;
            let used = fs::read_to_string("/sys/fs/cgroup/memory.current").ok()?;
            Some(limit.saturating_sub(used.trim().parse().ok()?))
        });
    host.into_iter().chain(limit).min().unwrap_or(u64::MAX)
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The word in brackets.
fn chosen(modes: &str) -> Option<&str> {
    let (_, rest) = modes.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("nonsense"), None);
        let text = "MemTotal:       24 kB\nMemAvailable:    7 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), Some(7168));
        assert_eq!(meminfo_bytes("MemAvailable: x kB", "MemAvailable:"), None);
    }

    #[test]
    fn this_host_is_known() {
        let facts = HostFacts::gather();
        assert!(facts.kernel.starts_with("Linux "), "{facts:?}");
        assert!(facts.cores > 0 && facts.available_bytes > 0);
        assert_eq!(facts.page_size, 4096);
    }
}
