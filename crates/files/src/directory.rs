//! Entries of a directory.

use core::ops::Range;

use dirigible_frames::FrameContents;

use crate::{
    entry::{ENTRIES, ENTRY_WORDS, Entry, Name},
    error::Error,
    held::Held,
    names::Target,
    record::{InodeId, Kind, Record},
    store::FileStore,
};

/// What a look through a directory gave.
pub(crate) struct Look {
    /// The name's entry.
    pub found: Option<Target>,
    /// The first place without an entry, if the name was not found.
    pub room: Option<(u64, usize)>,
}

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// Looks for a name in a directory that is locked, in memory and then on the disk. What it finds is kept in memory.
    pub(crate) fn look(&self, directory: &Held<'_, 'a, P>, name: &Name) -> Result<Look, Error> {
        if let Some(target) = self.names.find(directory.inode, name) {
            return Ok(Look {
                found: Some(target),
                room: None,
            });
        }
        let record = directory.directory()?;
        let mut look = Look {
            found: None,
            room: None,
        };
        self.for_each_run(directory.inode, &record, 0..record.size(), |first, run| {
            for block in run.clone() {
                let page = first + (block - run.start);
                self.look_at(block, page, run.end, name, &mut look)?;
                if look.found.is_some() {
                    break;
                }
            }
            Ok(())
        })?;
        if let Some(target) = look.found {
            self.names.keep(directory.inode, name, target);
        }
        Ok(look)
    }

    fn look_at(
        &self,
        block: u64,
        page: u64,
        run_end: u64,
        name: &Name,
        look: &mut Look,
    ) -> Result<(), Error> {
        if look.found.is_some() {
            return Ok(());
        }
        let mut words = [0; ENTRY_WORDS];
        let mut room = None;
        let found = self
            .disk
            .view(block, block + 1..run_end, |platform, frame| {
                for slot in 0..ENTRIES {
                    let head = platform.read_word(frame, slot * ENTRY_WORDS);
                    if head == 0 {
                        room.get_or_insert(slot);
                    } else if name.may_be(head) {
                        for (index, word) in words.iter_mut().enumerate() {
                            *word = platform.read_word(frame, slot * ENTRY_WORDS + index);
                        }
                        if words[1..] == name.words {
                            return Some(slot);
                        }
                    }
                }
                None
            })?;
        if look.room.is_none() {
            look.room = room.map(|slot| (page, slot));
        }
        if let Some(slot) = found {
            let entry = Entry::from_words(&words, &self.geometry)?.filter(|e| e.name == *name);
            let entry = entry.ok_or(Error::Damaged {
                what: "an entry of a directory has another length",
            })?;
            look.found = Some(Target {
                inode: entry.inode,
                kind: entry.kind,
                page,
                slot,
            });
        }
        Ok(())
    }

    /// Adds an entry to a directory that is locked alone and has no such name; `room` is what the look gave.
    pub(crate) fn add_entry(
        &self,
        directory: &Held<'_, 'a, P>,
        name: &Name,
        inode: InodeId,
        kind: Kind,
        room: Option<(u64, usize)>,
    ) -> Result<(), Error> {
        let record = directory.directory()?;
        let mut words = [0; ENTRY_WORDS];
        words[0] = name.head(inode, kind);
        words[1..].copy_from_slice(&name.words);
        let (page, slot) = match room {
            Some((page, slot)) => {
                let block = self.block_of(directory.inode, &record, page)?;
                self.disk.write_words(block, slot * ENTRY_WORDS, &words)?;
                (page, slot)
            }
            None => {
                self.add_page(directory, &record, &words)?;
                (record.size(), 0)
            }
        };
        let target = Target {
            inode,
            kind,
            page,
            slot,
        };
        self.names.keep(directory.inode, name, target);
        Ok(())
    }

    fn add_page(
        &self,
        directory: &Held<'_, 'a, P>,
        record: &Record,
        entry: &[u64; ENTRY_WORDS],
    ) -> Result<(), Error> {
        let growth = self.grow(directory.inode, record, 1)?;
        let mut larger = growth.record;
        larger.set_size(growth.pages);
        let added = self
            .block_of(directory.inode, &larger, record.size())
            .and_then(|block| {
                let word = |index: usize| entry.get(index).copied().unwrap_or(0);
                self.disk.write_block(block, word)
            })
            .and_then(|()| directory.set_record(&larger));
        if added.is_err() {
            self.abandon(directory.inode, record, &growth);
        }
        added
    }

    /// Removes the entry of a name that a look in this directory, which is locked alone, has found.
    pub(crate) fn remove_entry(
        &self,
        directory: &Held<'_, 'a, P>,
        name: &Name,
        target: &Target,
    ) -> Result<(), Error> {
        let record = directory.directory()?;
        let block = self.block_of(directory.inode, &record, target.page)?;
        let first = target.slot * ENTRY_WORDS;
        let head = name.head(target.inode, target.kind);
        let removed = self.disk.change(block, |platform, frame| {
            let is = platform.read_word(frame, first) == head;
            if is {
                for word in 0..ENTRY_WORDS {
                    platform.write_word(frame, first + word, 0);
                }
            }
            is
        })?;
        self.names.remove(directory.inode, name);
        match removed {
            true => Ok(()),
            false => Err(Error::Damaged {
                what: "an entry of a directory has changed",
            }),
        }
    }

    /// Calls `with` for each entry of a page of a directory that is in block `block`. A few at a time are copied.
    fn for_each_entry_in(
        &self,
        block: u64,
        ahead: Range<u64>,
        with: &mut dyn FnMut(&Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        const SOME: usize = 8;
        for first in (0..ENTRIES).step_by(SOME) {
            let mut words = [[0; ENTRY_WORDS]; SOME];
            self.disk.view(block, ahead.clone(), |platform, frame| {
                for (slot, entry) in words.iter_mut().enumerate() {
                    let place = (first + slot) * ENTRY_WORDS;
                    entry[0] = platform.read_word(frame, place);
                    if entry[0] != 0 {
                        for (word, value) in entry.iter_mut().enumerate() {
                            *value = platform.read_word(frame, place + word);
                        }
                    }
                }
            })?;
            for words in &words {
                if let Some(entry) = Entry::from_words(words, &self.geometry)? {
                    with(&entry)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `with` for each entry of a directory.
    pub(crate) fn for_each_entry(
        &self,
        inode: InodeId,
        record: &Record,
        with: &mut dyn FnMut(&Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.for_each_run(inode, record, 0..record.size(), |_, run| {
            for block in run.clone() {
                self.for_each_entry_in(block, block + 1..run.end, with)?;
            }
            Ok(())
        })
    }
}
