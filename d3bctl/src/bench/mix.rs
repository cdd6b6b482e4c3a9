//! What kinds of operations there are, and how often each comes.

use std::fmt;
use std::str::FromStr;

use super::work::Kind;

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// One row, without a key.
    Insert,
    /// One row under an idempotency key, sent again if need be.
    KeyedInsert,
    /// Several rows in one atomic operation.
    Batch,
    /// One row by its key, changed.
    Update,
    /// One row by its key, linearizable.
    Read,
    /// One row by its key, as the replica has it.
    StaleRead,
    /// One file.
    MediaPut,
    /// One file, fetched.
    MediaGet,
}

impl Sort {
    /// All of them, in the order in which they are told.
    pub const ALL: [Sort; 8] = [
        Sort::Insert,
        Sort::KeyedInsert,
        Sort::Batch,
        Sort::Update,
        Sort::Read,
        Sort::StaleRead,
        Sort::MediaPut,
        Sort::MediaGet,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Sort::Insert => "insert",
            Sort::KeyedInsert => "keyed-insert",
            Sort::Batch => "batch",
            Sort::Update => "update",
            Sort::Read => "read",
            Sort::StaleRead => "stale-read",
            Sort::MediaPut => "media-put",
            Sort::MediaGet => "media-get",
        }
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn writes(self) -> bool {
        match self {
            Sort::Insert | Sort::KeyedInsert | Sort::Batch | Sort::Update | Sort::MediaPut => true,
            Sort::Read | Sort::StaleRead | Sort::MediaGet => false,
        }
    }
}

/// Kinds of operations with their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// Never empty, each kind at most once, no weight zero.
    parts: Vec<(Sort, u32)>,
    total: u32,
}

impl Mix {
    /// Whether it has a kind.
    #[must_use]
    pub fn has(&self, sort: Sort) -> bool {
        self.parts.iter().any(|(part, _)| *part == sort)
    }

    /// Its kinds, in order.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        self.parts.iter().map(|(sort, _)| Kind { name: sort.name(), writes: sort.writes() }).collect()
    }

    /// One of its kinds, by a number that was drawn at random; with its index.
    #[must_use]
    pub fn choose(&self, random: u64) -> (usize, Sort) {
        let mut left = random % u64::from(self.total);
        for (index, (sort, weight)) in self.parts.iter().enumerate() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return (index, *sort),
            }
        }
        unreachable!("the weights add up to the total")
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (sort, weight)) in self.parts.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            f.write_str(sort.name())?;
            if self.parts.len() > 1 {
                write!(f, "={weight}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut parts: Vec<(Sort, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let sort = Sort::ALL.into_iter().find(|sort| sort.name() == name).ok_or_else(|| {
                let names: Vec<&str> = Sort::ALL.iter().map(|sort| sort.name()).collect();
                format!("{name:?} is none of {}", names.join(", "))
            })?;
            let weight = weight.parse().ok().filter(|weight| (1..=1_000_000).contains(weight));
            let weight = weight.ok_or_else(|| format!("{part}: a weight is a number from 1 to 1,000,000"))?;
            if parts.iter().any(|(other, _)| *other == sort) {
                return Err(format!("{name} stands there twice"));
            }
            parts.push((sort, weight));
        }
        let total = parts.iter().map(|(_, weight)| weight).sum();
        Ok(Mix { parts, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_read_and_written() {
        for text in ["insert", "insert=1,read=9", "media-put=2,media-get=1,stale-read=7"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        assert_eq!("read,insert".parse::<Mix>().unwrap().to_string(), "read=1,insert=1");
        for text in ["", "insert=0", "insert,insert", "select", "insert=x", "insert,"] {
            assert!(text.parse::<Mix>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_kind_comes_as_often_as_its_weight_says() {
        let mix: Mix = "insert=1,read=9".parse().unwrap();
        let inserts = (0..1_000).filter(|random| mix.choose(*random) == (0, Sort::Insert)).count();
        assert_eq!(inserts, 100);
        assert!(mix.has(Sort::Read) && !mix.has(Sort::Update));
    }
}
