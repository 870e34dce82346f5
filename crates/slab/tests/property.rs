//! Random allocations and frees against a list of what is held, with memory that ends.

mod support;

use std::sync::atomic::Ordering;

use dirigible_frames::FrameClass;
use dirigible_slab::{Object, SlabCache, SlabConfig};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::world;

#[derive(Clone, Debug)]
enum Step {
    Alloc(u8),
    Free(u16),
    FreeMany(u8, u16),
    FreeTwice,
    Write(u16, u8, u64),
    Shrink,
    Ration(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..90).prop_map(Step::Alloc),
        4 => any::<u16>().prop_map(Step::Free),
        2 => (1u8..120, any::<u16>()).prop_map(|(n, at)| Step::FreeMany(n, at)),
        1 => Just(Step::FreeTwice),
        3 => (any::<u16>(), any::<u8>(), any::<u64>()).prop_map(|(o, w, v)| Step::Write(o, w, v)),
        1 => Just(Step::Shrink),
        1 => (0u8..20).prop_map(Step::Ration),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_cache_is_a_set_of_objects(
        words in prop_oneof![Just(1usize), Just(16), Just(63), Just(300), 1usize..509],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let w = world(20);
        let config = SlabConfig { object_words: words, class: FrameClass::Unmovable, name: "model" };
        let cache = SlabCache::new(w.frames, w.memory, w.source, config).unwrap();
        let mut held: Vec<(Object, Vec<u64>)> = Vec::new();
        let mut freed: Vec<Object> = Vec::new();
        let mut serial = 0u64;
        for step in steps {
            match step {
                Step::Alloc(count) => {
                    for _ in 0..count {
                        let Ok(object) = cache.alloc() else {
                            let left = w.source.left.load(Ordering::Relaxed);
                            prop_assert_eq!(left, 0, "an object was refused with memory left");
                            let room = cache.frames() * cache.objects_per_frame() as u64;
                            prop_assert_eq!(cache.objects(), room, "refused with room in slabs");
                            break;
                        };
                        prop_assert!(held.iter().all(|(other, _)| *other != object));
                        serial += 1;
                        let values = vec![serial; words];
                        cache.write_all(object, &values);
                        held.push((object, values));
                    }
                }
                Step::Free(at) if !held.is_empty() => {
                    let (object, values) = held.swap_remove(at as usize % held.len());
                    let mut found = vec![0; words];
                    cache.read_all(object, &mut found);
                    prop_assert_eq!(found, values);
                    cache.free(object).unwrap();
                    freed.push(object);
                }
                Step::FreeMany(count, at) => {
                    for _ in 0..(count as usize).min(held.len()) {
                        let (object, _) = held.swap_remove(at as usize % held.len());
                        cache.free(object).unwrap();
                        freed.push(object);
                    }
                }
                Step::FreeTwice => {
                    for &object in &freed {
                        let is_held = held.iter().any(|(other, _)| *other == object);
                        prop_assert_eq!(cache.is_allocated(object), is_held);
                        if !is_held {
                            prop_assert!(cache.free(object).is_err());
                        }
                    }
                }
                Step::Write(at, word, value) if !held.is_empty() => {
                    let index = at as usize % held.len();
                    let (object, values) = &mut held[index];
                    let word = word as usize % words;
                    cache.write(*object, word, value);
                    prop_assert_eq!(cache.read(*object, word), value);
                    values[word] = value;
                }
                Step::Shrink => {
                    cache.shrink();
                }
                Step::Ration(frames) => w.source.left.store(frames.into(), Ordering::Relaxed),
                Step::Free(_) | Step::Write(..) => {}
            }
            cache.verify().unwrap();
            prop_assert_eq!(cache.objects(), held.len() as u64);
            prop_assert_eq!(w.frames.class_frames().unmovable, cache.frames() + w.frames.cached_frames());
        }
        for (object, values) in held {
            let mut found = vec![0; words];
            cache.read_all(object, &mut found);
            prop_assert_eq!(found, values);
            cache.free(object).unwrap();
        }
        cache.shrink();
        cache.verify().unwrap();
        prop_assert_eq!((cache.objects(), cache.frames()), (0, 0));
        w.frames.verify().unwrap();
        w.frames.drain_cpu_caches();
        prop_assert_eq!(w.frames.class_frames().unmovable, 0);
    }
}
