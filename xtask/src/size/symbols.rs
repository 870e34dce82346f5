//! The functions of a kernel.

use std::{collections::BTreeMap, path::Path};

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use super::names::Name;

/// The section that is measured.
const TEXT: &str = ".text";

/// A function in the text of a kernel.
pub struct Function {
    /// The name with all type arguments.
    pub demangled: String,
    /// The parsed name.
    pub name: Name,
    /// The size of its code.
    pub bytes: u64,
}

/// The functions in the text of the kernel at `path`. Identical functions that the compiler or linker has merged count
/// once.
///
/// # Errors
///
/// The kernel cannot be read, or has no symbols.
pub fn functions(path: &Path) -> Result<Vec<Function>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let file = std::fs::read(path).map_err(|error| wrong(&error))?;
    let elf = object::File::parse(&*file).map_err(|error| wrong(&error))?;
    let text = elf
        .section_by_name(TEXT)
        .ok_or_else(|| wrong(&"it has no text"))?
        .index();
    let mut symbols = BTreeMap::<u64, (&str, u64)>::new();
    for symbol in elf.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.section_index() != Some(text) {
            continue;
        }
        let found = (symbol.name().map_err(|error| wrong(&error))?, symbol.size());
        // Of several names for an address the smallest is used, so that the same kernel always gives the same table.
        let first = symbols.entry(symbol.address()).or_insert(found);
        *first = found.min(*first);
    }
    if symbols.is_empty() {
        return Err(wrong(&"it has no symbols: was it stripped?"));
    }
    let function = |(symbol, bytes)| {
        let demangled = format!("{:#}", rustc_demangle::demangle(symbol));
        Function {
            name: Name::of(&demangled),
            demangled,
            bytes,
        }
    };
    Ok(symbols.into_values().map(function).collect())
}
