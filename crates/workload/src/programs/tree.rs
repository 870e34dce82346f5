//! Source trees: what is where, how large, with which contents. All of it follows from the plan.
//!
//! Tree `n` is the directory `/tn`. It has directories `d0`, `d1`, … with sources `s0.c`, `s1.c`, …, beside which their
//! objects `s0.o`, … come to be, and a directory `include` with headers `h0.h`, `h1.h`, …. What is linked is called
//! `image0`, `image1`, ….

use core::{
    fmt::{self, Write},
    ops::Deref,
};

use arrayvec::ArrayString;

use super::LoadPlan;
use crate::rng::mix;

/// Pages of the largest source or header.
pub const LARGEST: u64 = 64;
/// Pages of the largest object.
const LARGEST_OBJECT: u64 = 3;

/// A path. What this module names always fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path(ArrayString<64>);

impl Path {
    /// A path from its parts, cut off where it is too long.
    pub fn new(parts: fmt::Arguments<'_>) -> Self {
        let mut path = ArrayString::new();
        // The longest here is "/t4294967295/d4294967295/s4294967295.c".
        let _ = path.write_fmt(parts);
        Self(path)
    }
}

impl Deref for Path {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A file of a tree, as it is when it is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Where it is.
    pub path: Path,
    /// What its contents follow from.
    pub key: u64,
    /// Its pages.
    pub pages: u64,
}

/// A tree of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'p> {
    plan: &'p LoadPlan,
    number: u32,
}

impl<'p> Tree<'p> {
    /// Tree `number`; 0 is the primary one.
    pub fn new(plan: &'p LoadPlan, number: u32) -> Self {
        Self { plan, number }
    }

    /// The tree's own directory.
    pub fn root(&self) -> Path {
        Path::new(format_args!("/t{}", self.number))
    }

    /// Directory `unit` with sources.
    pub fn directory(&self, unit: u32) -> Path {
        Path::new(format_args!("/t{}/d{unit}", self.number))
    }

    /// The directory of the headers.
    pub fn include(&self) -> Path {
        Path::new(format_args!("/t{}/include", self.number))
    }

    /// All directories below the tree's own.
    pub fn directories(self) -> impl Iterator<Item = Path> + 'p {
        let units = (0..self.plan.tree.directories).map(move |unit| self.directory(unit));
        core::iter::once(self.include()).chain(units)
    }

    /// A source.
    pub fn source(&self, unit: u32, number: u32) -> Planned {
        let path = Path::new(format_args!("/t{}/d{unit}/s{number}.c", self.number));
        self.planned(path, size(self.draw(1, unit, number)), 0)
    }

    /// A header.
    pub fn header(&self, number: u32) -> Planned {
        let path = Path::new(format_args!("/t{}/include/h{number}.h", self.number));
        self.planned(path, size(self.draw(2, 0, number)), 0)
    }

    /// The object of a source, as compiled in `round`.
    pub fn object(&self, unit: u32, number: u32, round: u32) -> Planned {
        let path = Path::new(format_args!("/t{}/d{unit}/s{number}.o", self.number));
        let pages = 1 + self.draw(3, unit, number) % LARGEST_OBJECT;
        self.planned(path, pages, round)
    }

    /// What is linked of a part.
    pub fn image(&self, part: u32, round: u32) -> Planned {
        let path = Path::new(format_args!("/t{}/image{part}", self.number));
        self.planned(path, self.plan.link.image, round)
    }

    /// The sources of a directory.
    pub fn sources(self, unit: u32) -> impl Iterator<Item = Planned> + 'p {
        (0..self.plan.tree.sources).map(move |number| self.source(unit, number))
    }

    /// The headers.
    pub fn headers(self) -> impl Iterator<Item = Planned> + 'p {
        (0..self.plan.tree.headers).map(move |number| self.header(number))
    }

    /// The objects of a directory.
    pub fn objects(self, unit: u32, round: u32) -> impl Iterator<Item = Planned> + 'p {
        (0..self.plan.tree.sources).map(move |number| self.object(unit, number, round))
    }

    /// Headers and sources, in the order in which they are made.
    pub fn files(self) -> impl Iterator<Item = Planned> + 'p {
        let units = 0..self.plan.tree.directories;
        self.headers()
            .chain(units.flat_map(move |unit| self.sources(unit)))
    }

    /// Pages of headers and sources: the same in all trees.
    pub fn pages(self) -> u64 {
        self.files().map(|file| file.pages).sum()
    }

    fn planned(&self, path: Path, pages: u64, round: u32) -> Planned {
        let key = key(self.plan.seed, &path, round);
        Planned { path, key, pages }
    }

    /// What the size of a file follows from: the same in all trees.
    fn draw(&self, kind: u64, unit: u32, number: u32) -> u64 {
        let place = u64::from(unit) << 32 | u64::from(number);
        mix(mix(self.plan.seed ^ kind << 56) ^ place)
    }
}

/// A size whose square root is drawn evenly: half of all files are below a quarter of the largest.
fn size(draw: u64) -> u64 {
    let root = draw & 0xffff;
    1 + ((LARGEST * root * root) >> 32)
}

/// What the contents of a file, or of what goes through a pipe, follow from.
pub fn key(seed: u64, name: &str, round: u32) -> u64 {
    let bytes = name.bytes();
    bytes.fold(mix(seed ^ u64::from(round) << 40), |key, byte| {
        mix(key ^ u64::from(byte))
    })
}
