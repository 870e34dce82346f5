//! A directory of this process alone.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// What the path of a socket may have at most; the kernel's limit is 107 bytes.
const LONGEST_PARENT: usize = 60;

/// A directory that only its owner may enter, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// A new directory among the host's temporary files.
    pub(crate) fn new() -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut parent = env::temp_dir();
        if parent.as_os_str().len() > LONGEST_PARENT || !parent.is_absolute() {
            parent = "/tmp".into();
        }
        loop {
            // Relaxed: the numbers have to differ and nothing else.
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("dirigible-{}-{number}", process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Of a process with the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever cleans the host's temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_private_and_goes_away() {
        let (one, other) = (PrivateDir::new().unwrap(), PrivateDir::new().unwrap());
        assert_ne!(one.path(), other.path());
        let mode = fs::metadata(one.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(one.path().join("file"), "x").unwrap();
        let path = one.path().to_path_buf();
        drop(one);
        assert!(!path.exists());
    }
}
