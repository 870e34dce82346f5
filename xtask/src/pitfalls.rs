//! `docs/pitfalls.md` maps known pitfalls to tests; a name in it that no test has would be an empty promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::step::root;

/// Demands that each test named in the table exists and each test named `pitfall_…` stands in it.
///
/// # Errors
///
/// Lists what is missing on either side.
pub fn check(print: bool) -> Result<(), String> {
    let table = root().join("docs/pitfalls.md");
    let text = fs::read_to_string(&table)
        .map_err(|error| format!("cannot read {}: {error}", table.display()))?;
    let named = names(&text, "`", "`");
    let existing = existing()?;
    let missing: Vec<&str> = named
        .iter()
        .filter(|name| name.starts_with("pitfall_") && !existing.contains_key(*name))
        .map(String::as_str)
        .collect();
    let forgotten: Vec<String> = existing
        .iter()
        .filter(|(name, _)| !named.contains(*name))
        .map(|(name, path)| format!("{name} ({})", path.display()))
        .collect();
    if print {
        for (name, path) in &existing {
            println!("{name} {}", path.display());
        }
    }
    match (missing.is_empty(), forgotten.is_empty()) {
        (true, true) => {
            println!(
                "{} tests of pitfalls, all in docs/pitfalls.md",
                existing.len()
            );
            Ok(())
        }
        _ => Err(format!(
            "docs/pitfalls.md names tests that do not exist: [{}]; and does not name: [{}]",
            missing.join(", "),
            forgotten.join(", ")
        )),
    }
}

/// Names of all test functions that begin with `pitfall_`, with their files.
fn existing() -> Result<BTreeMap<String, PathBuf>, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("crates"), root().join("xtask")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                let short = path
                    .strip_prefix(root())
                    .map_or(path.as_path(), |short| short);
                remember(&mut found, &source, short);
            }
        }
    }
    Ok(found)
}

fn remember(found: &mut BTreeMap<String, PathBuf>, source: &str, path: &Path) {
    for name in names(source, "fn ", "(") {
        if name.starts_with("pitfall_") {
            found.insert(name, path.to_path_buf());
        }
    }
}

/// The identifiers in `text` that stand right after `before` and right before `after`.
fn names(text: &str, before: &str, after: &str) -> BTreeSet<String> {
    let identifier = |(at, _): (usize, &str)| {
        let rest = &text[at + before.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        (end > 0 && rest[end..].starts_with(after)).then(|| rest[..end].to_string())
    };
    text.match_indices(before).filter_map(identifier).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_between_marks() {
        let source = "#[test]\nfn pitfall_01_a() {}\nfn  b() {} fn c<T>() {}";
        assert_eq!(
            names(source, "fn ", "("),
            BTreeSet::from(["pitfall_01_a".into()])
        );
        let table = "| 1 | text | `pitfall_01_a`, `pitfall_02_b` |";
        assert!(names(table, "`", "`").contains("pitfall_02_b"));
    }
}
