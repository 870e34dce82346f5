//! The rules of the passes, on a machine that keeps totals, with a clock that each attempt advances.

use std::collections::{BTreeMap, BTreeSet};

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible::schedule::{Clock, Engine, FreeClock, time::MILLISECOND};
use dirigible_frames::Pfn;
use dirigible_workload::{
    control::Control,
    director::{Director, Targets},
    load,
    machine::{Check, KernelMemory, KernelRequest, LoadMemory, NoMemory, PassMachine, Space},
    params::{Params, Profile},
    timeline::{PassPlan, PassResult, TargetsHash, Timeline, mem_total_frames},
};
use spin::Mutex;

/// What the director did, with times in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Did {
    Begin(&'static str, u64),
    Attempt(u64, bool),
    End(&'static str, PassResult, u64),
    Release,
    DropFiller(u64),
    RestWatermarks(u64),
}

/// A machine that keeps totals only and records all calls, and whose attempts take time.
struct Watched<'c> {
    totals: Mutex<Totals>,
    clock: &'c FreeClock,
    cost: u64,
    held: AtomicU64,
    log: Mutex<Vec<Did>>,
}

/// What a [`Watched`] holds, in frames.
#[derive(Default)]
struct Totals {
    memory: u64,
    target: u64,
    blocks: u64,
    kernel: u64,
    spaces: BTreeMap<u32, BTreeSet<u64>>,
    samples: u64,
}

impl Totals {
    fn anonymous(&self) -> u64 {
        self.spaces.values().map(|pages| pages.len() as u64).sum()
    }

    /// Whether `frames` more can be had.
    fn has(&self, frames: u64) -> Result<(), NoMemory> {
        let used = self.blocks * 512 + self.kernel + self.anonymous() + self.target;
        (used + frames <= self.memory).then_some(()).ok_or(NoMemory)
    }
}

impl Watched<'_> {
    fn ms(&self) -> u64 {
        self.clock.now() / MILLISECOND
    }

    fn note(&self, did: Did) {
        self.log.lock().push(did);
    }
}

impl LoadMemory for Watched<'_> {
    fn create_space(&self) -> Result<Space, NoMemory> {
        let mut totals = self.totals.lock();
        let space = (0..).find(|id| !totals.spaces.contains_key(id)).unwrap();
        totals.spaces.insert(space, BTreeSet::new());
        Ok(Space(space))
    }
    fn fault(&self, space: Space, page: u64, huge: bool) -> Result<u64, NoMemory> {
        let mut totals = self.totals.lock();
        if totals.spaces[&space.0].contains(&page) {
            return Ok(1);
        }
        let pages = if huge && totals.has(512).is_ok() {
            512
        } else {
            1
        };
        totals.has(pages)?;
        let of_space = totals.spaces.get_mut(&space.0).expect("it was created");
        of_space.extend(page..page + pages);
        Ok(pages)
    }
    fn reuse(&self, _: Space, _: u64, _: u32) {}
    fn check(&self, _: Space, _: Range<u64>, _: Check) {}
    fn give_back(&self, space: Space, pages: Range<u64>) {
        let mut totals = self.totals.lock();
        let of_space = totals.spaces.get_mut(&space.0).expect("it was created");
        of_space.retain(|page| !pages.contains(page));
    }
    fn exit(&self, space: Space) {
        self.totals.lock().spaces.remove(&space.0);
    }
    fn kernel_alloc(&self, request: KernelRequest) -> Result<KernelMemory, NoMemory> {
        let mut totals = self.totals.lock();
        let frames = request.order.frames() as u64;
        totals.has(frames)?;
        totals.kernel += frames;
        Ok(KernelMemory {
            request,
            first: Pfn::new(0),
            serial: 0,
        })
    }
    fn kernel_free(&self, memory: KernelMemory, _: Check) {
        self.totals.lock().kernel -= memory.request.order.frames() as u64;
    }
}

impl PassMachine for Watched<'_> {
    type Block = ();

    fn attempt(&self) -> Result<(), NoMemory> {
        let got = {
            let mut totals = self.totals.lock();
            let got = totals.has(512);
            totals.blocks += u64::from(got.is_ok());
            got
        };
        self.note(Did::Attempt(self.ms(), got.is_ok()));
        let until = self.clock.now() + self.cost;
        self.clock
            .wait_until(until, &core::sync::atomic::AtomicBool::new(false));
        self.held
            .fetch_add(u64::from(got.is_ok()), Ordering::Relaxed);
        got
    }
    fn release(&self, (): ()) {
        self.note(Did::Release);
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.totals.lock().blocks -= 1;
    }
    fn set_balloon_target(&self, frames: u64) {
        self.totals.lock().target = frames;
    }
    fn balloon_target(&self) -> u64 {
        self.totals.lock().target
    }
    fn balloon_actual(&self) -> u64 {
        self.balloon_target()
    }
    fn drop_filler(&self) {
        self.note(Did::DropFiller(self.ms()));
    }
    fn rest_watermarks(&self) {
        self.note(Did::RestWatermarks(self.ms()));
    }
    fn begin_pass(&self, pass: &PassPlan, now: u64) {
        assert_eq!(now, self.clock.now());
        assert_eq!(
            self.held.load(Ordering::Relaxed),
            0,
            "{} begins with leftovers",
            pass.name
        );
        self.note(Did::Begin(pass.name, self.ms()));
    }
    fn sample_pass(&self, _: u64) {
        self.totals.lock().samples += 1;
    }
    fn faulted(&self, _: u64, _: bool) {}
    fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        // The THP test holds its pages in an address space.
        let expected = if pass.name.ends_with("-thp") {
            0
        } else {
            result.allocated
        };
        assert_eq!(
            self.held.load(Ordering::Relaxed),
            expected,
            "held to the end"
        );
        self.note(Did::End(pass.name, *result, self.ms()));
    }
}

fn params(profile: Profile) -> Params {
    Params {
        memory: 128 << 20,
        balloon: 32 << 20,
        step: 8 << 20,
        ..Params::new(profile)
    }
}

/// The calls, the phases with their times, and the frames that the load holds at the end.
type Record = (Vec<Did>, Vec<(&'static str, u64)>, (u64, u64));

/// Runs the whole experiment with attempts that take `cost` nanoseconds.
fn run(params: &Params, cost: u64) -> Record {
    let clock = FreeClock::default();
    let watched = Watched {
        totals: Mutex::new(Totals {
            memory: mem_total_frames(params),
            ..Totals::default()
        }),
        clock: &clock,
        cost,
        held: AtomicU64::new(0),
        log: Mutex::default(),
    };
    let timeline = Timeline::new(params);
    let control = Control::new();
    let hash = Mutex::new(TargetsHash::default());
    let mut engine = Engine::new();
    engine.add(0, Targets::new(&watched, &timeline, &hash));
    let load = load::actors(&watched, &control, params);
    engine.add(
        0,
        Director::new(&watched, &control, &timeline, load.len() as u64),
    );
    for actor in load {
        engine.add_boxed(0, actor);
    }
    engine.run(&clock, control.ended(), |_, _| {});
    drop(engine);
    let totals = watched.totals.into_inner();
    assert!(totals.samples >= 3, "every pass is sampled");
    let held = (totals.anonymous(), totals.kernel);
    (watched.log.into_inner(), control.phases(), held)
}

fn attempts(log: &[Did], pass: &str) -> Vec<u64> {
    let begin = log
        .iter()
        .position(|did| matches!(did, Did::Begin(name, _) if *name == pass));
    log[begin.unwrap()..]
        .iter()
        .take_while(|did| !matches!(did, Did::End(..)))
        .filter_map(|did| match did {
            Did::Attempt(at, _) => Some(*at),
            _ => None,
        })
        .collect()
}

#[test]
fn pitfall_86_attempts_come_each_125_ms_from_start_to_start() {
    let (log, ..) = run(&params(Profile::Paper), 50 * MILLISECOND);
    for pass in ["pass1", "pass2", "rested"] {
        let starts = attempts(&log, pass);
        // 64 blocks, one of them reserved.
        assert_eq!(starts.len(), 63 * 95 / 100);
        assert!(
            starts.windows(2).all(|pair| pair[1] - pair[0] == 125),
            "{starts:?}"
        );
    }
}

#[test]
fn pitfall_86_an_attempt_that_takes_too_long_does_not_shift_the_others() {
    let (log, ..) = run(&params(Profile::Paper), 130 * MILLISECOND);
    let starts = attempts(&log, "pass1");
    assert!(
        starts.windows(2).all(|pair| pair[1] - pair[0] >= 130),
        "one at a time"
    );
    assert!(
        starts.windows(2).all(|pair| pair[1] - pair[0] < 131),
        "and the next one at once"
    );
}

#[test]
fn pitfall_87_what_a_pass_gets_it_holds_to_its_end() {
    let (log, ..) = run(&params(Profile::Paper), MILLISECOND);
    let mut passing = false;
    for did in &log {
        match did {
            Did::Begin(..) => passing = true,
            Did::End(_, result, _) => {
                passing = false;
                assert_eq!(result.attempts, 59);
                assert!(result.allocated > 0);
            }
            Did::Release => assert!(!passing, "freed between attempts"),
            _ => {}
        }
    }
}

#[test]
fn pitfall_88_a_pass_leaves_nothing_to_the_next() {
    let (log, _, left) = run(&params(Profile::Paper), MILLISECOND);
    let mut got = 0;
    let mut released = 0;
    for did in &log {
        match did {
            Did::Begin(name, _) => assert_eq!(got, released, "leftovers before {name}"),
            Did::Attempt(_, true) => got += 1,
            Did::Release => released += 1,
            _ => {}
        }
    }
    assert_eq!(got, released);
    assert_eq!(left, (0, 0), "the load gave everything back");
}

#[test]
fn pitfall_89_the_rested_pass_comes_after_kill_flush_and_watermark() {
    let (log, phases, _) = run(&params(Profile::Paper), MILLISECOND);
    let names: Vec<_> = phases.iter().map(|&(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "warm-up",
            "pass1",
            "gap",
            "pass2",
            "settle",
            "kill",
            "filler-dropped",
            "rested",
            "end"
        ]
    );
    let place = |wanted: fn(&Did) -> bool| log.iter().position(wanted).unwrap();
    let rested = place(|did| matches!(did, Did::Begin("rested", _)));
    assert!(place(|did| matches!(did, Did::DropFiller(_))) < rested);
    assert!(place(|did| matches!(did, Did::RestWatermarks(_))) < rested);
    let at = |name| phases.iter().find(|phase| phase.0 == name).unwrap().1;
    assert!(
        at("filler-dropped") < at("rested"),
        "the load had ended in time"
    );
}

#[test]
fn quick_writes_end_at_the_goal_or_after_60_without_a_gain() {
    let (log, phases, _) = run(&params(Profile::Quick), MILLISECOND / 10);
    let results: Vec<_> = log
        .iter()
        .filter_map(|did| match did {
            Did::End(name, result, _) => Some((*name, *result)),
            _ => None,
        })
        .collect();
    let names: Vec<_> = results.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "pass1",
            "pass1-thp",
            "pass2",
            "pass2-thp",
            "rested",
            "rested-thp"
        ]
    );
    for (name, result) in results {
        assert!(
            result.allocated > 0 && result.allocated <= 57,
            "{name}: {result:?}"
        );
        assert!(result.length <= 30_200 * MILLISECOND, "{name}: {result:?}");
    }
    let begins = |wanted| {
        let found = phases.iter().find(|&&(name, _)| name == wanted);
        found.expect("it begins").1 / MILLISECOND
    };
    let ends = |wanted| {
        let end = log.iter().find_map(|did| match did {
            Did::End(name, _, at) if *name == wanted => Some(*at),
            _ => None,
        });
        end.expect("it ends")
    };
    assert_eq!(begins("pass1-thp") - begins("pass1"), 31_000, "under load");
    assert!(ends("rested") - begins("rested") < 31_000);
    assert_eq!(begins("rested-thp"), ends("rested"), "at rest");
    assert_eq!(begins("end"), ends("rested-thp"));
}
