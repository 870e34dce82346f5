//! The rules of the passes, on a machine that keeps totals, with a clock that each attempt advances.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use dirigible::schedule::{Clock, Engine, FreeClock, time::MILLISECOND};
use dirigible_workload::{
    control::Control,
    director::{Director, Targets},
    operator::{NoMemory, Operator},
    params::{Params, Profile},
    timeline::{PassPlan, PassResult, TargetsHash, Timeline, mem_total_frames},
};
use spin::Mutex;

/// How often the programs are asked to end before they have.
const LOOKS: u64 = 5;

/// What the director did, with times in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Did {
    Begin(&'static str, u64),
    Attempt(u64, bool),
    End(&'static str, PassResult, u64),
    Release,
    EndFaults,
    Kill(u64),
    CleanUp(u64),
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
    /// What the programs hold.
    load: u64,
    /// The huge pages of the THP test.
    faults: BTreeSet<u64>,
    looks: u64,
    cleaned: bool,
    samples: u64,
}

impl Totals {
    /// Whether a huge page can be had.
    fn has(&self) -> Result<(), NoMemory> {
        let blocks = self.blocks + self.faults.len() as u64;
        let used = blocks * 512 + self.load + self.target;
        (used + 512 <= self.memory).then_some(()).ok_or(NoMemory)
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

impl Operator for Watched<'_> {
    type Block = ();

    fn attempt(&self) -> Result<(), NoMemory> {
        let got = {
            let mut totals = self.totals.lock();
            let got = totals.has();
            totals.blocks += u64::from(got.is_ok());
            got
        };
        self.note(Did::Attempt(self.ms(), got.is_ok()));
        let until = self.clock.now() + self.cost;
        self.clock.wait_until(until, &AtomicBool::new(false));
        self.held
            .fetch_add(u64::from(got.is_ok()), Ordering::Relaxed);
        got
    }
    fn release(&self, (): ()) {
        self.note(Did::Release);
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.totals.lock().blocks -= 1;
    }
    fn huge_fault(&self, range: u64) -> bool {
        let mut totals = self.totals.lock();
        let got = totals.has().is_ok();
        assert!(
            !got || totals.faults.insert(range),
            "range {range} came twice"
        );
        got
    }
    fn end_faults(&self) {
        self.note(Did::EndFaults);
        self.totals.lock().faults.clear();
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
    fn kill_load(&self) -> bool {
        self.note(Did::Kill(self.ms()));
        let mut totals = self.totals.lock();
        totals.looks += 1;
        if totals.looks < LOOKS {
            return false;
        }
        totals.load = 0;
        true
    }
    fn clean_up(&self) {
        self.note(Did::CleanUp(self.ms()));
        let mut totals = self.totals.lock();
        assert_eq!(totals.load, 0, "programs still have files open");
        assert!(!totals.cleaned, "cleaned twice");
        totals.cleaned = true;
    }
    fn begin_pass(&self, pass: &PassPlan, now: u64) {
        assert_eq!(now, self.clock.now());
        assert_eq!(
            self.held.load(Ordering::Relaxed),
            0,
            "{} begins with leftovers",
            pass.name
        );
        assert!(self.totals.lock().faults.is_empty(), "{}", pass.name);
        self.note(Did::Begin(pass.name, self.ms()));
    }
    fn sample_pass(&self, _: u64) {
        self.totals.lock().samples += 1;
    }
    fn faulted(&self, at: u64, _: bool) {
        assert_eq!(at, self.clock.now());
    }
    fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        let held = self.held.load(Ordering::Relaxed);
        let faults = self.totals.lock().faults.len() as u64;
        // The THP test holds its pages in an address space.
        let expected = match pass.name.ends_with("-thp") {
            true => (0, result.allocated),
            false => (result.allocated, 0),
        };
        assert_eq!((held, faults), expected, "held to the end");
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

/// The calls, the phases with their times, and what is held at the end.
type Record = (Vec<Did>, Vec<(&'static str, u64)>, Totals);

/// Runs the whole experiment with attempts that take `cost` nanoseconds, while programs hold a quarter of the memory.
fn run(params: &Params, cost: u64) -> Record {
    let clock = FreeClock::default();
    let memory = mem_total_frames(params);
    let watched = Watched {
        totals: Mutex::new(Totals {
            memory,
            load: memory / 4,
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
    engine.add(0, Director::new(&watched, &control, &timeline));
    engine.run(&clock, control.ended(), |_, _| {});
    drop(engine);
    let totals = watched.totals.into_inner();
    assert!(totals.samples >= 3, "every pass is sampled");
    (watched.log.into_inner(), control.phases(), totals)
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
    assert_eq!((left.blocks, left.load), (0, 0));
    assert!(left.faults.is_empty());
    let ended = log.iter().filter(|did| **did == Did::EndFaults).count();
    assert_eq!(ended, 3, "after every pass");
}

#[test]
fn pitfall_89_the_rested_pass_comes_after_kill_and_clean_up() {
    let (log, phases, _) = run(&params(Profile::Paper), MILLISECOND);
    let names: Vec<_> = phases.iter().map(|&(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "warm-up", "pass1", "gap", "pass2", "settle", "kill", "cleaned", "rested", "end"
        ]
    );
    let place = |wanted: fn(&Did) -> bool| log.iter().position(wanted).unwrap();
    let rested = place(|did| matches!(did, Did::Begin("rested", _)));
    let cleaned = place(|did| matches!(did, Did::CleanUp(_)));
    assert!(cleaned < rested);
    let kills = log.iter().filter(|did| matches!(did, Did::Kill(_)));
    assert_eq!(kills.count() as u64, LOOKS, "until they had ended");
    assert!(
        log[cleaned..]
            .iter()
            .all(|did| !matches!(did, Did::Kill(_)))
    );
    let at = |name| phases.iter().find(|phase| phase.0 == name).unwrap().1;
    assert!(
        at("cleaned") < at("rested"),
        "the programs had ended in time"
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
