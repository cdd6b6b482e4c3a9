//! Each planted bug is found by the random schedules: so the checks can fail.

use d3b_paxos::Planted;

use crate::random::run;
use crate::world::World;

/// Runs schedules with the bug until one shows it.
#[track_caller]
fn check_found(planted: Planted, checks_messages: bool, seeds: u64) {
    let found = (0..seeds).find_map(|seed| {
        let mut world = World::new(3, seed);
        world.planted = Some(planted);
        world.checks_messages = checks_messages;
        let wipes = planted == Planted::WipedDiskVotes;
        run(&mut world, 800, wipes).err().map(|violation| (seed, violation))
    });
    let (seed, violation) = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
    println!("{planted:?}: seed {seed}: {violation:?}");
}

/// All that three replicas can show. The other one takes five, of which a leader and one more are cut off: the simulator
/// finds it.
fn of_three() -> impl Iterator<Item = Planted> {
    Planted::ALL.into_iter().filter(|planted| *planted != Planted::QuestionConfirmsAlone)
}

#[test]
fn every_planted_bug_is_found() {
    for planted in of_three() {
        check_found(planted, true, 1_000);
    }
}

#[test]
fn every_planted_bug_shows_in_what_is_chosen_applied_or_read() {
    for planted in of_three() {
        check_found(planted, false, 10_000);
    }
}
