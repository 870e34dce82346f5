//! The contents of a disk: a sparse file without a name, read into guest memory and written from it.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Most pieces of one system call; Linux takes 1024.
const PIECES: usize = 256;
/// How many names are tried.
const NAMES: u32 = 100;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) address: GuestAddress,
    pub(crate) length: usize,
}

/// The file.
#[derive(Debug)]
pub(crate) struct DiskFile(File);

impl DiskFile {
    /// A file of `bytes` zeroes in `directory`. It takes no room there, and nobody else can open it.
    pub(crate) fn new(directory: &Path, bytes: u64) -> io::Result<Self> {
        /// Makes names differ within the process.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut tries = 0;
        let file = loop {
            // Relaxed: a number that nobody else gets.
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!(".dirigible-disk-{}-{number}", process::id());
            let path = directory.join(name);
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match opened {
                Ok(file) => {
                    std::fs::remove_file(&path)?;
                    break file;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < NAMES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        file.set_len(bytes)?;
        Ok(Self(file))
    }

    /// Reads the file's bytes from `offset` on into `pieces`, or writes them from there.
    pub(crate) fn transfer(
        &self,
        memory: &GuestMemoryMmap,
        pieces: &[Piece],
        mut offset: u64,
        write: bool,
    ) -> io::Result<()> {
        for pieces in pieces.chunks(PIECES) {
            let mut vectors = [EMPTY; PIECES];
            let mut total = 0;
            for (vector, piece) in vectors.iter_mut().zip(pieces) {
                *vector = locate(memory, *piece)?;
                total += vector.iov_len;
            }
            self.move_all(&mut vectors[..pieces.len()], offset, write)?;
            offset += total as u64;
        }
        Ok(())
    }

    /// One piece after the other, until all of it is moved.
    fn move_all(
        &self,
        mut vectors: &mut [libc::iovec],
        offset: u64,
        write: bool,
    ) -> io::Result<()> {
        let mut offset = libc::off_t::try_from(offset).map_err(|_| ErrorKind::InvalidInput)?;
        while !vectors.is_empty() {
            let call = if write { libc::pwritev } else { libc::preadv };
            // SAFETY: the vectors lie in guest memory (`locate`), which `memory` of `transfer` keeps mapped during the
            // call. The kernel, like any device, reads and writes it while drivers may: nobody has a reference to it.
            let moved = unsafe {
                call(
                    self.0.as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as libc::c_int,
                    offset,
                )
            };
            let mut moved = match usize::try_from(moved) {
                // The file ends before the disk does.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            offset += moved as libc::off_t;
            while let Some((first, _)) = vectors.split_first_mut() {
                if moved < first.iov_len {
                    first.iov_base = first.iov_base.wrapping_byte_add(moved);
                    first.iov_len -= moved;
                    break;
                }
                moved -= first.iov_len;
                vectors = &mut core::mem::take(&mut vectors)[1..];
            }
        }
        Ok(())
    }

    /// Reads what is on the disk.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    /// Changes what is on the disk.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    /// Bytes that the file takes on the host.
    pub(crate) fn stored_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.0.metadata()?.blocks() * 512)
    }
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: core::ptr::null_mut(),
    iov_len: 0,
};

/// Where a piece is in this process.
fn locate(memory: &GuestMemoryMmap, piece: Piece) -> io::Result<libc::iovec> {
    let slice = memory.get_slice(piece.address, piece.length);
    let slice = slice.map_err(|_| ErrorKind::InvalidInput)?;
    Ok(libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    })
}
