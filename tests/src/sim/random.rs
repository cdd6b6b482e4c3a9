//! Chance that a seed decides.

/// Small, quick, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Numbers of their own for one part of a run, so that a change in another part does not change them.
    #[must_use]
    pub fn fork(&mut self) -> Random {
        Random(self.word())
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        d3b::splitmix64(&mut self.0)
    }

    /// A number below a bound; 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Whether something happens that happens so many times in a thousand.
    pub fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1_000) < chance
    }

    /// Whether something happens that happens so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of several.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        assert!(!choices.is_empty(), "there is nothing to pick from");
        let index = usize::try_from(self.below(choices.len() as u64)).expect("an index of a slice");
        &choices[index]
    }

    /// A waiting time around a mean: mostly shorter, sometimes much longer.
    pub fn around(&mut self, mean: u64) -> u64 {
        match self.below(16) {
            0 => self.between(mean, 8 * mean),
            1..4 => self.between(mean, 3 * mean),
            _ => self.between(0, mean),
        }
    }
}
