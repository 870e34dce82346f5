//! Figures of `/proc` about the QEMU process.

use std::{fs, io};

/// Milliseconds that a process, which may just have ended, has spent in user mode and in the kernel; 0 if `/proc` does
/// not have them.
pub(crate) fn process_times(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, in parentheses, may hold spaces; user and system time are the 12th and 13th field after it.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |index| {
        let field = fields.split_whitespace().nth(index);
        field.and_then(|ticks| ticks.parse::<u64>().ok())
    };
    let ms = 1000 / rustix::param::clock_ticks_per_second().max(1);
    (ticks(11).unwrap_or(0) * ms, ticks(12).unwrap_or(0) * ms)
}

/// Bytes of the guest's RAM that are resident on the host.
///
/// RAM is a mapping of its own, of exactly `ram` bytes. Other memory of the process (above all the translator's code,
/// which grows as the guest runs) does not count. If there is no such mapping, the whole process counts.
///
/// # Errors
///
/// The process has ended, or `/proc` is not there.
pub(crate) fn resident(pid: u32, ram: u64) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    match of_mapping(&maps, ram) {
        Some(bytes) => Ok(bytes),
        None => whole_process(pid),
    }
}

/// The resident bytes of the one mapping that has `size` bytes.
fn of_mapping(smaps: &str, size: u64) -> Option<u64> {
    let bytes = |line: &str, key: &str| {
        let kib = line.strip_prefix(key)?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let mut found = None;
    let mut right_size = false;
    for line in smaps.lines() {
        if let Some(length) = bytes(line, "Size:") {
            right_size = length == size;
        }
        if let Some(resident) = bytes(line, "Rss:").filter(|_| right_size) {
            match found {
                None => found = Some(resident),
                // Two such mappings: RAM cannot be told from the other.
                Some(_) => return None,
            }
        }
    }
    found
}

fn whole_process(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let mut pages = text.split_whitespace().map(str::parse::<u64>);
    match (pages.next(), pages.next()) {
        // A process that has ended and was not waited for yet has no address space: its figures are all 0.
        (Some(Ok(0)), _) => Err(io::ErrorKind::NotFound.into()),
        (_, Some(Ok(resident))) => Ok(resident * rustix::param::page_size() as u64),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7fd873e00000-7fd8b7e00000 rw-p 00000000 00:00 0
Size:            1114112 kB
KernelPageSize:        4 kB
Rss:             1100000 kB
558b8f2fe000-558b8f2ff000 ---p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
";

    #[test]
    fn the_mapping_of_ram_is_found_by_its_size() {
        assert_eq!(of_mapping(SMAPS, 1088 << 20), Some(1_100_000 << 10));
        assert_eq!(of_mapping(SMAPS, 1087 << 20), None);
        assert_eq!(of_mapping(&SMAPS.repeat(2), 1088 << 20), None);
        assert_eq!(of_mapping("Size: x kB\nRss: kB\n", 0), None);
    }

    /// Its resident memory is 0, but that must not be taken for memory that was given back.
    #[test]
    fn a_process_that_has_ended_has_no_figure() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        let error = resident(child.id(), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        child.wait().unwrap();
    }

    #[test]
    fn this_process_is_known() {
        let me = std::process::id();
        assert!(resident(me, 1).unwrap() > 1 << 20);
        assert!(resident(u32::MAX, 1).is_err());
        assert_eq!(process_times(u32::MAX), (0, 0));
    }
}
