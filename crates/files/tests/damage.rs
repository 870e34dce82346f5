//! A disk that holds what cannot be: operations fail and say what is damaged; none panics, hangs, or writes where it must
//! not.

mod support;

use std::sync::atomic::Ordering;

use dirigible_files::{Error, HeaderError, InodeId, Kind, MountError};
use dirigible_reclaim::{Shrinker, Who};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{Store, WORDS, World, world};

const DISK: usize = 400;
const INODES: u32 = 60;

/// A store with some of everything: files of one extent and of many, full and small directories, removed entries.
fn populated() -> World {
    let w = world(2, DISK);
    let store = w.store(INODES);
    for directory in ["/a", "/a/b", "/c"] {
        store.make_directory(directory).unwrap();
        for number in 0..8 {
            let path = format!("{directory}/file-{number}");
            let inode = store.create(&path).unwrap();
            store
                .write(inode, 0..number % 5, &mut w.fill(number))
                .unwrap();
            store.close(inode).unwrap();
        }
        store.remove(&format!("{directory}/file-3")).unwrap();
    }
    let (x, y) = (store.create("/x").unwrap(), store.create("/y").unwrap());
    for page in 0..40 {
        store.write(x, page..page + 1, &mut w.fill(1)).unwrap();
        store.write(y, page..page + 1, &mut w.fill(2)).unwrap();
    }
    store.unmount().unwrap();
    w
}

/// Does everything once. Whatever comes back is right, as long as something does.
fn exercise(w: &World, store: &Store) {
    let _ = store.audit();
    let paths = ["/", "/a", "/a/b", "/c", "/x", "/y", "/a/file-1", "/nothing"];
    for path in paths {
        let _ = store.list(path, &mut |_| ());
        let _ = store.lookup(path);
    }
    for path in [
        "/x",
        "/y",
        "/a/file-4",
        "/a/b/file-7",
        "/c/file-2",
        "/new",
        "/a/new",
    ] {
        let opened = store.open(path).or_else(|_| store.create(path));
        let Ok(inode) = opened else { continue };
        if let Ok(size) = store.size_pages(inode) {
            let _ = store.read(inode, 0..size, &mut |_, _| ());
            let _ = store.write(inode, 0..size + 3, &mut w.fill(9));
            let _ = store.sync(inode);
            let _ = store.truncate(inode, size / 2);
        }
        store.close(inode).unwrap();
    }
    let _ = store.make_directory("/d");
    for path in ["/x", "/a/b/file-1", "/c/file-6", "/new"] {
        let _ = store.remove(path);
    }
    for path in ["/d", "/a/b", "/c", "/a"] {
        let _ = store.remove_directory(path);
    }
    store.inode_shrinker().shrink(1000, Who::Operator);
    store.name_shrinker().shrink(1000, Who::Operator);
    assert_eq!(store.inode_shrinker().count(), 0);
    let _ = store.audit();
}

#[test]
fn the_second_header_is_used_and_the_first_written_anew() {
    let w = populated();
    w.pages.damage(0, |words| words[3] ^= 1);
    let store = w.mount().unwrap();
    assert!(store.was_repaired());
    assert_eq!(store.audit().unwrap().directories, 4);
    store.unmount().unwrap();
    let store = w.mount().unwrap();
    assert!(!store.was_repaired());
}

#[test]
fn a_header_that_cannot_be_read_is_like_one_that_is_damaged() {
    let w = populated();
    w.pages.evict(1);
    w.pages.bad.lock().unwrap().insert(0);
    assert!(w.mount().unwrap().was_repaired());
}

#[test]
fn both_headers_damaged_say_what_is_wrong_with_each() {
    let w = populated();
    w.pages.damage(0, |words| words[0] = 7);
    w.pages.damage(DISK as u64 - 1, |words| words[1] = 2);
    let Err(error) = w.mount() else {
        panic!("mounted");
    };
    assert_eq!(
        error,
        MountError::Header {
            first: HeaderError::Magic { found: 7 },
            second: HeaderError::Version { found: 2 },
        }
    );
    assert_eq!(
        error.to_string(),
        "the header is damaged: its magic number is 0x7; its copy in the last block: its version is 2, and 1 is known"
    );
}

#[test]
fn a_disk_that_was_never_formatted_or_has_no_block() {
    let w = world(2, 50);
    assert!(matches!(w.mount(), Err(MountError::Header { .. })));
    let w = world(2, 0);
    assert!(matches!(w.mount(), Err(MountError::Header { .. })));
}

#[test]
fn a_store_that_was_larger_than_its_disk() {
    let w = populated();
    w.pages.evict(1);
    w.pages.disk.lock().unwrap().truncate(300);
    let Err(MountError::Header { first, .. }) = w.mount() else {
        panic!("mounted");
    };
    let (blocks, disk) = (DISK as u64, 300);
    assert_eq!(first, HeaderError::Size { blocks, disk });
}

#[test]
fn an_interrupted_format_leaves_the_old_store_or_none() {
    let (mut old, mut none, mut new) = (0, 0, 0);
    for operations in 0..20 {
        let w = populated();
        w.pages.left.store(operations, Ordering::Relaxed);
        let formatted = dirigible_files::FileStore::format(&w.parts(), INODES);
        w.pages.heal();
        let directories = w.mount().map(|store| store.audit().unwrap().directories);
        match directories {
            // The second header goes before any table is written.
            Ok(4) if formatted.is_err() => old += 1,
            Ok(1) => new += 1,
            Err(MountError::Header { .. }) if formatted.is_err() => none += 1,
            other => panic!("{operations}: {other:?} after {formatted:?}"),
        }
    }
    assert!(old > 0 && none > 0 && new > 0, "{old} {none} {new}");
}

#[test]
fn a_directory_inside_of_itself() {
    let w = populated();
    let store = w.mount().unwrap();
    let (b, _) = store.lookup("/a/b").unwrap();
    let (c, _) = store.lookup("/c").unwrap();
    store.unmount().unwrap();
    // An entry of /a/b leads to /a/b itself, and one of /c to the root: entries are looked for by their names.
    w.pages.evict(1);
    let mut entries = 0;
    for block in w.pages.disk.lock().unwrap().iter_mut() {
        for entry in block.chunks_exact_mut(8) {
            let is_name = entry[1] == u64::from_le_bytes(*b"file-1\0\0") && entry[2] == 0;
            if is_name && entry[0] >> 32 & 63 == 6 {
                let kind = (Kind::Directory as u64) << 38;
                let target = [u64::from(b.get()), u64::from(c.get())][entries % 2];
                entry[0] = entry[0] & !(3 << 38 | 0xffff_ffff) | kind | target;
                entries += 1;
            }
        }
    }
    assert_eq!(entries, 3);
    let store = w.mount().unwrap();
    assert!(store.audit().is_err());
    let deep = |first: &str| format!("{first}{}", "/file-1".repeat(50));
    for path in [deep("/a"), deep("/a/b"), deep("/c")] {
        let _ = store.lookup(&path);
        let _ = store.remove_directory(&path);
        let _ = store.open(&path);
        let _ = store.list(&path, &mut |_| ());
    }
    exercise(&w, &store);
}

#[test]
fn a_block_of_extents_of_another_inode() {
    let w = populated();
    let store = w.mount().unwrap();
    let (x, y) = (store.open("/x").unwrap(), store.open("/y").unwrap());
    let table = 3;
    let more = |inode: InodeId| (inode.get() as usize - 1) * 16 + 3;
    store.unmount().unwrap();
    w.pages.damage(table, |words| words.swap(more(x), more(y)));
    let store = w.mount().unwrap();
    let x = store.open("/x").unwrap();
    assert_eq!(
        store.read(x, 0..40, &mut |_, _| ()),
        Err(Error::Damaged {
            what: "a block of extents is not its inode's"
        })
    );
    assert_eq!(store.read(x, 0..2, &mut |_, _| ()), Ok(()));
    assert!(store.audit().is_err());
    exercise(&w, &store);
}

/// What becomes of a word.
#[derive(Clone, Debug)]
enum Change {
    Flip(u8),
    Set(u64),
    Small(u16),
    Extent(u64, u16),
    CopyOf(u16),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u8..64).prop_map(Change::Flip),
        1 => any::<u64>().prop_map(Change::Set),
        1 => Just(Change::Set(u64::MAX)),
        2 => any::<u16>().prop_map(|n| Change::Small(n % 600)),
        2 => (0u64..500, 0u16..300).prop_map(|(start, len)| Change::Extent(start, len)),
        2 => any::<u16>().prop_map(Change::CopyOf),
    ]
}

fn apply(words: &mut [u64; WORDS], at: u16, change: &Change) {
    let copy = |n: u16| words[n as usize % WORDS];
    words[at as usize % WORDS] = match *change {
        Change::Flip(bit) => copy(at) ^ 1 << bit,
        Change::Set(value) => value,
        Change::Small(value) => value.into(),
        Change::Extent(start, len) => start << 24 | u64::from(len),
        Change::CopyOf(other) => copy(other),
    };
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    /// Blocks 1 to 4 are the bitmaps and inodes of a store of this size; most of the others have entries, extents, or pages.
    #[test]
    fn damaged_tables_do_no_harm(
        changes in prop::collection::vec(
            (prop_oneof![3 => 0u64..5, 2 => 5u64..120, 1 => Just(DISK as u64 - 1)], any::<u16>(), change()), 1..12),
    ) {
        let w = populated();
        for (block, at, change) in &changes {
            w.pages.damage(*block, |words| apply(words, *at, change));
        }
        if let Ok(store) = w.mount() {
            *w.pages.guard.lock().unwrap() = Some(*store.geometry());
            exercise(&w, &store);
            let _ = store.unmount();
            w.check_frames();
        }
    }

    /// The same while the store is mounted, and has something of it in memory.
    #[test]
    fn damage_under_a_mounted_store_does_no_harm(
        changes in prop::collection::vec((0u64..120, any::<u16>(), change()), 1..12),
    ) {
        let w = populated();
        let store = w.mount().unwrap();
        *w.pages.guard.lock().unwrap() = Some(*store.geometry());
        let open = store.open("/x").unwrap();
        let _ = store.lookup("/a/b/file-1");
        for (block, at, change) in &changes {
            w.pages.damage(*block, |words| apply(words, *at, change));
        }
        exercise(&w, &store);
        let _ = store.write(open, 20..60, &mut w.fill(3));
        let _ = store.close(open);
        let _ = store.unmount();
        w.check_frames();
    }
}
