//! Reproducible random numbers, one stream for each source of load.
//!
//! A stream belongs to one actor, so the draws of one actor do not depend on those of another. All columns therefore
//! see the same requests, even where they serve them differently.

/// The source of load that draws from a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The phase of the balloon's schedule.
    Schedule,
    /// The program of the load with this key.
    Program(u64),
}

impl Source {
    const fn number(self) -> u64 {
        match self {
            Self::Schedule => 0x500_0000,
            Self::Program(key) => key,
        }
    }
}

/// Spreads the bits of `value`: the finalizer of `splitmix64`.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A stream of random numbers: xoshiro256++, seeded through splitmix64.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `source` under `seed`.
    pub fn stream(seed: u64, source: Source) -> Self {
        let mut at = mix(seed) ^ mix(source.number().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut state = [0; 4];
        for word in &mut state {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mix(at);
        }
        // From the state of all zeroes the generator yields only zeroes.
        state[0] |= 1;
        Self { state }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`; 0 if `bound` is 0. The bias of the multiplication is below 2^-32 for the bounds used
    /// here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.bits() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from `low` to `high`, both inclusive.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True with probability `times` / `of`.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_and_source_and_repeat() {
        let first = |seed, source| {
            let mut rng = Rng::stream(seed, source);
            [rng.bits(), rng.bits(), rng.bits()]
        };
        assert_eq!(first(1, Source::Program(0)), first(1, Source::Program(0)));
        assert_ne!(first(1, Source::Program(0)), first(1, Source::Program(1)));
        assert_ne!(first(1, Source::Program(0)), first(2, Source::Program(0)));
        assert_ne!(first(0, Source::Program(4)), first(0, Source::Schedule));
    }

    #[test]
    fn numbers_stay_in_range_and_reach_both_ends() {
        let mut rng = Rng::stream(7, Source::Program(4));
        let mut seen = [0u32; 5];
        for _ in 0..10_000 {
            seen[rng.range(3, 7) as usize - 3] += 1;
        }
        assert!(
            seen.iter().all(|&n| (1_800..2_200).contains(&n)),
            "{seen:?}"
        );
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.range(5, 5), 5);
    }
}
