//! When the attempts of a pass were made, and which got a huge page: compact enough for the report.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Attempts in the order in which they were made, as runs of equal ones.
///
/// As text, and so in the report: a word for each run, `D+N` or `D-N`: `N` attempts that got a huge page (`+`) or did
/// not (`-`), each begun `D` milliseconds after the one before, the first `D` after the pass. `0+1 125+11 125-3` are
/// 15 attempts, one each 125 ms, of which the last three failed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Attempts {
    runs: Vec<Run>,
    /// When the last attempt began, in milliseconds of the pass.
    last_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    after_ms: u64,
    got: bool,
    attempts: u64,
}

/// One attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// When it began, in milliseconds since the pass began.
    pub at_ms: u64,
    /// Whether it got a huge page.
    pub got: bool,
}

impl Attempts {
    /// Adds an attempt that began `at_ms` milliseconds after the pass; one that is earlier than the last counts as
    /// simultaneous.
    pub fn push(&mut self, at_ms: u64, got: bool) {
        let after_ms = at_ms.saturating_sub(self.last_ms);
        self.last_ms += after_ms;
        match self.runs.last_mut() {
            Some(run) if run.after_ms == after_ms && run.got == got => run.attempts += 1,
            _ => self.runs.push(Run {
                after_ms,
                got,
                attempts: 1,
            }),
        }
    }

    /// The attempts in order.
    pub fn iter(&self) -> impl Iterator<Item = Attempt> + '_ {
        let each = |run: &Run| core::iter::repeat_n(*run, run.attempts as usize);
        self.runs.iter().flat_map(each).scan(0u64, |at_ms, run| {
            *at_ms = at_ms.saturating_add(run.after_ms);
            Some(Attempt {
                at_ms: *at_ms,
                got: run.got,
            })
        })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.attempts).sum()
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs.iter().enumerate() {
            let between = if index == 0 { "" } else { " " };
            let sign = if run.got { '+' } else { '-' };
            write!(f, "{between}{}{sign}{}", run.after_ms, run.attempts)?;
        }
        Ok(())
    }
}

/// More attempts than this in one pass are a damaged report.
const MOST: u64 = 1 << 24;

impl FromStr for Attempts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut attempts = Self::default();
        let mut count = 0u64;
        for word in text.split_ascii_whitespace() {
            let run = of_word(word).ok_or_else(|| format!("{word:?} is no run of attempts"))?;
            count = count.saturating_add(run.attempts);
            if count > MOST {
                return Err(format!("more than {MOST} attempts"));
            }
            let length = run.after_ms.saturating_mul(run.attempts);
            attempts.last_ms = attempts.last_ms.saturating_add(length);
            attempts.runs.push(run);
        }
        Ok(attempts)
    }
}

fn of_word(word: &str) -> Option<Run> {
    let sign = word.find(['+', '-'])?;
    let number = |digits: &str| {
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        whole.then(|| digits.parse::<u64>().ok()).flatten()
    };
    Some(Run {
        after_ms: number(&word[..sign])?,
        got: word.as_bytes()[sign] == b'+',
        attempts: number(&word[sign + 1..]).filter(|&attempts| attempts > 0)?,
    })
}

impl Serialize for Attempts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Attempts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(u64, bool)]) -> Attempts {
        let mut attempts = Attempts::default();
        list.iter().for_each(|&(at, got)| attempts.push(at, got));
        attempts
    }

    #[test]
    fn runs_of_equal_attempts_are_one_word() {
        let paper: Vec<_> = (0..15).map(|k| (k * 125, k < 12)).collect();
        assert_eq!(of(&paper).to_string(), "0+1 125+11 125-3");
        // Two writes of a pool, each with several attempts at one time.
        let pool = [(0, true), (0, true), (0, true), (20, true), (20, false)];
        assert_eq!(of(&pool).to_string(), "0+3 20+1 0-1");
        assert_eq!(Attempts::default().to_string(), "");
    }

    #[test]
    fn the_text_says_all() {
        for list in [
            &[][..],
            &[(7, false)],
            &[
                (0, true),
                (125, true),
                (260, false),
                (260, true),
                (900, true),
            ],
        ] {
            let attempts = of(list);
            let json = serde_json::to_string(&attempts).unwrap();
            let read: Attempts = serde_json::from_str(&json).unwrap();
            assert_eq!(read, attempts);
            let back: Vec<_> = read.iter().map(|one| (one.at_ms, one.got)).collect();
            assert_eq!(back, list);
            assert_eq!(read.count(), list.len() as u64);
        }
    }

    #[test]
    fn a_damaged_text_is_refused() {
        for text in [
            "5",
            "+",
            "5+",
            "+5",
            "5+0",
            "x+1",
            "5*1",
            "5+-1",
            "0+99999999999",
            "٣+1",
        ] {
            assert!(text.parse::<Attempts>().is_err(), "{text}");
        }
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(of(&[(100, true), (90, true)]).to_string(), "100+1 0+1");
    }
}
