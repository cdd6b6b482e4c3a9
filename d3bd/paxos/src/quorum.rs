//! What a majority has in common.

/// The highest value that at least `majority` of the values have reached; `None` if there are fewer values.
///
/// It counts the commit (over the ends of runs), the majority's clock, the round that confirms reads, and the moment
/// when a majority was last heard from.
pub(crate) fn reached<T: Ord + Copy>(values: impl IntoIterator<Item = T>, majority: usize) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable_by(|left, right| right.cmp(left));
    values.get(majority.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[u64], majority: usize, expected: Option<u64>) {
        assert_eq!(reached(values.iter().copied(), majority), expected);
    }

    #[test]
    fn a_majority_reaches_what_its_slowest_member_reaches() {
        check(&[7], 1, Some(7));
        check(&[1, 9, 5], 2, Some(5));
        check(&[4, 4, 0], 2, Some(4));
        check(&[1, 2, 3, 4, 5], 3, Some(3));
        check(&[9, 9], 3, None);
        check(&[], 1, None);
    }
}
