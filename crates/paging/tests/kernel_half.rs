//! Spaces that share the kernel's half, as needed if hardware walks the tables.

mod support;

use dirigible_frames::{Order, PageTables};
use dirigible_paging::{FaultError, FaultKind, Page, SplitError};
use support::{TEMPLATE, WORDS, world, world_with_kernel_half};

#[test]
fn a_new_root_has_the_kernels_upper_half_and_an_empty_lower_one() {
    let w = world_with_kernel_half(4);
    let root = w.paging.root(w.space()).unwrap();
    for index in 0..WORDS {
        let expected = if index < 256 {
            0
        } else {
            w.guest.load_entry(TEMPLATE, index)
        };
        assert_eq!(w.guest.load_entry(root, index), expected, "{index}");
    }
    assert_ne!(w.guest.load_entry(root, 511), 0);
    w.check_at_rest();
}

#[test]
fn pages_of_the_kernels_half_are_no_pages() {
    let w = world_with_kernel_half(4);
    let space = w.space();
    let last = Page::KERNEL_HALF.get() - 1;
    w.map(space, last);
    for page in [Page::KERNEL_HALF, Page::new(Page::LIMIT.get() - 1)] {
        for kind in [FaultKind::Base, FaultKind::HugeIfPossible] {
            assert_eq!(
                w.paging.fault(space, page, kind, w.source),
                Err(FaultError::NoSuchPage)
            );
        }
        assert_eq!(w.paging.lookup(space, page), None);
        assert_eq!(w.paging.translate(space, page), None);
        assert_eq!(w.read(space, page.get(), 0), None);
        assert_eq!(w.paging.pin(space, page), None);
        assert_eq!(w.paging.split_huge(space, page), Err(SplitError::NotHuge));
    }
    let kernel = w.kernel_tables();
    assert_eq!(w.unmap(space, last..Page::LIMIT.get()), 1, "clipped");
    assert_eq!(w.unmap(space, Page::KERNEL_HALF.get()..u64::MAX), 0);
    assert_eq!(w.kernel_tables(), kernel);
    w.check_at_rest();
}

#[test]
fn the_end_of_a_space_leaves_the_kernels_tables_alone() {
    let w = world_with_kernel_half(8);
    let (kernel, free) = (w.kernel_tables(), w.frames.free_frames());
    for _ in 0..3 {
        let space = w.space();
        let from = w.map(space, 0);
        w.map(space, Page::KERNEL_HALF.get() - 1);
        w.map_huge(space, 512 * 700);
        w.move_frame(from, Order::BASE);
        assert_eq!(w.check_at_rest().frames(), 514);
        assert_eq!(w.paging.destroy_space(space), 514);
        assert_eq!(w.paging.root(space), None);
    }
    w.frames.drain_cpu_caches();
    assert_eq!(w.frames.free_frames(), free);
    assert_eq!(w.kernel_tables(), kernel);
}

#[test]
fn without_it_all_of_a_root_is_the_spaces() {
    let w = world(4);
    let space = w.space();
    let frame = w.map(space, Page::LIMIT.get() - 1);
    assert_eq!(
        w.paging.translate(space, Page::new(Page::LIMIT.get() - 1)),
        Some(frame)
    );
    let root = w.paging.root(space).unwrap();
    assert_ne!(w.guest.load_entry(root, 511), 0);
    assert_eq!(w.paging.destroy_space(space), 1);
    assert_eq!(w.paging.root(space), None);
}
