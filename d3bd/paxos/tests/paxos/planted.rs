//! Each planted bug is found by the random schedules: so the checks can fail.

use d3b_paxos::Planted;

use crate::random::run;
use crate::world::World;

#[test]
fn every_planted_bug_is_found() {
    for planted in Planted::ALL {
        let found = (0..4_000).find_map(|seed| {
            let mut world = World::new(3, seed);
            world.planted = Some(planted);
            let wipes = planted == Planted::WipedDiskVotes;
            run(&mut world, 800, wipes).err().map(|violation| (seed, violation))
        });
        let (seed, violation) = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        println!("{planted:?}: seed {seed}: {violation:?}");
    }
}
