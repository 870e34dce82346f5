//! Printing on standard output.

use std::io::{self, Write};

use crate::failure::Failure;

/// Prints `text` and ends the line. A closed pipe (`| head`) is no error.
///
/// # Errors
///
/// Standard output cannot be written to.
pub fn line(text: &str) -> Result<(), Failure> {
    whole(&format!("{text}\n"), false)
}

/// Prints `text` as it is: on standard error if `to_stderr`, because standard output is used for JSON.
///
/// # Errors
///
/// As for [`line()`].
pub fn whole(text: &str, to_stderr: bool) -> Result<(), Failure> {
    let result = match to_stderr {
        true => io::stderr().lock().write_all(text.as_bytes()),
        false => {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}
