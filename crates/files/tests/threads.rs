//! Several threads on one store, with shrinkers, evictions and memory that is short now and then.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use dirigible_files::{Error, InodeId, Kind};
use dirigible_frames::Event;
use dirigible_reclaim::{Shrinker, Who};
use support::machine::{leak, run_on};
use support::{Store, World, world};

/// Threads that use files; the next CPU is that of who takes memory away.
const USERS: u16 = 3;
/// Directories that are made and removed by whoever likes, beside one that stays.
const FOLDERS: u64 = 3;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One thread's own files, with the marks of their pages. A mark begins with the thread's number.
struct User<'w> {
    w: &'w World,
    store: &'w Store,
    number: u16,
    files: BTreeMap<String, Vec<u64>>,
    serial: u64,
    random: Random,
    /// Operations that failed for want of memory.
    short: u64,
}

impl User<'_> {
    /// What an operation gives that may fail for want of memory or for `usual`: it has changed nothing then.
    fn may<T>(&mut self, result: Result<T, Error>, usual: &[Error]) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::NoMemory) => {
                self.short += 1;
                None
            }
            Err(error) => {
                assert!(usual.contains(&error), "{error:?}, not {usual:?}");
                None
            }
        }
    }

    /// What an operation gives that is tried until there is memory for it.
    fn must<T>(&mut self, mut operation: impl FnMut(&Self) -> Result<T, Error>) -> T {
        loop {
            match operation(self) {
                Err(Error::NoMemory) => thread::yield_now(),
                result => return result.unwrap(),
            }
        }
    }

    fn folder(&mut self) -> String {
        match self.random.below(FOLDERS + 2) {
            folder if folder < FOLDERS => format!("/x{folder}"),
            _ => "/shared".into(),
        }
    }

    fn own(&mut self) -> Option<String> {
        let at = self.random.below(self.files.len().max(1) as u64);
        self.files.keys().nth(at as usize).cloned()
    }

    fn marks(&mut self, file: InodeId) -> Vec<u64> {
        self.must(|user| {
            let mut marks = Vec::new();
            let size = user.store.size_pages(file)?;
            let mut with = |page, frame| marks.push(user.w.mark(page, frame));
            user.store.read(file, 0..size, &mut with)?;
            Ok(marks)
        })
    }

    fn create(&mut self) {
        let name = self.random.below(12);
        let path = format!("{}/{}-{name}", self.folder(), self.number);
        let there = self.files.contains_key(&path);
        let usual = match there {
            true => [Error::Exists],
            false => [Error::NotFound],
        };
        let created = self.store.create(&path);
        if let Some(file) = self.may(created, &usual) {
            assert!(!there);
            self.files.insert(path, Vec::new());
            self.store.close(file).unwrap();
        }
    }

    fn write(&mut self) {
        let Some(path) = self.own() else { return };
        let opened = self.store.open(&path);
        let Some(file) = self.may(opened, &[]) else {
            return;
        };
        self.serial += 1;
        let mark = u64::from(self.number) << 24 | self.serial;
        let old = self.files[&path].clone();
        let start = self.random.below(old.len() as u64 + 1);
        let end = start + self.random.below(9);
        let fill = &mut self.w.fill(mark);
        let written = self.store.write(file, start..end, fill);
        let found = self.marks(file);
        match self.may(written, &[Error::NoSpace]) {
            Some(()) => {
                let mut new = old;
                new.resize(new.len().max(end as usize), mark);
                new[start as usize..end as usize].fill(mark);
                assert_eq!(found, new);
            }
            None => {
                // A first part of it was written.
                assert!(found.len() >= old.len());
                for (page, &found) in found.iter().enumerate() {
                    assert!(found == mark || old.get(page) == Some(&found));
                }
            }
        }
        self.files.insert(path, found);
        self.store.close(file).unwrap();
    }

    fn truncate_or_sync(&mut self) {
        let Some(path) = self.own() else { return };
        let opened = self.store.open(&path);
        let Some(file) = self.may(opened, &[]) else {
            return;
        };
        let pages = self.random.below(self.files[&path].len() as u64 + 1);
        let cut = self.store.truncate(file, pages);
        if self.may(cut, &[]).is_some() {
            let marks = self.files.get_mut(&path).unwrap();
            marks.truncate(pages as usize);
        }
        let synced = self.store.sync(file);
        self.may(synced, &[]);
        self.store.close(file).unwrap();
    }

    fn remove(&mut self) {
        let Some(path) = self.own() else { return };
        // Half of them live on for a while without a name.
        let open = match self.random.below(2) {
            0 => None,
            _ => {
                let opened = self.store.open(&path);
                self.may(opened, &[])
            }
        };
        let removed = self.store.remove(&path);
        let removed = self.may(removed, &[]).is_some();
        if let Some(file) = open {
            assert_eq!(self.marks(file), self.files[&path]);
            self.store.close(file).unwrap();
        }
        if removed {
            self.files.remove(&path);
        }
    }

    /// Reads a file of another thread, which may change and remove it meanwhile.
    fn visit(&mut self) {
        let other = self.random.below(USERS.into());
        let path = format!("{}/{other}-{}", self.folder(), self.random.below(12));
        let opened = self.store.open(&path);
        let Some(file) = self.may(opened, &[Error::NotFound]) else {
            return;
        };
        let size = self.store.size_pages(file).unwrap();
        let w = self.w;
        let mut with = |page, frame| assert_eq!(w.mark(page, frame) >> 24, other);
        let read = self.store.read(file, 0..size, &mut with);
        self.may(read, &[Error::Beyond]);
        // Half of the time as one that is unwound.
        let closed = match self.random.below(2) {
            0 => self.store.close(file),
            _ => self.store.close_at_once(file),
        };
        closed.unwrap();
    }

    fn folders(&mut self) {
        let path = format!("/x{}", self.random.below(FOLDERS));
        match self.random.below(2) {
            0 => {
                let made = self.store.make_directory(&path);
                self.may(made, &[Error::Exists]);
            }
            _ => {
                let removed = self.store.remove_directory(&path);
                let usual = [Error::NotFound, Error::NotEmpty];
                if self.may(removed, &usual).is_some() {
                    let inside = format!("{path}/");
                    assert!(!self.files.keys().any(|file| file.starts_with(&inside)));
                }
            }
        }
    }

    /// The own files are exactly those that are listed and found.
    fn list(&mut self) {
        let folder = self.folder();
        let mut found = Vec::new();
        let listed = self.store.list(&folder, &mut |entry| {
            let name = std::str::from_utf8(entry.name()).unwrap();
            found.push(format!("{folder}/{name}"));
        });
        if self.may(listed, &[Error::NotFound]).is_some() {
            let own = format!("{folder}/{}-", self.number);
            found.retain(|path| path.starts_with(&own));
            found.sort();
            let expected = self.files.keys().filter(|path| path.starts_with(&own));
            assert!(found.iter().eq(expected), "{found:?}");
        }
        if let Some(path) = self.own() {
            let looked = self.store.lookup(&path);
            let target = self.may(looked, &[]);
            assert!(target.is_none_or(|(_, kind)| kind == Kind::File));
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.random.below(10) {
                0 | 1 => self.create(),
                2..=4 => self.write(),
                5 => self.truncate_or_sync(),
                6 => self.remove(),
                7 => self.visit(),
                8 => self.folders(),
                _ => self.list(),
            }
        }
        // Everything is there, and half of it stays.
        for (path, marks) in self.files.clone() {
            let file = self.must(|user| user.store.open(&path));
            assert_eq!(self.marks(file), marks, "{path}");
            self.store.close(file).unwrap();
            if self.random.below(2) == 0 {
                self.must(|user| user.store.remove(&path));
                self.files.remove(&path);
            }
        }
    }
}

/// Shrinks and evicts, and lets memory be short, until all users are done.
fn disturb(w: &World, store: &Store, done: &AtomicU64) -> u64 {
    let mut random = Random(77);
    let mut freed = 0;
    while done.load(Relaxed) < USERS.into() {
        let who = [Who::Direct, Who::Kswapd, Who::Operator][random.below(3) as usize];
        let objects = random.below(30);
        freed += store.inode_shrinker().shrink(objects, who).freed;
        freed += store.name_shrinker().shrink(objects, who).freed;
        match random.below(6) {
            0 => w.pages.evict(1 + random.below(4) as usize),
            1 => w.source.left.store(random.below(4) as usize, Relaxed),
            _ => w.pages.heal(),
        }
        thread::yield_now();
    }
    w.pages.heal();
    freed
}

#[test]
fn threads_share_directories_while_memory_is_taken_away() {
    let w = &world(4, 3000);
    let store = w.store(300);
    let before = store.usage();
    store.make_directory("/shared").unwrap();
    w.memory.relief.store(1, Relaxed);
    w.pages.yields.store(true, Relaxed);
    let (done, shared) = (&AtomicU64::new(0), &store);
    let users = thread::scope(|scope| {
        let begin = |number: u16| {
            scope.spawn(move || {
                run_on(number);
                let mut user = User {
                    w,
                    store: shared,
                    number,
                    files: BTreeMap::new(),
                    serial: 0,
                    random: Random(9_000 + u64::from(number)),
                    short: 0,
                };
                // Who fails lets the others end.
                let end = End(done);
                user.run(4_000);
                drop(end);
                (user.files, user.short)
            })
        };
        let users: Vec<_> = (0..USERS).map(begin).collect();
        run_on(USERS);
        assert!(disturb(w, shared, done) > 0);
        let ended = users.into_iter().map(|user| user.join().unwrap());
        ended.collect::<Vec<_>>()
    });
    assert!(users.iter().any(|(_, short)| *short > 0));
    assert_eq!(store.usage().open_inodes, 0);
    store.audit().unwrap();
    // What was removed and closed at once is given back now.
    store.give_all_back().unwrap();
    let (audit, usage) = (store.audit().unwrap(), store.usage());
    let files = users.iter().flat_map(|(files, _)| files);
    assert_eq!(audit.files, files.clone().count() as u64);
    assert_eq!(audit.removed, 0);
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    assert_eq!((usage.lost_blocks, usage.lost_inodes), (0, 0));
    for (path, _) in files {
        store.remove(path).unwrap();
    }
    for folder in (0..FOLDERS).map(|folder| format!("/x{folder}")) {
        match store.remove_directory(&folder) {
            Ok(()) | Err(Error::NotFound) => {}
            Err(error) => panic!("{folder}: {error:?}"),
        }
    }
    store.remove_directory("/shared").unwrap();
    let after = store.usage();
    assert_eq!(after.free_inodes, before.free_inodes);
    // All that is left is the pages of the root.
    assert_eq!(
        before.free_blocks - after.free_blocks,
        store.audit().unwrap().pages
    );
    store.unmount().unwrap();
    w.check_frames();
}

struct End<'a>(&'a AtomicU64);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The store's own shrinkers are called in the middle of its operations, wherever these want a frame.
#[test]
fn shrinkers_inside_of_an_allocation_neither_wait_nor_lose() {
    let w = world(8, 4000);
    let store: &Store = leak(w.store(600));
    let calls: &AtomicU64 = leak(AtomicU64::new(0));
    let freed: &AtomicU64 = leak(AtomicU64::new(0));
    let within: &AtomicBool = leak(AtomicBool::new(false));
    *w.source.pressure.write().unwrap() = Some(Box::new(move || {
        assert!(!within.swap(true, Relaxed), "a shrinker allocates");
        let call = calls.fetch_add(1, Relaxed);
        let who = [Who::Direct, Who::Kswapd][call as usize % 2];
        let inodes = store.inode_shrinker().shrink(40, who);
        let names = store.name_shrinker().shrink(40, who);
        freed.fetch_add(inodes.freed + names.freed, Relaxed);
        within.store(false, Relaxed);
    }));
    let mut marks = BTreeMap::new();
    for round in 0..4u64 {
        for directory in 0..8u64 {
            let _ = store.make_directory(&format!("/d{directory}"));
            for number in 0..40 {
                let path = format!("/d{directory}/{number}");
                let mark = round << 16 | directory << 8 | number;
                match marks.get(&path) {
                    Some(&old) => {
                        let file = store.open(&path).unwrap();
                        let size = store.size_pages(file).unwrap();
                        let mut with = |page, frame| assert_eq!(w.mark(page, frame), old);
                        store.read(file, 0..size, &mut with).unwrap();
                        store.close(file).unwrap();
                        store.remove(&path).unwrap();
                        marks.remove(&path);
                    }
                    None => {
                        let file = store.create(&path).unwrap();
                        store
                            .write(file, 0..1 + number % 5, &mut w.fill(mark))
                            .unwrap();
                        store.close(file).unwrap();
                        marks.insert(path, mark);
                    }
                }
            }
            // Clean pages can go with their inodes.
            store.sync_all().unwrap();
            if directory % 3 == 0 {
                w.pages.evict(2);
            }
        }
    }
    *w.source.pressure.write().unwrap() = None;
    assert!(calls.load(Relaxed) > 100 && freed.load(Relaxed) > 100);
    let events = w.frames.events();
    for event in [Event::PgInodeSteal, Event::KswapdInodeSteal] {
        assert!(events.get(event) > 0, "{event:?}");
    }
    let audit = store.audit().unwrap();
    assert_eq!((audit.files, audit.directories), (marks.len() as u64, 9));
    assert_eq!((audit.lost_blocks, audit.lost_inodes), (0, 0));
    for (path, mark) in &marks {
        let file = store.open(path).unwrap();
        let size = store.size_pages(file).unwrap();
        let mut with = |page, frame| assert_eq!(w.mark(page, frame), *mark);
        store.read(file, 0..size, &mut with).unwrap();
        store.close(file).unwrap();
    }
    store.give_all_back().unwrap();
    w.check_frames();
}
