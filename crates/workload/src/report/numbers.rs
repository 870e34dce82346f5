//! Numbers that print the same everywhere.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use dirigible_frames::Event;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

/// A number with `PLACES` decimal places, kept as an integer so that it prints the same everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Decimal<const PLACES: u32>(u64);

/// One decimal place: per cent, MiB.
pub type Tenths = Decimal<1>;
/// Four decimal places: small ratios, such as host messages per frame moved.
pub type TenThousandths = Decimal<4>;

impl<const PLACES: u32> Decimal<PLACES> {
    const SCALE: u64 = 10u64.pow(PLACES);

    /// `part / whole`, rounded to nearest, half up; 0 when `whole` is 0.
    pub const fn ratio(part: u64, whole: u64) -> Self {
        if whole == 0 {
            return Self(0);
        }
        let wide = (part as u128 * Self::SCALE as u128 * 2 + whole as u128) / (whole as u128 * 2);
        Self(if wide > u64::MAX as u128 {
            u64::MAX
        } else {
            wide as u64
        })
    }

    /// `100 * part / whole`, rounded to nearest; 0 when `whole` is 0.
    pub const fn percent(part: u64, whole: u64) -> Self {
        Self::ratio(part.saturating_mul(100), whole)
    }

    /// Frames of 4 KiB as MiB.
    pub const fn mib_of_frames(frames: u64) -> Self {
        Self::ratio(frames, 256)
    }

    /// The number as a float.
    pub fn value(self) -> f64 {
        self.0 as f64 / Self::SCALE as f64
    }

    /// The nearest number to `value`; negative and not-a-number give 0.
    pub fn from_value(value: f64) -> Self {
        // The cast truncates, saturates and maps NaN to 0.
        Self((value * Self::SCALE as f64 + 0.5) as u64)
    }
}

impl<const PLACES: u32> fmt::Display for Decimal<PLACES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if PLACES == 0 {
            return write!(f, "{}", self.0);
        }
        let (whole, fraction) = (self.0 / Self::SCALE, self.0 % Self::SCALE);
        write!(f, "{whole}.{fraction:0places$}", places = PLACES as usize)
    }
}

impl<const PLACES: u32> Serialize for Decimal<PLACES> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.value())
    }
}

impl<'de, const PLACES: u32> Deserialize<'de> for Decimal<PLACES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::from_value)
    }
}

/// vm events by name, in the order of `/proc/vmstat`; a JSON object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct VmStat(pub Vec<(String, u64)>);

impl VmStat {
    /// Events since `before`; both are snapshots of [`dirigible_frames::Events`].
    pub fn since(before: &[u64; Event::COUNT], now: &[u64; Event::COUNT]) -> Self {
        let named = |&event: &Event| {
            let index = event as usize;
            (
                event.name().to_string(),
                now[index].saturating_sub(before[index]),
            )
        };
        Self(Event::ALL.iter().map(named).collect())
    }

    /// The count of the event that is called `name`, 0 if there is none.
    pub fn get(&self, name: &str) -> u64 {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map_or(0, |&(_, count)| count)
    }
}

impl Serialize for VmStat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, count)| (name, count)))
    }
}

impl<'de> Deserialize<'de> for VmStat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = VmStat;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of event counts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VmStat, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(VmStat(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Median, 99th percentile and maximum of a set of times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them took no longer than this.
    pub median: u64,
    /// 99 of 100 took no longer than this.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Spread {
    /// The spread of `times`, which this sorts; all 0 when there are none.
    pub fn of(times: &mut [u64]) -> Self {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else {
            return Self::default();
        };
        Self {
            median: times[last / 2],
            p99: times[last * 99 / 100],
            max: times[last],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_round_half_up_and_print_all_places() {
        assert_eq!(Tenths::percent(1, 3).to_string(), "33.3");
        assert_eq!(Tenths::percent(2, 3).to_string(), "66.7");
        assert_eq!(Tenths::ratio(1, 20).to_string(), "0.1");
        assert_eq!(Tenths::percent(9, 8).to_string(), "112.5");
        assert_eq!(TenThousandths::ratio(2, 256).to_string(), "0.0078");
        assert_eq!(Tenths::ratio(5, 0).to_string(), "0.0");
    }

    #[test]
    fn decimals_survive_the_way_through_a_float() {
        for n in (0..100_000).chain([u64::from(u32::MAX), 1 << 40]) {
            let decimal = Decimal::<1>(n);
            assert_eq!(Decimal::<1>::from_value(decimal.value()), decimal);
        }
        assert_eq!(Tenths::from_value(f64::NAN), Tenths::default());
        assert_eq!(Tenths::from_value(-3.0), Tenths::default());
    }

    #[test]
    fn spread_of_few_and_none() {
        assert_eq!(Spread::of(&mut []), Spread::default());
        assert_eq!(
            Spread::of(&mut [7]),
            Spread {
                median: 7,
                p99: 7,
                max: 7
            }
        );
        let mut hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(
            Spread::of(&mut hundred),
            Spread {
                median: 50,
                p99: 99,
                max: 100
            }
        );
    }
}
