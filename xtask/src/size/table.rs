//! The report on the functions of a kernel.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{names::CRATES, symbols::Function};

/// Code of one crate.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Share {
    /// All bytes.
    pub bytes: u64,
    /// Bytes in a kernel that uses each generic type with one size: of functions that differ only in sizes, the largest
    /// counts.
    pub one_size: u64,
    /// The number of functions.
    pub functions: usize,
}

/// The copies of a generic function.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Copies {
    /// The number of copies.
    pub count: usize,
    /// The size of all of them.
    pub bytes: u64,
}

/// The size of each of [`CRATES`].
pub fn shares(functions: &[Function]) -> [Share; CRATES.len()] {
    let mut shares = [Share::default(); CRATES.len()];
    // Functions with the same name are copies from several crates, which every kernel has.
    let mut alike = BTreeMap::<_, BTreeMap<_, u64>>::new();
    for function in functions {
        let Some(owner) = function.name.owner else {
            continue;
        };
        shares[owner].bytes += function.bytes;
        shares[owner].functions += 1;
        let sizes = alike.entry((owner, &function.name.sizeless)).or_default();
        *sizes.entry(&function.demangled).or_default() += function.bytes;
    }
    for ((owner, _), sizes) in alike {
        shares[owner].one_size += sizes.into_values().max().unwrap_or(0);
    }
    shares
}

/// The sum of `shares`.
pub fn sum(shares: &[Share]) -> Share {
    shares.iter().fold(Share::default(), |sum, share| Share {
        bytes: sum.bytes + share.bytes,
        one_size: sum.one_size + share.one_size,
        functions: sum.functions + share.functions,
    })
}

/// The `count` largest functions of [`CRATES`].
pub fn largest(functions: &[Function], count: usize) -> Vec<&Function> {
    let mut ours: Vec<_> = ours(functions).collect();
    ours.sort_by(|a, b| (b.bytes, &a.demangled).cmp(&(a.bytes, &b.demangled)));
    ours.truncate(count);
    ours
}

/// The `count` functions of [`CRATES`] that exist in most copies, by their names without type arguments.
pub fn copies(functions: &[Function], count: usize) -> Vec<(&str, Copies)> {
    let mut found = BTreeMap::<&str, Copies>::new();
    for function in ours(functions) {
        let copies = found.entry(&function.name.plain).or_default();
        copies.count += 1;
        copies.bytes += function.bytes;
    }
    let mut found: Vec<_> = found
        .into_iter()
        .filter(|(_, copies)| copies.count > 1)
        .collect();
    // The map is sorted by name, and this sort is stable.
    found.sort_by_key(|(_, copies)| std::cmp::Reverse((copies.count, copies.bytes)));
    found.truncate(count);
    found
}

fn ours(functions: &[Function]) -> impl Iterator<Item = &Function> {
    functions
        .iter()
        .filter(|function| function.name.owner.is_some())
}

/// The report as text.
pub fn text(functions: &[Function], [aim, limit]: [u64; 2], count: usize) -> String {
    let shares = shares(functions);
    let mut text = format!(
        "{:<12}{:>12}{:>12}{:>12}\n",
        "bytes of text", "all", "one size", "functions"
    );
    let mut line = |name: &str, share: &Share| {
        let Share {
            bytes,
            one_size,
            functions,
        } = share;
        text += &format!("{name:<13}{bytes:>12}{one_size:>12}{functions:>12}\n");
    };
    for (name, share) in CRATES.iter().zip(&shares) {
        line(name, share);
    }
    line("together", &sum(&shares));
    text += &format!("{:<13}{:>12}{aim:>12}\n", "aim", "");
    text += &format!("{:<13}{:>12}{limit:>12}\n", "limit", "");
    if count == 0 {
        return text;
    }
    text += "\nlargest functions\n";
    for function in largest(functions, count) {
        text += &format!("{:>8}  {}\n", function.bytes, function.demangled);
    }
    text += "\nfunctions in most copies: copies, bytes together\n";
    for (name, Copies { count, bytes }) in copies(functions, count) {
        text += &format!("{count:>4}{bytes:>8}  {name}\n");
    }
    text
}

/// The report as JSON.
pub fn json(functions: &[Function], [aim, limit]: [u64; 2], count: usize) -> Value {
    let value = |share: &Share| json!({"bytes": share.bytes, "one_size": share.one_size, "functions": share.functions});
    let shares = shares(functions);
    let crates: serde_json::Map<_, _> = CRATES
        .iter()
        .zip(&shares)
        .map(|(name, share)| (name.to_string(), value(share)))
        .collect();
    let mut all =
        json!({"crates": crates, "together": value(&sum(&shares)), "aim": aim, "limit": limit});
    if count > 0 {
        all["largest"] = largest(functions, count)
            .iter()
            .map(|function| json!({"name": function.demangled, "bytes": function.bytes}))
            .collect();
        all["copies"] = copies(functions, count)
            .iter()
            .map(|(name, copies)| json!({"name": name, "copies": copies.count, "bytes": copies.bytes}))
            .collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::names::Name;

    fn kernel() -> Vec<Function> {
        let function = |bytes, name: &str| Function {
            demangled: name.to_string(),
            name: Name::of(name),
            bytes,
        };
        vec![
            function(100, "dirigible_frames::alloc"),
            function(30, "dirigible_frames::with::<dirigible_guest::a>"),
            function(20, "dirigible_frames::with::<dirigible_guest::b>"),
            function(
                70,
                "<dirigible_balloon::Balloon<dirigible_guest::Machine, 256>>::step",
            ),
            function(
                80,
                "<dirigible_balloon::Balloon<dirigible_guest::Machine, 4096>>::step",
            ),
            function(1000, "dirigible_guest::run"),
        ]
    }

    #[test]
    fn shares_add_up() {
        let shares = shares(&kernel());
        let share = |bytes, one_size, functions| Share {
            bytes,
            one_size,
            functions,
        };
        assert_eq!(
            shares,
            [share(150, 150, 3), share(0, 0, 0), share(150, 80, 2)]
        );
        assert_eq!(sum(&shares), share(300, 230, 5));
    }

    #[test]
    fn the_largest_and_the_most_copied_are_ours() {
        let kernel = kernel();
        let names: Vec<_> = largest(&kernel, 2)
            .iter()
            .map(|function| function.bytes)
            .collect();
        assert_eq!(names, [100, 80]);
        let two = |bytes| Copies { count: 2, bytes };
        assert_eq!(
            copies(&kernel, 5),
            [
                ("<dirigible_balloon::Balloon>::step", two(150)),
                ("dirigible_frames::with", two(50))
            ]
        );
    }

    #[test]
    fn programs_get_the_same() {
        let kernel = kernel();
        let value = json(&kernel, [110, 120], 1);
        assert_eq!(value["together"]["one_size"], 230);
        assert_eq!(value["crates"]["balloon"]["bytes"], 150);
        assert_eq!(value["largest"][0]["name"], "dirigible_frames::alloc");
        assert_eq!(value["copies"][0]["copies"], 2);
        assert_eq!(json(&kernel, [110, 120], 0).get("largest"), None);
    }
}
