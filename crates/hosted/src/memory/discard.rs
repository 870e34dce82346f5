//! Gives memory back to the host: what an inflated frame's memory is for.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use dirigible_frames::{FRAME_SIZE, Pfn};
use rustix::{
    io::Errno,
    mm::{Advice, madvise},
    process::{PidfdFlags, getpid, pidfd_open},
};
use vm_memory::MmapRegion;

use crate::memory::managed::ManagedMemory;

/// How the device asks the host to take memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiscardMethod {
    /// `process_madvise` for scattered frames where the kernel has it, else `madvise`.
    #[default]
    Auto,
    /// `madvise` alone, one call for each run of adjacent frames.
    Madvise,
}

/// Adjacent host memory. The kernel's `struct iovec`, with the pointer as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Run {
    start: usize,
    length: usize,
}

const _: () = assert!(
    size_of::<Run>() == size_of::<libc::iovec>()
        && align_of::<Run>() == align_of::<libc::iovec>()
        && core::mem::offset_of!(Run, length) == core::mem::offset_of!(libc::iovec, iov_len),
);

/// Most runs that the kernel takes in one call (its UIO_MAXIOV).
const MAX_RUNS: usize = 1024;

/// What has been discarded, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardCounts {
    /// Frames whose memory was given back.
    pub frames: u64,
    /// Runs of adjacent frames among them.
    pub runs: u64,
    /// System calls made.
    pub calls: u64,
    /// Runs that the kernel refused to take: their frames keep memory and contents.
    pub failures: u64,
}

/// Discards frames.
#[derive(Debug)]
pub(crate) struct Discarder {
    /// This process, for `process_madvise`; `None`: not used.
    this_process: Option<OwnedFd>,
    runs: Vec<Run>,
    counts: DiscardCounts,
}

impl Discarder {
    pub(crate) fn new(method: DiscardMethod) -> Self {
        let this_process = match method {
            DiscardMethod::Auto => process_madvise_handle(),
            DiscardMethod::Madvise => None,
        };
        Self {
            this_process,
            runs: Vec::new(),
            counts: DiscardCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> DiscardCounts {
        self.counts
    }

    /// Discards `frames`, which ascend. All are managed frames; others are left out.
    pub(crate) fn discard(&mut self, memory: &ManagedMemory, frames: &[Pfn]) {
        self.runs.clear();
        let addresses = frames
            .iter()
            .filter_map(|&frame| memory.host_address(frame));
        coalesce(addresses, &mut self.runs);
        let bytes: usize = self.runs.iter().map(|run| run.length).sum();
        self.counts.frames += (bytes / FRAME_SIZE) as u64;
        self.counts.runs += self.runs.len() as u64;

        let mut left = &self.runs[..];
        // One run is one call either way, and madvise is the cheaper of the two.
        if let (Some(process), true) = (&self.this_process, left.len() > 1) {
            for batch in self.runs.chunks(MAX_RUNS) {
                self.counts.calls += 1;
                let done = advise_batch(process, batch);
                left = &left[done..];
                if done < batch.len() {
                    break;
                }
            }
        }
        for run in left {
            self.counts.calls += 1;
            if advise_one(*run).is_err() {
                self.counts.failures += 1;
                self.counts.frames -= (run.length / FRAME_SIZE) as u64;
            }
        }
    }
}

/// Joins ascending frame addresses to runs.
fn coalesce(addresses: impl Iterator<Item = usize>, runs: &mut Vec<Run>) {
    for start in addresses {
        match runs.last_mut() {
            Some(run) if run.start + run.length == start => run.length += FRAME_SIZE,
            _ => runs.push(Run {
                start,
                length: FRAME_SIZE,
            }),
        }
    }
}

/// Discards one run.
fn advise_one(run: Run) -> Result<(), Errno> {
    let address = core::ptr::with_exposed_provenance_mut(run.start);
    loop {
        // SAFETY: the run is managed memory (`Discarder::discard` takes addresses from `ManagedMemory` alone; the
        // device keeps the mapping alive), private and anonymous, so its words read zero afterwards. Nobody has
        // references into it, all accesses are atomic or volatile: towards them the call is 512 stores of zero a frame.
        match unsafe { madvise(address, run.length, Advice::LinuxDontNeed) } {
            Err(Errno::INTR | Errno::AGAIN) => {}
            result => return result,
        }
    }
}

/// Discards runs from the first on; gives how many the kernel did.
fn advise_batch(process: &OwnedFd, batch: &[Run]) -> usize {
    // SAFETY: `batch` has the layout of an array of iovecs (asserted above) and is at most MAX_RUNS long; for the
    // memory it names see `advise_one`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            batch.as_ptr(),
            batch.len(),
            libc::MADV_DONTNEED,
            0u32,
        )
    };
    // The kernel says how many bytes it did; a run that it did in part is done again.
    let mut bytes = usize::try_from(result).unwrap_or(0);
    let mut done = 0;
    for run in batch {
        if bytes < run.length {
            break;
        }
        bytes -= run.length;
        done += 1;
    }
    done
}

/// This process as a handle for `process_madvise`, if the kernel can discard by it: kernels before 5.10 do not have the
/// call, those before 6.13 refuse this advice.
pub(crate) fn process_madvise_handle() -> Option<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    // Tried out on two pages of our own, apart from one another.
    let probe = MmapRegion::<()>::new(3 * FRAME_SIZE).ok()?;
    let start = probe.as_ptr().expose_provenance();
    let batch = [0, 2].map(|page| Run {
        start: start + page * FRAME_SIZE,
        length: FRAME_SIZE,
    });
    // SAFETY: inside the mapping, which nobody else knows.
    unsafe { probe.as_ptr().write_volatile(1) };
    let done = advise_batch(&process, &batch);
    // SAFETY: as above.
    let word = unsafe { probe.as_ptr().read_volatile() };
    (done == batch.len() && word == 0).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_frames_are_one_run() {
        let mut runs = Vec::new();
        let frames = [1, 2, 3, 5, 7, 8];
        coalesce(frames.iter().map(|frame| frame * FRAME_SIZE), &mut runs);
        let expected = [(1, 3), (5, 1), (7, 2)].map(|(first, count)| Run {
            start: first * FRAME_SIZE,
            length: count * FRAME_SIZE,
        });
        assert_eq!(runs, expected);
    }
}
