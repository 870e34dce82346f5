//! What must hold after each step of a run.

use dirigible_frames::{Event, FrameClass, FrameFlags, FrameState, Pfn};

use crate::model::{Before, Held, Model, all_frames};

impl Model<'_> {
    /// Everything that must hold at rest.
    pub fn check(&self, before: &Before) {
        let frames = self.frames;
        frames.verify().expect("all counts fit");
        let after = self.before();
        for (old, new) in before.ledgers.iter().zip(&after.ledgers) {
            let moved = old.with_version(0) != new.with_version(0);
            assert!(
                !moved || old.version() != new.version(),
                "a change went unnoticed"
            );
            assert_eq!(
                new.free() + new.movable() + new.balloon() + new.unmovable(),
                512
            );
        }
        self.check_held();
        let events = frames.events();
        assert_eq!(
            (events.get(Event::PgAlloc), events.get(Event::PgFree)),
            self.counted
        );
        for zone in frames.zones() {
            assert_eq!(frames.zone_managed(zone), self.managed[zone.index()]);
        }
        assert_eq!(frames.managed_frames(), self.managed.iter().sum::<u64>());
        assert_eq!(frames.free_frames(), after.zone_free.iter().sum::<u64>());
        assert_eq!(frames.free_blocks(), after.zone_whole.iter().sum::<u64>());
        let (oracle, classes) = (self.oracle(), frames.class_frames());
        let unmovable = [FrameClass::Unmovable, FrameClass::Reclaimable].map(|c| oracle.count(c));
        // Frames in caches are counted by class, which their words do not store: `verify` checks that.
        let used = [
            oracle.count(FrameClass::Movable),
            unmovable[0] + unmovable[1],
        ];
        let counted = [classes.movable, classes.unmovable];
        assert!(counted.iter().zip(used).all(|(c, used)| *c >= used));
        let cached = counted.iter().sum::<u64>() - used.iter().sum::<u64>();
        assert_eq!(cached, frames.cached_frames());
        assert_eq!(classes.balloon, oracle.count(FrameClass::Balloon));
        oracle.check_reports();
        oracle.check_queries();
    }

    /// Demands that each frame is what the model says: held, reserved, or free or cached.
    fn check_held(&self) {
        let frames = self.frames;
        let mut inside = None;
        let (mut cached, mut used) = (0, Vec::new());
        for pfn in all_frames(frames) {
            let state = frames.state(pfn);
            if let Some(held) = self.held.get(&pfn) {
                let info = frames.frame(pfn).expect("inside the span");
                let found = Held {
                    order: info.order,
                    class: info.class,
                    state: info.state,
                    owner: info.owner,
                    word: info.word,
                };
                assert_eq!(found, *held, "{pfn:?}");
                assert_eq!((info.flags, info.generation), (FrameFlags::DIRTY, 5));
                inside = Some((pfn, pfn.plus(held.order.frames() as u64)));
            }
            match inside.filter(|(head, end)| (*head..*end).contains(&pfn)) {
                Some((head, _)) => {
                    assert_eq!(frames.head(pfn), head);
                    assert!(
                        pfn == head || state == FrameState::Tail,
                        "{pfn:?} {state:?}"
                    );
                    used.push(pfn);
                }
                None if self.geometry.usable(pfn).is_none() => {
                    assert_eq!(state, FrameState::Reserved);
                }
                None => {
                    assert!(matches!(state, FrameState::Free | FrameState::Cached));
                    cached += u64::from(state == FrameState::Cached);
                }
            }
        }
        assert_eq!(frames.cached_frames(), cached);
        let listed: Vec<Pfn> = frames
            .blocks()
            .flat_map(|b| frames.used_frames(b))
            .collect();
        assert_eq!(listed, used);
    }
}
