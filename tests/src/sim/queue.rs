//! What is to happen, in the order of time; what is to happen at the same moment, in the order of coming in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::world::Happening;

/// The happenings lie still in places of their own; only their names move in the heap.
#[derive(Debug, Default)]
pub struct Queue {
    /// Time, number, place.
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    places: Vec<Option<Happening>>,
    free: Vec<usize>,
    number: u64,
}

impl Queue {
    /// Adds a happening.
    pub fn push(&mut self, time: u64, happening: Happening) {
        self.number += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(happening);
                place
            }
            None => {
                self.places.push(Some(happening));
                self.places.len() - 1
            }
        };
        self.order.push(Reverse((time, self.number, place)));
    }

    /// Takes the next happening, if its time is not after `end`.
    pub fn pop_until(&mut self, end: u64) -> Option<(u64, Happening)> {
        let Reverse((time, _, place)) = *self.order.peek()?;
        if time > end {
            return None;
        }
        self.order.pop();
        self.free.push(place);
        Some((time, self.places[place].take()?))
    }
}
