//! Sizes, durations, factors and seeds as flags have them: `4G`, `60s`, `0.7`, `1`.

use std::{fmt, str::FromStr};

/// A number of bytes, written with an optional suffix K, M, G or T (powers of 1,024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl Size {
    /// Bytes of one frame: sizes of guest memory are whole multiples of it.
    pub const FRAME: u64 = 4096;

    /// Whether the size is a whole number of frames.
    pub const fn is_whole_frames(self) -> bool {
        self.0.is_multiple_of(Self::FRAME)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a size: write a whole number and K, M, G or T, such as 4G");
        let trimmed = text
            .strip_suffix("iB")
            .or(text.strip_suffix('B'))
            .unwrap_or(text);
        let (digits, shift) = match trimmed.char_indices().next_back() {
            Some((end, 'K' | 'k')) => (&trimmed[..end], 10),
            Some((end, 'M' | 'm')) => (&trimmed[..end], 20),
            Some((end, 'G' | 'g')) => (&trimmed[..end], 30),
            Some((end, 'T' | 't')) => (&trimmed[..end], 40),
            _ => (trimmed, 0),
        };
        let number = whole_number(digits).ok_or_else(wrong)?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("'{text}' is larger than any memory"))
    }
}

/// Prints the largest unit that holds the size as a whole number.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A length of time, written with the unit ms, s, m or h.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Period {
    /// Milliseconds.
    pub ms: u64,
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a duration: write a whole number and ms, s, m or h, such as 60s"
            )
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number = whole_number(digits).ok_or_else(wrong)?;
        // Clocks count nanoseconds in 64 bits: sums of a few periods fit.
        number
            .checked_mul(factor)
            .filter(|&ms| ms <= 1000 * 60 * 60 * 24 * 365)
            .map(|ms| Self { ms })
            .ok_or_else(|| format!("'{text}' is longer than a year"))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ms {
            ms if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

/// A factor in thousandths, written as a decimal number such as `0.7` or `4`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Scale {
    /// Thousandths.
    pub thousandths: u32,
}

impl Scale {
    /// The largest factor: beyond it numbers of frames could overflow.
    const MAX: u32 = 100_000;
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a factor: write a number from 0.001 to 100, three decimals at most"
            )
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if fraction.len() > 3 {
            return Err(wrong());
        }
        let whole = whole_number(whole)
            .filter(|&whole| whole <= 100)
            .ok_or_else(wrong)?;
        let tens = 10u64.pow(3 - fraction.len() as u32);
        // At most 100,999.
        let thousandths = (whole * 1000 + whole_number(fraction).ok_or_else(wrong)? * tens) as u32;
        if thousandths == 0 || thousandths > Self::MAX {
            return Err(wrong());
        }
        Ok(Self { thousandths })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.thousandths / 1000, self.thousandths % 1000);
        match fraction {
            0 => write!(f, "{whole}"),
            _ => write!(
                f,
                "{whole}.{}",
                format!("{fraction:03}").trim_end_matches('0')
            ),
        }
    }
}

/// Parses a seed.
///
/// # Errors
///
/// A sentence that says what a seed is.
pub fn seed(text: &str) -> Result<u64, String> {
    whole_number(text).ok_or_else(|| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// Only digits: `str::parse` would also accept a leading plus.
fn whole_number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("256M", 256 << 20),
            ("256MiB", 256 << 20),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none() {
        for text in [
            "", "G", "4X", "-1", "+1", "4.5G", "4 G", "1e9", "0x10", "४K", "4GG", "K4",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        let huge = "99999999999T".parse::<Size>().unwrap_err();
        assert!(huge.contains("larger than any memory"), "{huge}");
        let long = "99999999999999999999".parse::<Size>().unwrap_err();
        assert!(long.contains("not a size"), "{long}");
    }

    #[test]
    fn sizes_print_as_they_are_written() {
        for text in ["4G", "256M", "12K", "4097", "0", "1T", "1025M"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn whole_frames() {
        assert!(Size(8192).is_whole_frames());
        assert!(!Size(8193).is_whole_frames());
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("60s", 60_000),
            ("250ms", 250),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(text.parse(), Ok(Period { ms }), "{text}");
        }
        for text in ["", "60", "s", "-1s", "1.5s", "60 s", "60d", "9999999999h"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!(Period { ms: 60_000 }.to_string(), "60s");
        assert_eq!(Period { ms: 1_500 }.to_string(), "1500ms");
    }

    #[test]
    fn scales_are_exact() {
        for (text, thousandths) in [
            ("1", 1000),
            ("0.7", 700),
            ("0.70", 700),
            ("4", 4000),
            ("1.125", 1125),
        ] {
            assert_eq!(text.parse(), Ok(Scale { thousandths }), "{text}");
        }
        for text in [
            "", ".", "0", "0.0", "-1", "1.", "1.2345", "101", "100.001", "1e3", "x",
        ] {
            assert!(text.parse::<Scale>().is_err(), "{text}");
        }
        assert_eq!(Scale { thousandths: 700 }.to_string(), "0.7");
        assert_eq!(Scale { thousandths: 4000 }.to_string(), "4");
    }
}
