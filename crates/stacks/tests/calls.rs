//! Calls that wait, end, panic and are given up.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
};

use dirigible_stacks::{Current, Stack, scope};

const BYTES: usize = 64 << 10;

fn stack() -> Stack {
    Stack::new(BYTES).unwrap()
}

#[test]
fn two_calls_take_turns() {
    let current = Current::new();
    let log = RefCell::new(Vec::new());
    scope(&current, |calls| {
        for number in [0, 5] {
            let (current, log) = (&current, &log);
            calls.start(number, stack(), move || {
                for turn in 0..3 {
                    log.borrow_mut().push((current.number(), turn));
                    assert!(current.wait());
                }
                number * 10
            });
        }
        for _ in 0..3 {
            assert_eq!(calls.resume(0), None);
            assert_eq!(calls.resume(5), None);
            assert_eq!(current.number(), None);
        }
        assert_eq!(calls.resume(5), Some(50));
        assert!(!calls.is_open(5) && calls.is_open(0));
        assert_eq!(calls.resume(0), Some(0));
    });
    let turns = (0..3).flat_map(|turn| [(Some(0), turn), (Some(5), turn)]);
    assert_eq!(*log.borrow(), turns.collect::<Vec<_>>());
}

#[test]
fn a_call_says_until_when_it_sleeps() {
    let current = Current::new();
    scope(&current, |calls| {
        calls.start(2, stack(), || {
            assert!(current.wait_until(70));
            assert!(current.wait());
        });
        assert_eq!((calls.sleeps_until(2), calls.sleeps_until(3)), (None, None));
        for until in [Some(70), None] {
            assert_eq!(calls.resume(2), None);
            assert_eq!(calls.sleeps_until(2), until);
        }
        assert_eq!(calls.resume(2), Some(()));
        assert_eq!(calls.sleeps_until(2), None);
    });
    assert!(!current.wait_until(80));
}

#[test]
fn a_stack_serves_the_next_call() {
    let current = Current::new();
    scope(&current, |calls| {
        let mut next = stack();
        for round in 0..100 {
            calls.start(1, next, move || round);
            assert_eq!(calls.resume(1), Some(round));
            next = calls.take_stack(1).unwrap();
        }
        assert!(calls.take_stack(1).is_none());
        let depth = next.deepest();
        assert!(depth > 0 && depth < next.bytes(), "{depth}");
    });
}

/// Uses up a good part of a stack.
#[inline(never)]
fn deep(bytes: usize) -> u8 {
    let page = core::hint::black_box([1u8; 1024]);
    match bytes.checked_sub(1024) {
        Some(rest) => deep(rest).wrapping_add(page[rest % 1024]),
        None => page[0],
    }
}

#[test]
fn depth_is_measured() {
    let current = Current::new();
    let measure = |bytes| {
        scope(&current, |calls| {
            calls.start(0, stack(), || deep(bytes));
            assert!(calls.resume(0).is_some());
            calls.take_stack(0).unwrap().deepest()
        })
    };
    let (flat, deep) = (measure(0), measure(24 << 10));
    assert!(
        deep >= flat + (24 << 10) && deep < BYTES,
        "{flat} and {deep}"
    );
}

#[test]
fn scopes_nest_and_each_goes_back_to_its_own() {
    let current = Current::new();
    let steps = Cell::new(0);
    scope(&current, |outer| {
        outer.start(3, stack(), || {
            scope(&current, |inner| {
                inner.start(4, stack(), || {
                    assert_eq!(current.number(), Some(4));
                    current.wait();
                    assert_eq!(current.number(), Some(4));
                });
                assert_eq!(inner.resume(4), None);
                assert_eq!(current.number(), Some(3));
                steps.set(steps.get() + 1);
                assert!(current.wait());
                assert_eq!(inner.resume(4), Some(()));
            });
        });
        assert_eq!(outer.resume(3), None);
        assert_eq!((steps.get(), current.number()), (1, None));
        assert_eq!(outer.resume(3), Some(()));
    });
}

#[test]
fn a_call_of_another_current_is_not_suspended_by_the_outer_one() {
    let (first, second) = (Current::new(), Current::new());
    let waited = Cell::new(None);
    scope(&first, |outer| {
        outer.start(1, stack(), || {
            scope(&second, |inner| {
                inner.start(2, stack(), || {
                    waited.set(Some(first.wait()));
                    assert_eq!(second.number(), Some(2));
                    assert!(second.wait());
                });
                assert_eq!(inner.resume(2), None);
                assert_eq!((first.number(), second.number()), (Some(1), None));
                // Here it is the call's own stack again.
                assert!(first.wait());
                assert_eq!(inner.resume(2), Some(()));
            });
        });
        assert_eq!(outer.resume(1), None);
        assert_eq!(waited.get(), Some(false));
        assert_eq!((first.number(), second.number()), (None, None));
        assert!(!second.wait());
        assert_eq!(outer.resume(1), Some(()));
    });
}

#[cfg(feature = "std")]
#[test]
fn a_destructor_of_a_call_that_is_given_up_cannot_wait() {
    struct Waits<'a>(&'a Current, &'a Cell<Option<(Option<u32>, bool)>>);
    impl Drop for Waits<'_> {
        fn drop(&mut self) {
            self.1.set(Some((self.0.number(), self.0.wait())));
        }
    }
    let current = Current::new();
    let seen = Cell::new(None);
    scope(&current, |outer| {
        outer.start(1, stack(), || {
            scope(&current, |inner| {
                inner.start(2, stack(), || {
                    let _waits = Waits(&current, &seen);
                    current.wait();
                });
                assert!(inner.resume(2).is_none());
            });
            // The outer call runs again and can wait.
            assert_eq!(current.number(), Some(1));
            assert!(current.wait());
        });
        assert_eq!(outer.resume(1), None);
        assert_eq!(seen.get(), Some((None, false)));
        assert_eq!(outer.resume(1), Some(()));
    });
}

#[test]
fn a_stack_larger_than_memory_is_refused() {
    for bytes in [
        usize::MAX,
        usize::MAX - 4096,
        isize::MAX as usize,
        isize::MAX as usize / 2,
    ] {
        assert!(Stack::new(bytes).is_err(), "{bytes}");
    }
    let odd = Stack::new(BYTES + 1).unwrap();
    assert!(odd.bytes() > BYTES && odd.bytes() <= BYTES + 4096);
    assert_eq!(odd.deepest(), 0);
}

#[cfg(feature = "std")]
#[test]
fn a_panic_comes_out_where_the_call_was_resumed() {
    let current = Current::new();
    let dropped = Cell::new(0);
    struct Count<'a>(&'a Cell<u32>);
    impl Drop for Count<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        scope(&current, |calls| {
            let waits = || {
                let _count = Count(&dropped);
                current.wait();
                unreachable!("it is given up");
            };
            calls.start(0, stack(), waits);
            calls.start(1, stack(), || {
                let _count = Count(&dropped);
                current.wait();
                panic!("asked to");
            });
            assert!(calls.resume(0).is_none() && calls.resume(1).is_none());
            calls.resume(1);
        });
    }));
    assert_eq!(
        caught.unwrap_err().downcast_ref::<&str>(),
        Some(&"asked to")
    );
    // Both were unwound: one by its panic, the other at the end of the scope.
    assert_eq!((dropped.get(), current.number()), (2, None));
}

#[cfg(not(feature = "std"))]
#[test]
fn an_overrun_is_found_when_the_call_ends() {
    let current = Current::new();
    // By less than the canary, so that nobody is hurt.
    let overrun = catch_unwind(AssertUnwindSafe(|| {
        scope(&current, |calls| {
            let small = Stack::new(16 << 10).unwrap();
            calls.start(0, small, || deep(15 << 10));
            calls.resume(0)
        })
    }));
    assert!(overrun.is_err());
}
