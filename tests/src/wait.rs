//! Waiting on conditions: the only place in the tests that lets time pass.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Long enough for everything that is not meant to take long, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at a condition until it holds.
///
/// # Panics
/// When it does not hold in time; `what` says what did not come to pass.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Looks for something until it is there.
///
/// # Panics
/// When it is not there in time; `what` says what did not come to pass.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        // Looked at once more after the deadline, so that a pause of this process alone fails nothing.
        let late = Instant::now() >= deadline;
        if let Some(found) = look() {
            return found;
        }
        assert!(!late, "within {limit:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// What a client does before it asks again for what it was refused, so that it does not ask all the time.
pub fn back_off() {
    std::thread::sleep(LOOK);
}
