//! The output of the guest's serial port, kept if the run fails.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    process,
};

/// The most bytes that are kept, so that a faulty guest cannot fill the disk.
const MOST_BYTES: u64 = 64 << 20;
/// Where logs are put, in the folder that cargo builds in.
const FOLDER: &str = "qemu-logs";

/// A log in a file that is removed with its directory unless it is [kept](Log::keep).
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    length: u64,
}

impl Log {
    /// A log in a file at `path`, whose directory may go away.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, length: 0 })
    }

    /// Appends output.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        if self.length < MOST_BYTES && self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
        }
    }

    /// Copies the log and returns the copy's path: beside what cargo built if `kernel` lies there, else among
    /// the host's temporary files. `name` is the task's. `None` if there is nothing to keep, or no place.
    pub(crate) fn keep(&mut self, kernel: &Path, name: &str) -> Option<PathBuf> {
        if self.length == 0 {
            return None;
        }
        let built = kernel.ancestors().find(|folder| folder.ends_with("target"));
        let folders = built
            .map(|target| target.join(FOLDER))
            .filter(|folder| fs::create_dir_all(folder).is_ok());
        let folders = folders.into_iter().chain([env::temp_dir()]);
        for folder in folders {
            if let Some(path) = self.copy_into(&folder, name) {
                return Some(path);
            }
        }
        None
    }

    fn copy_into(&mut self, folder: &Path, name: &str) -> Option<PathBuf> {
        for number in 0..1000 {
            let path = folder.join(format!("dirigible-{name}-{}-{number}.log", process::id()));
            // Never overwrites a file, nor follows a link that another user has put there.
            let mut copy = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(copy) => copy,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(_) => return None,
            };
            let done = self
                .file
                .rewind()
                .and_then(|()| io::copy(&mut self.file, &mut copy));
            return done.ok().map(|_| path);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_dir::PrivateDir;

    #[test]
    fn a_log_outlives_its_directory() {
        let folder = PrivateDir::new().unwrap();
        let mut log = Log::new(&folder.path().join("serial.log")).unwrap();
        drop(folder);
        let place = PrivateDir::new().unwrap();
        let kernel = place.path().join("target/guest/kernel");
        assert_eq!(log.keep(&kernel, "column"), None, "nothing to keep");
        log.add(b"hello\n");
        let (first, second) = (log.keep(&kernel, "column"), log.keep(&kernel, "column"));
        assert!(first.is_some() && first != second, "{first:?} {second:?}");
        let first = first.unwrap();
        assert!(first.starts_with(place.path().join("target/qemu-logs")));
        assert_eq!(fs::read(first).unwrap(), b"hello\n");
    }
}
