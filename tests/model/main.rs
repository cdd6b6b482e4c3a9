//! The shipped core under a model checker: every order of events in small scenes.
//!
//! Each scene is run to its end. What it is for must come to pass in it, or it would prove nothing; and every bug that
//! can be planted in the core is found in one. The sizes are printed (`cargo test --test model -- --nocapture`).
//! `D3B_MODELS_LONG=1` runs larger scenes too.

mod disk;
mod scene;
mod world;

use std::collections::BTreeSet;
use std::time::Instant;

use d3b::ReplicaId;
use d3b_paxos::Planted;
use d3b_paxos::types::Change;
use stateright::{Checker, HasDiscoveries, Model, Property};

use scene::Scene;
use world::{Happening, Law, World};

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
        let laws = vec![
            Property::always("agreement", |_, world: &World| world.keeps(Law::Agreement)),
            Property::always("what was chosen stays chosen", |_, world: &World| world.keeps(Law::ChosenStays)),
            Property::always("nothing is sent before it is durable", |_, world: &World| world.keeps(Law::Durability)),
            Property::always("reads are linearizable", |_, world: &World| world.keeps(Law::Reads)),
            Property::always("no ballot is used twice", |_, world: &World| world.keeps(Law::Ballots)),
            Property::always("log time rises", |_, world: &World| world.keeps(Law::LogTime)),
            Property::always("configurations are adopted as chosen", |_, world: &World| {
                world.keeps(Law::Configurations)
            }),
        ];
        if self.0.planted.is_some() {
            return laws;
        }
        laws.into_iter().chain(self.purposes()).collect()
    }
}

impl Group {
    /// What must come to pass in the scene somewhere.
    fn purposes(&self) -> Vec<Property<Group>> {
        let Scene { campaigns, replicas, reads, crashes, ref changes, .. } = self.0;
        let mut purposes = vec![
            Property::sometimes("all values are chosen", |group: &Group, world: &World| {
                world.commands_chosen() >= usize::from(group.0.proposals)
            }),
            Property::sometimes("every campaign leads", |group: &Group, world: &World| {
                world.ballots_accepted() >= usize::from(group.0.campaigns)
            }),
        ];
        if !changes.is_empty() {
            // Rivals that ask for the same get it once.
            let changed = |group: &Group, world: &World| {
                let mut changes = group.0.changes.clone();
                changes.dedup();
                world.leads_on(changes.len())
            };
            purposes.push(Property::sometimes("the last configuration has a leader", changed));
        }
        if campaigns > 1 {
            let taken = |_: &Group, world: &World| world.takes_over();
            purposes.push(Property::sometimes("a later ballot takes values over", taken));
        }
        if campaigns > 1 && replicas > 2 {
            let passed = |_: &Group, world: &World| world.passes_over();
            purposes.push(Property::sometimes("a later ballot passes values over", passed));
        }
        if reads > 0 {
            let answered = |group: &Group, world: &World| world.reads_answered() >= group.0.reads;
            purposes.push(Property::sometimes("all reads are answered", answered));
        }
        if crashes > 0 {
            purposes.push(Property::sometimes("who crashed leads again", |_, world: &World| world.went_on()));
        }
        purposes
    }
}

fn only(ids: &[u32]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

/// Explores the whole scene and demands that no law can be broken in it, and that it serves its purpose.
#[track_caller]
fn check(name: &str, scene: Scene) {
    let began = Instant::now();
    let checker = Group(scene).checker().threads(2).spawn_dfs().join();
    println!("{name}: {} states, depth {}, {:.1?}", checker.unique_state_count(), checker.max_depth(), began.elapsed());
    checker.assert_properties();
}

/// Explores a scene with a bug planted, breadth first, and demands that it is found.
#[track_caller]
fn check_planted(planted: Planted, scene: Scene) {
    let began = Instant::now();
    let group = Group(Scene { planted: Some(planted), ..scene });
    let checker = group.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some((law, path)) = checker.discoveries().into_iter().next() else {
        panic!("{planted:?} was not found in {states} states");
    };
    let (_, what) = path.last_state().violation.unwrap_or((Law::Agreement, "nothing"));
    let steps = path.into_actions().len();
    println!("{planted:?}: not \"{law}\": {what}; {steps} steps, {states} states, {:.1?}", began.elapsed());
}

fn long() -> bool {
    std::env::var_os("D3B_MODELS_LONG").is_some()
}

// The scenes: three replicas on fresh disks, of which two may campaign.

/// Two leaders, each of which may propose what it will.
fn two_campaigns() -> Scene {
    Scene { campaigns: 2, proposals: 2, candidates: only(&[1, 2]), prompt: true, quiet: true, ..Scene::of(3) }
}

/// A third leader that finds what two others have left. Nobody hears that he is refused, only that another leads.
fn three_campaigns() -> Scene {
    Scene { campaigns: 3, proposals: 1, refusals: false, ..two_campaigns() }
}

/// Two leaders, while every write takes its time.
fn slow_disks() -> Scene {
    Scene { proposals: 1, prompt: false, refusals: false, ..two_campaigns() }
}

/// A process dies, at any moment, with what it had not written, and comes back having applied all that it had, or none.
fn crash() -> Scene {
    Scene { proposals: 0, crashes: 1, ..slow_disks() }
}

/// A crash between values.
fn crash_and_values() -> Scene {
    Scene { proposals: 1, crashes: 1, refusals: false, ..two_campaigns() }
}

/// Anybody reads, while leaders change.
fn reads() -> Scene {
    Scene { proposals: 1, reads: 1, refusals: false, ..two_campaigns() }
}

/// A disk is lost, and its replica comes back on a fresh one.
fn wiped() -> Scene {
    Scene { proposals: 1, wipes: 1, ..two_campaigns() }
}

/// One leader, slow disks, and everything that is said but for that: heartbeats, and questions for what was missed.
fn chatter() -> Scene {
    Scene { campaigns: 1, proposals: 0, heartbeats: 1, quiet: false, prompt: false, ..two_campaigns() }
}

/// Messages come again when they are long answered, after a crash too.
fn late() -> Scene {
    Scene { proposals: 0, crashes: 1, late: true, refusals: false, ..two_campaigns() }
}

/// Promises come in pieces, between which anything may happen.
fn chunks() -> Scene {
    Scene { proposals: 1, crashes: 1, chunks: true, refusals: false, ..two_campaigns() }
}

/// A leader is told to hand over.
fn transfer() -> Scene {
    Scene { proposals: 1, transfers: 1, ..two_campaigns() }
}

/// Pre-votes are lost, doubled and late.
fn pre_votes() -> Scene {
    Scene { campaigns: 1, proposals: 0, pre_votes: true, ..two_campaigns() }
}

fn promote(id: u32) -> Change {
    Change::Promote { id: ReplicaId(id) }
}

fn remove(id: u32) -> Change {
    Change::Remove { id: ReplicaId(id) }
}

/// One votes, and another one is to.
fn from_one_to_two() -> Scene {
    Scene {
        founders: 1,
        changes: vec![promote(2)],
        proposals: 1,
        crashes: 1,
        quiet: true,
        candidates: only(&[1, 2]),
        ..Scene::of(2)
    }
}

/// Two vote, and a third one is to.
fn from_two_to_three() -> Scene {
    Scene { founders: 2, changes: vec![promote(3)], campaigns: 2, proposals: 1, refusals: false, ..two_campaigns() }
}

/// One of three leaves.
fn from_three_to_two() -> Scene {
    Scene { founders: 3, changes: vec![remove(3)], ..from_two_to_three() }
}

#[test]
fn two_campaigns_with_two_values() {
    check("two campaigns, two values", two_campaigns());
}

#[test]
fn three_campaigns_with_one_value() {
    check("three campaigns, one value", three_campaigns());
}

#[test]
fn slow_disks_with_two_campaigns() {
    check("slow disks", slow_disks());
}

#[test]
fn a_crash_in_the_middle() {
    check("a crash, slow disks", crash());
    check("a crash and a value", crash_and_values());
}

#[test]
fn reads_while_leaders_change() {
    check("reads", reads());
}

#[test]
fn a_lost_disk() {
    check("a lost disk", wiped());
}

#[test]
fn everything_that_one_leader_says() {
    check("chatter", chatter());
}

#[test]
fn messages_that_come_late() {
    check("late messages", late());
}

#[test]
fn promises_in_chunks() {
    check("chunks", chunks());
}

#[test]
fn a_leader_that_hands_over() {
    check("transfer", transfer());
}

#[test]
fn pre_votes_that_come_late() {
    check("pre-votes", pre_votes());
}

#[test]
fn one_and_two_replicas() {
    check("one replica", Scene { proposals: 2, crashes: 1, ..Scene::of(1) });
    check("two replicas", Scene { campaigns: 2, proposals: 1, quiet: true, ..Scene::of(2) });
}

#[test]
fn a_change_of_members() {
    check("from one to two", from_one_to_two());
    check("from two to three", from_two_to_three());
    check("from three to two", from_three_to_two());
    check(
        "from one to two and back",
        Scene { campaigns: 1, changes: vec![promote(2), remove(1)], ..from_one_to_two() },
    );
    let changes = vec![promote(3), remove(1)];
    check("from two to three to two others", Scene { proposals: 0, changes, ..from_two_to_three() });
}

#[test]
fn a_change_of_members_among_crashes() {
    check("from three to two, slow disks", Scene { proposals: 0, prompt: false, ..from_three_to_two() });
    check("from three to two, a crash", Scene { proposals: 0, crashes: 1, ..from_three_to_two() });
}

/// A replica that is told of a configuration takes it as one that joins does, however far behind it is.
#[test]
fn a_change_of_members_by_hearsay() {
    check("from one to two, told", Scene { tellings: 1, ..from_one_to_two() });
    check("from two to three, told", Scene { proposals: 0, tellings: 1, ..from_two_to_three() });
    check("from three to two, told", Scene { proposals: 0, tellings: 1, ..from_three_to_two() });
}

/// Two leaders ask for the next configuration, in different slots.
#[test]
fn rivals_for_one_change() {
    check("rivals", Scene { proposals: 2, changes: vec![promote(3), promote(3)], ..from_two_to_three() });
}

#[test]
fn larger_scenes() {
    if !long() {
        println!("larger scenes: only with D3B_MODELS_LONG=1");
        return;
    }
    check("long: a crash and a value, slow disks", Scene { proposals: 1, ..crash() });
    check("long: two crashes", Scene { crashes: 2, ..crash_and_values() });
    check("long: three campaigns, two values", Scene { proposals: 2, ..three_campaigns() });
    check("long: three campaigns, refusals heard", Scene { proposals: 0, refusals: true, ..three_campaigns() });
    check("long: three campaigns, slow disks", Scene { proposals: 0, prompt: false, ..three_campaigns() });
    check("long: anybody campaigns", Scene { candidates: only(&[1, 2, 3]), ..three_campaigns() });
    check("long: chatter, two campaigns", Scene { campaigns: 2, heartbeats: 0, prompt: true, ..chatter() });
    check("long: chatter, a value", Scene { proposals: 1, heartbeats: 0, ..chatter() });
    check("long: reads, slow disks", Scene { proposals: 0, prompt: false, ..reads() });
    check("long: two reads", Scene { proposals: 0, reads: 2, ..reads() });
    check("long: five replicas", Scene { replicas: 5, proposals: 0, refusals: false, ..two_campaigns() });
}

#[test]
fn larger_scenes_of_changes() {
    if !long() {
        println!("larger scenes of changes: only with D3B_MODELS_LONG=1");
        return;
    }
    let slow = Scene { proposals: 0, prompt: false, crashes: 1, ..from_three_to_two() };
    check("long: from three to two, slow disks and a crash", slow.clone());
    check("long: from three to two, a value and a crash", Scene { crashes: 1, ..from_three_to_two() });
    check("long: from two to three, slow disks and a crash", Scene { founders: 2, changes: vec![promote(3)], ..slow });
    let told = Scene { tellings: 1, crashes: 1, ..from_three_to_two() };
    check("long: from three to two, told, and a crash", told);
}

/// Every planted bug is found, so the laws can be broken; but for one.
#[test]
fn every_planted_bug_is_found() {
    for planted in Planted::ALL {
        let scene = match planted {
            Planted::NoPromiseCheck => two_campaigns(),
            Planted::LoseAcknowledgedEntryAtCrash => crash(),
            Planted::AnyValueInPhaseOne
            | Planted::CommitAcrossBallots
            | Planted::ApplyBeyondDurableUpto
            | Planted::CommitBelievedAsHeard => three_campaigns(),
            Planted::ReadBeforeBarrier | Planted::ReadWithoutRound => reads(),
            // It takes five replicas, and more states than can be looked at; the simulator finds it.
            Planted::QuestionConfirmsAlone => continue,
            Planted::BallotReusedAfterRestart => crash_and_values(),
            Planted::SendBeforePersist => slow_disks(),
            Planted::WipedDiskVotes => wiped(),
            Planted::ConfigurationAdoptedUnchosen | Planted::ProposalsBehindConfiguration => from_two_to_three(),
        };
        check_planted(planted, scene);
    }
}
