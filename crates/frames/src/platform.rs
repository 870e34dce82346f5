//! What the machine provides, in three small traits: CPUs and time, contents of frames, page tables.

use crate::{CpuId, FRAME_SIZE, Pfn};

/// 64-bit words in a cache line of 64 bytes.
pub const WORDS_PER_LINE: usize = 8;
/// Cache lines in a frame.
pub const LINES_PER_FRAME: usize = FRAME_SIZE / (8 * WORDS_PER_LINE);

/// What a deterministic machine charges to its virtual clock; real machines let real time pass.
///
/// The machine documents its prices; the hosted machine has them in one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cost {
    /// One page fault, without the filling of the page.
    Fault,
    /// Writing one base page.
    FillFrame,
    /// Taking this many frames off their owners' books.
    Isolate(u32),
    /// Copying and remapping this many base frames.
    MoveFrame(u32),
    /// Looking at one block and deciding about it.
    ExamineBlock,
    /// One request to a device, with this many page frame numbers in it.
    HostRequest(u32),
    /// Giving this many frames back under reclaim.
    Reclaim(u32),
    /// Looking at this many frames to see whether they can be reclaimed.
    Scan(u32),
    /// Copying this many frames between a file and a program.
    CopyFrame(u32),
    /// Sending a request of this many frames to a disk, and taking its answer: the processor's share.
    DiskRequest(u32),
}

/// Masks interrupts on the CPU that calls.
///
/// Kernels free frames in interrupt handlers. A handler that interrupts its own CPU inside the allocator would wait for
/// a lock that the interrupted code holds; so the allocator masks interrupts while it holds one: for a few instructions
/// in most cases, some microseconds for a refill or a flush, and tens of microseconds to drain a CPU's full caches.
pub trait Interrupts: Sync + core::fmt::Debug {
    /// Masks interrupts; gives whether they were enabled before.
    fn mask(&self) -> bool;
    /// Restores what [`mask`](Self::mask) found.
    fn restore(&self, before: bool);
}

/// The processors, the time, and waiting: what every floor needs of the machine.
///
/// [`FrameContents`] and [`PageTables`] add what is needed to touch memory. A kernel that uses the allocator,
/// compaction and the balloon implements this trait alone.
pub trait Platform: Sync {
    /// The processor that the caller runs on. The caller must stay there while it uses the result (preemption off, or a
    /// pinned thread).
    fn cpu(&self) -> CpuId;
    /// Which caller runs on processor `cpu`, which is the calling one: different for any two that can be in the middle
    /// of a call at the same time, and neither 0 nor `u64::MAX`. That is the processor, unless several callers share
    /// one: where [`relax`](Self::relax) lets another run that calls in turn, the answer must tell which of them it is.
    fn caller(&self, cpu: CpuId) -> u64 {
        cpu.index() as u64 + 1
    }
    /// Nanoseconds since the machine began; never goes back.
    fn now(&self) -> u64;
    /// Lets others run while the caller waits: yields or halts for a moment, and returns. Called with no lock held.
    fn relax(&self);
    /// Returns at `time` (on the clock of [`now`](Self::now)) or soon after; others run meanwhile. Called with no lock
    /// held.
    fn sleep_until(&self, time: u64) {
        while self.now() < time {
            self.relax();
        }
    }
    /// Charges `cost` to a virtual clock. Machines with real time do nothing.
    fn charge(&self, cost: Cost) {
        let _ = cost;
    }
    /// How to mask interrupts, where handlers allocate or free frames; for
    /// [`Config::interrupts`](crate::Config::interrupts).
    fn interrupts(&self) -> Option<&'static dyn Interrupts> {
        None
    }
}

/// The contents of frames: what owners of frames with contents need beside [`Platform`].
///
/// They are accessed by number and position, never by reference: another CPU, or the host, may change them at any time.
/// All accesses are volatile or atomic.
///
/// # What implementations guarantee
///
/// Accesses to a frame that the allocator manages reach that frame's memory and no other. A frame outside the machine's
/// memory is an error of the caller: an implementation panics or ignores it, and touches no other memory.
pub trait FrameContents: Platform {
    /// Reads 64-bit word `index` (0 to 511) of a frame.
    fn read_word(&self, frame: Pfn, index: usize) -> u64;
    /// Writes 64-bit word `index` (0 to 511) of a frame.
    fn write_word(&self, frame: Pfn, index: usize, value: u64);
    /// Writes one word at the head of each of the frame's 64 cache lines: `words[i]` goes to word `8 * i`.
    fn write_lines(&self, frame: Pfn, words: &[u64; LINES_PER_FRAME]) {
        for (line, &word) in words.iter().enumerate() {
            self.write_word(frame, line * WORDS_PER_LINE, word);
        }
    }
    /// Reads the word at the head of each of the frame's 64 cache lines: word `8 * i` goes to `out[i]`.
    fn read_lines(&self, frame: Pfn, out: &mut [u64; LINES_PER_FRAME]) {
        for (line, word) in out.iter_mut().enumerate() {
            *word = self.read_word(frame, line * WORDS_PER_LINE);
        }
    }
    /// Copies `count` whole frames; the ranges do not overlap.
    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize);
    /// Fills `count` whole frames with zeroes.
    fn zero_frames(&self, first: Pfn, count: usize);
}

/// Page tables in frames: what is needed to map frames, beside [`FrameContents`].
pub trait PageTables: FrameContents {
    /// Atomic load (acquire) of word `index` of a page-table frame.
    fn load_entry(&self, table: Pfn, index: usize) -> u64;
    /// Atomic swap (acquire and release) of word `index` of a page-table frame; gives the old value.
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64;
    /// Atomic compare-and-exchange (acquire and release) of a page-table word; the error is the value found.
    fn compare_exchange_entry(
        &self,
        table: Pfn,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64>;
    /// Atomic or (acquire and release) into a page-table word; gives the old value.
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64;

    /// Enters an access section, in which this CPU walks page tables and touches what it finds. Sections are short, do
    /// not nest, and must not wait for another CPU. Real hardware, where the TLB does this, does nothing.
    fn enter_access(&self) {}
    /// Leaves the access section.
    fn leave_access(&self) {}
    /// Returns when no CPU uses a translation that was replaced before the call.
    /// `address` is a hint (a virtual address of space `space`), not a limit.
    fn shoot_down(&self, space: u32, address: u64);
}
