//! Choices from a seed.

/// One sequence of choices for each seed.
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let mut dice = Dice { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        // Small seeds differ in few bits, which the first numbers would show.
        for _ in 0..4 {
            dice.below(2);
        }
        dice
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn one_of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len() as u64) as usize]
    }

    /// One of several things, where there are any.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { Some(&all[self.below(all.len() as u64) as usize]) }
    }

    /// Between one and so many of several texts, each at most once, in their order.
    pub fn some<'a>(&mut self, all: &[&'a str], most: u64) -> Vec<&'a str> {
        let mut wanted = (1 + self.below(most)).min(all.len() as u64);
        let mut chosen = Vec::new();
        for (index, text) in all.iter().enumerate() {
            let left = (all.len() - index) as u64;
            if wanted > 0 && self.below(left) < wanted {
                chosen.push(*text);
                wanted -= 1;
            }
        }
        chosen
    }
}
