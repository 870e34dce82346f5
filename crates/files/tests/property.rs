//! Random operations against a tree in a model, with remounts, shrinkers, evictions, and a disk and memory that fail.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use dirigible_files::{Error, InodeId, Kind};
use dirigible_reclaim::{Shrinker, Who};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{Store, World, world};

#[derive(Clone, Debug)]
enum Step {
    Create(u16, u8),
    MakeDirectory(u16, u8),
    Remove(u16),
    RemoveDirectory(u16),
    Open(u16),
    Close(u16),
    /// Writes so many pages, beginning so many before the end.
    Write(u16, u8, u8),
    Truncate(u16, u8),
    Read(u16),
    Lookup(u16),
    Missing(u16, u8),
    List(u16),
    Sync(u16),
    Remount,
    Shrink(u8, u8),
    Evict(u8),
}

#[derive(Clone, Debug)]
struct Fault {
    /// Page operations that succeed.
    pages: Option<u8>,
    /// Frames that there are.
    frames: Option<u8>,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u16>(), 0u8..40).prop_map(|(d, n)| Step::Create(d, n)),
        2 => (any::<u16>(), 0u8..8).prop_map(|(d, n)| Step::MakeDirectory(d, n)),
        3 => any::<u16>().prop_map(Step::Remove),
        2 => any::<u16>().prop_map(Step::RemoveDirectory),
        3 => any::<u16>().prop_map(Step::Open),
        3 => any::<u16>().prop_map(Step::Close),
        6 => (any::<u16>(), 1u8..20, 0u8..6).prop_map(|(f, n, b)| Step::Write(f, n, b)),
        3 => (any::<u16>(), any::<u8>()).prop_map(|(f, n)| Step::Truncate(f, n)),
        3 => any::<u16>().prop_map(Step::Read),
        2 => any::<u16>().prop_map(Step::Lookup),
        1 => (any::<u16>(), 0u8..40).prop_map(|(d, n)| Step::Missing(d, n)),
        1 => any::<u16>().prop_map(Step::List),
        1 => any::<u16>().prop_map(Step::Sync),
        1 => Just(Step::Remount),
        3 => (0u8..40, 0u8..3).prop_map(|(n, who)| Step::Shrink(n, who)),
        2 => (1u8..5).prop_map(Step::Evict),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let few = || prop_oneof![9 => Just(None), 1 => (0u8..12).prop_map(Some)];
    (few(), few()).prop_map(|(pages, frames)| Fault { pages, frames })
}

/// An inode as it should be: a file with the marks of its pages.
#[derive(Clone, Debug, Default)]
struct File {
    marks: Vec<u64>,
    open: u32,
    named: bool,
}

#[derive(Default)]
struct Model {
    directories: BTreeSet<String>,
    /// Paths of files, and where each is in `files`.
    names: BTreeMap<String, usize>,
    files: Vec<File>,
    /// The inodes of open files, with the file of each.
    open: Vec<(InodeId, usize)>,
    serial: u64,
    lost: (u64, u64),
}

/// Whether an error comes from a fault that was injected.
fn is_fault(error: Error) -> bool {
    matches!(error, Error::Io { .. } | Error::NoMemory)
}

impl Model {
    fn directory(&self, at: u16) -> &str {
        self.directories
            .iter()
            .nth(at as usize % self.directories.len())
            .unwrap()
    }

    fn file(&self, at: u16) -> Option<(String, usize)> {
        let (path, file) = self
            .names
            .iter()
            .nth(at as usize % self.names.len().max(1))?;
        Some((path.clone(), *file))
    }

    fn handle(&self, at: u16) -> Option<(usize, InodeId, usize)> {
        let index = at as usize % self.open.len().max(1);
        let (inode, file) = *self.open.get(index)?;
        Some((index, inode, file))
    }

    fn has_children(&self, directory: &str) -> bool {
        let inside = format!("{directory}/");
        let mut all = self.directories.iter().chain(self.names.keys());
        all.any(|path| path.starts_with(&inside))
    }

    fn exists(&self, path: &str) -> bool {
        self.directories.contains(path) || self.names.contains_key(path)
    }
}

struct Run {
    w: World,
    store: Option<Store>,
    model: Model,
}

impl Run {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn marks(&self, inode: InodeId) -> Vec<u64> {
        let mut marks = Vec::new();
        let size = self.store().size_pages(inode).unwrap();
        let mut with = |page, frame| marks.push(self.w.mark(page, frame));
        self.store().read(inode, 0..size, &mut with).unwrap();
        marks
    }

    fn make(&mut self, directory: u16, name: String, kind: Kind) {
        let path = format!("{}/{name}", self.model.directory(directory));
        let exists = self.model.exists(&path);
        let made = match kind {
            Kind::File => self.store().create(&path),
            Kind::Directory => self.store().make_directory(&path),
        };
        match made {
            Ok(inode) => {
                assert!(!exists);
                if kind == Kind::Directory {
                    self.model.directories.insert(path);
                    return;
                }
                let file = File {
                    open: 1,
                    named: true,
                    ..File::default()
                };
                self.model.files.push(file);
                self.model.names.insert(path, self.model.files.len() - 1);
                self.model.open.push((inode, self.model.files.len() - 1));
            }
            Err(Error::Exists) => assert!(exists),
            Err(Error::NoInodes) => assert_eq!(self.store().usage().free_inodes, 0),
            Err(Error::NoSpace) => assert_eq!(self.store().usage().free_blocks, 0),
            Err(error) => assert!(is_fault(error), "{error:?}"),
        }
    }

    fn write(&mut self, at: u16, count: u8, before: u8) {
        let Some((_, inode, file)) = self.model.handle(at) else {
            return;
        };
        self.model.serial += 1;
        let mark = self.model.serial;
        let old = self.model.files[file].marks.clone();
        let start = old.len() - (before as usize).min(old.len());
        let end = start + count as usize;
        let written = self
            .store()
            .write(inode, start as u64..end as u64, &mut self.w.fill(mark));
        let mut new = old.clone();
        new.resize(end.max(old.len()), mark);
        new[start..end].fill(mark);
        match written {
            Ok(()) => self.model.files[file].marks = new,
            Err(Error::NoSpace) => {}
            Err(error) => {
                assert!(is_fault(error), "{error:?}");
                // A first part of it was written.
                self.w.pages.heal();
                let found = self.marks(inode);
                assert!(found.len() >= old.len() && found.len() <= new.len());
                let done = found.iter().rposition(|&found| found == mark);
                let done = done.map_or(start, |last| last + 1);
                assert_eq!(found[..done], new[..done]);
                assert!(found.len() == old.len().max(done));
                assert_eq!(found[done..], old[done.min(old.len())..]);
                self.model.files[file].marks = found;
            }
        }
    }

    fn unlink(&mut self, path: &str, kind: Kind) {
        let removed = match kind {
            Kind::File => self.store().remove(path),
            Kind::Directory => self.store().remove_directory(path),
        };
        match removed {
            Ok(()) if kind == Kind::Directory => {
                assert!(!self.model.has_children(path));
                assert!(self.model.directories.remove(path));
            }
            Ok(()) => {
                let file = self.model.names.remove(path).expect("it had a name");
                self.model.files[file].named = false;
            }
            Err(Error::NotEmpty) => assert!(self.model.has_children(path)),
            Err(Error::BadName) => assert_eq!(path, ""),
            Err(error) => assert!(is_fault(error), "{error:?}"),
        }
    }

    fn remount(&mut self) {
        let store = self.store.take().unwrap();
        self.note_lost(&store);
        let _ = store.unmount();
        // What was removed while it was open has ended, and may have been lost with a fault in the way.
        self.model.open.clear();
        for file in &mut self.model.files {
            file.open = 0;
        }
        let store = match self.w.mount() {
            Ok(store) => store,
            Err(_) => {
                self.w.pages.heal();
                self.w.mount().unwrap()
            }
        };
        let audit = {
            self.w.pages.heal();
            store.audit().unwrap()
        };
        assert!(audit.lost_blocks >= self.model.lost.0 && audit.lost_inodes >= self.model.lost.1);
        self.model.lost = (audit.lost_blocks, audit.lost_inodes);
        self.store = Some(store);
    }

    fn note_lost(&mut self, store: &Store) {
        let usage = store.usage();
        self.model.lost.0 += usage.lost_blocks;
        self.model.lost.1 += usage.lost_inodes;
    }

    fn list(&self, directory: &str) {
        let mut found = BTreeSet::new();
        let listed = self.store().list(directory, &mut |entry| {
            let name = std::str::from_utf8(entry.name()).unwrap();
            assert!(found.insert((format!("{directory}/{name}"), entry.kind == Kind::File)));
        });
        match listed {
            Ok(()) => {
                let inside = format!("{directory}/");
                let direct = |path: &&String| {
                    path.strip_prefix(&inside)
                        .is_some_and(|rest| !rest.contains('/'))
                };
                let files = self.model.names.keys().filter(direct);
                let mut expected: BTreeSet<_> = files.map(|path| (path.clone(), true)).collect();
                let directories = self
                    .model
                    .directories
                    .iter()
                    .filter(|path| !path.is_empty());
                expected.extend(directories.filter(direct).map(|path| (path.clone(), false)));
                assert_eq!(found, expected);
            }
            Err(error) => assert!(is_fault(error), "{error:?}"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Create(directory, name) => {
                self.make(directory, format!("file-{name}"), Kind::File);
            }
            Step::MakeDirectory(directory, name) => {
                if self.model.directories.len() < 20 {
                    self.make(directory, format!("d{name}"), Kind::Directory);
                }
            }
            Step::Remove(at) => {
                if let Some((path, _)) = self.model.file(at) {
                    self.unlink(&path, Kind::File);
                }
            }
            Step::RemoveDirectory(at) => {
                let path = self.model.directory(at).to_owned();
                self.unlink(&path, Kind::Directory);
            }
            Step::Open(at) => {
                let Some((path, file)) = self.model.file(at) else {
                    return;
                };
                match self.store().open(&path) {
                    Ok(inode) => {
                        let opened = self.model.open.iter().find(|(_, other)| *other == file);
                        assert!(opened.is_none_or(|(other, _)| *other == inode));
                        self.model.open.push((inode, file));
                        self.model.files[file].open += 1;
                    }
                    Err(error) => assert!(is_fault(error), "{error:?}"),
                }
            }
            Step::Close(at) => {
                if let Some((index, inode, file)) = self.model.handle(at) {
                    self.store().close(inode).unwrap();
                    self.model.open.swap_remove(index);
                    self.model.files[file].open -= 1;
                    if self.model.files[file].open == 0 {
                        assert_eq!(self.store().size_pages(inode), Err(Error::NotOpen));
                    }
                }
            }
            Step::Write(at, count, before) => self.write(at, count, before),
            Step::Truncate(at, pages) => {
                if let Some((_, inode, file)) = self.model.handle(at) {
                    let marks = &self.model.files[file].marks;
                    let pages = pages as usize % (marks.len() + 2);
                    let fits = pages <= marks.len();
                    match self.store().truncate(inode, pages as u64) {
                        Ok(()) => self.model.files[file].marks.truncate(pages),
                        Err(Error::Beyond) => assert!(!fits),
                        Err(error) => assert!(is_fault(error), "{error:?}"),
                    }
                }
            }
            Step::Read(at) => {
                if let Some((_, inode, file)) = self.model.handle(at) {
                    let expected = &self.model.files[file].marks;
                    let mut marks = Vec::new();
                    let mut with = |page, frame| marks.push(self.w.mark(page, frame));
                    let all = 0..expected.len() as u64;
                    match self.store().read(inode, all, &mut with) {
                        Ok(()) => assert_eq!(&marks, expected),
                        Err(error) => {
                            assert!(is_fault(error), "{error:?}");
                            assert_eq!(marks, expected[..marks.len()]);
                        }
                    }
                }
            }
            Step::Lookup(at) => {
                if let Some((path, file)) = self.model.file(at) {
                    match self.store().lookup(&path) {
                        Ok((inode, kind)) => {
                            assert_eq!(kind, Kind::File);
                            let opened = self.model.open.iter().find(|(_, other)| *other == file);
                            assert!(opened.is_none_or(|(other, _)| *other == inode));
                        }
                        Err(error) => assert!(is_fault(error), "{error:?}"),
                    }
                }
            }
            Step::Missing(directory, name) => {
                let path = format!("{}/file-{name}", self.model.directory(directory));
                match self.store().lookup(&path) {
                    Ok(_) => assert!(self.model.exists(&path)),
                    Err(Error::NotFound) => assert!(!self.model.exists(&path)),
                    Err(error) => assert!(is_fault(error), "{error:?}"),
                }
            }
            Step::List(at) => self.list(self.model.directory(at)),
            Step::Sync(at) => {
                if let Some((_, inode, _)) = self.model.handle(at) {
                    let synced = self.store().sync(inode);
                    assert!(synced.is_ok() || is_fault(synced.unwrap_err()));
                }
            }
            Step::Remount => self.remount(),
            Step::Shrink(objects, who) => {
                let who = [Who::Direct, Who::Kswapd, Who::Operator][who as usize];
                let store = self.store();
                for shrinker in [
                    &store.inode_shrinker() as &dyn Shrinker,
                    &store.name_shrinker(),
                ] {
                    let before = shrinker.count();
                    let shrunk = shrinker.shrink(objects.into(), who);
                    assert!(shrunk.freed <= shrunk.scanned && shrunk.scanned <= objects.into());
                    assert_eq!(shrinker.count(), before - shrunk.freed);
                }
            }
            Step::Evict(nth) => self.w.pages.evict(nth.into()),
        }
    }

    fn check(&mut self) {
        self.w.pages.heal();
        let store = self.store();
        let audit = store.audit().unwrap();
        let model = &self.model;
        assert_eq!(audit.files, model.names.len() as u64);
        assert_eq!(audit.directories, model.directories.len() as u64);
        let removed = model
            .files
            .iter()
            .filter(|file| !file.named && file.open > 0);
        assert_eq!(audit.removed, removed.count() as u64);
        let usage = store.usage();
        assert_eq!(audit.lost_blocks, model.lost.0 + usage.lost_blocks);
        assert_eq!(audit.lost_inodes, model.lost.1 + usage.lost_inodes);
        let open = model.files.iter().filter(|file| file.open > 0);
        assert_eq!(usage.open_inodes, open.count() as u64);
        for (inode, file) in &model.open {
            let size = store.size_pages(*inode).unwrap();
            assert_eq!(size, model.files[*file].marks.len() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_store_is_a_tree_of_files(
        disk in 60usize..400,
        inodes in 10u32..80,
        relief in 0usize..3,
        steps in prop::collection::vec((step(), fault()), 1..120),
    ) {
        let w = world(2, disk);
        w.memory.relief.store(relief, Ordering::Relaxed);
        let mut disk_failed = false;
        let store = w.store(inodes);
        let mut run = Run { w, store: Some(store), model: Model::default() };
        run.model.directories.insert(String::new());
        for (step, fault) in steps {
            if let Some(pages) = fault.pages {
                run.w.pages.left.store(pages.into(), Ordering::Relaxed);
                disk_failed = true;
            }
            if let Some(frames) = fault.frames {
                run.w.source.left.store(frames.into(), Ordering::Relaxed);
            }
            run.step(step);
            run.check();
            if relief > 0 && !disk_failed {
                let usage = run.store().usage();
                prop_assert_eq!((usage.lost_blocks, usage.lost_inodes), (0, 0));
            }
        }
        // Everything is still there after a remount, and can be removed.
        run.remount();
        let paths: Vec<_> = run.model.names.clone().into_iter().collect();
        for (path, file) in paths {
            let inode = run.store().open(&path).unwrap();
            prop_assert_eq!(&run.marks(inode), &run.model.files[file].marks);
            run.store().close(inode).unwrap();
            run.store().remove(&path).unwrap();
        }
        for path in run.model.directories.iter().rev().filter(|path| !path.is_empty()) {
            run.store().remove_directory(path).unwrap();
        }
        let audit = run.store().audit().unwrap();
        prop_assert_eq!((audit.files, audit.directories), (0, 1));
        prop_assert_eq!((audit.lost_blocks, audit.lost_inodes), run.model.lost);
        run.store.take().unwrap().unmount().unwrap();
        run.w.check_frames();
    }
}
