//! Single cases: what is refused, what is kept, and what an allocation costs.

mod support;

use std::sync::atomic::Ordering;
use std::time::Instant;

use dirigible_frames::{FrameClass, OutOfMemory};
use dirigible_slab::{ConfigError, FreeError, Object, SlabCache, SlabConfig};
use support::{Memory, World, run_on, world};

fn cache(w: &World, object_words: usize, name: &'static str) -> SlabCache<'static, Memory> {
    let config = SlabConfig {
        object_words,
        class: FrameClass::Reclaimable,
        name,
    };
    SlabCache::new(w.frames, w.memory, w.source, config).unwrap()
}

#[test]
fn sizes_and_classes_that_cannot_be() {
    let w = world(8);
    let make = |object_words, class| {
        let config = SlabConfig {
            object_words,
            class,
            name: "x",
        };
        SlabCache::new(w.frames, w.memory, w.source, config).map(|cache| cache.objects_per_frame())
    };
    assert_eq!(
        make(0, FrameClass::Unmovable),
        Err(ConfigError::Size { words: 0 })
    );
    assert_eq!(
        make(510, FrameClass::Unmovable),
        Err(ConfigError::Size { words: 510 })
    );
    assert_eq!(make(509, FrameClass::Unmovable), Ok(1));
    assert_eq!(make(16, FrameClass::Reclaimable), Ok(31));
    assert_eq!(make(1, FrameClass::Reclaimable), Ok(64));
    for class in [FrameClass::Movable, FrameClass::Balloon] {
        assert_eq!(make(8, class), Err(ConfigError::Class { class }));
    }
}

#[test]
fn an_object_is_freed_once_and_by_its_own_cache() {
    let w = world(8);
    let (ours, theirs) = (cache(&w, 16, "ours"), cache(&w, 16, "theirs"));
    let object = ours.alloc().unwrap();
    let other = theirs.alloc().unwrap();
    assert_eq!(ours.free(other), Err(FreeError::NotOurs(other)));
    assert_eq!(theirs.free(object), Err(FreeError::NotOurs(object)));
    ours.free(object).unwrap();
    assert_eq!(ours.free(object), Err(FreeError::NotAllocated(object)));
    assert_eq!(ours.shrink(), 1);
    assert_eq!(ours.free(object), Err(FreeError::NotOurs(object)));
    // Numbers of no memory at all.
    for bits in [1, 64, u64::MAX, u64::MAX / 2] {
        let wild = Object::from_bits(bits).unwrap();
        assert_eq!(ours.free(wild), Err(FreeError::NotOurs(wild)));
    }
    ours.verify().unwrap();
    theirs.verify().unwrap();
}

#[test]
fn one_empty_slab_is_kept_until_it_is_shrunk() {
    let w = world(8);
    let cache = cache(&w, 16, "x");
    let objects: Vec<_> = (0..31 * 4).map(|_| cache.alloc().unwrap()).collect();
    assert_eq!(cache.frames(), 4);
    for object in objects {
        cache.free(object).unwrap();
        cache.verify().unwrap();
    }
    assert_eq!((cache.objects(), cache.frames()), (0, 1));
    // No frame is asked for while one is kept.
    w.source.left.store(0, Ordering::Relaxed);
    let object = cache.alloc().unwrap();
    cache.free(object).unwrap();
    assert_eq!((cache.shrink(), cache.shrink()), (1, 0));
    assert_eq!(cache.frames(), 0);
    w.source.left.store(0, Ordering::Relaxed);
    assert_eq!(cache.alloc(), Err(OutOfMemory));
    cache.verify().unwrap();
    w.frames.verify().unwrap();
    w.frames.drain_cpu_caches();
    assert_eq!(w.frames.class_frames().unmovable, 0);
}

#[test]
#[should_panic(expected = "has no word 16")]
fn a_word_beyond_the_object_is_not_touched() {
    let w = world(8);
    let cache = cache(&w, 16, "x");
    let object = cache.alloc().unwrap();
    cache.write(object, 16, 1);
}

#[test]
fn two_cpus_share_a_cache() {
    let w = world(600);
    let cache = cache(&w, 7, "x");
    let work = |cpu: u16| {
        let cache = &cache;
        move || {
            run_on(cpu);
            let mut held = Vec::new();
            for round in 0..20_000u64 {
                if round * 7 % 13 < 7 || held.is_empty() {
                    let object = cache.alloc().unwrap();
                    cache.write_all(object, &[u64::from(cpu) << 32 | round; 7]);
                    held.push((object, u64::from(cpu) << 32 | round));
                } else {
                    let (object, mark) = held.swap_remove(round as usize * 31 % held.len());
                    for word in 0..7 {
                        assert_eq!(cache.read(object, word), mark);
                    }
                    cache.free(object).unwrap();
                }
            }
            for (object, _) in held {
                cache.free(object).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work(0));
        scope.spawn(work(1));
    });
    cache.verify().unwrap();
    cache.shrink();
    assert_eq!((cache.objects(), cache.frames()), (0, 0));
    w.frames.verify().unwrap();
}

#[test]
fn an_object_from_a_slab_with_room_is_cheap() {
    let w = world(8);
    let cache = cache(&w, 16, "x");
    let kept = cache.alloc().unwrap();
    let mut best = u128::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        for _ in 0..1000 {
            let object = cache.alloc().unwrap();
            cache.free(object).unwrap();
        }
        best = best.min(begun.elapsed().as_nanos() / 1000);
    }
    cache.free(kept).unwrap();
    println!("an allocation and a free take {best} ns");
    // With checks on, on a machine that does other things too: an order of magnitude above what it takes.
    assert!(best < 2000, "{best} ns");
}
