//! Checks `docs/calls.md`, which says of each public call whether interrupt handlers may make it, what it waits for and
//! whom it calls. A call that is missing there would have no documented rules.
//!
//! Each of the types below has a section there, with a table whose first column names its calls.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::step::root;

/// The crates, and the types and traits whose calls the document lists.
const TYPES: [(&str, &[&str]); 11] = [
    (
        "frames",
        &[
            "FrameAllocator",
            "Events",
            "AccessSection",
            "Platform",
            "FrameContents",
            "PageTables",
            "Interrupts",
            "PageSource",
            "Reclaim",
        ],
    ),
    ("mobility", &["Mobility", "MovableOwner"]),
    (
        "balloon",
        &[
            "Balloon",
            "VirtioBalloon",
            "BalloonDriver",
            "Books",
            "FrameSource",
        ],
    ),
    (
        "paging",
        &[
            "Paging",
            "SwapSpace",
            "SlowPath",
            "OutOfMemoryNotifier",
            "StallObserver",
            "MoveObserver",
        ],
    ),
    ("disk", &["BlockDevice", "VirtioDisk"]),
    ("slab", &["SlabCache"]),
    (
        "reclaim",
        &[
            "Generations",
            "Reclaimer",
            "Kswapd",
            "Evictable",
            "Shrinker",
        ],
    ),
    (
        "pagecache",
        &["PageCache", "BlockPages", "Flusher", "MoveObserver"],
    ),
    ("swap", &["Swap"]),
    ("files", &["FileStore"]),
    ("dirigible", &["BootPlan", "MemoryManager", "Daemon"]),
];

/// Checks that the tables name all public calls and no others.
///
/// # Errors
///
/// The differences.
pub fn check() -> Result<(), String> {
    let text = read(&root().join("docs/calls.md"))?;
    let (mut count, mut wrong) = (0, String::new());
    for (name, types) in TYPES {
        let mut sources = String::new();
        for path in files(&root().join("crates").join(name).join("src"))? {
            sources += &read(&path)?;
            sources += "\n";
        }
        for of in types {
            let (there, named) = (calls(&sources, of), named(&text, of));
            count += there.len();
            if there.is_empty() {
                wrong += &format!("  {name} has no {of}\n");
            }
            for call in there.difference(&named) {
                wrong += &format!("  {of}::{call} is not named\n");
            }
            for call in named.difference(&there) {
                wrong += &format!("  {of}::{call} is named and does not exist\n");
            }
        }
    }
    if wrong.is_empty() {
        println!("{count} public calls, all in docs/calls.md");
        return Ok(());
    }
    Err(format!(
        "docs/calls.md does not name the present calls:\n{wrong}"
    ))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The source files in a folder and its subfolders.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut found = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The public methods of a type, or all methods of a public trait. It reads lines, and relies on the format of rustfmt.
fn calls(source: &str, of: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut public = None;
    let mut head = String::new();
    for line in source.lines() {
        if line.starts_with("impl") || line.starts_with("pub trait ") {
            head.clear();
        }
        if line.starts_with("impl") || line.starts_with("pub trait ") || !head.is_empty() {
            // The head of an `impl` may span several lines.
            head += line;
            head += " ";
            if line.ends_with('{') || line.ends_with('}') {
                public = (subject(&head) == of).then_some(if head.starts_with("impl") {
                    "pub "
                } else {
                    ""
                });
                head.clear();
            }
        } else if line.starts_with('}') {
            public = None;
        } else if let (Some(public), Some(line)) = (public, line.strip_prefix("    ")) {
            found.extend(line.strip_prefix(public).and_then(function));
        }
    }
    found
}

/// The name of the type of an inherent `impl`, or of a `trait`; empty for the implementation of a trait.
fn subject(head: &str) -> &str {
    let rest = match head.strip_prefix("impl") {
        Some(rest) => after_generics(rest).trim_start(),
        None => head.trim_start_matches("pub trait "),
    };
    let name = rest
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .next()
        .unwrap_or_default();
    let tail = after_generics(&rest[name.len()..]).trim_start();
    if head.starts_with("impl") && tail.starts_with("for ") {
        return "";
    }
    name
}

/// The rest of `text` after a list in angle brackets at its beginning, if there is one.
fn after_generics(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if !text[..at].ends_with('-') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return if at == 0 { text } else { &text[at + 1..] };
        }
    }
    text
}

/// The name of the function that a line without visibility declares.
fn function(line: &str) -> Option<String> {
    let qualified = ["const ", "unsafe ", "async "]
        .iter()
        .fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
    let name: String = qualified
        .strip_prefix("fn ")?
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    Some(name)
}

/// The names in the first column of the tables in the section of a type.
fn named(text: &str, of: &str) -> BTreeSet<String> {
    let head = format!("## `{of}`");
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('#') {
            inside = line.trim_start_matches("##").trim_start_matches('#') == &head[2..];
        } else if inside && let Some(row) = line.strip_prefix("| `") {
            let cell = row.split(" | ").next().unwrap_or_default();
            let names = cell.split('`').step_by(2);
            found.extend(names.filter(|name| !name.is_empty()).map(str::to_string));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
impl<'a, B: Books<Item = u8> + ?Sized> Balloon<'a, B>
where
    B: Fn() -> u8,
{
    /// Words: pub fn in_words()
    pub fn grow(&mut self) {
        pub fn inner() {}
    }
    pub(crate) fn hidden(&self) {}
    pub const fn size(&self) -> u64 {
    }
    fn own() {}
}
impl Owner for Balloon<'_> {
    fn isolate(&self) {}
}
impl Other {
    pub fn other() {}
}
pub trait Books: Sync {
    fn list(&self) {
    }
    fn take(&self);
}
pub fn free() {}
";

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn public_calls_are_found_by_their_type() {
        assert_eq!(calls(SOURCE, "Balloon"), set(&["grow", "size"]));
        assert_eq!(calls(SOURCE, "Books"), set(&["list", "take"]));
        assert_eq!(calls(SOURCE, "Owner"), set(&[]));
    }

    #[test]
    fn names_stand_in_the_first_column_of_the_types_section() {
        let text = "## `Balloon`\n\n| call | why |\n|---|---|\n| `grow`, `size` | `other` |\n\n\
                    ### `Books`\n\n| `list` | a |\n";
        assert_eq!(named(text, "Balloon"), set(&["grow", "size"]));
        assert_eq!(named(text, "Books"), set(&["list"]));
        assert_eq!(named(text, "Owner"), set(&[]));
    }
}
