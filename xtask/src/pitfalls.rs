//! Checks `docs/pitfalls.md`, which maps known pitfalls to the tests that cover them.
//!
//! The table has a row for each number NN of a test called `pitfall_NN_…`: the number, a description of the mistake,
//! and the tests with their files. Descriptions are written by hand, the tests by `cargo xtask pitfalls --write`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::step::root;

/// The placeholder for a description that is not written yet.
const UNDESCRIBED: &str = "(to be described)";

/// Checks that the table names all tests and no others, and describes each pitfall.
///
/// # Errors
///
/// The differences, and how to correct them.
pub fn check() -> Result<(), String> {
    let (text, tests) = (read(&table())?, existing()?);
    if text.contains(UNDESCRIBED) {
        return Err(format!("docs/pitfalls.md: a pitfall is {UNDESCRIBED}"));
    }
    let updated = update(&text, &tests);
    if text == updated {
        let count: usize = tests.values().map(Vec::len).sum();
        println!(
            "{count} tests of {} pitfalls, all in docs/pitfalls.md",
            tests.len()
        );
        return Ok(());
    }
    let differing = |from: &str, to: &str| {
        let lines: Vec<String> = to.lines().map(str::to_string).collect();
        let missing = from
            .lines()
            .filter(|line| !lines.iter().any(|known| known == line));
        missing
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    };
    Err(format!(
        "docs/pitfalls.md does not name the present tests (`cargo xtask pitfalls --write` corrects it); it has\n{}\
         and should have\n{}",
        differing(&text, &updated),
        differing(&updated, &text)
    ))
}

/// Writes the present tests into the table.
///
/// # Errors
///
/// A file that cannot be read or written.
pub fn write() -> Result<(), String> {
    let updated = update(&read(&table())?, &existing()?);
    fs::write(table(), &updated)
        .map_err(|error| format!("cannot write docs/pitfalls.md: {error}"))?;
    if updated.contains(UNDESCRIBED) {
        println!("docs/pitfalls.md: now replace each {UNDESCRIBED}");
    }
    Ok(())
}

fn table() -> PathBuf {
    root().join("docs/pitfalls.md")
}

/// The text with the rows of its table rebuilt; the descriptions and everything else stay.
fn update(text: &str, tests: &Tests) -> String {
    let mut descriptions = BTreeMap::new();
    let mut before = Vec::new();
    let mut after = Vec::new();
    for line in text.lines() {
        match row(line) {
            Some((number, description)) => {
                descriptions.insert(number, description.to_string());
            }
            None if descriptions.is_empty() => before.push(line.to_string()),
            None => after.push(line.to_string()),
        }
    }
    let rows = tests.iter().map(|(number, tests)| {
        let description = descriptions.get(number).map_or(UNDESCRIBED, String::as_str);
        let tests: Vec<String> = tests
            .iter()
            .map(|(name, path)| format!("`{name}` ({})", path.display()))
            .collect();
        format!("| {number} | {description} | {} |", tests.join("<br>"))
    });
    let lines: Vec<String> = before.into_iter().chain(rows).chain(after).collect();
    lines.join("\n") + "\n"
}

/// The number and the description of a row of the table.
fn row(line: &str) -> Option<(u32, &str)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    let number = cells.next()?.parse().ok()?;
    Some((number, cells.next()?))
}

/// Names of tests and their files, by number of pitfall.
type Tests = BTreeMap<u32, Vec<(String, PathBuf)>>;

/// All test functions called `pitfall_NN_…`.
fn existing() -> Result<Tests, String> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("crates")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut found = Tests::new();
    for path in files {
        let short = path.strip_prefix(root()).unwrap_or(&path);
        add_tests(&mut found, &read(&path)?, short);
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Adds the pitfall tests in `source`. A name may have several numbers: `pitfall_02_12_…` counts for both.
fn add_tests(found: &mut Tests, source: &str, path: &Path) {
    for (at, start) in source.match_indices("fn pitfall_") {
        let name: String = source[at + 3..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        if !source[at + 3 + name.len()..].starts_with('(') {
            continue;
        }
        let numbers = name[start.len() - 3..]
            .split('_')
            .map_while(|part| part.parse().ok());
        for number in numbers {
            found
                .entry(number)
                .or_default()
                .push((name.clone(), path.to_path_buf()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests(source: &str) -> Tests {
        let mut found = Tests::new();
        add_tests(&mut found, source, Path::new("a.rs"));
        found
    }

    #[test]
    fn tests_are_found_by_their_names() {
        let found = tests("fn pitfall_01_a() {}\nfn other() {} fn pitfall_02_12_of_two(x: u8) {}");
        let numbers: Vec<u32> = found.keys().copied().collect();
        assert_eq!(numbers, [1, 2, 12]);
        assert_eq!(
            found[&12],
            [("pitfall_02_12_of_two".to_string(), PathBuf::from("a.rs"))]
        );
    }

    #[test]
    fn the_table_keeps_its_descriptions_and_gets_its_tests() {
        let text = "# Head\n\n| no. | the mistake | test |\n|---|---|---|\n| 1 | words | `gone` (b.rs) |\n\nFoot\n";
        let updated = update(text, &tests("fn pitfall_01_a() {} fn pitfall_03_b() {}"));
        let expected = "# Head\n\n| no. | the mistake | test |\n|---|---|---|\n| 1 | words | `pitfall_01_a` (a.rs) |\n\
                        | 3 | (to be described) | `pitfall_03_b` (a.rs) |\n\nFoot\n";
        assert_eq!(updated, expected);
        assert_eq!(
            update(
                &updated,
                &tests("fn pitfall_01_a() {} fn pitfall_03_b() {}")
            ),
            updated
        );
    }
}
