// The machine of the tests. Memory is a vector of atomic words, CPUs are threads.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use dirigible_frames::{Cost, CpuId, FrameContents, Pfn, Platform};

pub const WORDS: usize = 512;
pub const CPUS: u16 = 4;
/// First frame of memory. Not 0, so that the tests find an omitted base.
pub const BASE: u64 = 1024;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`. No other thread may be that CPU at the same time.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

type Hook = Box<dyn FnMut() + Send>;

pub struct Machine {
    words: Vec<AtomicU64>,
    pub clock: AtomicU64,
    pub moved: AtomicU64,
    pub relaxed: AtomicU64,
    /// Is called once by the next `relax`.
    pub on_relax: Mutex<Option<Hook>>,
}

impl Machine {
    pub fn new(frames: usize) -> Self {
        Self {
            words: (0..frames * WORDS)
                .map(|_| AtomicU64::new(0xdead))
                .collect(),
            clock: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            relaxed: AtomicU64::new(0),
            on_relax: Mutex::new(None),
        }
    }

    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.words[(frame.get() - BASE) as usize * WORDS + index]
    }

    pub fn at_relax(&self, hook: impl FnMut() + Send + 'static) {
        *self.on_relax.lock().unwrap() = Some(Box::new(hook));
    }
}

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
    fn charge(&self, cost: Cost) {
        if let Cost::MoveFrame(n) = cost {
            self.moved.fetch_add(n.into(), Ordering::Relaxed);
        }
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::Relaxed);
        self.clock.fetch_add(10_000, Ordering::Relaxed);
        let hook = self.on_relax.lock().unwrap().take();
        match hook {
            Some(mut hook) => hook(),
            None => std::thread::yield_now(),
        }
    }
}

impl FrameContents for Machine {
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
