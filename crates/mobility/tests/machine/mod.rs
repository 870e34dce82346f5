//! A machine for tests: an allocator, a platform whose clock only moves when something is charged, and two owners whose
//! answers are scripted. Everything is leaked: tests are short.
#![allow(dead_code)]

pub mod ranges;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, Config, Cost, CostFn, CpuId, Event, Fallback,
    FrameAllocator, FrameClass, FrameFlags, FrameState, Order, OwnerId, Pfn, Placement, Platform,
    Watermark, Watermarks, ZoneConfig,
};
use dirigible_mobility::{
    CompactResult, CompactionConfig, Fate, Mobility, MovableOwner, MovePair, Outcome,
};

pub const CPU: CpuId = CpuId::new(0);

/// Counts what is charged; contents are one word per frame.
#[derive(Default)]
pub struct MockPlatform {
    pub clock: AtomicU64,
    pub examined: AtomicU64,
    pub isolated: AtomicU64,
    /// Frames of candidates that were looked at.
    pub scanned: AtomicU64,
    /// Calls of `relax`.
    pub relaxed: AtomicU64,
}

impl Platform for MockPlatform {
    fn cpu(&self) -> CpuId {
        CPU
    }
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
    fn charge(&self, cost: Cost) {
        match cost {
            Cost::ExamineBlock => self.examined.fetch_add(1, Ordering::Relaxed),
            Cost::Isolate(n) => self.isolated.fetch_add(n.into(), Ordering::Relaxed),
            Cost::Scan(n) => self.scanned.fetch_add(n.into(), Ordering::Relaxed),
            other => panic!("mobility does not charge {other:?}"),
        };
        self.clock.fetch_add(100, Ordering::Relaxed);
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::Relaxed);
        self.clock.fetch_add(1_000, Ordering::Relaxed);
    }
}

/// How a pending pair is answered when the owner is polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Never,
    Moved,
    Refused,
    Released,
}

/// An owner whose answers are scripted: one word of the script for each pair; without script, everything moves.
pub struct MockOwner {
    frames: &'static FrameAllocator<'static>,
    pub id: OwnerId,
    pub of: FrameClass,
    pub books: Mutex<BTreeSet<Pfn>>,
    pub stubborn: Mutex<BTreeSet<Pfn>>,
    pub script: Mutex<VecDeque<Outcome>>,
    pub answer: Mutex<Answer>,
    pub pending: Mutex<Vec<MovePair>>,
    /// Pairs that have ended and that mobility has not taken.
    pub settled: Mutex<VecDeque<MovePair>>,
    /// Sizes of the batches of `migrate`.
    pub batches: Mutex<Vec<usize>>,
    /// All pairs that were ever seen.
    pub seen: Mutex<Vec<(Pfn, Pfn)>>,
    /// Called by `migrate` before anything else.
    pub hook: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// Called by `poll` before anything else.
    pub poll_hook: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// Answers for frames by name.
    pub answers: Mutex<BTreeMap<Pfn, Outcome>>,
    /// The answer to everything that neither the script nor a name answers.
    pub always: Mutex<Option<Outcome>>,
    /// Pairs that can be pending at a time; others are `Busy`.
    pub room: AtomicUsize,
    /// What is in its frames: a number for each, which moves with the frame.
    pub contents: Mutex<BTreeMap<Pfn, u64>>,
    /// The deadline of the last `poll`.
    pub polled_until: AtomicU64,
    /// Frames that it did not need any more.
    pub released: AtomicUsize,
    /// Frames that it would rather drop.
    pub cold: Mutex<BTreeSet<Pfn>>,
    /// Cold frames that are used just before they are dropped.
    pub used: Mutex<BTreeSet<Pfn>>,
    /// Frames that it would rather write first. When they are written they are cold.
    pub unsaved: Mutex<BTreeSet<Pfn>>,
    /// Frames that are being written.
    pub writing: Mutex<Vec<Pfn>>,
    /// Calls of `poll` until writes end.
    pub writes_last: AtomicUsize,
    /// Frames that it dropped.
    pub dropped: AtomicUsize,
}

/// The next content.
static CONTENT: AtomicU64 = AtomicU64::new(0);

impl MockOwner {
    fn new(frames: &'static FrameAllocator<'static>, id: u8, of: FrameClass) -> &'static Self {
        Box::leak(Box::new(Self {
            frames,
            id: OwnerId::new(id).unwrap(),
            of,
            books: Mutex::default(),
            stubborn: Mutex::default(),
            script: Mutex::default(),
            answer: Mutex::new(Answer::Moved),
            pending: Mutex::default(),
            batches: Mutex::default(),
            seen: Mutex::default(),
            settled: Mutex::default(),
            hook: Mutex::default(),
            poll_hook: Mutex::default(),
            answers: Mutex::default(),
            always: Mutex::default(),
            room: AtomicUsize::new(usize::MAX),
            contents: Mutex::default(),
            polled_until: AtomicU64::new(0),
            released: AtomicUsize::new(0),
            cold: Mutex::default(),
            used: Mutex::default(),
            unsaved: Mutex::default(),
            writing: Mutex::default(),
            writes_last: AtomicUsize::new(1),
            dropped: AtomicUsize::new(0),
        }))
    }

    fn step(&self, frame: Pfn, from: FrameState, to: FrameState) {
        assert_eq!(
            self.frames.transition(frame, from, to),
            Ok(()),
            "{frame} {from:?} -> {to:?}"
        );
    }

    /// Puts a frame that was allocated for it on its books.
    pub fn list(&self, frame: Pfn) {
        self.frames.set_owner(frame, self.id, frame.get());
        let content = CONTENT.fetch_add(1, Ordering::Relaxed);
        self.contents.lock().unwrap().insert(frame, content);
        self.enter(frame);
    }

    fn enter(&self, frame: Pfn) {
        if self.of == FrameClass::Balloon {
            self.step(frame, FrameState::Allocated, FrameState::Entering);
            self.step(frame, FrameState::Entering, FrameState::Listed);
        } else {
            self.step(frame, FrameState::Allocated, FrameState::Listed);
        }
        assert!(self.books.lock().unwrap().insert(frame));
    }

    fn leave(&self, frame: Pfn, from: FrameState) {
        self.cold.lock().unwrap().remove(&frame);
        self.unsaved.lock().unwrap().remove(&frame);
        self.writing
            .lock()
            .unwrap()
            .retain(|written| *written != frame);
        self.used.lock().unwrap().remove(&frame);
        if self.of == FrameClass::Balloon {
            self.step(frame, from, FrameState::Leaving);
            self.step(frame, FrameState::Leaving, FrameState::Allocated);
        } else {
            self.step(frame, from, FrameState::Allocated);
        }
    }

    /// Frees one of its frames.
    pub fn free(&self, frame: Pfn) {
        assert!(self.books.lock().unwrap().remove(&frame));
        self.contents.lock().unwrap().remove(&frame);
        self.leave(frame, FrameState::Listed);
        let order = self.frames.frame(frame).unwrap().order;
        self.frames.clear_flags(frame, FrameFlags::PINNED);
        self.frames.free(CPU, frame, order).unwrap();
    }

    /// Frees the first of its frames from `start` on that is on its books just now, whatever others do meanwhile;
    /// whether there was one.
    pub fn free_next(&self, cpu: CpuId, start: Pfn) -> bool {
        let frame = {
            let mut books = self.books.lock().unwrap();
            let Some(&frame) = books.range(start..).next() else {
                return false;
            };
            books.remove(&frame);
            frame
        };
        self.contents.lock().unwrap().remove(&frame);
        self.leave(frame, FrameState::Listed);
        self.frames.free(cpu, frame, Order::BASE).unwrap();
        true
    }

    pub fn count(&self) -> usize {
        self.books.lock().unwrap().len()
    }

    pub fn frames(&self) -> Vec<Pfn> {
        self.books.lock().unwrap().iter().copied().collect()
    }

    pub fn refuse(&self, frame: Pfn) {
        self.stubborn.lock().unwrap().insert(frame);
    }

    pub fn allow(&self, frame: Pfn) {
        self.stubborn.lock().unwrap().remove(&frame);
    }

    /// The next answers of `migrate`, pair by pair.
    pub fn say(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        self.script.lock().unwrap().extend(outcomes);
    }

    /// Does to one isolated pair what `outcome` means.
    fn act(&self, pair: &MovePair, outcome: Outcome) {
        match outcome {
            Outcome::Moved => {
                self.frames.set_owner(pair.to, self.id, pair.to.get());
                {
                    let mut contents = self.contents.lock().unwrap();
                    let content = contents.remove(&pair.from).unwrap();
                    contents.insert(pair.to, content);
                }
                self.enter(pair.to);
                self.leave(pair.from, FrameState::Isolated);
            }
            Outcome::Released => {
                self.contents.lock().unwrap().remove(&pair.from);
                self.released.fetch_add(1, Ordering::Relaxed);
                self.leave(pair.from, FrameState::Isolated);
            }
            Outcome::Refused | Outcome::Busy | Outcome::Todo | Outcome::Pending => {}
        }
    }

    /// Answers all pending pairs, which then wait to be taken; gives how many there were.
    pub fn answer_all(&self, outcome: Outcome) -> usize {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap());
        for pair in &pending {
            self.act(pair, outcome);
        }
        let ended = pending.iter().map(|&pair| MovePair { outcome, ..pair });
        self.settled.lock().unwrap().extend(ended);
        pending.len()
    }
}

impl MovableOwner for MockOwner {
    fn isolate(&self, frame: Pfn) -> bool {
        if self.stubborn.lock().unwrap().contains(&frame) {
            return false;
        }
        let mut books = self.books.lock().unwrap();
        if !books.contains(&frame)
            || self
                .frames
                .transition(frame, FrameState::Listed, FrameState::Isolated)
                .is_err()
        {
            return false;
        }
        books.remove(&frame)
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook();
        }
        self.batches.lock().unwrap().push(pairs.len());
        for pair in pairs {
            assert_eq!(pair.outcome, Outcome::Todo);
            let (from, to) = (
                self.frames.frame(pair.from).unwrap(),
                self.frames.frame(pair.to).unwrap(),
            );
            assert_eq!((from.state, from.owner), (FrameState::Isolated, self.id));
            assert_eq!(
                (to.state, to.class, to.order),
                (FrameState::Allocated, from.class, from.order)
            );
            let named = self.answers.lock().unwrap().get(&pair.from).copied();
            let scripted = named.or_else(|| self.script.lock().unwrap().pop_front());
            pair.outcome = scripted
                .or(*self.always.lock().unwrap())
                .unwrap_or(Outcome::Moved);
            let room = self.room.load(Ordering::Relaxed);
            let kept = self.pending.lock().unwrap().len() + self.settled.lock().unwrap().len();
            if pair.outcome == Outcome::Pending && kept >= room {
                pair.outcome = Outcome::Busy;
            } else {
                self.seen.lock().unwrap().push((pair.from, pair.to));
            }
            self.act(pair, pair.outcome);
            if pair.outcome == Outcome::Pending {
                self.pending.lock().unwrap().push(*pair);
            }
        }
    }

    fn plan(&self, frame: Pfn) -> Fate {
        let state = self.frames.state(frame);
        assert!(matches!(state, FrameState::Isolated | FrameState::Listed));
        if self.cold.lock().unwrap().contains(&frame) {
            Fate::Drop
        } else if self.unsaved.lock().unwrap().contains(&frame) {
            Fate::Write
        } else {
            Fate::Move
        }
    }

    fn write_frames(&self, frames: &[Pfn]) -> usize {
        let mut writing = self.writing.lock().unwrap();
        let before = writing.len();
        for &frame in frames {
            assert!(self.unsaved.lock().unwrap().contains(&frame), "planned so");
            self.putback(frame);
            if !self.used.lock().unwrap().contains(&frame) {
                assert!(self.frames.set_flags(frame, FrameFlags::WRITEBACK));
                writing.push(frame);
            }
        }
        writing.len() - before
    }

    fn drop_frame(&self, frame: Pfn) -> bool {
        assert!(self.cold.lock().unwrap().contains(&frame), "planned so");
        if self.used.lock().unwrap().remove(&frame) {
            self.cold.lock().unwrap().remove(&frame);
            return false;
        }
        self.contents.lock().unwrap().remove(&frame).unwrap();
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.leave(frame, FrameState::Isolated);
        true
    }

    fn putback(&self, frame: Pfn) {
        self.step(frame, FrameState::Isolated, FrameState::Listed);
        assert!(self.books.lock().unwrap().insert(frame));
    }

    fn poll(&self, deadline: u64) -> bool {
        self.polled_until.store(deadline, Ordering::Relaxed);
        if let Some(hook) = &*self.poll_hook.lock().unwrap() {
            hook();
        }
        let mut writing = self.writing.lock().unwrap();
        let last = self.writes_last.load(Ordering::Relaxed);
        self.writes_last
            .store(last.saturating_sub(1), Ordering::Relaxed);
        if last <= 1 && !writing.is_empty() {
            for frame in writing.drain(..) {
                self.frames.clear_flags(frame, FrameFlags::WRITEBACK);
                self.unsaved.lock().unwrap().remove(&frame);
                self.cold.lock().unwrap().insert(frame);
            }
            return true;
        }
        drop(writing);
        let outcome = match *self.answer.lock().unwrap() {
            Answer::Never => return false,
            Answer::Moved => Outcome::Moved,
            Answer::Refused => Outcome::Refused,
            Answer::Released => Outcome::Released,
        };
        self.answer_all(outcome) > 0
    }

    fn take_settled(&self, out: &mut [MovePair]) -> usize {
        let mut settled = self.settled.lock().unwrap();
        let count = out.len().min(settled.len());
        for (place, pair) in out.iter_mut().zip(settled.drain(..count)) {
            *place = pair;
        }
        count
    }
}

pub struct Machine {
    pub frames: &'static FrameAllocator<'static>,
    pub platform: &'static MockPlatform,
    pub mobility: &'static Mobility<'static, MockPlatform>,
    pub user: &'static MockOwner,
    pub balloon: &'static MockOwner,
    /// Huge frames that the test holds itself.
    pub held: Mutex<BTreeSet<Pfn>>,
    /// Single frames that the test holds itself.
    pub singles: Mutex<BTreeSet<Pfn>>,
}

pub const MARKS: Watermarks = Watermarks {
    min: 64,
    low: 96,
    high: 128,
};

/// A machine with one zone.
pub fn machine(range: Range<u64>, config: CompactionConfig) -> Machine {
    zoned(&[&[range]], config)
}

/// A machine with `blocks` whole blocks in one zone.
pub fn blocks(blocks: u64) -> Machine {
    machine(0..blocks * 512, CompactionConfig::default())
}

/// A machine with one zone for each list of ranges.
pub fn zoned(zones: &[&[Range<u64>]], config: CompactionConfig) -> Machine {
    with_fallback(Fallback::Steal, zones, config)
}

/// The same with a fallback policy.
pub fn with_fallback(
    fallback: Fallback,
    zones: &[&[Range<u64>]],
    config: CompactionConfig,
) -> Machine {
    with_cost(None, fallback, zones, config)
}

/// The same with a cost of blocks.
pub fn with_cost(
    cost: Option<CostFn>,
    fallback: Fallback,
    zones: &[&[Range<u64>]],
    config: CompactionConfig,
) -> Machine {
    let ranges: Vec<Vec<Range<Pfn>>> = zones
        .iter()
        .map(|zone| {
            zone.iter()
                .map(|r| Pfn::new(r.start)..Pfn::new(r.end))
                .collect()
        })
        .collect();
    let zones: Vec<ZoneConfig> = ranges
        .iter()
        .map(|ranges| ZoneConfig {
            name: "zone",
            ranges,
            watermarks: MARKS,
            reserve_blocks: 0,
        })
        .collect();
    let layout = Config {
        zones: &zones,
        reserved: &[],
        cpus: 2,
        placement: Placement::FullestFirst,
        fallback,
        cost,
        // Nobody uses it but tests of added memory.
        later: &[2],
        ..Config::default()
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames: &'static _ = Box::leak(Box::new(FrameAllocator::new(&layout, metadata).unwrap()));
    let platform: &'static MockPlatform = Box::leak(Box::default());
    let user = MockOwner::new(frames, 1, FrameClass::Movable);
    let balloon = MockOwner::new(frames, 2, FrameClass::Balloon);
    let mobility: &'static _ = Box::leak(Box::new(Mobility::new(frames, platform, config)));
    for owner in [user, balloon] {
        mobility.register(owner.id, owner).unwrap();
    }
    Machine {
        frames,
        platform,
        mobility,
        user,
        balloon,
        held: Mutex::default(),
        singles: Mutex::default(),
    }
}

impl Machine {
    /// Answers all pending pairs of `owner` and has mobility take them; gives how many there were.
    pub fn settle(&self, owner: &MockOwner, outcome: Outcome) -> usize {
        let answered = owner.answer_all(outcome);
        assert!(self.mobility.drain_settled() >= answered);
        assert!(owner.settled.lock().unwrap().is_empty());
        answered
    }

    /// Allocates one movable frame and lists it with the user.
    pub fn map(&self) -> Option<Pfn> {
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        let frame = self.frames.alloc(CPU, request).ok()?;
        self.user.list(frame);
        Some(frame)
    }

    /// Gives up to `count` frames to the balloon.
    pub fn inflate(&self, count: usize) -> usize {
        let mut taken = vec![Pfn::new(0); count];
        let how = BalloonPlacement::Ordinary;
        let got = self
            .frames
            .alloc_balloon(CPU, how, Watermark::None, &mut taken);
        taken[..got]
            .iter()
            .for_each(|&frame| self.balloon.list(frame));
        got
    }

    /// Direct compaction; the captured frame is held by the test.
    pub fn direct(&self, class: FrameClass) -> CompactResult {
        let result = self.mobility.compact_direct(CPU, class);
        if let CompactResult::Captured(head) = result {
            assert!(
                self.held.lock().unwrap().insert(head),
                "{head} captured twice"
            );
        }
        result
    }

    /// Takes a whole free block.
    pub fn take_huge(&self) -> Pfn {
        let head = self.frames.alloc(CPU, AllocRequest::huge()).unwrap();
        assert!(
            self.held.lock().unwrap().insert(head),
            "{head} allocated twice"
        );
        head
    }

    /// Frees a huge frame that the test holds.
    pub fn free_huge(&self, head: Pfn) {
        assert!(self.held.lock().unwrap().remove(&head));
        self.frames.free(CPU, head, HUGE).unwrap();
    }

    /// The owner of a listed frame.
    pub fn owner_of(&self, frame: Pfn) -> &'static MockOwner {
        if self.balloon.books.lock().unwrap().contains(&frame) {
            self.balloon
        } else {
            self.user
        }
    }

    /// Frees every listed frame for which `goes` holds.
    pub fn thin(&self, mut goes: impl FnMut(Pfn) -> bool) {
        for owner in [self.user, self.balloon] {
            for frame in owner.frames() {
                if goes(frame) {
                    owner.free(frame);
                }
            }
        }
        self.frames.drain_cpu_caches();
    }

    /// Fills all memory with movable frames, then frees all but those for which `stays` holds.
    pub fn fill_and_keep(&self, stays: impl Fn(Pfn) -> bool) {
        while self.map().is_some() {}
        self.thin(|frame| !stays(frame));
    }

    /// The same with balloon frames.
    pub fn inflate_and_keep(&self, stays: impl Fn(Pfn) -> bool) {
        while self.inflate(64) > 0 {}
        self.thin(|frame| !stays(frame));
    }

    pub fn event(&self, event: Event) -> u64 {
        self.frames.events().get(event)
    }

    pub fn block(&self, number: u32) -> BlockId {
        BlockId::new(number)
    }

    pub fn free_in(&self, block: BlockId) -> usize {
        self.frames.ledger(block).free().into()
    }

    /// Every frame is where it should be: the books, the descriptors and the counters agree, and nothing is isolated.
    pub fn check_at_rest(&self) {
        assert_eq!(self.mobility.isolated_frames(), 0);
        self.check();
    }

    /// The same while pairs may be pending, or settled and not taken.
    pub fn check(&self) {
        self.check_open();
        for (owner, count, isolated, expected) in self.counts() {
            let pending = owner.pending.lock().unwrap().len();
            let settled = owner.settled.lock().unwrap().len();
            assert_eq!(isolated, (pending + settled) as u64);
            assert_eq!(count, expected, "{:?} frames lost or found", owner.of);
        }
    }

    /// The same while others are to be handed over: their targets may still count as movable.
    pub fn check_open(&self) {
        self.frames.drain_cpu_caches();
        self.frames.verify().unwrap();
        self.mobility.verify().unwrap();
        let sums = self.counts().map(|(owner, count, isolated, expected)| {
            let pending = owner.pending.lock().unwrap().len();
            assert!(isolated >= (pending + owner.settled.lock().unwrap().len()) as u64);
            (count, expected)
        });
        let [(user, of_user), (balloon, of_balloon)] = sums;
        assert_eq!(user + balloon, of_user + of_balloon, "frames lost or found");
    }

    /// For each owner: how many frames count as its own, how many are isolated, and how many should count.
    fn counts(&self) -> [(&'static MockOwner, u64, u64, u64); 2] {
        let counts = self.frames.class_frames();
        let isolated = self.mobility.isolated_by_class();
        [
            (self.user, counts.movable, isolated.movable),
            (self.balloon, counts.balloon, isolated.balloon),
        ]
        .map(|(owner, count, isolated)| {
            let held = self.held.lock().unwrap();
            let mut listed: usize = held
                .iter()
                .map(|&head| self.frames.frame(head).unwrap())
                .filter(|info| info.class == owner.of)
                .count()
                * 512;
            let singles = self.singles.lock().unwrap();
            listed += singles
                .iter()
                .filter(|&&frame| self.frames.class(frame) == owner.of)
                .count();
            for frame in owner.frames() {
                let info = self.frames.frame(frame).unwrap();
                assert_eq!(
                    (info.state, info.class),
                    (FrameState::Listed, owner.of),
                    "{frame}"
                );
                assert_eq!((info.owner, info.word), (owner.id, frame.get()), "{frame}");
                // What is pinned counts as unmovable.
                if !info.flags.contains(FrameFlags::PINNED) {
                    listed += info.order.frames();
                }
            }
            // A pair holds two frames; of one that has moved and was not taken yet the new one is listed.
            let settled = owner.settled.lock().unwrap();
            let moved = settled.iter().filter(|pair| pair.outcome == Outcome::Moved);
            let pairs = 2 * isolated - moved.count() as u64;
            (owner, count, isolated, listed as u64 + pairs)
        })
    }
}

pub const HUGE: Order = Order::HUGE;
