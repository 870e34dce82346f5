//! How much of a mapping the host has memory for.
#![allow(unsafe_code)]

use core::ops::Range;
use std::io;

/// Host pages; equal to the guest's frames (the machine refuses hosts where it is not so).
const PAGE: usize = 4096;
/// Pages asked about in one call.
const CHUNK_PAGES: usize = 1 << 16;

/// Counts the pages of the host addresses `range` that are mapped to memory.
///
/// `range` is page-aligned. A page that was only read since it was discarded counts too: it maps the host's page of
/// zeroes.
pub(crate) fn resident_pages(range: Range<usize>) -> io::Result<u64> {
    let mut residency = vec![0u8; CHUNK_PAGES.min(range.len().div_ceil(PAGE))];
    let mut count = 0;
    for start in range.clone().step_by(CHUNK_PAGES * PAGE) {
        let length = (range.end - start).min(CHUNK_PAGES * PAGE);
        let answer = &mut residency[..length.div_ceil(PAGE)];
        // SAFETY: the kernel only reads its own tables about the range, mapped or not, and writes one byte for each
        // page of it to `answer`, which has just that many.
        let result = unsafe { libc::mincore(start as *mut _, length, answer.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        count += answer.iter().filter(|&&page| page & 1 != 0).count() as u64;
    }
    Ok(count)
}
