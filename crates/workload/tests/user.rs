//! A machine on which programs load and store themselves gives the same results as one that reads and writes their
//! frames for them.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../../paging/tests/support/guest.rs"]
mod guest;

use std::sync::atomic::{AtomicU64, Ordering};

use dirigible::schedule::{Engine, FreeClock};
use dirigible_frames::{
    Config, Event, Fallback, FrameAllocator, FrameContents, OwnerId, Pfn, Placement,
    WORDS_PER_LINE, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::{Page, Paging, SlowPath, SlowPathConfig, SpaceId};
use dirigible_workload::{
    balloon::BalloonControl,
    content::{ContentLog, LINES, When},
    control::Control,
    director::Director,
    filler::{Filler, FillerLoad},
    load,
    machine::{Check, LoadMemory, Space},
    params::{Params, Profile},
    stalls::Stalls,
    system::{HostClock, MoveChecks, Parts, System},
    timeline::Timeline,
    tuning::{LoadTuning, rested_watermarks, watermarks},
    user::UserMemory,
};
use guest::{BASE, MockGuest};

/// No balloon.
struct NoBalloon;

impl BalloonControl for NoBalloon {
    fn set_target(&self, _: u64) {}
    fn target(&self) -> u64 {
        0
    }
    fn actual(&self) -> u64 {
        0
    }
    fn stepped(&self) {}
}

struct NoClock;

impl HostClock for NoClock {
    fn nanoseconds(&self) -> u64 {
        0
    }
}

/// A page-table walker in software. Some loads fault spuriously, as on hardware.
struct Walker<'p> {
    paging: &'p Paging<'p, MockGuest>,
    guest: &'p MockGuest,
    accesses: AtomicU64,
    faults: AtomicU64,
}

impl Walker<'_> {
    fn access<R>(
        &self,
        (space, page): (SpaceId, Page),
        write: bool,
        fault: &mut dyn FnMut() -> bool,
        mut f: impl FnMut(Pfn) -> R,
    ) -> Option<R> {
        let number = self.accesses.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(7) && !write && !fault() {
            return None;
        }
        loop {
            if let Some(done) = self.paging.access(space, page, write, &mut f) {
                return Some(done);
            }
            self.faults.fetch_add(1, Ordering::Relaxed);
            if !fault() {
                return None;
            }
        }
    }
}

impl UserMemory for Walker<'_> {
    fn store(&self, s: SpaceId, p: Page, value: u64, fault: &mut dyn FnMut() -> bool) -> bool {
        let write = |frame| self.guest.write_word(frame, 0, value);
        self.access((s, p), true, fault, write).is_some()
    }
    fn load(
        &self,
        s: SpaceId,
        p: Page,
        lines: &mut [u64; LINES],
        fault: &mut dyn FnMut() -> bool,
    ) -> bool {
        let read = |frame| self.guest.read_lines(frame, lines);
        self.access((s, p), false, fault, read).is_some()
    }
    fn load_line(
        &self,
        s: SpaceId,
        p: Page,
        line: usize,
        fault: &mut dyn FnMut() -> bool,
    ) -> Option<u64> {
        let read = |frame| self.guest.read_word(frame, line * WORDS_PER_LINE);
        self.access((s, p), false, fault, read)
    }
}

/// Builds a machine for `params` and hands it to `f`.
fn with_machine<R>(
    params: &Params,
    own_accesses: bool,
    f: impl FnOnce(&System<'_, MockGuest>, &Filler<'_, MockGuest>, &Walker<'_>) -> R,
) -> R {
    let range = Pfn::new(BASE)..Pfn::new(BASE + params.memory_frames());
    let config = Config {
        zones: &[ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: watermarks(params),
            reserve_blocks: 0,
        }],
        reserved: &[],
        cpus: guest::CPUS,
        placement: Placement::FullestFirst,
        fallback: Fallback::Evacuate,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    let guest = MockGuest::new(params.memory_frames() as usize);
    let id = |number| OwnerId::new(number).unwrap();
    let contents = ContentLog::new();
    let checks = MoveChecks::new(&guest, &contents);
    let filler = Filler::new(&frames, &guest, id(2), &contents);
    let paging = Paging::new(&frames, &guest, id(1), 64).observed_by(&checks);
    let mobility = Mobility::new(&frames, &guest, CompactionConfig::default());
    mobility.register(id(1), &paging).unwrap();
    mobility.register(id(2), &filler).unwrap();
    let memory = SlowPath::new(&mobility, &filler, SlowPathConfig::default());
    let stalls = Stalls::new(&mobility, Fallback::Steal);
    let walker = Walker {
        paging: &paging,
        guest: &guest,
        accesses: AtomicU64::new(0),
        faults: AtomicU64::new(0),
    };
    let parts = Parts {
        platform: &guest,
        frames: &frames,
        paging: &paging,
        memory: &memory,
        filler: &filler,
        user: own_accesses.then_some(&walker),
        balloon: &NoBalloon,
        contents: &contents,
        stalls: &stalls,
        host_clock: &NoClock,
    };
    let system = System::new(parts, rested_watermarks(params));
    let result = f(&system, &filler, &walker);
    mobility.verify().unwrap();
    frames.verify().unwrap();
    result
}

fn small() -> Params {
    Params {
        memory: 64 << 20,
        balloon: 0,
        step: 0,
        time_scale: 100,
        ..Params::new(Profile::Paper)
    }
}

/// The counts of a run: events, huge pages of each pass, pages checked, errors.
fn counts(own_accesses: bool) -> (Vec<u64>, Vec<u64>, u64, u64) {
    let params = small();
    with_machine(&params, own_accesses, |system, filler, walker| {
        let (control, timeline) = (Control::new(), Timeline::new(&params));
        let mut engine = Engine::new();
        let load = load::actors(system, &control, &params);
        let actors = load.len() as u64 + 1;
        engine.add(0, Director::new(system, &control, &timeline, actors));
        let tuning = LoadTuning::new(&params).filler;
        engine.add(0, FillerLoad::new(filler, &control, tuning, params.seed));
        for actor in load {
            engine.add_boxed(0, actor);
        }
        engine.run(&FreeClock::default(), control.ended(), |_, _| {});
        drop(engine);
        let used = walker.accesses.load(Ordering::Relaxed) > 10_000;
        let faulted = walker.faults.load(Ordering::Relaxed) > 1_000;
        assert_eq!((used, faulted), (own_accesses, own_accesses));
        let passes = system.passes().0;
        let parts = system.parts();
        (
            parts.frames.events().snapshot().to_vec(),
            passes.iter().map(|pass| pass.allocated).collect(),
            parts.contents.checked_whole(),
            parts.contents.errors(),
        )
    })
}

#[test]
fn own_accesses_change_no_count() {
    let (events, passes, checked, errors) = counts(false);
    assert!(
        events[Event::PgmigrateSuccess as usize] > 1_000,
        "pages move"
    );
    assert!(checked > 1_000 && passes.iter().all(|&got| got > 0));
    assert_eq!(errors, 0);
    assert_eq!(counts(true), (events, passes, checked, errors));
}

#[test]
fn a_program_finds_a_wrong_line_in_its_page() {
    with_machine(&small(), true, |system, _, walker| {
        let space = system.create_space().unwrap();
        let Space(number) = space;
        assert_eq!(system.fault(space, 512, true), Ok(512));
        assert_eq!(system.fault(space, 513, false), Ok(512), "there already");
        assert_eq!(system.fault(space, 1024, false), Ok(1));
        assert_eq!(system.fault(space, 1024, true), Ok(1), "there already");
        let whole = |pages| system.check(space, pages, Check::Whole);
        let contents = system.parts().contents;
        whole(500..1030);
        assert_eq!((contents.checked_whole(), contents.errors()), (513, 0));

        let page = Page::new(700);
        let frame = walker.paging.translate(SpaceId::new(number), page).unwrap();
        walker.guest.write_word(frame, 5 * WORDS_PER_LINE, 99);
        system.check(space, 700..701, Check::Four(6 | 7 << 6 | 8 << 12 | 9 << 18));
        assert_eq!(contents.errors(), 0, "not one of the four");
        system.check(space, 700..701, Check::Four(6 | 7 << 6 | 5 << 12 | 9 << 18));
        whole(700..701);
        let errors = contents.first_errors();
        assert_eq!(errors.len(), 2);
        for error in errors {
            let wrong = (error.wrong.line, error.wrong.found);
            assert_eq!((error.frame, wrong, error.position), (frame, (5, 99), 700));
            assert_eq!((error.when, error.owner), (When::Used, "job"));
        }
        system.exit(space);
    });
}
