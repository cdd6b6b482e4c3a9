//! Whether a concurrent history could have happened one operation after another, each at some moment between its call
//! and its return.
//!
//! The search is the one of Wing and Gong (1993) with Lowe's memory of what was tried (2017): operations are put in
//! order one by one, and an order that leads to operations and a state that were reached before is not followed again.
//!
//! An operation whose outcome nobody knows may have happened at any later moment, or never. Many of them make many orders,
//! of which most need not be tried: one that nothing notices may as well be left out, and one that is noticed later may as
//! well happen later. So it is put in order only right before what could not happen without it, and of several that are
//! the same the one that was asked first. And what can happen now and changes nothing happens now: later it could at best
//! do the same.

use std::collections::{HashMap, HashSet};

/// What a client did to a register. Values are numbers; 0 is "nothing there".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Puts a value there, whatever was there before.
    Write(u64),
    /// Puts `to` there if `from` is there.
    Swap {
        /// What must be there.
        from: u64,
        /// What comes in its place.
        to: u64,
    },
    /// Takes away what is there; it is refused where nothing is.
    Delete,
    /// Looks.
    Read,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observed {
    /// It was done, or for [`Action::Swap`] and [`Action::Delete`], whether it was.
    Done(bool),
    /// What a read found.
    Value(u64),
    /// Nobody knows; it may have been done, or may be done later.
    Unknown,
}

/// One operation of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What was asked.
    pub action: Action,
    /// What came of it.
    pub observed: Observed,
    /// When it was asked, on a clock that all clients share.
    pub called: u64,
    /// When the answer came; for unknown outcomes it does not count.
    pub returned: u64,
}

impl Operation {
    fn is_unknown(&self) -> bool {
        self.observed == Observed::Unknown
    }

    /// Whether it leaves the register as it is, whatever that is.
    fn only_looks(&self) -> bool {
        self.action == Action::Read || self.observed == Observed::Done(false)
    }

    /// Whether this could not have happened without the operation right before it, whose outcome is unknown and which found
    /// the register like `before` and left it like `state`.
    fn needs(&self, before: u64, state: u64) -> bool {
        match (self.action, self.is_unknown()) {
            (Action::Swap { from, .. }, true) => from == state,
            (_, true) => false,
            (_, false) => self.apply(before).is_none(),
        }
    }

    /// The register afterwards, if this can happen to it.
    fn apply(&self, state: u64) -> Option<u64> {
        match (self.action, self.observed) {
            (Action::Write(value), Observed::Done(true) | Observed::Unknown) => Some(value),
            (Action::Swap { from, to }, Observed::Done(true)) => (state == from).then_some(to),
            (Action::Swap { from, .. }, Observed::Done(false)) => (state != from).then_some(state),
            (Action::Swap { from, to }, Observed::Unknown) => Some(if state == from { to } else { state }),
            (Action::Delete, Observed::Done(true)) => (state != 0).then_some(0),
            (Action::Delete, Observed::Done(false)) => (state == 0).then_some(0),
            (Action::Delete, Observed::Unknown) => Some(0),
            (Action::Read, Observed::Value(value)) => (state == value).then_some(state),
            (Action::Read, Observed::Unknown) => Some(state),
            (Action::Write(_), Observed::Done(false) | Observed::Value(_))
            | (Action::Swap { .. } | Action::Delete, Observed::Value(_))
            | (Action::Read, Observed::Done(_)) => None,
        }
    }
}

/// A history that no order explains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no order explains this history of one register:\n{0}")]
pub struct NotLinearizable(String);

/// One end of an operation, in the list of those that are not in order yet.
#[derive(Debug, Clone, Copy)]
struct End {
    operation: usize,
    /// Where its return stands in the list; `None` for a return itself, and for calls that never return.
    returns_at: Option<usize>,
    is_return: bool,
    previous: usize,
    next: usize,
}

/// Where the list begins and ends.
const HEAD: usize = 0;

/// Checks the history of one register that is empty at first.
///
/// # Errors
/// No order explains what was observed; the message shows the history.
pub fn check(history: &[Operation]) -> Result<(), NotLinearizable> {
    let mut ends = list(history);
    let twins = twins(history);
    let mut tried: HashSet<(Vec<u64>, State)> = HashSet::new();
    let mut placed = vec![0_u64; history.len().div_ceil(64)];
    let mut order: Vec<Step> = Vec::new();
    let mut state = State { value: 0, unnoticed: None };
    let mut returns = history.iter().filter(|operation| !operation.is_unknown()).count();
    let mut at = ends[HEAD].next;
    while returns > 0 {
        let end = ends[at];
        if at != HEAD && !end.is_return {
            let is_placed = |other: usize| placed[other / 64] & 1 << (other % 64) != 0;
            let next = state.after(&history[end.operation]).filter(|_| twins[end.operation].is_none_or(is_placed));
            placed[end.operation / 64] |= 1 << (end.operation % 64);
            if let Some(next) = next
                && tried.insert((placed.clone(), next))
            {
                order.push(Step { at, before: state, is_free: history[end.operation].only_looks() });
                state = next;
                returns -= usize::from(end.returns_at.is_some());
                lift(&mut ends, at);
                at = ends[HEAD].next;
            } else {
                placed[end.operation / 64] &= !(1 << (end.operation % 64));
                at = end.next;
            }
            continue;
        }
        // An operation has returned that nothing so far explains: the last choice was wrong.
        loop {
            let Some(Step { at: last, before, is_free }) = order.pop() else {
                return Err(NotLinearizable(describe(history)));
            };
            state = before;
            let operation = ends[last].operation;
            placed[operation / 64] &= !(1 << (operation % 64));
            returns += usize::from(ends[last].returns_at.is_some());
            unlift(&mut ends, last);
            at = ends[last].next;
            if !is_free {
                break;
            }
        }
    }
    Ok(())
}

/// How the operations that are in order leave the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    value: u64,
    /// What was there before the last one, if nobody knows the outcome of that and nothing has noticed it yet.
    unnoticed: Option<u64>,
}

impl State {
    /// The state after one more operation, if it can come next and need come nowhere else.
    fn after(self, operation: &Operation) -> Option<State> {
        let value = operation.apply(self.value)?;
        let idle = operation.is_unknown() && value == self.value;
        let in_vain = self.unnoticed.is_some_and(|before| !operation.needs(before, self.value));
        let unnoticed = Some(self.value).filter(|_| operation.is_unknown());
        (!idle && !in_vain).then_some(State { value, unnoticed })
    }
}

/// An operation that was put in order.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Where its call stands in the list.
    at: usize,
    before: State,
    /// Whether it only looks, so that no order without it here is better.
    is_free: bool,
}

/// For each operation whose outcome is unknown, the one before it that asked for the same, if nobody knows its outcome
/// either.
fn twins(history: &[Operation]) -> Vec<Option<usize>> {
    let mut unknown: Vec<usize> = (0..history.len()).filter(|index| history[*index].is_unknown()).collect();
    unknown.sort_by_key(|index| (history[*index].called, *index));
    let mut twins = vec![None; history.len()];
    let mut last = HashMap::new();
    for index in unknown {
        twins[index] = last.insert(history[index].action, index);
    }
    twins
}

/// Calls and returns in the order of time, as a list that operations can be taken out of and put back into.
fn list(history: &[Operation]) -> Vec<End> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in history.iter().enumerate() {
        moments.push((operation.called, false, index));
        if !operation.is_unknown() {
            moments.push((operation.returned, true, index));
        }
    }
    // Of equal moments calls come first: what touches may overlap.
    moments.sort_unstable();
    let count = moments.len();
    let blank =
        End { operation: usize::MAX, returns_at: None, is_return: true, previous: count, next: 1 % (count + 1) };
    let mut ends = vec![blank];
    let mut called_at = vec![HEAD; history.len()];
    for (index, (_, is_return, operation)) in moments.into_iter().enumerate() {
        let place = index + 1;
        if is_return {
            ends[called_at[operation]].returns_at = Some(place);
        } else {
            called_at[operation] = place;
        }
        ends.push(End { operation, returns_at: None, is_return, previous: index, next: (place + 1) % (count + 1) });
    }
    ends
}

fn unlink(ends: &mut [End], at: usize) {
    let End { previous, next, .. } = ends[at];
    ends[previous].next = next;
    ends[next].previous = previous;
}

fn relink(ends: &mut [End], at: usize) {
    let End { previous, next, .. } = ends[at];
    ends[previous].next = at;
    ends[next].previous = at;
}

fn lift(ends: &mut [End], at: usize) {
    unlink(ends, at);
    if let Some(returns_at) = ends[at].returns_at {
        unlink(ends, returns_at);
    }
}

fn unlift(ends: &mut [End], at: usize) {
    if let Some(returns_at) = ends[at].returns_at {
        relink(ends, returns_at);
    }
    relink(ends, at);
}

fn describe(history: &[Operation]) -> String {
    let mut sorted: Vec<&Operation> = history.iter().collect();
    sorted.sort_by_key(|operation| operation.called);
    let line = |operation: &&Operation| {
        let Operation { action, observed, called, returned } = operation;
        let end = if *observed == Observed::Unknown { "never".to_owned() } else { returned.to_string() };
        format!("  {called:>12} to {end:>12}: {action:?} -> {observed:?}")
    };
    sorted.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(called: u64, returned: u64, action: Action, observed: Observed) -> Operation {
        Operation { action, observed, called, returned }
    }

    fn write(called: u64, returned: u64, value: u64) -> Operation {
        operation(called, returned, Action::Write(value), Observed::Done(true))
    }

    fn read(called: u64, returned: u64, value: u64) -> Operation {
        operation(called, returned, Action::Read, Observed::Value(value))
    }

    #[test]
    fn what_happens_in_order_is_linearizable() {
        assert!(check(&[]).is_ok());
        assert!(check(&[read(0, 1, 0), write(2, 3, 7), read(4, 5, 7), write(6, 7, 8), read(8, 9, 8)]).is_ok());
    }

    #[test]
    fn overlapping_operations_may_go_either_way() {
        assert!(check(&[write(0, 10, 1), write(0, 10, 2), read(11, 12, 1), read(13, 14, 1)]).is_ok());
        assert!(check(&[write(0, 10, 1), read(1, 2, 1), read(3, 4, 1)]).is_ok());
    }

    #[test]
    fn a_stale_read_is_not() {
        assert!(check(&[write(0, 1, 7), read(2, 3, 0)]).is_err());
        assert!(check(&[write(0, 1, 7), write(2, 3, 8), read(4, 5, 7)]).is_err());
        // Once the new value was seen, the old one is gone, though the write has not returned.
        assert!(check(&[write(0, 100, 7), read(1, 2, 7), read(3, 4, 0)]).is_err());
        assert!(check(&[write(0, 10, 1), write(0, 10, 2), read(11, 12, 1), read(13, 14, 2)]).is_err());
    }

    #[test]
    fn an_unknown_outcome_happens_late_or_never() {
        let unknown = operation(0, 0, Action::Write(7), Observed::Unknown);
        assert!(check(&[unknown, read(1, 2, 0), read(3, 4, 7)]).is_ok());
        assert!(check(&[unknown, read(1, 2, 0)]).is_ok());
        assert!(check(&[unknown, read(1, 2, 7), read(3, 4, 0)]).is_err());
        assert!(check(&[read(1, 2, 7), operation(3, 0, Action::Write(7), Observed::Unknown)]).is_err());
    }

    #[test]
    fn swaps_and_deletions_are_told_apart_by_their_outcome() {
        let swap = |at, from, to, done| operation(at, at + 1, Action::Swap { from, to }, Observed::Done(done));
        let delete = |at, done| operation(at, at + 1, Action::Delete, Observed::Done(done));
        assert!(check(&[write(0, 1, 1), swap(2, 1, 2, true), read(4, 5, 2)]).is_ok());
        assert!(check(&[write(0, 1, 1), swap(2, 1, 2, false)]).is_err());
        assert!(check(&[write(0, 1, 1), delete(2, true), delete(4, false), read(6, 7, 0)]).is_ok());
        assert!(check(&[delete(0, true)]).is_err());
        // The same swap cannot succeed twice.
        assert!(check(&[write(0, 1, 1), swap(2, 1, 2, true), swap(4, 1, 2, true)]).is_err());
    }

    #[test]
    fn many_unknown_outcomes_make_few_orders() {
        let unknown = |called, action| operation(called, 0, action, Observed::Unknown);
        let mut history = Vec::new();
        for n in 1..=200 {
            let at = 10 * n;
            history.extend([write(at, at + 1, n), unknown(at + 2, Action::Delete), read(at + 4, at + 5, 0)]);
            history.extend([unknown(at + 6, Action::Write(1_000 + n)), unknown(at + 7, Action::Delete)]);
        }
        assert!(check(&history).is_ok());
        history.push(read(2_011, 2_012, 1));
        assert!(check(&history).is_err(), "every order is tried in vain");
    }

    /// Against the definition itself: every order of small random histories.
    #[test]
    fn agrees_with_trying_every_order() {
        let mut random = 1_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let (mut right, mut wrong) = (0, 0);
        for _ in 0..20_000 {
            let history: Vec<Operation> = (0..6)
                .map(|_| {
                    let called = below(12);
                    let (action, observed) = match below(10) {
                        0 | 1 => (Action::Write(1 + below(2)), Observed::Done(true)),
                        2 => (Action::Write(1 + below(2)), Observed::Unknown),
                        3 => (Action::Swap { from: below(3), to: 1 + below(2) }, Observed::Done(below(2) == 0)),
                        4 => (Action::Swap { from: below(3), to: 1 + below(2) }, Observed::Unknown),
                        5 => (Action::Delete, Observed::Done(below(2) == 0)),
                        6 => (Action::Delete, Observed::Unknown),
                        _ => (Action::Read, Observed::Value(below(3))),
                    };
                    operation(called, called + 1 + below(6), action, observed)
                })
                .collect();
            let expected = brute(&history, &mut vec![false; history.len()], 0);
            assert_eq!(check(&history).is_ok(), expected, "{}", describe(&history));
            if expected { right += 1 } else { wrong += 1 }
        }
        assert!(right > 500 && wrong > 500, "{right} and {wrong}");
    }

    fn brute(history: &[Operation], done: &mut Vec<bool>, state: u64) -> bool {
        let open = |index: usize, done: &[bool]| !done[index] && history[index].observed != Observed::Unknown;
        if !(0..history.len()).any(|index| open(index, done)) {
            return true;
        }
        for index in (0..history.len()).filter(|index| !done[*index]).collect::<Vec<_>>() {
            // Nothing that returned before this was called may come after it.
            let late = (0..history.len())
                .any(|other| other != index && open(other, done) && history[other].returned < history[index].called);
            if late {
                continue;
            }
            if let Some(next) = history[index].apply(state) {
                done[index] = true;
                if brute(history, done, next) {
                    return true;
                }
                done[index] = false;
            }
        }
        false
    }
}
