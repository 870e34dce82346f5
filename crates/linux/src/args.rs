//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Loads this machine as stress-highalloc does: source trees are made, copied and compiled, again and again, by
/// processes that fill memory and files with patterns and compare them.
///
/// Files are made in a new directory, which is deleted at the end. The status is 1 when something was found wrong,
/// and when programs failed because the file system was full or files could not be read or written.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the directory for the files is made. All trees need about 60 % of the memory's size.
    #[arg(long, value_name = "PATH", required_unless_present = "task")]
    pub directory: Option<PathBuf>,
    /// How long the load runs.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub seconds: u64,
    /// The memory that the load is made for, such as 4G; that of this machine, if nothing is said.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// The seed of everything that is drawn.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Divides all times of the load.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub speed: u64,
    /// Prints what was done as JSON.
    #[arg(long)]
    pub json: bool,
    /// What a process that this command begins is to do.
    #[arg(long, hide = true, value_name = "JSON")]
    pub task: Option<String>,
}

/// A number of bytes, with a suffix K, M, G or T.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((end, 'K')) => (&text[..end], 10),
        Some((end, 'M')) => (&text[..end], 20),
        Some((end, 'G')) => (&text[..end], 30),
        Some((end, 'T')) => (&text[..end], 40),
        _ => (text, 0),
    };
    let number: Option<u64> = match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse().ok(),
        false => None,
    };
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "write a whole number and K, M, G or T, such as 4G".into())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("4G"), Ok(4 << 30));
        for wrong in ["", "G", "-1", "+1", "4g", "4GB", "99999999999T", "1.5G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
