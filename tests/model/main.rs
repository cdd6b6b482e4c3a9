//! The shipped core under a model checker: every order of events in small scenes.
//!
//! Each scene is run to its end, breadth first, so that what is found is found in the fewest steps. The sizes are
//! printed (`cargo test --test model -- --nocapture`). `D3B_MODELS_LONG=1` runs the larger scenes too.

mod world;

use std::collections::BTreeSet;
use std::time::Instant;

use d3b::ReplicaId;
use d3b_paxos::Planted;
use stateright::{Checker, Model, Property};

use world::{Happening, Scene, World};

struct Group(Scene);

impl Model for Group {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.0)]
    }

    fn actions(&self, world: &World, happenings: &mut Vec<Happening>) {
        world.happenings(&self.0, happenings);
    }

    fn next_state(&self, world: &World, happening: Happening) -> Option<World> {
        world.after(&self.0, happening)
    }

    fn properties(&self) -> Vec<Property<Group>> {
        vec![
            Property::always("nothing forbidden", |_, world: &World| world.violation.is_none()),
            // What a scene is for must come to pass in it, or it proves nothing.
            Property::sometimes("every proposal's value can be chosen", |group: &Group, world: &World| {
                group.0.proposals == 0 || world.chose_a_command()
            }),
            Property::sometimes("every read can be answered", |group: &Group, world: &World| {
                world.answered >= group.0.reads
            }),
            Property::sometimes("every candidate can campaign", |group: &Group, world: &World| {
                world.campaigned() >= usize::from(group.0.campaigns).min(group.0.candidates.len())
            }),
        ]
    }
}

fn only(ids: &[u32]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

/// Explores the whole scene and demands that nothing forbidden can happen in it.
#[track_caller]
fn check(name: &str, scene: Scene) {
    let began = Instant::now();
    let checker = Group(scene).checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}, {:.1?}", checker.unique_state_count(), checker.max_depth(), began.elapsed());
    checker.assert_properties();
}

/// Explores a scene with a bug planted and demands that it is found.
#[track_caller]
fn check_planted(planted: Planted, scene: Scene) {
    let began = Instant::now();
    let scene = Scene { planted: Some(planted), ..scene };
    let checker = Group(scene).checker().threads(2).target_state_count(20_000_000).spawn_bfs().join();
    let path = checker.discovery("nothing forbidden").unwrap_or_else(|| panic!("{planted:?} was not found"));
    let steps = path.into_states();
    let violation = steps.last().and_then(|world| world.violation).unwrap_or_default();
    println!(
        "{planted:?}: \"{violation}\" after {} steps, {} states, {:.1?}",
        steps.len() - 1,
        checker.unique_state_count(),
        began.elapsed()
    );
}

fn long() -> bool {
    std::env::var_os("D3B_MODELS_LONG").is_some()
}

#[test]
fn two_campaigns_with_two_values() {
    check("two campaigns, two values", Scene { campaigns: 2, proposals: 2, candidates: only(&[1, 2]), ..Scene::of(3) });
}

#[test]
fn three_campaigns_with_one_value() {
    check("three campaigns, one value", Scene { campaigns: 3, proposals: 1, ..Scene::of(3) });
}

#[test]
fn a_crash_in_the_middle() {
    check("a crash", Scene { campaigns: 2, proposals: 1, crashes: 1, candidates: only(&[1, 2]), ..Scene::of(3) });
}

#[test]
fn reads_while_leaders_change() {
    check(
        "reads",
        Scene { campaigns: 2, proposals: 1, reads: 1, heartbeats: 1, candidates: only(&[1, 2]), ..Scene::of(3) },
    );
}
