//! What the core asks of a kernel's own books: how often, and how far they may reach.

#[path = "support/table.rs"]
mod table;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use dirigible_balloon::{
    Balloon, BalloonConfig, Books, Fault, Features, MAX_SPAN, Message, Output, Work,
};
use dirigible_frames::{FrameState, OwnerId, Pfn};
use table::{BASE, FRAMES, Table};

const OWNER: OwnerId = OwnerId::new(1).unwrap();

/// A host that answers at once.
fn serve<B: Books>(balloon: &mut Balloon<'_, B>) -> usize {
    let mut message = Message::new();
    let mut freed = 0;
    while let Some(output) = balloon.next_output(0, &mut message) {
        match output {
            Output::Send { queue, request } => balloon.complete(queue, request).unwrap(),
            Output::Free => freed += message.pfns().len(),
            Output::WriteActual(_) => {}
        }
    }
    freed
}

#[test]
fn managed_counts_change_once_for_each_request() {
    let table = Table::new();
    let config = BalloonConfig::default();
    let mut balloon: Balloon<'_, _> =
        Balloon::new(&table, OWNER, Features::empty(), config).unwrap();
    let calls = || table.managed_calls.swap(0, Ordering::SeqCst);
    balloon.set_target(FRAMES as u32, FRAMES);
    let frames: Vec<_> = (0..FRAMES).map(|at| Pfn::new(BASE + at)).collect();
    frames
        .iter()
        .for_each(|&frame| table.with(frame, |entry| entry.0 = FrameState::Allocated));
    let mut left = &frames[..];
    while let Work::Inflate(want) = balloon.plan(0) {
        let (now, later) = left.split_at(want);
        assert_eq!(balloon.begin_inflate(now, 0), want);
        serve(&mut balloon);
        left = later;
    }
    // Messages of 256, 256 and 88, over both zones.
    assert_eq!(calls(), 3);
    assert_eq!(*table.managed.lock().unwrap(), [-300, -300]);
    balloon.set_target(300, FRAMES);
    while let Work::Deflate(want) = balloon.plan(0) {
        balloon.begin_deflate(want, &[], 0);
        serve(&mut balloon);
    }
    assert_eq!(calls(), 2);
    // A reset gives the rest back in messages, too.
    balloon.device_reset();
    assert_eq!(serve(&mut balloon), 300);
    assert_eq!(calls(), 2);
    assert_eq!(*table.managed.lock().unwrap(), [0, 0]);
}

/// One frame with its state, owner and word.
type Entry = (FrameState, Option<OwnerId>, u64);

/// A large memory, of which only the frames that were touched are stored.
struct Sparse {
    base: u64,
    span: u64,
    frames: Mutex<BTreeMap<u64, Entry>>,
}

impl Sparse {
    fn with<R>(&self, frame: Pfn, f: impl FnOnce(&mut Entry) -> R) -> R {
        assert!((self.base..self.base + self.span).contains(&frame.get()));
        let mut frames = self.frames.lock().unwrap();
        f(frames
            .entry(frame.get())
            .or_insert((FrameState::Allocated, None, 0)))
    }
}

impl Books for Sparse {
    fn base(&self) -> Pfn {
        Pfn::new(self.base)
    }
    fn span(&self) -> u64 {
        self.span
    }
    fn state(&self, frame: Pfn) -> FrameState {
        self.with(frame, |entry| entry.0)
    }
    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        self.with(frame, |entry| match entry.0 == from {
            true => {
                entry.0 = to;
                Ok(())
            }
            false => Err(entry.0),
        })
    }
    fn owner(&self, frame: Pfn) -> Option<OwnerId> {
        self.with(frame, |entry| entry.1)
    }
    fn claim(&self, frame: Pfn, owner: OwnerId, word: u64) {
        self.with(frame, |entry| (entry.1, entry.2) = (Some(owner), word));
    }
    fn disown(&self, frame: Pfn) {
        self.with(frame, |entry| (entry.1, entry.2) = (None, 0));
    }
    fn word(&self, frame: Pfn) -> u64 {
        self.with(frame, |entry| entry.2)
    }
    fn set_word(&self, frame: Pfn, word: u64) {
        self.with(frame, |entry| entry.2 = word);
    }
}

/// 1 TiB and a hole for PCI below 4 GiB: a little more than 2^28 frames from first to last. Then all that a message can
/// name.
#[test]
fn a_guest_of_a_tebibyte_with_a_hole_has_a_balloon() {
    for (base, span) in [
        (0, (1 << 28) + (1 << 18)),
        (1, 1 << 30),
        (2, MAX_SPAN),
        (0, MAX_SPAN),
    ] {
        let books = Sparse {
            base,
            span,
            frames: Mutex::default(),
        };
        let config = BalloonConfig::default();
        let mut balloon: Balloon<'_, _> =
            Balloon::new(&books, OWNER, Features::empty(), config).unwrap();
        balloon.set_target(4, span);
        let frames = [0, 1, span / 2, span - 1].map(|at| Pfn::new(base + at));
        assert_eq!(balloon.begin_inflate(&frames, 0), 4);
        serve(&mut balloon);
        balloon.verify().unwrap();
        assert!(frames.iter().all(|&frame| balloon.isolate(frame)));
        assert!(frames.iter().all(|&frame| balloon.putback(frame)));
        balloon.verify().unwrap();
        balloon.set_target(0, span);
        assert_eq!(balloon.begin_deflate(4, &frames[1..2], 0), 4);
        assert_eq!(serve(&mut balloon), 4);
    }
    for (base, span) in [(0, MAX_SPAN + 1), (3, MAX_SPAN), (u64::MAX >> 12, 512)] {
        let books = Sparse {
            base,
            span,
            frames: Mutex::default(),
        };
        let config = BalloonConfig::default();
        let balloon = Balloon::<_>::new(&books, OWNER, Features::empty(), config);
        assert_eq!(balloon.err(), Some(Fault::TooLarge { base, span }));
    }
}

/// What the core hands out to an adapter when the device was reset with requests of every kind under way.
#[test]
fn the_core_says_what_follows_from_a_reset() {
    let table = Table::new();
    let config = BalloonConfig::default();
    let mut balloon: Balloon<'_, _> =
        Balloon::new(&table, OWNER, Features::empty(), config).unwrap();
    balloon.set_target(600, FRAMES);
    let frames: Vec<_> = (0..FRAMES).map(|at| Pfn::new(BASE + at)).collect();
    frames
        .iter()
        .for_each(|&frame| table.with(frame, |entry| entry.0 = FrameState::Allocated));
    balloon.begin_inflate(&frames[..256], 0);
    serve(&mut balloon);
    balloon.begin_inflate(&frames[256..400], 0);
    balloon.needs_reset();
    assert_eq!(balloon.plan(0), Work::Failed(Fault::NeedsReset));
    assert!(balloon.restart(Features::empty()).is_err(), "not reset yet");
    balloon.device_reset();
    assert!(
        matches!(
            balloon.restart(Features::empty()),
            Err(Fault::StillHeld { listed: 256, .. })
        ),
        "what it had comes first"
    );
    assert_eq!(serve(&mut balloon), 400);
    assert_eq!(balloon.actual(), 0);
    balloon.restart(Features::empty()).unwrap();
    let mut message = Message::new();
    assert_eq!(
        balloon.next_output(0, &mut message),
        Some(Output::WriteActual(0))
    );
    assert!(matches!(balloon.plan(0), Work::Inflate(_)));
    balloon.verify().unwrap();
}

/// The device needs a reset, and one of the frames on the list is not the balloon's any more.
#[test]
fn damage_shows_behind_a_fault_of_the_device() {
    let table = Table::new();
    let config = BalloonConfig::default();
    let mut balloon: Balloon<'_, _> =
        Balloon::new(&table, OWNER, Features::empty(), config).unwrap();
    balloon.set_target(100, FRAMES);
    let frames: Vec<_> = (0..100).map(|at| Pfn::new(BASE + at)).collect();
    frames
        .iter()
        .for_each(|&frame| table.with(frame, |entry| entry.0 = FrameState::Allocated));
    balloon.begin_inflate(&frames, 0);
    serve(&mut balloon);
    table.with(frames[50], |entry| entry.0 = FrameState::Allocated);
    balloon.needs_reset();
    balloon.device_reset();
    assert_eq!(serve(&mut balloon), 99);
    let damaged = Fault::Books { frames: 1 };
    assert_eq!(balloon.fault(), Some(damaged));
    balloon.removed();
    assert_eq!(balloon.restart(Features::empty()), Err(damaged));
}
