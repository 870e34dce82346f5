//! What a program can ask of its kernel: of any kernel.
//!
//! Programs of the load ([`programs`](crate::programs)) reach memory, files and each other through these calls alone.
//! Each program has a [`Calls`] of its own: what it maps is mapped in its address space, what it spawns is its child.
//! Every call may wait. A program that is being killed gets [`Failure::Killed`] from its next call, and ends.
//!
//! Memory is counted in pages of 4 KiB. Contents are patterns: those of memory are the kernel's choice, those of files
//! and pipes follow from a key that the program gives. Whoever implements the calls writes and compares them.

use core::ops::Range;

use crate::programs::Program;

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The program is being killed: it returns at once.
    #[error("killed")]
    Killed,
    /// There is no memory for it.
    #[error("out of memory")]
    NoMemory,
    /// The disk is full.
    #[error("no space left on the disk")]
    NoSpace,
    /// No file or directory of this name, or no such program.
    #[error("not found")]
    NotFound,
    /// There is one of this name, or the directory is not empty.
    #[error("exists")]
    Exists,
    /// The disk could not read or write.
    #[error("input or output error")]
    Io,
    /// The pipe has no other end.
    #[error("broken pipe")]
    Pipe,
    /// Too many programs, files or pipes, or the kernel cannot do this.
    #[error("too many")]
    TooMany,
}

/// A program that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pid(pub u32);

/// An open file of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File(pub u32);

/// One end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PipeEnd(pub u32);

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It returned.
    Done,
    /// It was killed, or gave up after a failure.
    Failed,
}

/// How much of the contents is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// The four lines of each page that this random draw selects.
    Four(u32),
    /// Every line.
    Whole,
}

/// The calls of one program.
pub trait Calls {
    /// Nanoseconds on the kernel's clock.
    fn now(&self) -> u64;

    /// Sleeps until `time` on that clock.
    ///
    /// # Errors
    ///
    /// The program is being killed, as in all other calls.
    fn sleep_until(&self, time: u64) -> Result<(), Failure>;

    /// Begins `program` as a child, which gets `pipe` if there is one: the end is the child's from then on. It stays
    /// the caller's when the call fails.
    ///
    /// # Errors
    ///
    /// No memory for it, or too many programs.
    fn spawn(&self, program: &Program, pipe: Option<PipeEnd>) -> Result<Pid, Failure>;

    /// Waits for a child to end.
    ///
    /// # Errors
    ///
    /// It is no child of the program.
    fn wait(&self, child: Pid) -> Result<Ended, Failure>;

    /// Waits for the first child to end; of several, the one that was begun first. A child is waited for once.
    ///
    /// # Errors
    ///
    /// The program has no child ([`Failure::NotFound`]).
    fn wait_any(&self) -> Result<(Pid, Ended), Failure>;

    /// The end of a pipe that the program was begun with. It is an end like those that [`pipe`](Self::pipe) gives, and
    /// the same whenever it is asked for.
    fn inherited(&self) -> Option<PipeEnd>;

    // --- memory ---

    /// Reserves `pages` pages (at least one) of address space, aligned to 2 MiB if `huge`, and advises huge pages for
    /// them if so. Gives the first page's number. Two calls may give neighbours, and one range may be unmapped in
    /// parts.
    ///
    /// # Errors
    ///
    /// No memory.
    fn map(&self, pages: u64, huge: bool) -> Result<u64, Failure>;

    /// Stores into each page of a mapped range: pages that are not there come to be, filled with their pattern.
    ///
    /// # Errors
    ///
    /// No memory: those before are there.
    fn touch(&self, pages: Range<u64>) -> Result<(), Failure>;

    /// Loads the pages of the range that are there, and compares.
    ///
    /// # Errors
    ///
    /// The program is being killed. Wrong contents are no failure of the program: the kernel records them.
    fn check(&self, pages: Range<u64>, check: Check) -> Result<(), Failure>;

    /// Gives the contents of the range back (`madvise`, `MADV_DONTNEED`); it stays mapped.
    ///
    /// # Errors
    ///
    /// The program is being killed.
    fn discard(&self, pages: Range<u64>) -> Result<(), Failure>;

    /// Ends the mapping of the range.
    ///
    /// # Errors
    ///
    /// The program is being killed.
    fn unmap(&self, pages: Range<u64>) -> Result<(), Failure>;

    // --- files: paths are absolute, names separated by `/` ---

    /// Makes an empty file and opens it.
    ///
    /// # Errors
    ///
    /// No directory, or there is one of the name; no space, no memory, the disk.
    fn create(&self, path: &str) -> Result<File, Failure>;

    /// Opens a file.
    ///
    /// # Errors
    ///
    /// There is none; no memory, the disk.
    fn open(&self, path: &str) -> Result<File, Failure>;

    /// The pages of a file.
    ///
    /// # Errors
    ///
    /// The file is not open.
    fn pages(&self, file: File) -> Result<u64, Failure>;

    /// Writes `pages` of a file, at its end or over what is there: page `n` gets the pattern of (`key`, `n`).
    ///
    /// # Errors
    ///
    /// No space, no memory, the disk. Some of the pages may be written: the caller may write all again.
    fn write(&self, file: File, pages: Range<u64>, key: u64) -> Result<(), Failure>;

    /// Reads pages of a file and compares them with the pattern of `key`.
    ///
    /// # Errors
    ///
    /// No memory, the disk. Wrong contents are no failure of the program: the kernel records them.
    fn read(&self, file: File, pages: Range<u64>, key: u64, check: Check) -> Result<(), Failure>;

    /// Puts what was written to a file onto the disk.
    ///
    /// # Errors
    ///
    /// The disk.
    fn sync(&self, file: File) -> Result<(), Failure>;

    /// Closes a file.
    fn close(&self, file: File);

    /// Deletes a file. Who has it open keeps it.
    ///
    /// # Errors
    ///
    /// There is none; the disk.
    fn delete(&self, path: &str) -> Result<(), Failure>;

    /// Makes a directory.
    ///
    /// # Errors
    ///
    /// There is one; no space, no memory, the disk.
    fn make_directory(&self, path: &str) -> Result<(), Failure>;

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// There is none, or it is not empty; the disk.
    fn remove_directory(&self, path: &str) -> Result<(), Failure>;

    /// Calls `with` with the name of each entry of a directory and whether it is a directory, in any order. `with`
    /// makes no calls.
    ///
    /// # Errors
    ///
    /// There is no such directory; no memory, the disk.
    fn list(&self, path: &str, with: &mut dyn FnMut(&str, bool)) -> Result<(), Failure>;

    // --- pipes ---

    /// Makes a pipe: its reading and its writing end. It holds 16 pages.
    ///
    /// # Errors
    ///
    /// No memory, or too many.
    fn pipe(&self) -> Result<(PipeEnd, PipeEnd), Failure>;

    /// Writes up to `pages` pages (at least one) into a pipe; waits for room for the first. Gives how many it wrote.
    /// Page `n` of all that goes through the pipe gets the pattern of (`key`, `n`).
    ///
    /// # Errors
    ///
    /// Nobody reads any more; no memory: none was written.
    fn write_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure>;

    /// Reads up to `pages` pages (at least one) from a pipe and compares them; waits for the first. Gives how many
    /// there were; 0 when nobody writes any more.
    ///
    /// # Errors
    ///
    /// The program is being killed.
    fn read_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure>;

    /// Closes an end.
    fn close_pipe(&self, end: PipeEnd);

    // --- for the report ---

    /// `files` files have been compiled.
    fn count_compiled(&self, files: u64);

    /// A request of the program has waited for memory for `time` nanoseconds.
    fn count_wait(&self, time: u64);
}
