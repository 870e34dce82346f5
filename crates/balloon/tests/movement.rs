//! Isolation, exchange, putback; with the real mobility where that is the point.

mod support;

use std::sync::Mutex;

use dirigible_balloon::{BalloonConfig, Deflate, Fault, Settle, Step};
use dirigible_frames::{
    AllocRequest, CpuId, Event, FrameAllocator, FrameClass, FrameState, Order, OwnerClass, Pfn,
    ZoneId,
};
use dirigible_mobility::{
    CompactResult, CompactionConfig, Mobility, MovableOwner, MovePair, Outcome, RegisterError,
};
use support::host::{Host, Manner};
use support::{CLASS, Clock, Guest, NO_SETTLE, all_frames, count, memory};

const CPU: CpuId = CpuId::new(0);

/// Remembers what settled.
#[derive(Default)]
struct Ledger(Mutex<Vec<(Pfn, Pfn, Outcome)>>);

impl Settle for Ledger {
    fn settled(&self, from: Pfn, to: Pfn, outcome: Outcome) {
        self.0.lock().unwrap().push((from, to, outcome));
    }
}

fn settling(blocks: u64, config: BalloonConfig) -> (Guest, &'static Ledger) {
    let ledger: &'static Ledger = Box::leak(Box::default());
    (
        Guest::with(memory(&[blocks]), Host::new(), ledger, config),
        ledger,
    )
}

/// A guest whose balloon is an owner of a real `Mobility`.
fn mobile(blocks: u64) -> (Guest, &'static Mobility<'static, Clock>) {
    let frames = memory(&[blocks]);
    let clock: &'static Clock = Box::leak(Box::default());
    let mobility: &'static Mobility<'static, Clock> = Box::leak(Box::new(Mobility::new(
        frames,
        clock,
        CompactionConfig::default(),
    )));
    let guest = Guest::on(
        clock,
        frames,
        Host::new(),
        mobility,
        BalloonConfig::default(),
        CLASS,
    );
    mobility.register(CLASS, guest.balloon).unwrap();
    (guest, mobility)
}

fn pairs(from: &[Pfn], to: &[Pfn]) -> Vec<MovePair> {
    from.iter()
        .zip(to)
        .map(|(&from, &to)| MovePair::base(from, to))
        .collect()
}

/// Isolates and moves, as mobility does, and frees what has moved.
fn relocate(guest: &Guest, from: &[Pfn], to: &[Pfn]) -> Vec<Outcome> {
    assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
    let mut pairs = pairs(from, to);
    guest.balloon.migrate(&mut pairs);
    let moved: Vec<_> = pairs
        .iter()
        .filter(|pair| pair.outcome == Outcome::Moved)
        .map(|pair| pair.from)
        .collect();
    guest.free(&moved);
    pairs.iter().map(|pair| pair.outcome).collect()
}

/// Fills memory with the balloon and lets `holes` frames in each block go again.
fn riddle(guest: &Guest, holes: usize) {
    let total = guest.frames.managed_frames();
    let mut spare = vec![Pfn::default(); guest.frames.blocks().count() * holes];
    // Single frames in every block, by taking all and giving back all but every so many.
    let mut all = vec![Pfn::default(); total as usize];
    assert_eq!(
        guest
            .frames
            .alloc_bulk(CPU, AllocRequest::movable(), &mut all),
        total as usize
    );
    all.sort_unstable();
    let (mut keep, mut give) = (Vec::new(), Vec::new());
    for frame in all {
        if frame.offset_in_block() < holes {
            keep.push(frame)
        } else {
            give.push(frame)
        }
    }
    guest.free(&give);
    assert_eq!(guest.to(give.len() as u32), Step::Idle);
    guest.free(&keep);
    spare.clear();
    guest.frames.drain_cpu_caches();
    assert_eq!(guest.frames.free_blocks(), 0);
}

#[test]
fn pitfall_02_compaction_inside_inflate() {
    let (guest, mobility) = mobile(4);
    riddle(&guest, 200);
    let frames = guest.frames;
    let got = std::sync::Arc::new(Mutex::new(None));
    let seen = got.clone();
    guest.source.set_meanwhile(move || {
        let captured = mobility.compact_direct(CPU, FrameClass::Movable);
        if let CompactResult::Captured(block) = captured {
            frames.free(CPU, block, Order::HUGE).unwrap();
        }
        seen.lock().unwrap().get_or_insert(captured);
    });
    let size = guest.host.size() as u32;
    guest.to(size + 10);
    assert!(
        matches!(*got.lock().unwrap(), Some(CompactResult::Captured(_))),
        "{got:?}"
    );
    assert_eq!(guest.host.size() as u32, size + 10);
    assert!(guest.frames.events().get(Event::BalloonMigrate) > 0);
    guest.frames.verify().unwrap();
    assert_eq!(mobility.isolated_frames(), 0);
}

#[test]
fn pitfall_06_putback_always_comes_back() {
    let guest = Guest::new(4);
    guest.to(300);
    let frames = guest.listed();
    assert!(guest.balloon.isolate(frames[7]));
    // The balloon is as busy as can be: requests with a host that does not answer.
    guest.host.set_manner(Manner::OnDemand);
    guest.to(100);
    guest.balloon.putback(frames[7]);
    assert_eq!(guest.frames.state(frames[7]), FrameState::Listed);
    while guest.host.answer_one() {}
    guest.run();
    while guest.host.answer_one() {}
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.host.size(), 100);
}

#[test]
fn pitfall_10_foreign_frames_are_not_followed() {
    let guest = Guest::new(8);
    guest.to(200);
    let frames = guest.frames;
    let other = OwnerClass::new(9).unwrap();
    let mut strange = Vec::new();
    let garbage = [0, u64::MAX, 0x0fff_ffff_ffff_ffff, 0xdead_beef_dead_beef];
    for (at, word) in garbage.into_iter().cycle().take(64).enumerate() {
        let class = [
            FrameClass::Movable,
            FrameClass::Unmovable,
            FrameClass::Reclaimable,
        ][at % 3];
        let frame = frames
            .alloc(CPU, AllocRequest::new(Order::BASE, class))
            .unwrap();
        // Listed by somebody else, listed under our class by mistake of nobody, or just owned.
        frames.set_owner(frame, other, word);
        if at % 2 == 0 {
            frames
                .transition(frame, FrameState::Owned, FrameState::Listed)
                .unwrap();
        }
        strange.push((frame, word));
    }
    let huge = frames.alloc(CPU, AllocRequest::huge()).unwrap();
    strange.extend((0..512).map(|at| (huge.plus(at), frames.owner_word(huge.plus(at)))));
    for &(frame, word) in &strange {
        let before = frames.state(frame);
        assert!(!guest.balloon.isolate(frame));
        assert_eq!(
            (frames.state(frame), frames.owner_word(frame)),
            (before, word)
        );
    }
    // Free frames, and numbers that are no frames.
    for frame in all_frames(frames)
        .into_iter()
        .filter(|&f| frames.state(f) == FrameState::Free)
    {
        assert!(!guest.balloon.isolate(frame));
    }
    for number in [0, 511, 512 + 8 * 512, 1 << 28, 1 << 40, u64::MAX >> 12] {
        assert!(!guest.balloon.isolate(Pfn::new(number)));
    }
    guest.check();
}

#[test]
fn pitfall_11_one_frame_moves_a_thousand_times() {
    for exchange_batch in [1, 256] {
        let (guest, _) = settling(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(1);
        let mut here = guest.listed()[0];
        for _ in 0..1000 {
            let there = guest.targets(1)[0];
            assert_eq!(relocate(&guest, &[here], &[there]), [Outcome::Moved]);
            assert_ne!(here, there);
            assert_eq!(guest.frames.state(there), FrameState::Listed);
            here = there;
        }
        guest.check();
        assert_eq!(guest.frames.events().get(Event::BalloonMigrate), 1000);
        assert_eq!(
            guest.frames.events().get(Event::BalloonMigrateMessages),
            2000
        );
        assert_eq!(guest.host.size(), 1);
    }
}

#[test]
fn batches_take_two_messages_single_frames_two_each() {
    for (exchange_batch, messages) in [(256, 4), (1, 1000), (100, 10)] {
        let (guest, _) = settling(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(500);
        let before = guest.host.messages();
        let from = guest.listed();
        let to = guest.targets(500);
        let outcomes = relocate(&guest, &from, &to);
        assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Moved));
        assert_eq!(guest.host.messages() - before, messages);
        assert_eq!(guest.balloon.stats().migrate_messages, messages);
        guest.check();
    }
}

#[test]
fn pitfall_12_nothing_but_balloon_and_holes_yields_huge_pages() {
    let (guest, mobility) = mobile(16);
    riddle(&guest, 130);
    let before = guest.host.size();
    // 16 × 130 holes are room for four blocks' balloon frames.
    let mut blocks = Vec::new();
    while let CompactResult::Captured(block) = mobility.compact_direct(CPU, FrameClass::Movable) {
        assert_eq!(guest.host.size(), before);
        guest.check();
        blocks.push(block);
    }
    assert!(blocks.len() >= 3, "{} blocks", blocks.len());
    assert_eq!(mobility.isolated_frames(), 0);
    for block in blocks {
        guest.frames.free(CPU, block, Order::HUGE).unwrap();
    }
    guest.frames.verify().unwrap();
    assert_eq!(guest.to(0), Step::Idle);
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_14_no_frame_is_freed_twice_or_never() {
    let (guest, ledger) = settling(
        8,
        BalloonConfig {
            exchange_batch: 7,
            ..Default::default()
        },
    );
    let total = guest.frames.free_frames();
    guest.to(600);
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for turn in 0..200 {
        let from: Vec<_> = guest
            .listed()
            .into_iter()
            .filter(|_| random(20) == 0)
            .take(20)
            .collect();
        let from: Vec<_> = from
            .into_iter()
            .filter(|&f| guest.balloon.isolate(f))
            .collect();
        let to = guest.targets(from.len());
        let mut moves = pairs(&from, &to);
        // Some pairs are not fit: the target is gone from the caller's hands, or the order is not ours.
        for pair in moves.iter_mut().filter(|_| random(5) == 0) {
            pair.order = Order::HUGE;
        }
        guest.host.set_manner(if turn % 3 == 0 {
            Manner::OnDemand
        } else {
            Manner::AtOnce
        });
        guest.balloon.migrate(&mut moves);
        guest.host.set_manner(Manner::AtOnce);
        for pair in &moves {
            match pair.outcome {
                Outcome::Moved => guest.free(&[pair.from]),
                Outcome::Refused => {
                    guest.balloon.putback(pair.from);
                    guest.free(&[pair.to]);
                }
                Outcome::Pending => {}
                other => panic!("{other:?}"),
            }
        }
        while guest.host.answer_one() {
            guest.balloon.handle_interrupt();
        }
        for (from, _, outcome) in ledger.0.lock().unwrap().drain(..) {
            assert_eq!(outcome, Outcome::Moved);
            guest.free(&[from]);
        }
        guest.check();
        assert_eq!(
            guest.frames.free_frames() + guest.frames.cached_frames(),
            total - 600
        );
        assert_eq!(count(guest.frames, FrameState::Listed), 600);
        assert_eq!(count(guest.frames, FrameState::Owned), 0);
    }
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_15_new_frame_deflated_before_the_move_is_over() {
    let (guest, ledger) = settling(4, BalloonConfig::default());
    guest.to(100);
    let from: Vec<_> = guest.listed();
    let to = guest.targets(100);
    guest.host.set_manner(Manner::OnDemand);
    assert!(
        relocate(&guest, &from, &to)
            .iter()
            .all(|&outcome| outcome == Outcome::Pending)
    );
    // The new frames are acknowledged, the old ones on their way: the balloon is told to empty itself.
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Listed)
    );
    assert!(
        from.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Leaving)
    );
    assert_eq!(guest.to(0), Step::Waiting);
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Leaving)
    );
    // The later request is answered first.
    guest.host.inner().answer(1);
    guest.balloon.handle_interrupt();
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Free)
    );
    assert!(guest.host.answer_one());
    assert!(guest.balloon.poll(0));
    let settled: Vec<_> = ledger.0.lock().unwrap().drain(..).collect();
    assert_eq!(settled.len(), 100);
    for (at, (old, new, outcome)) in settled.into_iter().enumerate() {
        assert_eq!((old, new, outcome), (from[at], to[at], Outcome::Moved));
    }
    guest.free(&from);
    assert_eq!(guest.run(), Step::Idle);
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_18_isolated_count_is_exact() {
    let (guest, ledger) = settling(4, BalloonConfig::default());
    guest.to(400);
    let exact = |what: &str| {
        let isolated = count(guest.frames, FrameState::Isolated);
        assert_eq!(guest.balloon.held().isolated, isolated, "{what}");
    };
    let frames = guest.listed();
    for &frame in frames.iter().step_by(2) {
        assert!(guest.balloon.isolate(frame));
        assert!(!guest.balloon.isolate(frame));
        exact("isolate");
    }
    let isolated: Vec<_> = frames.iter().copied().step_by(2).collect();
    guest.host.set_manner(Manner::OnDemand);
    let to = guest.targets(100);
    let mut moves = pairs(&isolated[..100], &to);
    guest.balloon.migrate(&mut moves);
    exact("sent");
    for &frame in &isolated[100..] {
        guest.balloon.putback(frame);
        exact("putback");
    }
    for _ in 0..2 {
        guest.host.answer_one();
        guest.balloon.handle_interrupt();
        exact("answer");
    }
    assert_eq!(ledger.0.lock().unwrap().len(), 100);
    assert_eq!(guest.balloon.held().isolated, 0);
    let stats = guest.balloon.stats();
    assert_eq!(stats.isolated, stats.frames_moved + stats.returned);
}

#[test]
fn pitfall_21_no_frame_is_linked_twice() {
    let guest = Guest::new(4);
    guest.to(50);
    let frames = guest.listed();
    // A listed frame as the target of a move, the same target twice, the same source twice.
    assert!(guest.balloon.isolate(frames[0]) && guest.balloon.isolate(frames[1]));
    let to = guest.targets(1)[0];
    let mut moves = [
        MovePair::base(frames[0], frames[5]),
        MovePair::base(frames[0], to),
        MovePair::base(frames[1], to),
    ];
    guest.balloon.migrate(&mut moves);
    let outcomes = moves.map(|pair| pair.outcome);
    assert_eq!(
        outcomes,
        [Outcome::Refused, Outcome::Moved, Outcome::Refused]
    );
    guest.balloon.putback(frames[1]);
    guest.free(&[frames[0]]);
    guest.check();
    assert_eq!(guest.host.size(), 50);
}

#[test]
fn pitfall_22_managed_follows_across_zones() {
    let guest = Guest::with(
        memory(&[4, 4]),
        Host::new(),
        NO_SETTLE,
        BalloonConfig::default(),
    );
    let frames = guest.frames;
    let zones = [ZoneId::new(0), ZoneId::new(1)];
    let sum = |zone: ZoneId| {
        let held = |frame: &Pfn| {
            frames.zone_of(*frame) == Some(zone)
                && matches!(
                    frames.state(*frame),
                    FrameState::Listed | FrameState::Isolated | FrameState::Leaving
                )
        };
        frames.zone_managed(zone)
            + all_frames(frames)
                .iter()
                .filter(|frame| held(frame))
                .count() as u64
    };
    let whole = zones.map(sum);
    guest.to(600);
    assert_eq!(zones.map(sum), whole);
    // Every listed frame to the other zone.
    for from in guest.listed() {
        let zone = frames.zone_of(from);
        let mut passed = Vec::new();
        let to = loop {
            let frame = guest.targets(1)[0];
            if frames.zone_of(frame) != zone {
                break frame;
            }
            passed.push(frame);
        };
        guest.free(&passed);
        assert_eq!(relocate(&guest, &[from], &[to]), [Outcome::Moved]);
        if from.get() % 64 == 0 {
            assert_eq!(zones.map(sum), whole);
        }
    }
    guest.to(0);
    assert_eq!(zones.map(|zone| frames.zone_managed(zone)), whole);
    frames.verify().unwrap();
}

#[test]
fn pitfall_23_isolate_refuses_what_is_leaving() {
    let guest = Guest::configured(
        4,
        BalloonConfig {
            deflate: Deflate::NewestFirst,
            ..BalloonConfig::default()
        },
    );
    guest.to(100);
    guest.host.set_manner(Manner::OnDemand);
    guest.to(40);
    for frame in all_frames(guest.frames) {
        let state = guest.frames.state(frame);
        assert_eq!(
            guest.balloon.isolate(frame),
            state == FrameState::Listed,
            "{state:?}"
        );
    }
    assert_eq!(guest.balloon.held().isolated, 40);
}

#[test]
fn pitfall_25_registered_once_and_not_taken_away_early() {
    let (guest, mobility) = mobile(4);
    assert_eq!(
        mobility.register(CLASS, guest.balloon),
        Err(RegisterError::Busy)
    );
    guest.to(10);
    let frame = guest.listed()[0];
    assert!(mobility.isolate(frame));
    assert_eq!(mobility.unregister(CLASS), Err(RegisterError::Isolated));
    mobility.putback_movable_frames(&[frame]);
    mobility.unregister(CLASS).unwrap();
}

#[test]
fn pitfall_28_never_less_than_promised() {
    for exchange_batch in [1, 256] {
        let (guest, _) = settling(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(400);
        guest.host.inner().low = usize::MAX;
        let from = guest.listed();
        let to = guest.targets(400);
        relocate(&guest, &from, &to);
        assert_eq!(guest.host.inner().low, 400);
        guest.check();
    }
}

#[test]
fn pitfall_41_exchange_acknowledged_by_half() {
    let (guest, ledger) = settling(4, BalloonConfig::default());
    let total = guest.frames.free_frames();
    guest.to(600);
    let from = guest.listed()[..512].to_vec();
    let to = guest.targets(512);
    guest.host.set_manner(Manner::OnDemand);
    assert!(
        relocate(&guest, &from, &to)
            .iter()
            .all(|&outcome| outcome == Outcome::Pending)
    );
    // Two exchanges are out; of the second the new frames are acknowledged, of the first nothing.
    guest.host.inner().answer(1);
    guest.balloon.handle_interrupt();
    guest.check();
    let all = |guest: &Guest| {
        let held = guest.balloon.held();
        guest.frames.free_frames() + guest.frames.cached_frames() + held.total()
    };
    assert_eq!(all(&guest), total);
    assert_eq!(guest.host.size(), 600 + 256);
    assert!(ledger.0.lock().unwrap().is_empty());
    // Now everything, the latest first.
    loop {
        let mut inner = guest.host.inner();
        let Some(last) = inner.waiting.len().checked_sub(1) else {
            break;
        };
        inner.answer(last);
        drop(inner);
        guest.balloon.handle_interrupt();
    }
    assert_eq!(ledger.0.lock().unwrap().len(), 512);
    assert_eq!(guest.host.size(), 600);
    guest.free(&from);
    guest.check();
    assert_eq!(all(&guest), total);
}

#[test]
fn pitfall_41_exchange_cut_off_by_reset() {
    let (guest, _) = settling(4, BalloonConfig::default());
    let total = guest.frames.free_frames();
    guest.to(300);
    let from = guest.listed()[..300].to_vec();
    let to = guest.targets(300);
    guest.host.set_manner(Manner::OnDemand);
    relocate(&guest, &from, &to);
    guest.host.answer_one();
    guest.balloon.handle_interrupt();
    // 256 arrived and their partners leave; 44 enter. The device is taken away.
    let held = guest.balloon.reset();
    assert_eq!(
        (held.listed, held.isolated, held.entering, held.leaving),
        (256, 44, 44, 256)
    );
    guest.balloon.verify().unwrap();
    assert_eq!(
        guest.frames.free_frames() + guest.frames.cached_frames() + held.total(),
        total
    );
    assert_eq!(guest.balloon.fault(), Some(Fault::Removed));
    assert!(!guest.balloon.isolate(to[0]));
    guest.frames.verify().unwrap();
}

#[test]
fn slots_that_run_out_refuse_after_a_bounded_wait() {
    let (guest, _) = settling(8, BalloonConfig::default());
    guest.to(1500);
    let from = guest.listed()[..1024].to_vec();
    let to = guest.targets(1024);
    guest.host.set_manner(Manner::Never);
    let before = guest.clock.now.load(std::sync::atomic::Ordering::SeqCst);
    let outcomes = relocate(&guest, &from, &to);
    let waited = guest.clock.now.load(std::sync::atomic::Ordering::SeqCst) - before;
    assert!((50_000_000..200_000_000).contains(&waited), "{waited} ns");
    let of = |wanted| {
        outcomes
            .iter()
            .filter(|&&outcome| outcome == wanted)
            .count()
    };
    assert_eq!((of(Outcome::Pending), of(Outcome::Refused)), (512, 512));
    for at in 0..1024 {
        if outcomes[at] == Outcome::Refused {
            guest.balloon.putback(from[at]);
            guest.free(&[to[at]]);
        }
    }
    assert!(
        !guest
            .balloon
            .poll(guest.clock.now.load(std::sync::atomic::Ordering::SeqCst) + 10)
    );
    guest.check();
}

fn _assert_shared(frames: &'static FrameAllocator<'static>) -> &'static (dyn Send + Sync) {
    fn both<T: Send + Sync>(_: &T) {}
    let guest = Guest::with(frames, Host::new(), NO_SETTLE, BalloonConfig::default());
    both(guest.balloon);
    &()
}
