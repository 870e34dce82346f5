//! Random populations, random answers, random requests: after every step all identities hold and no frame is lost.

mod machine;

use dirigible_frames::{
    AllocRequest, Event, FrameClass, FrameFlags, Pfn, Watermark, Watermarks, ZoneId,
};
use dirigible_mobility::{CompactResult, CompactionConfig, MovePair, Outcome};
use machine::{Answer, CPU, Machine};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use std::sync::atomic::Ordering;

#[derive(Clone, Debug)]
enum Step {
    /// Fills memory, turn by turn with movable and balloon frames.
    Fill(u16),
    Map(u16),
    Inflate(u16),
    Unmovable,
    FreeUnmovable(u16),
    /// Frees every n-th listed frame.
    Thin(u16),
    /// Leaves one freed frame in a CPU cache.
    FreeOne(u16),
    Pin(u16),
    Unpin,
    Stubborn(u16),
    Say(u8, u8),
    Answer(u8),
    Settle(u8),
    /// Pending pairs end, and nobody takes them yet.
    EndUntaken(u8),
    Drain,
    Direct(u8),
    Background(u8),
    EvacuateFor,
    Evacuate(u16, u8),
    MoveByHand(u16),
    FreeHuge,
    /// Every n-th frame of the user is cold.
    Cool(u16),
    /// Every n-th frame is written before it is dropped.
    Unsave(u16),
    /// Every n-th cold frame is used as it is dropped.
    Use(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1u16..100).prop_map(Step::Fill),
        2 => (1u16..600).prop_map(Step::Map),
        2 => (1u16..600).prop_map(Step::Inflate),
        1 => Just(Step::Unmovable),
        1 => any::<u16>().prop_map(Step::FreeUnmovable),
        3 => (2u16..6).prop_map(Step::Thin),
        2 => any::<u16>().prop_map(Step::FreeOne),
        1 => any::<u16>().prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        1 => any::<u16>().prop_map(Step::Stubborn),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(n, kind)| Step::Say(n, kind)),
        1 => any::<u8>().prop_map(Step::Answer),
        2 => any::<u8>().prop_map(Step::Settle),
        3 => any::<u8>().prop_map(Step::EndUntaken),
        1 => Just(Step::Drain),
        4 => (0u8..3).prop_map(Step::Direct),
        3 => (1u8..6).prop_map(Step::Background),
        1 => Just(Step::EvacuateFor),
        3 => (any::<u16>(), 1u8..5).prop_map(|(at, n)| Step::Evacuate(at, n)),
        2 => any::<u16>().prop_map(Step::MoveByHand),
        2 => Just(Step::FreeHuge),
        2 => (1u16..4).prop_map(Step::Cool),
        2 => (1u16..4).prop_map(Step::Unsave),
        1 => (2u16..9).prop_map(Step::Use),
    ]
}

fn outcome(kind: u8) -> Outcome {
    match kind % 4 {
        0 => Outcome::Moved,
        1 => Outcome::Refused,
        2 => Outcome::Released,
        _ => Outcome::Pending,
    }
}

/// A settled answer for pending pairs.
fn settled(kind: u8) -> Outcome {
    outcome(kind % 3)
}

#[derive(Default)]
struct Held {
    /// Blocks that background compaction keeps.
    reserve: u64,
    unmovable: Vec<Pfn>,
    huge: Vec<Pfn>,
    pinned: Vec<Pfn>,
}

fn listed(m: &Machine, at: u16) -> Option<Pfn> {
    let mut frames = m.user.frames();
    frames.extend(m.balloon.frames());
    (!frames.is_empty()).then(|| frames[usize::from(at) % frames.len()])
}

fn take(m: &Machine, step: Step, held: &mut Held) {
    let frames = m.frames;
    match step {
        Step::Fill(turn) => {
            let map = || (0..turn).filter(|_| m.map().is_some()).count();
            while map() + m.inflate(turn.into()) > 0 {}
        }
        Step::Map(count) => {
            for _ in 0..count {
                m.map();
            }
        }
        Step::Inflate(count) => {
            m.inflate(count.into());
        }
        Step::Unmovable => {
            let request = AllocRequest::unmovable().with_watermark(Watermark::None);
            held.unmovable.extend(frames.alloc(CPU, request));
        }
        Step::FreeUnmovable(at) => {
            if !held.unmovable.is_empty() {
                let frame = held
                    .unmovable
                    .swap_remove(usize::from(at) % held.unmovable.len());
                frames
                    .free(CPU, frame, AllocRequest::unmovable().order)
                    .unwrap();
            }
        }
        Step::Thin(nth) => m.thin(|frame| frame.get() % u64::from(nth) == 0),
        Step::FreeOne(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).free(frame);
            }
        }
        Step::Pin(at) => {
            if let Some(frame) = listed(m, at) {
                frames.set_flags(frame, FrameFlags::PINNED);
                held.pinned.push(frame);
            }
        }
        Step::Unpin => {
            held.pinned
                .drain(..)
                .for_each(|frame| frames.clear_flags(frame, FrameFlags::PINNED));
        }
        Step::Stubborn(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).refuse(frame);
            }
        }
        Step::Say(n, kind) => {
            let owner = if n % 2 == 0 { m.user } else { m.balloon };
            owner.script.lock().unwrap().clear();
            owner.say((0..n / 8).map(|_| Outcome::Moved));
            owner.say([outcome(kind)]);
        }
        Step::Answer(kind) => {
            let answer = [
                Answer::Never,
                Answer::Moved,
                Answer::Refused,
                Answer::Released,
            ][usize::from(kind) % 4];
            *m.user.answer.lock().unwrap() = answer;
            *m.balloon.answer.lock().unwrap() = answer;
        }
        Step::Settle(kind) => {
            m.settle(m.user, settled(kind));
            m.settle(m.balloon, settled(kind / 4));
        }
        Step::EndUntaken(kind) => {
            m.user.answer_all(settled(kind));
            m.balloon.answer_all(settled(kind / 4));
        }
        Step::Drain => {
            let [user, balloon] = [m.user, m.balloon].map(|o| o.settled.lock().unwrap().len());
            assert_eq!(m.mobility.drain_settled(), user + balloon);
        }
        Step::Direct(class) => {
            let class = [
                FrameClass::Movable,
                FrameClass::Unmovable,
                FrameClass::Reclaimable,
            ][usize::from(class)];
            if let CompactResult::Captured(head) = m.direct(class) {
                held.huge.push(head);
            }
        }
        Step::Background(most) => {
            let high = frames.watermarks(ZoneId::new(0)).high;
            let owed = (high + 512 * held.reserve).saturating_sub(frames.free_frames());
            let before = m.event(Event::CompactDropped);
            let result = m.mobility.compact_background(CPU, most.into());
            assert!(result.emptied <= most.into());
            // The targets of what is still under way are not free.
            let under_way = m.mobility.isolated_frames();
            let dropped = m.event(Event::CompactDropped) - before;
            assert!(dropped <= owed + under_way, "{dropped} of {owed}");
        }
        Step::EvacuateFor => {
            let _ = m.mobility.evacuate_for(CPU, FrameClass::Unmovable);
        }
        Step::Evacuate(at, n) => {
            let all: Vec<_> = frames.blocks().collect();
            let first = usize::from(at) % all.len();
            let batch = &all[first..all.len().min(first + usize::from(n))];
            m.mobility.evacuate_many(batch, |_, result| {
                if let Ok(token) = result {
                    frames.unisolate_block(token);
                }
            });
        }
        Step::MoveByHand(at) => {
            if let Some(from) = listed(m, at)
                && let Ok(to) = frames.alloc(CPU, AllocRequest::movable())
            {
                if m.mobility.isolate(from) {
                    m.mobility.migrate_frames(&mut [MovePair::base(from, to)]);
                } else {
                    frames.free(CPU, to, AllocRequest::movable().order).unwrap();
                }
            }
        }
        Step::FreeHuge => {
            if let Some(head) = held.huge.pop() {
                m.free_huge(head);
            }
        }
        Step::Cool(nth) => {
            let cold = m.user.frames().into_iter().step_by(nth.into());
            m.user.cold.lock().unwrap().extend(cold);
        }
        Step::Unsave(nth) => {
            let unsaved = m.user.frames().into_iter().step_by(nth.into());
            m.user.unsaved.lock().unwrap().extend(unsaved);
        }
        Step::Use(nth) => {
            let [cold, unsaved] = [&m.user.cold, &m.user.unsaved].map(|set| set.lock().unwrap());
            let used = cold.union(&unsaved).copied().step_by(nth.into());
            m.user.used.lock().unwrap().extend(used);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn pitfall_81_identities_hold_after_every_step(
        start in 0u64..1200,
        lengths in proptest::collection::vec((300u64..1800, 0u64..900), 1..4),
        (turn, thin) in (1u16..100, 2u16..5),
        (reserve, drops_cold, high) in (0u64..3, any::<bool>(), prop_oneof![Just(128u64), 128u64..2000]),
        blocks_per_batch in 1usize..5,
        exchange_batch in prop_oneof![Just(1), Just(16), Just(256)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let config = CompactionConfig {
            reserve_low: reserve,
            reserve_high: 2 * reserve,
            blocks_per_batch,
            exchange_batch,
            budget_blocks: 2,
            idle_polls: 20,
            drops_cold,
            ..CompactionConfig::default()
        };
        let mut ranges = Vec::new();
        let mut at = start;
        for (length, gap) in lengths {
            ranges.push(at..at + length);
            at += length + gap;
        }
        let m = machine::zoned(&[&ranges], config);
        m.frames.set_watermarks(ZoneId::new(0), Watermarks { high, ..machine::MARKS });
        let mut held = Held {
            reserve: config.reserve_high,
            ..Held::default()
        };
        for step in [Step::Fill(turn), Step::Thin(thin), Step::Unmovable] {
            take(&m, step, &mut held);
        }
        for step in steps {
            // Pins and refusals are the mock's and go with the frame, which moves or is freed under them.
            let cached = matches!(step, Step::FreeOne(_));
            take(&m, step, &mut held);
            if !cached {
                m.check();
            }
            let dropped = m.event(Event::CompactDropped);
            prop_assert_eq!(dropped, m.user.dropped.load(Ordering::Relaxed) as u64);
            prop_assert!(drops_cold || dropped == 0);
            prop_assert_eq!(m.event(Event::PgStealDirect) + m.event(Event::PgStealKswapd), dropped);
        }
        m.settle(m.user, Outcome::Moved);
        m.settle(m.balloon, Outcome::Moved);
        m.check_at_rest();
        held.huge.drain(..).for_each(|head| m.free_huge(head));
        held.unmovable.drain(..).for_each(|frame| {
            m.frames.free(CPU, frame, AllocRequest::unmovable().order).unwrap();
        });
        m.thin(|_| true);
        m.check_at_rest();
        prop_assert_eq!(m.frames.free_frames(), m.frames.managed_frames());
    }
}
