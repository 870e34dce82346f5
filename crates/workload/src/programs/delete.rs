//! Deletes a tree.

use alloc::{format, string::String, vec::Vec};

use super::{tree::Tree, work::Work};
use crate::calls::Failure;

/// Deletes tree `number` as `rm -r` does: what it finds there.
pub(super) fn run(work: &mut Work<'_>, number: u32) -> Result<(), Failure> {
    let root = Tree::new(work.plan, number).root();
    // Directories that are to go, each before what is in it.
    let mut directories = Vec::from([String::from(&*root)]);
    let mut index = 0;
    while let Some(directory) = directories.get(index).cloned() {
        for (name, is_directory) in entries(work, &directory)? {
            let path = format!("{directory}/{name}");
            match is_directory {
                true => directories.push(path),
                false => work.delete(&path)?,
            }
        }
        index += 1;
    }
    for directory in directories.iter().rev() {
        match work.again(|calls| calls.remove_directory(directory)) {
            Ok(()) | Err(Failure::NotFound) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// What is in a directory; nothing, if there is none.
fn entries(work: &mut Work<'_>, path: &str) -> Result<Vec<(String, bool)>, Failure> {
    let mut entries = Vec::new();
    let listed = work.again(|calls| {
        entries.clear();
        calls.list(path, &mut |name, is_directory| {
            entries.push((String::from(name), is_directory));
        })
    });
    match listed {
        Ok(()) | Err(Failure::NotFound) => Ok(entries),
        Err(failure) => Err(failure),
    }
}
