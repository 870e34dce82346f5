use alloc::{boxed::Box, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_stacks::Current;
use spin::Mutex;

use super::super::{Actor, Clock, Engine, FreeClock, Next};

struct Beat<'a>(u64, u64, &'a Mutex<Vec<(u64, u64)>>);

impl Actor for Beat<'_> {
    fn step(&mut self, now: u64) -> Next {
        self.2.lock().push((now, self.0));
        if now < 12 {
            Next::At(now + self.1)
        } else {
            Next::Done
        }
    }
}

#[test]
fn steps_come_in_order_of_time_then_number() {
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    engine.add(4, Beat(0, 4, &log));
    engine.add(0, Beat(1, 6, &log));
    let clock = FreeClock::default();
    engine.run(&clock, &AtomicBool::new(false), |_, _| {});
    assert_eq!(
        *log.lock(),
        [(0, 1), (4, 0), (6, 1), (8, 0), (12, 0), (12, 1)]
    );
}

struct Slow<'a>(&'a FreeClock, &'a Mutex<Vec<(u64, u64)>>);

impl Actor for Slow<'_> {
    fn step(&mut self, now: u64) -> Next {
        self.0.wait_until(now + 10, &AtomicBool::new(false));
        self.1.lock().push((now, 9));
        Next::Done
    }
}

#[test]
fn an_event_whose_time_has_passed_runs_late() {
    let log = Mutex::new(Vec::new());
    let clock = FreeClock::default();
    let mut engine = Engine::new();
    engine.add(1, Slow(&clock, &log));
    engine.add(5, Beat(0, 100, &log));
    engine.run(&clock, &AtomicBool::new(false), |_, _| {});
    assert_eq!(log.lock()[..2], [(1, 9), (11, 0)]);
}

#[test]
fn the_run_ends_when_somebody_says_so() {
    struct Ender<'a>(&'a AtomicBool);
    impl Actor for Ender<'_> {
        fn step(&mut self, _: u64) -> Next {
            self.0.store(true, Ordering::Release);
            Next::At(0)
        }
    }
    let ended = AtomicBool::new(false);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    engine.add(0, Ender(&ended));
    engine.add(0, Beat(0, 1, &log));
    engine.run(&FreeClock::default(), &ended, |_, _| {});
    assert!(log.lock().is_empty());
}

std::thread_local! {
    static CURRENT: Current = const { Current::new() };
}

/// The wait hook of the machine below; outside of a program nothing can be waited for.
fn relax() {
    assert!(CURRENT.with(Current::wait), "only programs wait here");
}

/// A machine with a wait hook and one device, whose answer sets a flag at a time.
#[derive(Default)]
struct Machine {
    free: FreeClock,
    /// Real: time passes in small pieces, whatever comes next.
    real: bool,
    answers_at: AtomicU64,
    answered: AtomicBool,
    idles: AtomicU64,
    looks: AtomicU64,
}

impl Machine {
    fn new(real: bool, answers_at: u64) -> Self {
        Self {
            real,
            answers_at: AtomicU64::new(answers_at),
            ..Self::default()
        }
    }

    fn moved(&self) {
        let is_due = self.now() >= self.answers_at.load(Ordering::Relaxed);
        self.answered.fetch_or(is_due, Ordering::Relaxed);
    }

    fn wait_for_answer(&self) {
        while !self.answered.load(Ordering::Relaxed) {
            self.looks.fetch_add(1, Ordering::Relaxed);
            relax();
        }
    }
}

impl Clock for Machine {
    fn now(&self) -> u64 {
        self.free.now()
    }

    fn wait_until(&self, time: u64, ended: &AtomicBool) {
        self.free.wait_until(time, ended);
        self.moved();
    }

    fn pass(&self, next: Option<u64>) {
        self.idles.fetch_add(1, Ordering::Relaxed);
        let now = self.now();
        let device = self.answers_at.load(Ordering::Relaxed);
        let device = if device > now { device } else { u64::MAX };
        let until = match (self.real, next.unwrap_or(u64::MAX).min(device)) {
            (false, until) if until < u64::MAX => until,
            _ => now + 5,
        };
        self.wait_until(until, &AtomicBool::new(false));
    }

    fn catch_up(&self) {
        self.moved();
    }

    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        CURRENT.with(|current| run(current));
    }
}

/// Waits for the answer in the middle of its first step.
struct Asker<'a>(&'a Machine, u64, &'a Mutex<Vec<(u64, u64)>>);

impl Actor for Asker<'_> {
    fn step(&mut self, now: u64) -> Next {
        let Self(machine, name, log) = self;
        log.lock().push((now, *name));
        machine.wait_for_answer();
        log.lock().push((machine.now(), *name));
        Next::Done
    }
}

#[test]
fn others_run_while_a_program_waits() {
    for real in [false, true] {
        let machine = Machine::new(real, 9);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        engine
            .add_program(0, Box::new(Asker(&machine, 7, &log)))
            .unwrap();
        engine.add(1, Beat(0, 4, &log));
        let mut steps = vec![];
        engine.run(&machine, &AtomicBool::new(false), |began, number| {
            steps.push((began, number));
        });
        let beats = log.lock().iter().filter(|(_, name)| *name == 0).count();
        assert!(beats >= 3 && log.lock()[0] == (0, 7), "real: {real}");
        let (end, name) = *log.lock().iter().rfind(|(_, name)| *name == 7).unwrap();
        assert!(name == 7 && (9..15).contains(&end), "real: {real}, {end}");
        // The step of the program began first, and ended in the middle of the others.
        assert!(steps.contains(&(0, 0)) && steps[0].1 == 1, "{steps:?}");
        if !real {
            assert_eq!(
                *log.lock(),
                [(0, 7), (1, 0), (5, 0), (9, 7), (9, 0), (13, 0)]
            );
        }
    }
}

#[test]
fn a_long_wait_takes_few_looks() {
    for programs in 1..4 {
        let machine = Machine::new(false, 20_000_000);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        for name in 0..programs {
            let asker = Box::new(Asker(&machine, name, &log));
            engine.add_program(0, asker).unwrap();
        }
        engine.run(&machine, &AtomicBool::new(false), |_, _| {});
        assert_eq!(machine.now(), 20_000_000);
        let looks = machine.looks.load(Ordering::Relaxed);
        assert!(looks <= 4 * programs, "{looks} looks of {programs}");
        // At one time the lower number comes first.
        let ends: Vec<u64> = log.lock()[programs as usize..]
            .iter()
            .map(|end| end.1)
            .collect();
        assert!(ends.is_sorted(), "{ends:?}");
    }
}

#[test]
fn a_real_machine_idles_once_when_all_have_looked() {
    let machine = Machine::new(true, 100);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    for name in 0..3 {
        let asker = Box::new(Asker(&machine, name, &log));
        engine.add_program(0, asker).unwrap();
    }
    engine.run(&machine, &AtomicBool::new(false), |_, _| {});
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((of(&machine.idles), of(&machine.looks)), (20, 63));
}

#[test]
fn two_runs_are_the_same() {
    let run = || {
        let machine = Machine::new(false, 57);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        for name in 0..5 {
            let asker = Box::new(Asker(&machine, name, &log));
            engine.add_program(name % 2, asker).unwrap();
            engine.add(name, Beat(10 + name, 2 + name, &log));
        }
        let mut steps = vec![];
        engine.run(&machine, &AtomicBool::new(false), |began, number| {
            steps.push((began, number));
        });
        drop(engine);
        (log.into_inner(), steps)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_program_that_waits_when_the_run_ends_finishes_its_step() {
    struct Ender<'a>(&'a AtomicBool);
    impl Actor for Ender<'_> {
        fn step(&mut self, now: u64) -> Next {
            self.0.store(true, Ordering::Release);
            Next::At(now)
        }
    }
    for real in [false, true] {
        let machine = Machine::new(real, 50);
        let ended = AtomicBool::new(false);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        engine
            .add_program(0, Box::new(Asker(&machine, 7, &log)))
            .unwrap();
        engine.add(3, Beat(0, 4, &log));
        engine.add(4, Ender(&ended));
        engine.run(&machine, &ended, |_, _| {});
        let (log, begins) = (log.lock(), if real { 5 } else { 3 });
        assert_eq!(*log, [(0, 7), (begins, 0), (50, 7)], "real: {real}");
        assert!(engine.deepest_stack() > 0);
    }
}

#[test]
fn programs_without_a_wait_are_plain_actors() {
    let run = |programs| {
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        for name in 0..4 {
            let beat = Box::new(Beat(name, 2 + name, &log));
            match programs {
                true => engine.add_program(0, beat).unwrap(),
                false => engine.add_boxed(0, beat),
            }
        }
        engine.run(&FreeClock::default(), &AtomicBool::new(false), |_, _| {});
        drop(engine);
        log.into_inner()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn what_is_due_after_a_step_is_there_for_the_looks() {
    let machine = Machine::new(false, 3);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    engine
        .add_program(0, Box::new(Asker(&machine, 7, &log)))
        .unwrap();
    // It uses up time in which the device answers.
    engine.add(0, Slow(&machine.free, &log));
    engine.add(50, Beat(0, 1, &log));
    engine.run(&machine, &AtomicBool::new(false), |_, _| {});
    assert_eq!(*log.lock(), [(0, 7), (0, 9), (10, 7), (50, 0)]);
    assert_eq!(machine.idles.load(Ordering::Relaxed), 0);
}

#[test]
fn after_a_panic_the_programs_that_waited_are_gone() {
    struct Fails;
    impl Actor for Fails {
        fn step(&mut self, _: u64) -> Next {
            panic!("asked to");
        }
    }
    let machine = Machine::new(false, 20);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    engine
        .add_program(0, Box::new(Asker(&machine, 7, &log)))
        .unwrap();
    engine.add(3, Fails);
    engine.add(30, Beat(0, 4, &log));
    let mut run = || engine.run(&machine, &AtomicBool::new(false), |_, _| {});
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut run));
    assert!(caught.is_err());
    run();
    assert_eq!(*log.lock(), [(0, 7), (30, 0)]);
}

/// Sleeps until each of its times in the middle of one step.
struct Sleeper<'a>(&'a Machine, u64, Vec<u64>, &'a Mutex<Vec<(u64, u64)>>);

impl Actor for Sleeper<'_> {
    fn step(&mut self, _: u64) -> Next {
        let Self(machine, name, times, log) = self;
        for &time in &*times {
            assert!(CURRENT.with(|current| current.wait_until(time)));
            log.lock().push((machine.now(), *name));
        }
        Next::Done
    }
}

#[test]
fn a_program_that_sleeps_is_resumed_once_in_its_turn() {
    for real in [false, true] {
        let machine = Machine::new(real, 7);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        let sleeper = |name, times| Box::new(Sleeper(&machine, name, times, &log));
        engine.add_program(0, sleeper(1, vec![4, 30])).unwrap();
        engine.add_program(0, sleeper(2, vec![4, 20])).unwrap();
        engine
            .add_program(0, Box::new(Asker(&machine, 3, &log)))
            .unwrap();
        engine.run(&machine, &AtomicBool::new(false), |_, _| {});
        let log = log.lock();
        let of = |name| -> Vec<u64> {
            let of = log.iter().filter(|(_, who)| *who == name);
            of.map(|(time, _)| *time).collect()
        };
        let late = u64::from(real) * 6;
        assert!((4..=4 + late).contains(&of(1)[0]), "{log:?}");
        assert!((4..=4 + late).contains(&of(2)[0]), "{log:?}");
        assert_eq!((of(1)[1], of(2)[1]), (30, 20), "{log:?}");
        assert_eq!(of(3).len(), 2);
        // At one time the lower number comes first.
        let first = log.iter().position(|&(_, who)| who == 1);
        assert!(first < log.iter().position(|&(_, who)| who == 2));
        if !real {
            let all = [(0, 3), (4, 1), (4, 2), (7, 3), (20, 2), (30, 1)];
            assert_eq!(*log, all);
        }
    }
}

#[test]
fn sleepers_are_no_burden_for_the_steps_of_others() {
    let machine = Machine::new(false, u64::MAX);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    for name in 1..50 {
        let sleeper = Sleeper(&machine, name, vec![1_000_000], &log);
        engine.add_program(0, Box::new(sleeper)).unwrap();
    }
    struct Many(u64);
    impl Actor for Many {
        fn step(&mut self, now: u64) -> Next {
            self.0 -= 1;
            match self.0 {
                0 => Next::Done,
                _ => Next::At(now + 1),
            }
        }
    }
    engine.add(0, Many(10_000));
    engine.run(&machine, &AtomicBool::new(false), |_, _| {});
    // Nobody looked in vain: the clock never had to let time pass for programs that wait.
    assert_eq!(machine.idles.load(Ordering::Relaxed), 0);
    assert_eq!(log.lock().len(), 49);
}

#[test]
fn a_program_that_sleeps_when_the_run_ends_finishes_its_step() {
    struct Ender<'a>(&'a AtomicBool);
    impl Actor for Ender<'_> {
        fn step(&mut self, now: u64) -> Next {
            self.0.store(true, Ordering::Release);
            Next::At(now)
        }
    }
    for real in [false, true] {
        let machine = Machine::new(real, u64::MAX);
        let ended = AtomicBool::new(false);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        for name in [1, 2] {
            let sleeper = Sleeper(&machine, name, vec![1_000, 2_000, 3_000], &log);
            engine.add_program(0, Box::new(sleeper)).unwrap();
        }
        engine.add(4, Ender(&ended));
        engine.run(&machine, &ended, |_, _| {});
        let log = log.lock();
        assert_eq!(log.len(), 6, "real: {real}");
        assert_eq!(log[..2], [(4, 1), (4, 2)], "real: {real}");
        // Time passes between what the end makes of the later sleeps, so that who waits for a device goes on.
        assert!(log[5].0 > log[0].0 && log[5].0 < 1_000, "{log:?}");
        assert!(engine.deepest_stack() > 0);
    }
}

#[test]
fn after_a_panic_the_programs_that_slept_are_gone() {
    struct Fails;
    impl Actor for Fails {
        fn step(&mut self, _: u64) -> Next {
            panic!("asked to");
        }
    }
    let machine = Machine::new(false, u64::MAX);
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    let sleeper = Sleeper(&machine, 7, vec![20], &log);
    engine.add_program(0, Box::new(sleeper)).unwrap();
    engine.add(3, Fails);
    engine.add(30, Beat(0, 4, &log));
    let mut run = || engine.run(&machine, &AtomicBool::new(false), |_, _| {});
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut run));
    assert!(caught.is_err());
    run();
    assert_eq!(*log.lock(), [(30, 0)]);
}

/// New programs by name, and what is to be logged of them.
type Births = Mutex<Vec<u64>>;

/// Makes a program every ten nanoseconds; each sleeps for 25 and says so.
struct Parent<'a>(&'a Machine, u64, &'a Births);

impl Actor for Parent<'_> {
    fn step(&mut self, _: u64) -> Next {
        let Self(machine, count, births) = self;
        for name in 0..*count {
            births.lock().push(name);
            let time = machine.now() + 10;
            CURRENT.with(|current| current.wait_until(time));
        }
        Next::Done
    }
}

#[test]
fn new_programs_begin_at_once_and_take_the_places_of_old_ones() {
    let run = || {
        let machine = Machine::new(false, u64::MAX);
        let (births, log) = (Births::default(), Mutex::new(Vec::new()));
        let mut engine = Engine::new();
        engine
            .add_program(5, Box::new(Parent(&machine, 1_000, &births)))
            .unwrap();
        let (machine, births, log) = (&machine, &births, &log);
        engine.accept_from(move || {
            let name = births.lock().pop()?;
            let until = machine.now() + 25;
            Some(Box::new(Sleeper(machine, name, vec![until], log)) as Box<dyn Actor>)
        });
        let mut steps = vec![];
        engine.run(machine, &AtomicBool::new(false), |began, number| {
            steps.push((began, number));
        });
        let (places, stacks) = (engine.actors.len(), engine.spare.len());
        drop(engine);
        (log.lock().clone(), steps, places, stacks)
    };
    let (log, steps, places, stacks) = run();
    let expected: Vec<_> = (0..1_000).map(|name| (5 + 10 * name + 25, name)).collect();
    assert_eq!(log, expected);
    // Three children live at a time, beside the parent.
    assert_eq!(places, 4);
    assert!(stacks <= 5, "{stacks}");
    // The lowest number that is free: the first child of all came before the third.
    assert_eq!(steps[..3], [(5, 1), (15, 2), (25, 3)]);
    assert_eq!(run(), (log, steps, places, stacks));
}

#[test]
fn after_the_end_no_program_begins() {
    struct Ender<'a>(&'a AtomicBool, &'a Births);
    impl Actor for Ender<'_> {
        fn step(&mut self, _: u64) -> Next {
            self.1.lock().push(1);
            self.0.store(true, Ordering::Release);
            Next::Done
        }
    }
    let (births, ended) = (Births::default(), AtomicBool::new(false));
    let log = Mutex::new(Vec::new());
    let mut engine = Engine::new();
    engine.add(3, Ender(&ended, &births));
    let source = || {
        let name = births.lock().pop()?;
        Some(Box::new(Beat(name, 1, &log)) as Box<dyn Actor>)
    };
    engine.accept_from(source);
    engine.run(&FreeClock::default(), &ended, |_, _| {});
    drop(engine);
    assert!(log.lock().is_empty());
    assert_eq!(*births.lock(), [1]);
}

/// A clock beside others': the engine must ask for programs even if it has none.
#[derive(Default)]
struct Shared {
    free: FreeClock,
    waits: Mutex<Vec<u64>>,
}

impl Clock for Shared {
    fn now(&self) -> u64 {
        self.free.now()
    }

    fn wait_until(&self, time: u64, ended: &AtomicBool) {
        self.waits.lock().push(time);
        self.free.wait_until(time, ended);
        ended.store(time >= 500, Ordering::Release);
    }

    fn pass(&self, next: Option<u64>) {
        self.free.pass(next);
    }

    fn longest_wait(&self) -> Option<u64> {
        Some(100)
    }
}

#[test]
fn an_engine_without_actors_asks_for_programs_until_it_is_ended() {
    let (clock, log) = (Shared::default(), Mutex::new(Vec::new()));
    let mut engine = Engine::new();
    let mut asked = 0;
    let counted = &mut asked;
    let log = &log;
    engine.accept_from(move || {
        *counted += 1;
        (*counted == 3).then(|| Box::new(Beat(9, 250, log)) as Box<dyn Actor>)
    });
    engine.run(&clock, &AtomicBool::new(false), |_, _| {});
    drop(engine);
    assert_eq!(*log.lock(), [(200, 9)]);
    assert_eq!(*clock.waits.lock(), [100, 200, 200, 300, 400, 500]);
    assert_eq!(asked, 7);
}
