//! The JSON report's file: checked before the run, written whole after it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// Where the report goes; it was checked that this can be written.
///
/// A regular file is written under another name and renamed at the end: if the run fails, an earlier report stays as it
/// was, and no reader sees half a report. Other files (a pipe, a terminal, `/dev/null`) are written directly.
#[derive(Debug)]
pub enum JsonFile {
    /// Standard output.
    Stdout,
    /// Something that is no regular file.
    Stream(File),
    /// A regular file, new or old.
    Regular {
        /// The file that is written first. It is made and removed once before the run, so that an interrupted run
        /// leaves none.
        draft: PathBuf,
        /// The name that the draft gets.
        place: PathBuf,
    },
}

impl JsonFile {
    /// Makes sure that `path` can be written to.
    ///
    /// # Errors
    ///
    /// A sentence that names the path.
    pub fn open(path: &Path) -> Result<Self, String> {
        let refused =
            |error: io::Error| format!("--json {}: cannot be written: {error}", path.display());
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(known) if known.is_dir() => {
                return Err(format!("--json {}: is a directory", path.display()));
            }
            Ok(known) => {
                let file = OpenOptions::new().write(true).open(path).map_err(refused)?;
                if !known.is_file() {
                    return Ok(Self::Stream(file));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
        let Some(name) = path.file_name() else {
            return Err(format!("--json {}: names no file", path.display()));
        };
        // A link stays: the file that it names is replaced, from a draft on the same file system.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(name);
        draft_name.push(format!(".{}", std::process::id()));
        let draft = place.with_file_name(draft_name);
        File::create(&draft)
            .and_then(|_| fs::remove_file(&draft))
            .map_err(refused)?;
        Ok(Self::Regular { draft, place })
    }

    /// Writes the report.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn write(&mut self, json: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(json.as_bytes())?;
                out.flush()
            }
            Self::Stream(file) => file.write_all(json.as_bytes()),
            Self::Regular { draft, place } => {
                let result = fs::write(&*draft, json).and_then(|()| fs::rename(&*draft, &*place));
                if result.is_err() {
                    // The first error is returned.
                    let _ = fs::remove_file(&*draft);
                }
                result
            }
        }
    }

    /// Writes a report, and ends its last line.
    ///
    /// # Errors
    ///
    /// The report could not be serialized or not be written.
    pub fn write_text(&mut self, json: serde_json::Result<String>) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::Run(format!("cannot write --json: {error}"));
        let mut text = json.map_err(|error| failed(&error))?;
        text.push('\n');
        self.write(&text).map_err(|error| failed(&error))
    }

    /// Whether this is standard output; then the table goes to standard error.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("dirigible-json-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_run_that_fails_leaves_the_old_report() {
        let folder = folder("keep");
        let path = folder.join("report.json");
        fs::write(&path, "old").unwrap();
        drop(JsonFile::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        JsonFile::open(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(&folder), ["report.json"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_run_that_fails_leaves_no_new_file() {
        let folder = folder("none");
        drop(JsonFile::open(&folder.join("report.json")).unwrap());
        assert_eq!(names(&folder), [""; 0]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn places_that_cannot_be_written() {
        let folder = folder("bad");
        let refusal = JsonFile::open(&folder).unwrap_err();
        assert!(refusal.ends_with("is a directory"), "{refusal}");
        let refusal = JsonFile::open(&folder.join("missing/report.json")).unwrap_err();
        assert!(refusal.contains("cannot be written"), "{refusal}");
        let refusal = JsonFile::open(Path::new("/proc/1/nothing")).unwrap_err();
        assert!(refusal.contains("cannot be written"), "{refusal}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn devices_are_written_to_directly() {
        JsonFile::open(Path::new("/dev/null"))
            .unwrap()
            .write("{}")
            .unwrap();
        assert!(fs::metadata("/dev/null").is_ok_and(|known| !known.is_file()));
    }
}
