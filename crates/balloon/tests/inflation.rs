//! Inflation, deflation and the books.

mod support;

use std::sync::atomic::Ordering;

use dirigible_balloon::{BalloonConfig, Deflate, Fault, Step, VirtioBalloon};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, CpuId, Event, FrameClass, FrameState, Order, OwnerId, Pfn,
};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use support::host::{Host, Manner, VERSION_1};
use support::{Guest, OTHER, OWNER, all_frames, count, memory, memory_of};

const DEFLATE_ON_OOM: u64 = 1 << 2;

fn newest_first() -> BalloonConfig {
    BalloonConfig {
        deflate: Deflate::NewestFirst,
        ..BalloonConfig::default()
    }
}

/// Settings of a balloon that may deflate when memory runs out.
fn on_oom() -> BalloonConfig {
    BalloonConfig {
        deflate_on_oom: true,
        ..BalloonConfig::default()
    }
}

#[test]
fn up_and_down() {
    let guest = Guest::new(8);
    let (free, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
    assert_eq!(guest.to(1000), Step::Idle);
    assert_eq!(guest.host.size(), 1000);
    assert_eq!(guest.frames.free_frames(), free - 1000);
    // Without DEFLATE_ON_OOM ballooned frames are not the guest's.
    assert_eq!(guest.frames.managed_frames(), managed - 1000);
    assert_eq!(guest.balloon.actual(), 1000);
    assert_eq!(guest.host.messages(), 4);
    assert_eq!(guest.to(300), Step::Idle);
    assert_eq!(guest.host.size(), 300);
    assert_eq!(guest.to(0), Step::Idle);
    assert_eq!(guest.frames.free_frames(), free);
    assert_eq!(guest.frames.managed_frames(), managed);
    guest.frames.verify().unwrap();
    let events = guest.frames.events();
    assert_eq!(events.get(Event::BalloonInflate), 1000);
    assert_eq!(events.get(Event::BalloonDeflate), 1000);
    assert_eq!(events.get(Event::BalloonMessages), guest.host.messages());
    assert_eq!(events.get(Event::BalloonMigrateMessages), 0);
}

/// Where the host's devices lie in the address space there is no memory: frames above that hole are numbered far beyond
/// the count of all frames.
#[test]
fn frames_above_a_hole_go_to_the_host_too() {
    let block = |number: u64| Pfn::new(number * 512);
    let ranges = vec![block(1)..block(3), block(100)..block(102)];
    let guest = Guest::with(
        memory_of(&[ranges]),
        Host::offering(VERSION_1),
        newest_first(),
    );
    assert_eq!(guest.frames.end(), block(102));
    let all = guest.frames.free_frames();
    assert_eq!(guest.to(all as u32), Step::Idle);
    assert_eq!((guest.host.size(), guest.frames.free_frames()), (all, 0));
    assert!(guest.listed().contains(&block(101)));
    guest.check();
    guest.to(0);
    assert_eq!(guest.frames.free_frames(), all);
    guest.frames.verify().unwrap();
}

#[test]
fn with_deflate_on_oom_the_managed_count_stays() {
    let host = Host::offering(VERSION_1 | DEFLATE_ON_OOM);
    let guest = Guest::with(memory(&[4]), host, on_oom());
    let managed = guest.frames.managed_frames();
    guest.to(600);
    assert_eq!(guest.frames.managed_frames(), managed);
}

#[test]
fn healing_gives_whole_blocks_back_first() {
    for (deflate, healed) in [(Deflate::Heal, true), (Deflate::NewestFirst, false)] {
        let guest = Guest::configured(
            8,
            BalloonConfig {
                deflate,
                ..BalloonConfig::default()
            },
        );
        let cpu = CpuId::new(0);
        // Block 0: 100 frames of the balloon and nothing else; block 1 and the rest: the balloon beside 200 others.
        guest.to(100);
        let mut others = vec![Default::default(); 612];
        assert_eq!(
            guest
                .frames
                .alloc_bulk(cpu, AllocRequest::movable(), &mut others),
            612
        );
        guest.to(350);
        let first = guest.frames.block_of(guest.listed()[0]);
        let (gone, rest): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|&frame| guest.frames.block_of(frame) == first);
        assert_eq!(gone.len(), 412);
        guest.free(&gone);
        let before = guest.frames.free_blocks();
        guest.to(250);
        assert_eq!(guest.frames.free_blocks() > before, healed, "{deflate:?}");
        guest.free(&rest);
    }
}

#[test]
fn pitfall_01_empty_handed_inflate_lets_go() {
    let guest = Guest::configured(4, newest_first());
    guest.to(100);
    guest.source.set_dry(true);
    assert_eq!(
        guest.to(200),
        Step::RetryAt(guest.balloon.stats().retries * 200_000_000)
    );
    assert_eq!(guest.frames.events().get(Event::BalloonRetry), 1);
    // The next deflation and the next migration come through.
    assert_eq!(guest.to(50), Step::Idle);
    let from = guest.listed()[0];
    let to = guest.targets(1)[0];
    assert!(guest.balloon.isolate(from));
    let mut pairs = [MovePair::base(from, to)];
    guest.balloon.migrate(&mut pairs);
    assert_eq!(pairs[0].outcome, Outcome::Moved);
    guest.free(&[from]);
    guest.check();
}

#[test]
fn pitfall_03_out_of_memory_inside_inflate() {
    let host = Host::offering(VERSION_1 | DEFLATE_ON_OOM);
    let guest = Guest::with(memory(&[4]), host, on_oom());
    guest.to(500);
    let balloon = guest.balloon;
    let freed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = freed.clone();
    guest.source.set_meanwhile(move || {
        seen.fetch_add(balloon.deflate_on_oom(64), Ordering::SeqCst);
    });
    let step = guest.to(900);
    assert!(freed.load(Ordering::SeqCst) >= 1);
    // The first half of pitfall 36: what was given back for want of memory is not taken again at once.
    assert!(matches!(step, Step::RetryAt(_)), "{step:?}");
    assert_eq!(guest.host.size(), 500 - freed.load(Ordering::SeqCst) as u64);
    assert!(guest.source.given_back.load(Ordering::SeqCst) > 0);
    assert_eq!(guest.host.actual(), guest.host.size());
    // The rest ends with time, or with a new target.
    *guest.source.meanwhile.lock().unwrap() = None;
    assert_eq!(guest.to(900), step);
    assert_eq!(guest.to(901), Step::Idle);
    assert_eq!(guest.balloon.deflate_on_oom(1), 1);
    assert!(matches!(guest.run(), Step::RetryAt(_)));
    guest.clock.pass(10_000_000_000);
    assert_eq!(guest.run(), Step::Idle);
}

#[test]
fn out_of_memory_is_no_licence_without_the_feature() {
    let offering = || Host::offering(VERSION_1 | DEFLATE_ON_OOM);
    let plain = || Host::offering(VERSION_1);
    // Not offered; and offered to a guest whose settings do not accept it.
    for (host, config) in [(plain(), on_oom()), (offering(), BalloonConfig::default())] {
        let guest = Guest::with(memory(&[4]), host, config);
        guest.to(500);
        assert_eq!(guest.balloon.deflate_on_oom(64), 0);
        assert_eq!(guest.host.size(), 500);
    }
}

#[test]
fn pitfall_07_isolated_is_not_empty() {
    let guest = Guest::new(4);
    guest.to(300);
    let frames = guest.listed();
    assert!(frames.iter().all(|&frame| guest.balloon.isolate(frame)));
    // The list is empty, the balloon is not: deflation returns short, removal waits, both end.
    assert!(matches!(guest.to(0), Step::RetryAt(_)));
    assert_eq!(guest.balloon.actual(), 300);
    let held = Fault::StillHeld {
        listed: 0,
        isolated: 300,
        with_host: 0,
    };
    assert_eq!(guest.balloon.shutdown(), Err(held));
    assert_eq!(
        guest.host.inner().resets,
        1,
        "only the one before negotiation"
    );
    frames
        .iter()
        .for_each(|&frame| guest.balloon.putback(frame));
    assert_eq!(guest.balloon.shutdown(), Ok(()));
    assert_eq!(guest.balloon.held().total(), 0);
    assert_eq!((guest.host.size(), guest.host.actual()), (0, 0));
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_08_genuine_loss_is_reported() {
    for word in [0, u64::MAX, 0x5555_5555_5555_5555] {
        let guest = Guest::configured(4, newest_first());
        guest.to(100);
        // Somebody writes over the words of the balloon's frames.
        for frame in guest.listed() {
            guest.frames.set_owner_word(frame, word);
        }
        assert!(guest.balloon.verify().is_err());
        guest.host.set_target(0);
        let lost = loop {
            match guest.balloon.step(&guest.source, 4) {
                Step::Busy => {}
                step => break step,
            }
        };
        assert!(
            matches!(lost, Step::Failed(Fault::Books { frames: 1.. })),
            "{lost:?}"
        );
        assert!(guest.balloon.shutdown().is_err());
    }
}

#[test]
fn pitfall_09_two_balloons_share_nothing() {
    let frames = memory(&[8]);
    let one = Guest::with(frames, Host::new(), newest_first());
    let config = BalloonConfig::default();
    let two = Guest::on(one.clock, frames, Host::new(), config, OTHER);
    for turn in 1..=6 {
        one.to(turn * 100);
        two.to(turn * 70);
    }
    let of = |class: OwnerId| {
        let ours = |frame: &dirigible_frames::Pfn| {
            frames.state(*frame) == FrameState::Listed
                && frames.frame(*frame).unwrap().owner == class
        };
        all_frames(frames)
            .into_iter()
            .filter(ours)
            .collect::<Vec<_>>()
    };
    let (ones, twos) = (of(OWNER), of(OTHER));
    assert_eq!((ones.len(), twos.len()), (600, 420));
    assert!(ones.iter().all(|&frame| !two.balloon.isolate(frame)));
    assert!(twos.iter().all(|&frame| !one.balloon.isolate(frame)));
    two.to(10);
    two.balloon.shutdown().unwrap();
    two.check();
    one.check();
    assert_eq!(of(OWNER), ones);
    assert_eq!(one.to(0), Step::Idle);
    frames.verify().unwrap();
}

#[test]
fn pitfall_16_a_hundred_cycles_return_exactly() {
    let host = Host::offering(VERSION_1 | 1 << 1);
    let guest = Guest::with(memory(&[6]), host, BalloonConfig::default());
    let (free, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
    for turn in 0..100 {
        guest.to(700 + turn * 3);
        guest.host.inner().ask_stats();
        guest.balloon.handle_interrupt();
        let from: Vec<_> = guest.listed().into_iter().step_by(9).collect();
        let to = guest.targets(from.len());
        let mut pairs: Vec<_> = from
            .iter()
            .zip(&to)
            .map(|(&from, &to)| MovePair::base(from, to))
            .collect();
        assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
        guest.balloon.migrate(&mut pairs);
        assert!(pairs.iter().all(|pair| pair.outcome == Outcome::Moved));
        guest.free(&from);
        guest.to(0);
        assert_eq!(guest.frames.free_frames(), free);
        assert_eq!(guest.frames.managed_frames(), managed);
    }
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_17_deflate_with_holes_in_the_list() {
    let guest = Guest::configured(4, newest_first());
    guest.to(300);
    let frames = guest.listed();
    // The oldest, the newest and every third frame leave the list while it is walked.
    let gone = |at: usize| at.is_multiple_of(3) || at + 1 == frames.len();
    let taken: Vec<_> = (0..frames.len())
        .filter(|&at| gone(at))
        .map(|at| frames[at])
        .collect();
    assert!(taken.iter().all(|&frame| guest.balloon.isolate(frame)));
    guest.check();
    guest.to(0);
    assert_eq!(guest.balloon.actual(), taken.len() as u64);
    assert!(
        taken
            .iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Isolated)
    );
    taken.iter().for_each(|&frame| guest.balloon.putback(frame));
    assert_eq!(guest.to(0), Step::Idle);
    assert_eq!(guest.host.size(), 0);
}

#[test]
fn pitfall_24_no_mark_outlives_the_balloon() {
    let guest = Guest::new(4);
    guest.to(400);
    guest.to(0);
    let cpu = CpuId::new(0);
    let mut out = vec![Default::default(); 1024];
    let got = guest
        .frames
        .alloc_bulk(cpu, AllocRequest::movable(), &mut out);
    assert_eq!(got, 1024);
    for &frame in &out {
        let info = guest.frames.frame(frame).unwrap();
        assert_eq!(
            (info.state, info.owner),
            (FrameState::Allocated, OwnerId::NONE)
        );
        assert_eq!(info.class, FrameClass::Movable);
    }
}

#[test]
fn pitfall_26_target_above_ram_and_changing() {
    let guest = Guest::new(4);
    let all = guest.frames.managed_frames();
    // More than there is: lowered, counted, and followed as far as frames go.
    assert_eq!(guest.to(u32::MAX), Step::Idle);
    assert_eq!(
        (guest.balloon.target(), guest.balloon.requested()),
        (all, u32::MAX)
    );
    assert_eq!(guest.balloon.stats().targets_clamped, 1);
    assert_eq!(guest.host.size(), all);
    // Exactly everything, with some of it in use: it takes what there is and tries again later.
    guest.to(0);
    let cpu = CpuId::new(0);
    let used = guest.frames.alloc(cpu, AllocRequest::movable()).unwrap();
    assert!(matches!(guest.to(all as u32), Step::RetryAt(_)));
    assert_eq!(guest.host.size(), all - 1);
    guest.frames.free(cpu, used, Order::BASE).unwrap();
    guest.clock.pass(200_000_000);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.host.size(), all);
    guest.to(0);
    // The target falls while frames are looked for: the surplus goes back where it came from.
    let (host, balloon) = (guest.host.clone(), guest.balloon);
    guest.source.set_meanwhile(move || {
        host.set_target(100);
        balloon.handle_interrupt();
    });
    assert_eq!(guest.to(1000), Step::Idle);
    assert_eq!(guest.host.size(), 100);
    assert_eq!(guest.source.given_back.load(Ordering::SeqCst), 156);
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_27_nothing_is_used_before_its_acknowledgement() {
    let guest = Guest::new(2);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(300), Step::Waiting);
    assert_eq!(count(guest.frames, FrameState::Entering), 300);
    // Down to nothing: what the host has not acknowledged cannot be asked back.
    let before = guest.host.messages();
    assert_eq!(guest.to(0), Step::Waiting);
    assert_eq!(guest.host.messages(), before);
    assert!(
        all_frames(guest.frames)
            .into_iter()
            .all(|frame| !guest.balloon.isolate(frame))
    );
    while guest.host.answer_one() {}
    guest.balloon.handle_interrupt();
    assert_eq!(count(guest.frames, FrameState::Listed), 300);
    assert_eq!(guest.run(), Step::Waiting);
    assert_eq!(count(guest.frames, FrameState::Leaving), 300);
    // Nobody gets a leaving frame.
    let cpu = CpuId::new(0);
    let mut got = Vec::new();
    while let Ok(frame) = guest.frames.alloc(cpu, AllocRequest::movable()) {
        assert!(!guest.host.inner().has.contains(&(frame.get() as u32)));
        got.push(frame);
    }
    assert_eq!(got.len(), 2 * 512 - 300);
    while guest.host.answer_one() {}
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.frames.free_frames(), 300);
}

#[test]
fn pitfall_29_actual_follows() {
    let host = Host::offering(VERSION_1 | DEFLATE_ON_OOM);
    let guest = Guest::with(memory(&[4]), host, on_oom());
    let follows = |what: &str| {
        let actual = guest.host.actual();
        assert_eq!(actual, guest.host.size(), "{what}");
        assert_eq!(actual, guest.balloon.actual(), "{what}");
    };
    follows("start");
    guest.to(500);
    follows("inflate");
    let isolated: Vec<_> = guest.listed().into_iter().take(100).collect();
    assert!(isolated.iter().all(|&frame| guest.balloon.isolate(frame)));
    guest.to(0);
    follows("short deflate");
    let to = guest.targets(100);
    let mut pairs: Vec<_> = isolated
        .iter()
        .zip(&to)
        .map(|(&from, &to)| MovePair::base(from, to))
        .collect();
    guest.balloon.migrate(&mut pairs);
    guest.free(&isolated);
    follows("migrate");
    assert_eq!(guest.host.size(), 100);
    assert_eq!(guest.balloon.deflate_on_oom(30), 30);
    follows("deflate in need");
    assert_eq!(guest.host.size(), 70);
}

#[test]
fn pitfall_35_nothing_starts_after_the_stop() {
    let guest = Guest::new(4);
    guest.to(300);
    guest.balloon.shutdown().unwrap();
    let messages = guest.host.messages();
    let writes = guest.host.inner().actual_writes;
    guest.host.set_target(500);
    guest.balloon.handle_interrupt();
    assert_eq!(guest.run(), Step::Failed(Fault::Removed));
    assert_eq!(guest.balloon.shutdown(), Ok(()));
    assert_eq!(guest.host.messages(), messages);
    assert_eq!(guest.host.inner().actual_writes, writes);
    assert_eq!(guest.source.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn pitfall_37_failed_inflate_rests() {
    let guest = Guest::new(4);
    guest.source.set_dry(true);
    guest.host.set_target(100);
    for _ in 0..1000 {
        guest.balloon.step(&guest.source, 4);
        guest.clock.pass(10_000_000);
    }
    let asked = guest.source.asked.load(Ordering::SeqCst);
    assert!((49..=50).contains(&asked), "{asked} attempts in 10 s");
    assert_eq!(guest.frames.events().get(Event::BalloonRetry), asked);
}

#[test]
fn pinned_frames_are_unmovable_and_stay() {
    let config = BalloonConfig {
        mobility: false,
        placement: BalloonPlacement::WholeBlocks,
        ..newest_first()
    };
    let guest = Guest::configured(4, config);
    guest.to(400);
    assert!(
        guest
            .listed()
            .into_iter()
            .all(|frame| guest.is_class(frame, FrameClass::Unmovable))
    );
    assert!(
        guest
            .listed()
            .into_iter()
            .all(|frame| !guest.balloon.isolate(frame))
    );
    assert_eq!(guest.to(0), Step::Idle);
    guest.frames.verify().unwrap();
}

#[test]
fn settings_out_of_range_are_refused() {
    let frames = memory(&[2]);
    let clock: &'static support::Clock = Box::leak(Box::default());
    for exchange_batch in [0, 257] {
        let config = BalloonConfig {
            exchange_batch,
            ..BalloonConfig::default()
        };
        let host = Host::new();
        let balloon = VirtioBalloon::<support::host::FakeHal, _, _>::new(
            host.transport(),
            frames,
            clock,
            OWNER,
            config,
        );
        assert!(balloon.is_err());
        assert_eq!(host.inner().status, 0, "the device was not touched");
    }
}
