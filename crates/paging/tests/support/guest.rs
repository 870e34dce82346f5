// The machine of the tests and of the crate's example, which includes this file. Memory is a vector of atomic words,
// CPUs are threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use dirigible_frames::{Cost, CpuId, FrameContents, PageTables, Pfn, Platform};

pub const WORDS: usize = 512;
pub const CPUS: u16 = 4;
/// First frame of the guest's memory. Not 0, so that the tests find an omitted base.
pub const BASE: u64 = 1024;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`. No other thread may be that CPU at the same time.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

/// The platform: frame `BASE + i` is words `512 i` to `512 i + 511`.
pub struct MockGuest {
    words: Vec<AtomicU64>,
    /// For each CPU: odd inside an access section.
    sections: [AtomicU64; CPUS as usize],
    pub clock: AtomicU64,
    pub shoot_downs: AtomicU64,
    pub moved: AtomicU64,
    pub filled: AtomicU64,
    pub faults: AtomicU64,
    pub relaxed: AtomicU64,
}

impl MockGuest {
    pub fn new(frames: usize) -> Self {
        Self {
            words: (0..frames * WORDS)
                .map(|_| AtomicU64::new(0xdead))
                .collect(),
            sections: Default::default(),
            clock: AtomicU64::new(0),
            shoot_downs: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            relaxed: AtomicU64::new(0),
        }
    }

    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.words[(frame.get() - BASE) as usize * WORDS + index]
    }
}

impl Platform for MockGuest {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
    fn charge(&self, cost: Cost) {
        match cost {
            Cost::MoveFrame(n) => self.moved.fetch_add(n.into(), Ordering::Relaxed),
            Cost::FillFrame => self.filled.fetch_add(1, Ordering::Relaxed),
            Cost::Fault => self.faults.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }
}

impl FrameContents for MockGuest {
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.word(frame, index).load(Ordering::Relaxed)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.word(frame, index).store(value, Ordering::Relaxed);
    }
    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize) {
        for i in 0..count as u64 {
            for index in 0..WORDS {
                self.write_word(to.plus(i), index, self.read_word(from.plus(i), index));
            }
        }
    }
    fn zero_frames(&self, first: Pfn, count: usize) {
        for i in 0..count as u64 {
            (0..WORDS).for_each(|index| self.write_word(first.plus(i), index, 0));
        }
    }
}

impl PageTables for MockGuest {
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        self.word(table, index).swap(value, Ordering::AcqRel)
    }
    fn compare_exchange_entry(&self, t: Pfn, i: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(t, i)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        self.word(table, index).fetch_or(bits, Ordering::AcqRel)
    }
    fn enter_access(&self) {
        let was = self.sections[self.cpu().index()].fetch_add(1, Ordering::Relaxed);
        assert!(was.is_multiple_of(2), "access sections do not nest");
        // Pairs with the fence in `shoot_down`: either that sees the section, or the walk sees the new entry.
        fence(Ordering::SeqCst);
    }
    fn leave_access(&self) {
        // Release: pairs with the acquire in `shoot_down`, which waits for the end of the section.
        let was = self.sections[self.cpu().index()].fetch_add(1, Ordering::Release);
        assert!(was % 2 == 1);
    }
    fn shoot_down(&self, _space: u32, _address: u64) {
        self.shoot_downs.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for section in &self.sections {
            let seen = section.load(Ordering::Acquire);
            while seen % 2 == 1 && section.load(Ordering::Acquire) == seen {
                std::thread::yield_now();
            }
        }
    }
}
