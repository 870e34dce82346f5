//! Names, and entries of directories.

use core::fmt;

use crate::{
    error::Error,
    geometry::Geometry,
    record::{InodeId, Kind},
};

/// The most bytes of a name.
pub const NAME_BYTES: usize = 55;
/// Words that hold a name.
pub(crate) const NAME_WORDS: usize = 7;
/// Words of an entry of a directory: inode, length, kind and part of the hash in the first one, then the name.
pub(crate) const ENTRY_WORDS: usize = 1 + NAME_WORDS;
/// Entries in a page.
pub(crate) const ENTRIES: usize = 64;

const LEN_SHIFT: u32 = 32;
const KIND_SHIFT: u32 = 38;
const HASH_SHIFT: u32 = 40;

/// A name, packed into words; bytes after its end are 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub words: [u64; NAME_WORDS],
    pub len: usize,
}

impl Name {
    /// The name `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > NAME_BYTES {
            return Err(Error::NameTooLong);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Error::BadName);
        }
        let mut words = [0; NAME_WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(padded);
        }
        Ok(Self {
            words,
            len: bytes.len(),
        })
    }

    /// Its words that are not all padding.
    pub fn used(&self) -> &[u64] {
        &self.words[..self.len.div_ceil(8)]
    }

    /// A number for it, the same on the disk for ever.
    pub fn hash(&self) -> u32 {
        let mixed = self.used().iter().fold(self.len as u64, |hash, &word| {
            let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ mixed >> 29
        });
        (mixed >> 32) as u32
    }

    /// The first word of its entry for an inode.
    pub fn head(&self, inode: InodeId, kind: Kind) -> u64 {
        u64::from(inode.get())
            | (self.len as u64) << LEN_SHIFT
            | (kind as u64) << KIND_SHIFT
            | u64::from(self.hash()) << HASH_SHIFT
    }

    /// Whether an entry with this first word may be the name's.
    pub fn may_be(&self, head: u64) -> bool {
        let hash = u64::from(self.hash()) << HASH_SHIFT;
        head != 0 && head >> HASH_SHIFT == hash >> HASH_SHIFT
    }
}

/// An entry of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub(crate) name: Name,
    bytes: [u8; NAME_WORDS * 8],
    /// The inode that it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: Kind,
}

impl Entry {
    /// The name.
    pub fn name(&self) -> &[u8] {
        &self.bytes[..self.name.len]
    }

    /// The entry in words of a directory that come from a disk; `None` if they hold none.
    pub(crate) fn from_words(
        words: &[u64; ENTRY_WORDS],
        geometry: &Geometry,
    ) -> Result<Option<Self>, Error> {
        let [head, name @ ..] = *words;
        if head == 0 {
            return Ok(None);
        }
        let damaged = |what| Error::Damaged { what };
        let inode = InodeId::new(head as u32);
        if !geometry.has_inode(inode) || inode == InodeId::ROOT {
            return Err(damaged("an entry of a directory names no inode"));
        }
        let kind = Kind::from_bits(head >> KIND_SHIFT & 3);
        let kind = kind.ok_or(damaged("an entry of a directory has no known kind"))?;
        let len = (head >> LEN_SHIFT & 63) as usize;
        let mut bytes = [0; NAME_WORDS * 8];
        for (chunk, word) in bytes.chunks_mut(8).zip(name) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let expected = bytes.get(..len).and_then(|bytes| Name::new(bytes).ok());
        let expected = expected.ok_or(damaged("an entry of a directory has no name"))?;
        if expected.words != name || !expected.may_be(head) {
            return Err(damaged("an entry of a directory has another name's hash"));
        }
        Ok(Some(Self {
            name: expected,
            bytes,
            inode,
            kind,
        }))
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().escape_ascii();
        write!(f, "{name} -> {:?} ({:?})", self.inode, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_and_each_changed_bit_is_harmless() {
        let geometry = Geometry::new(1000, 500).unwrap();
        let name = Name::new(b"a-name-of-some-length.txt").unwrap();
        let mut words = [0; ENTRY_WORDS];
        words[0] = name.head(InodeId::new(77), Kind::File);
        words[1..].copy_from_slice(&name.words);
        let entry = Entry::from_words(&words, &geometry).unwrap().unwrap();
        assert_eq!(entry.name(), b"a-name-of-some-length.txt");
        assert_eq!((entry.inode.get(), entry.kind), (77, Kind::File));
        for word in 0..ENTRY_WORDS {
            for bit in 0..64 {
                let mut flipped = words;
                flipped[word] ^= 1 << bit;
                if let Ok(Some(entry)) = Entry::from_words(&flipped, &geometry) {
                    assert!(geometry.has_inode(entry.inode));
                    assert!(word == 0, "the name changed: {entry:?}");
                }
            }
        }
    }

    #[test]
    fn names_that_cannot_be() {
        assert_eq!(Name::new(&[b'x'; 56]).err(), Some(Error::NameTooLong));
        assert!(Name::new(&[b'x'; 55]).is_ok());
        for bad in [&b""[..], b".", b"..", b"a/b"] {
            assert_eq!(Name::new(bad).err(), Some(Error::BadName));
        }
    }
}
