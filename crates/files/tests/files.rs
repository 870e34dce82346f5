//! Single cases of the file store.

mod support;

use std::sync::atomic::Ordering;

use dirigible_files::{Error, InodeId, Kind};
use dirigible_frames::Platform;
use dirigible_reclaim::{Shrinker, Who};
use support::{Store, World, world};

/// The marks of all pages of an open file.
fn marks(w: &World, store: &Store, inode: InodeId) -> Vec<u64> {
    let mut found = Vec::new();
    let size = store.size_pages(inode).unwrap();
    store
        .read(inode, 0..size, &mut |page, frame| {
            assert_eq!(page, found.len() as u64);
            found.push(w.mark(page, frame));
        })
        .unwrap();
    found
}

fn names(store: &Store, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    store
        .list(path, &mut |entry| {
            names.push(String::from_utf8(entry.name().to_vec()).unwrap());
        })
        .unwrap();
    names.sort();
    names
}

#[test]
fn a_file_is_written_read_and_removed() {
    let w = world(4, 1000);
    let store = w.store(100);
    let empty = store.usage();
    let file = store.create("/a").unwrap();
    store.write(file, 0..4, &mut w.fill(7)).unwrap();
    store.write(file, 4..6, &mut w.fill(8)).unwrap();
    store.write(file, 1..2, &mut w.fill(9)).unwrap();
    assert_eq!(marks(&w, &store, file), [7, 9, 7, 7, 8, 8]);
    assert_eq!(
        store.write(file, 7..8, &mut w.fill(1)),
        Err(Error::Beyond),
        "a hole"
    );
    assert_eq!(store.read(file, 5..7, &mut |_, _| ()), Err(Error::Beyond));
    store.truncate(file, 3).unwrap();
    assert_eq!(marks(&w, &store, file), [7, 9, 7]);
    store.close(file).unwrap();
    assert_eq!(store.close(file), Err(Error::NotOpen));
    assert_eq!(store.size_pages(file), Err(Error::NotOpen));
    let audit = store.audit().unwrap();
    assert_eq!((audit.files, audit.directories, audit.pages), (1, 1, 4));
    store.remove("/a").unwrap();
    assert_eq!(store.open("/a"), Err(Error::NotFound));
    assert_eq!(
        store.usage().free_blocks,
        empty.free_blocks - 1,
        "the root's page"
    );
    assert_eq!(store.usage().free_inodes, empty.free_inodes);
    store.audit().unwrap();
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn directories_hold_names_until_they_are_empty() {
    let w = world(4, 1000);
    let store = w.store(100);
    store.make_directory("/a").unwrap();
    store.make_directory("/a/b").unwrap();
    let file = store.create("/a/b/c").unwrap();
    store.close(file).unwrap();
    assert_eq!(store.lookup("/a/b/c"), Ok((file, Kind::File)));
    assert_eq!(store.lookup("/"), Ok((InodeId::ROOT, Kind::Directory)));
    assert_eq!(names(&store, "/"), ["a"]);
    assert_eq!(names(&store, "/a/b"), ["c"]);
    assert_eq!(store.create("/a/b"), Err(Error::Exists));
    assert_eq!(store.create("/"), Err(Error::Exists));
    assert_eq!(store.create("/x/y"), Err(Error::NotFound));
    assert_eq!(store.create("/a/b/c/d"), Err(Error::NotDirectory));
    assert_eq!(store.remove("/a"), Err(Error::IsDirectory));
    assert_eq!(store.remove_directory("/a/b/c"), Err(Error::NotDirectory));
    assert_eq!(store.remove_directory("/a/b"), Err(Error::NotEmpty));
    assert_eq!(store.remove_directory("/"), Err(Error::BadName));
    assert_eq!(store.open("/a"), Err(Error::IsDirectory));
    assert_eq!(store.open("/"), Err(Error::IsDirectory));
    assert_eq!(store.list("/a/b/c", &mut |_| ()), Err(Error::NotDirectory));
    let long = "x".repeat(55);
    let file = store.create(&long).unwrap();
    store.close(file).unwrap();
    assert_eq!(store.create(&"x".repeat(56)), Err(Error::NameTooLong));
    assert_eq!(store.create("/a/.."), Err(Error::BadName));
    store.remove(&long).unwrap();
    store.remove("/a/b/c").unwrap();
    store.remove_directory("/a/b").unwrap();
    store.remove_directory("/a").unwrap();
    assert_eq!(names(&store, "/"), [""; 0]);
    let audit = store.audit().unwrap();
    assert_eq!((audit.files, audit.directories), (0, 1));
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn a_removed_file_lives_until_it_is_closed() {
    let w = world(4, 1000);
    let store = w.store(100);
    let file = store.create("/a").unwrap();
    let again = store.open("/a").unwrap();
    assert_eq!(file, again);
    store.write(file, 0..3, &mut w.fill(1)).unwrap();
    store.remove("/a").unwrap();
    // The name is free for another file at once.
    let other = store.create("/a").unwrap();
    assert_ne!(other, file);
    store.write(file, 3..5, &mut w.fill(2)).unwrap();
    assert_eq!(marks(&w, &store, file), [1, 1, 1, 2, 2]);
    assert_eq!(store.audit().unwrap().removed, 1);
    store.close(file).unwrap();
    assert_eq!(store.audit().unwrap().removed, 1);
    let before = store.usage().free_blocks;
    store.close(again).unwrap();
    assert_eq!(store.usage().free_blocks, before + 5);
    // One that is still open at the end goes with the store.
    store.write(other, 0..2, &mut w.fill(3)).unwrap();
    store.remove("/a").unwrap();
    store.unmount().unwrap();
    w.check_frames();
    let store = w.mount().unwrap();
    let audit = store.audit().unwrap();
    assert_eq!(
        (audit.files, audit.lost_blocks, audit.lost_inodes),
        (0, 0, 0)
    );
}

#[test]
fn a_remount_keeps_everything() {
    let w = world(16, 9000);
    let store = w.store(5100);
    for directory in 0..10 {
        store.make_directory(&format!("/d{directory}")).unwrap();
        for file in 0..500u64 {
            let inode = store.create(&format!("/d{directory}/file-{file}")).unwrap();
            store.write(inode, 0..1, &mut w.fill(file)).unwrap();
            store.close(inode).unwrap();
        }
    }
    store.unmount().unwrap();
    w.check_frames();
    w.pages.evict(1);
    let store = w.mount().unwrap();
    assert!(!store.was_repaired());
    let audit = store.audit().unwrap();
    assert_eq!((audit.files, audit.directories), (5000, 11));
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    for directory in 0..10 {
        assert_eq!(names(&store, &format!("/d{directory}")).len(), 500);
        for file in (0..500u64).rev() {
            let path = format!("/d{directory}/file-{file}");
            let inode = store.open(&path).unwrap();
            assert_eq!(marks(&w, &store, inode), [file]);
            store.close(inode).unwrap();
            store.remove(&path).unwrap();
        }
        store.remove_directory(&format!("/d{directory}")).unwrap();
    }
    let audit = store.audit().unwrap();
    assert_eq!((audit.files, audit.directories), (0, 1));
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn names_in_memory_need_no_page() {
    let w = world(4, 1000);
    let store = w.store(100);
    store.make_directory("/a").unwrap();
    store.make_directory("/a/b").unwrap();
    let file = store.create("/a/b/c").unwrap();
    let before = w.pages.operations.load(Ordering::Relaxed);
    assert_eq!(store.lookup("/a/b/c"), Ok((file, Kind::File)));
    assert_eq!(w.pages.operations.load(Ordering::Relaxed), before);
}

#[test]
fn a_full_disk_and_no_inode() {
    let w = world(4, 100);
    let store = w.store(40);
    let file = store.create("/a").unwrap();
    let free = store.usage().free_blocks;
    assert_eq!(
        store.write(file, 0..free + 1, &mut w.fill(1)),
        Err(Error::NoSpace)
    );
    assert_eq!(store.usage().free_blocks, free, "nothing is taken");
    assert_eq!(store.size_pages(file), Ok(0));
    store.write(file, 0..free, &mut w.fill(1)).unwrap();
    assert_eq!(store.usage().free_blocks, 0);
    assert_eq!(store.make_directory("/d"), Ok(InodeId::new(3)));
    assert_eq!(store.create("/d/x"), Err(Error::NoSpace));
    store.audit().unwrap();
    for number in 4..=40 {
        let inode = store.create(&format!("/{number}")).unwrap();
        store.close(inode).unwrap();
    }
    assert_eq!(store.create("/one-more"), Err(Error::NoInodes));
    store.remove("/17").unwrap();
    let inode = store.create("/one-more").unwrap();
    assert_eq!(
        store.write(inode, 0..1, &mut w.fill(1)),
        Err(Error::NoSpace)
    );
    let audit = store.audit().unwrap();
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    assert_eq!(marks(&w, &store, file), vec![1; free as usize]);
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn a_file_in_many_pieces() {
    let w = world(4, 3000);
    let store = w.store(100);
    let (a, b) = (store.create("/a").unwrap(), store.create("/b").unwrap());
    // Turn by turn: no two pages of a file follow each other.
    for page in 0..523 {
        store.write(a, page..page + 1, &mut w.fill(page)).unwrap();
        store.write(b, page..page + 1, &mut w.fill(1000)).unwrap();
    }
    assert_eq!(
        store.write(a, 523..524, &mut w.fill(0)),
        Err(Error::NoSpace)
    );
    let expected: Vec<_> = (0..523).collect();
    assert_eq!(marks(&w, &store, a), expected);
    store.audit().unwrap();
    store.truncate(b, 100).unwrap();
    store.write(b, 100..140, &mut w.fill(5)).unwrap();
    store.truncate(b, 7).unwrap();
    store.write(b, 7..60, &mut w.fill(6)).unwrap();
    store.audit().unwrap();
    let mut expected = vec![1000; 7];
    expected.resize(60, 6);
    assert_eq!(marks(&w, &store, b), expected);
    store.close(a).unwrap();
    store.remove("/a").unwrap();
    let audit = store.audit().unwrap();
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    store.unmount().unwrap();
    w.check_frames();
}

/// What an operation that wants memory does when there is little, and more comes while it waits.
fn with_little_memory(w: &World, frames: usize, operation: impl Fn() -> Result<(), Error>) -> bool {
    w.pages.evict(1);
    w.source.left.store(frames, Ordering::Relaxed);
    let result = operation();
    w.pages.heal();
    assert!(
        matches!(result, Ok(()) | Err(Error::NoMemory)),
        "{result:?}"
    );
    result.is_ok()
}

#[test]
fn memory_that_is_short_is_waited_for_and_nothing_is_lost() {
    let w = world(4, 3000);
    let store = w.store(100);
    w.memory.relief.store(1, Ordering::Relaxed);
    let mut waits = 0;
    for frames in (0..12).chain(0..12) {
        let before = store.usage();
        let (a, b) = (store.create("/a").unwrap(), store.create("/b").unwrap());
        // Turn by turn: in so many pieces that there is a block of extents.
        for page in 0..20 {
            store.write(a, page..page + 1, &mut w.fill(page)).unwrap();
            store.write(b, page..page + 1, &mut w.fill(page)).unwrap();
        }
        let begun = w.memory.now();
        with_little_memory(&w, frames, || store.truncate(b, 3));
        with_little_memory(&w, frames, || store.write(b, 3..9, &mut w.fill(1)));
        with_little_memory(&w, frames, || store.create("/c").map(|_| ()));
        // Closing and removing cannot fail once the name is gone.
        store.remove("/a").unwrap();
        assert!(with_little_memory(&w, frames, || store.close(a)));
        store.close(b).unwrap();
        let removed = (frames..frames + 20)
            .any(|frames| with_little_memory(&w, frames, || store.remove("/b")));
        assert!(removed);
        waits += u64::from(w.memory.now() - begun > 1_000_000);
        if let Ok((c, _)) = store.lookup("/c") {
            store.close(c).unwrap();
            store.remove("/c").unwrap();
        }
        let (after, audit) = (store.usage(), store.audit().unwrap());
        assert_eq!((after.lost_blocks, after.lost_inodes), (0, 0), "{frames}");
        assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0), "{frames}");
        assert_eq!(after.free_inodes, before.free_inodes);
        // The root has a page from the first name on.
        assert!(before.free_blocks - after.free_blocks <= 1);
    }
    assert!(waits > 0);
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn memory_that_never_comes_is_not_waited_for_for_ever() {
    let w = world(4, 1000);
    let store = w.store(100);
    let a = store.create("/a").unwrap();
    store.write(a, 0..7, &mut w.fill(1)).unwrap();
    store.remove("/a").unwrap();
    w.pages.evict(1);
    w.source.left.store(0, Ordering::Relaxed);
    let begun = w.memory.now();
    store.close(a).unwrap();
    let waited = w.memory.now() - begun;
    assert!(
        (600_000_000_000..700_000_000_000).contains(&waited),
        "{waited}"
    );
    w.pages.heal();
    let (usage, audit) = (store.usage(), store.audit().unwrap());
    assert_eq!((usage.lost_blocks, usage.lost_inodes), (7, 1));
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (7, 1));
}

#[test]
fn an_open_ends_at_once_whoever_has_the_file_locked() {
    let w = world(4, 1000);
    let store = w.store(100);
    let a = store.create("/a").unwrap();
    store.open("/a").unwrap();
    let closed = |result| assert_eq!(result, Ok(()));
    let mut fill = w.fill(1);
    // Locked alone, and by somebody who reads.
    store
        .write(a, 0..2, &mut |page, frame| {
            fill(page, frame);
            if page == 1 {
                closed(store.close_at_once(a));
            }
        })
        .unwrap();
    store.open("/a").unwrap();
    store
        .read(a, 0..1, &mut |_, _| closed(store.close_at_once(a)))
        .unwrap();
    assert_eq!(marks(&w, &store, a), [1, 1]);
    assert_eq!(store.usage().open_inodes, 1);
    closed(store.close_at_once(a));
    assert_eq!(store.close_at_once(a), Err(Error::NotOpen));
    assert_eq!(store.close(a), Err(Error::NotOpen));
    assert_eq!(store.usage().open_inodes, 0);
    store.remove("/a").unwrap();
    store.audit().unwrap();
    store.unmount().unwrap();
    w.check_frames();
}

#[test]
fn a_removed_file_that_is_closed_at_once_is_given_back_at_the_end() {
    let w = world(4, 1000);
    let store = w.store(100);
    let before = store.usage();
    let a = store.create("/a").unwrap();
    store.write(a, 0..9, &mut w.fill(1)).unwrap();
    store.remove("/a").unwrap();
    store.close_at_once(a).unwrap();
    assert_eq!(store.read(a, 0..1, &mut |_, _| ()), Err(Error::NotOpen));
    store.inode_shrinker().shrink(1000, Who::Operator);
    let audit = store.audit().unwrap();
    assert_eq!((audit.removed, audit.lost_blocks), (1, 0));
    store.give_all_back().unwrap();
    let (after, audit) = (store.usage(), store.audit().unwrap());
    assert_eq!(after.free_blocks, before.free_blocks - 1);
    assert_eq!(after.free_inodes, before.free_inodes);
    assert_eq!(
        (audit.removed, audit.lost_blocks, audit.lost_inodes),
        (0, 0, 0)
    );
    store.unmount().unwrap();
    w.check_frames();
}
