//! Counters in memory that all processes of a run share.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::IntoRawFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::memory::map_shared;

/// Bytes of the shared memory.
const LENGTH: u64 = 4096;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Files compiled.
    Compiled,
    /// Programs begun.
    Programs,
    /// Programs that gave up, or were killed by somebody else.
    Failed,
    /// Programs that gave up because the file system is full.
    NoSpace,
    /// Programs that gave up because files could not be read or written.
    Io,
    /// Pages of memory stored into.
    Touched,
    /// Pages of memory compared.
    Checked,
    /// Pages of files read and compared.
    Read,
    /// Pages of files written.
    Written,
    /// Pages through pipes.
    Piped,
    /// Waits for memory.
    Waits,
    /// Pages with wrong contents.
    Wrong,
}

impl Count {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Compiled,
        Self::Programs,
        Self::Failed,
        Self::NoSpace,
        Self::Io,
        Self::Touched,
        Self::Checked,
        Self::Read,
        Self::Written,
        Self::Piped,
        Self::Waits,
        Self::Wrong,
    ];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compiled => "files_compiled",
            Self::Programs => "programs_begun",
            Self::Failed => "programs_failed",
            Self::NoSpace => "programs_out_of_space",
            Self::Io => "programs_with_file_errors",
            Self::Touched => "pages_touched",
            Self::Checked => "pages_checked",
            Self::Read => "file_pages_read",
            Self::Written => "file_pages_written",
            Self::Piped => "pages_piped",
            Self::Waits => "waits",
            Self::Wrong => "pages_wrong",
        }
    }

    /// What is counted, in words.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Compiled => "files compiled",
            Self::Programs => "programs begun",
            Self::Failed => "programs failed",
            Self::NoSpace => "programs out of space for files",
            Self::Io => "programs with errors of files",
            Self::Touched => "pages of memory touched",
            Self::Checked => "pages of memory compared",
            Self::Read => "pages of files read",
            Self::Written => "pages of files written",
            Self::Piped => "pages through pipes",
            Self::Waits => "waits for memory",
            Self::Wrong => "pages with wrong contents",
        }
    }
}

/// The counters. They are sums and publish nothing: Relaxed.
#[derive(Debug)]
pub struct Counters {
    counts: &'static [AtomicU64],
    descriptor: i32,
}

impl Counters {
    /// New counters, whose descriptor all processes inherit. They live as long as the process.
    pub fn create() -> io::Result<&'static Self> {
        let file = File::from(memfd_create("dirigible-load", MemfdFlags::empty())?);
        ftruncate(&file, LENGTH)?;
        let counts = map_shared(&file)?;
        // It stays open, for the children.
        let descriptor = file.into_raw_fd();
        Ok(Box::leak(Box::new(Self { counts, descriptor })))
    }

    /// The counters of an inherited descriptor.
    pub fn inherited(descriptor: i32) -> io::Result<&'static Self> {
        let path = format!("/proc/self/fd/{descriptor}");
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != LENGTH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let counts = map_shared(&file)?;
        Ok(Box::leak(Box::new(Self { counts, descriptor })))
    }

    /// The descriptor that children inherit.
    pub fn descriptor(&self) -> i32 {
        self.descriptor
    }

    /// Counts `by` more; gives how many there were before.
    pub fn add(&self, count: Count, by: u64) -> u64 {
        self.counts[count as usize].fetch_add(by, Ordering::Relaxed)
    }

    /// How many there are.
    pub fn get(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }
}
