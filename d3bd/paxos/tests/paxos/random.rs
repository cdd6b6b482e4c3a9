//! Random schedules: everything that may go wrong does, in an order that the seed gives; then everything heals, and the
//! group must go on.

use d3b::ReplicaId;
use d3b_paxos::Input;

use crate::world::{Checked, World};

/// One random thing happens.
fn disturb(world: &mut World) -> Checked {
    let ids = world.ids();
    let id = ids[usize::try_from(world.random.below(ids.len() as u64)).unwrap()];
    let other = ids[usize::try_from(world.random.below(ids.len() as u64)).unwrap()];
    let leader = world.leader().unwrap_or(id);
    // A calm in between, in which the group gets ahead of whoever is down, paused or cut off.
    if world.random.percent(2) {
        for _ in 0..world.random.below(80) {
            world.pass()?;
            if let Some(leader) = world.leader().filter(|_| world.random.percent(20)) {
                world.propose(leader)?;
            }
        }
    }
    // Configurations change, and logs are cut, in some of the runs.
    let changes = if world.changes { 50 } else { 0 };
    match world.random.below(1_000 + changes) {
        0..420 => {
            if !world.network.is_empty() {
                // Mostly in order, sometimes anything.
                let span = if world.random.percent(30) { world.network.len() } else { 3.min(world.network.len()) };
                let index = usize::try_from(world.random.below(span as u64)).unwrap();
                let to = world.network[index].to;
                world.deliver(index)?;
                if world.random.percent(85) {
                    world.pump(to)?;
                }
            }
        }
        420..560 => {
            if world.random.percent(90) {
                world.persisted(id)?;
                if world.random.percent(85) {
                    world.pump(id)?;
                }
            }
        }
        560..620 => {
            let count = world.random.below(4);
            world.apply(id, count)?;
        }
        620..800 => {
            world.ticks += world.random.below(60);
            for id in ids {
                if !world.node(id).paused && world.random.percent(80) {
                    world.tick(id)?;
                    world.pump(id)?;
                }
            }
        }
        800..870 => {
            let at = if world.random.percent(90) { leader } else { id };
            world.propose(at)?;
            world.pump(at)?;
        }
        870..920 => {
            let at = if world.random.percent(50) { leader } else { id };
            world.read(at)?;
            world.pump(at)?;
        }
        920..935 => {
            if world.node(id).replica.is_some() {
                world.crash(id)?;
            }
        }
        935..965 => {
            if world.node(id).replica.is_none() {
                world.start(id)?;
            }
        }
        965..972 => {
            world.blocked.insert((id, other));
        }
        972..976 => {
            for peer in ids {
                world.blocked.insert((id, peer));
                world.blocked.insert((peer, id));
            }
        }
        976..986 => world.blocked.clear(),
        986..990 => {
            let paused = &mut world.nodes.get_mut(&id).unwrap().paused;
            *paused = !*paused;
        }
        990..993 => {
            world.step(id, Input::ConnectionReset(other))?;
            world.pump(id)?;
        }
        993..996 => {
            let target = world.random.percent(50).then_some(other);
            world.step(leader, Input::Transfer(target))?;
            world.pump(leader)?;
        }
        996..=998 => world.jump_clock(id),
        1_000..1_015 => world.checkpoint(id),
        1_015..1_025 => world.cut(id)?,
        1_025..1_030 => world.install_snapshots()?,
        1_030..1_035 => world.heed_told()?,
        1_035..1_050 => {
            world.welcome()?;
            let change = world.some_change();
            world.reconfigure(leader, change)?;
            world.pump(leader)?;
        }
        _ => {
            let keep = world.network.len() / 2;
            world.network.truncate(keep);
        }
    }
    Ok(())
}

/// Runs a schedule of so many steps, then heals and demands progress. Returns how many commands were chosen.
pub fn run(world: &mut World, steps: usize, wipes: bool) -> Result<usize, crate::world::Violation> {
    for id in world.ids() {
        world.start(id)?;
    }
    let wiped_at = wipes.then(|| world.random.below(steps as u64));
    for step in 0..steps {
        if wiped_at == Some(step as u64) {
            let id = ReplicaId(1 + u32::try_from(world.random.below(world.nodes.len() as u64)).unwrap());
            world.wipe(id)?;
        }
        disturb(world)?;
    }
    world.check_log_time()?;
    world.heal()?;
    world.demand_progress()?;
    world.check_log_time()?;
    Ok(world.commands())
}

/// `D3B_SEEDS=1000-5000` runs these seeds instead of the few that every change is tested with.
fn chosen_seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("D3B_SEEDS") else { return usual };
    let (from, upto) = text.split_once('-').expect("D3B_SEEDS is two numbers with a dash between");
    from.parse().expect("D3B_SEEDS begins with a number")..upto.parse().expect("D3B_SEEDS ends with a number")
}

#[track_caller]
fn check(count: u32, seeds: std::ops::Range<u64>, steps: usize) {
    let (mut commands, mut violations) = (0, Vec::new());
    for seed in chosen_seeds(seeds) {
        let wipes = count > 2 && seed % 4 == 0;
        match run(&mut World::new(count, seed), steps, wipes) {
            Ok(chosen) => commands += chosen,
            Err(violation) => violations.push(format!("seed {seed}: {violation:?}")),
        }
    }
    assert!(violations.is_empty(), "{count} replicas:\n{}", violations.join("\n"));
    println!("{count} replicas: {commands} commands chosen");
    assert!(commands > 0, "a schedule in which nothing happens shows nothing");
}

#[test]
fn one_replica_under_crashes() {
    check(1, 0..100, 400);
}

#[test]
fn two_replicas_under_faults() {
    check(2, 0..100, 600);
}

#[test]
fn three_replicas_under_faults() {
    check(3, 0..300, 800);
}

#[test]
fn five_replicas_under_faults() {
    check(5, 0..100, 1_000);
}

#[test]
fn nine_replicas_under_faults() {
    check(9, 0..20, 1_000);
}

/// Every way in which single directions of links may be dead for good (FAULTS 23): while two of three replicas hear each
/// other, somebody leads, keeps leading, and gets commands chosen.
#[test]
fn dead_links_neither_stop_nor_shake_a_connected_majority() {
    let links = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)].map(|(from, to)| (ReplicaId(from), ReplicaId(to)));
    for dead in 0_u32..64 {
        let mut world = World::new(3, u64::from(dead));
        world.heal().unwrap();
        // First with all links, so that somebody leads who then perhaps can no longer.
        world.demand_progress().unwrap();
        world.blocked =
            links.iter().enumerate().filter(|(bit, _)| dead & (1 << bit) != 0).map(|(_, link)| *link).collect();
        let alive = |pair: usize| !world.blocked.contains(&links[pair]) && !world.blocked.contains(&links[pair + 1]);
        if ![0, 2, 4].into_iter().any(alive) {
            continue;
        }
        let mut chosen = Vec::new();
        let mut changes = 0;
        let mut led_by = None;
        for round in 0..2_000 {
            world.pass().unwrap();
            if round % 10 == 0
                && let Some(leader) = world.leader()
            {
                world.propose(leader).unwrap();
            }
            if round >= 1_000 && led_by != world.leader() {
                changes += 1;
            }
            led_by = world.leader();
            chosen.push(world.commands());
        }
        assert!(chosen[1_999] >= chosen[1_000] + 90, "dead links {dead:06b}: {} then {}", chosen[1_000], chosen[1_999]);
        assert_eq!(changes, 0, "dead links {dead:06b}: the leader changes all the time");
    }
}

/// One of five hears everybody, but the others do not hear each other, and their leader is dead; and it is the one that
/// knows least. Only it can get a majority, so it must be given one, though each of the others would be a better leader.
#[test]
fn a_laggard_leads_if_nobody_else_can() {
    let hub = ReplicaId(5);
    for seed in 0..20 {
        let mut world = World::new(5, seed);
        world.heal().unwrap();
        let links = |world: &World, keep: fn(ReplicaId) -> bool| {
            let ids = world.ids();
            let pairs = ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to)));
            pairs.filter(|(from, to)| from != to && keep(*from) == keep(*to)).collect()
        };
        // First the others go on without it.
        world.crash(hub).unwrap();
        world
            .pass_until("a proposal", |world| {
                if let Some(leader) = world.leader() {
                    world.propose(leader).unwrap();
                }
                world.commands() > 20
            })
            .unwrap();
        let leader = world.leader().unwrap();
        world.crash(leader).unwrap();
        world.start(hub).unwrap();
        world.blocked = links(&world, |id| id == ReplicaId(5));
        let before = world.commands();
        let done = world.pass_until("a proposal", |world| {
            if let Some(leader) = world.leader() {
                world.propose(leader).unwrap();
            }
            world.commands() > before + 20
        });
        assert!(done.is_ok(), "seed {seed}: {done:?}");
        assert_eq!(world.leader(), Some(hub));
    }
}

/// Any links of five replicas may be dead, each direction for itself: if one of them hears a majority that hears it,
/// commands get chosen.
#[test]
fn dead_links_do_not_stop_whoever_has_a_majority() {
    for seed in 0..300 {
        let mut world = World::new(5, seed);
        world.heal().unwrap();
        world.demand_progress().unwrap();
        let dead = 20 + world.random.below(50);
        for from in world.ids() {
            for to in world.ids() {
                if from != to && world.random.percent(dead) {
                    world.blocked.insert((from, to));
                }
            }
        }
        let hears = |world: &World, one, other| {
            !world.blocked.contains(&(one, other)) && !world.blocked.contains(&(other, one))
        };
        let heard = |id| world.ids().into_iter().filter(|other| *other != id && hears(&world, id, *other)).count();
        if world.ids().into_iter().map(heard).max() < Some(2) {
            continue;
        }
        let before = world.commands();
        let done = world.pass_until("proposals", |world| {
            for id in world.ids() {
                world.propose(id).unwrap();
            }
            world.commands() > before + 50
        });
        assert!(done.is_ok(), "seed {seed}, {:?}: {done:?}", world.blocked);
    }
}

#[test]
fn disks_slower_than_an_election_timeout_do_not_stop_the_group() {
    for count in [3, 5] {
        for (seed, sync_ticks) in (0..30).zip([400, 800, 1_600].into_iter().cycle()) {
            let mut world = World::new(count, seed);
            world.sync_ticks = sync_ticks;
            world.heal().unwrap();
            if let Err(violation) = world.demand_progress() {
                panic!("{count} replicas, syncs of {sync_ticks} ticks, seed {seed}: {violation:?}");
            }
        }
    }
}

#[test]
fn a_leaders_disk_that_hangs_does_not_stop_the_group() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        world.heal().unwrap();
        world.demand_progress().unwrap();
        world.hung = world.leader();
        let before = world.commands();
        let done = world.pass_until("many proposals", |world| {
            for id in world.ids() {
                world.propose(id).unwrap();
            }
            world.commands() > before + 500
        });
        assert!(done.is_ok(), "seed {seed}: {done:?}");
    }
}

/// A promise over a long log comes in many chunks, and takes longer than anybody waits for a leader: whoever promised
/// sees the candidate ask for one chunk after the other, and lets it finish.
#[test]
fn a_long_phase_one_is_not_cut_short() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        world.heal().unwrap();
        world.demand_progress().unwrap();
        for _ in 0..300 {
            world.pass().unwrap();
            if let Some(leader) = world.leader() {
                for _ in 0..4 {
                    world.propose(leader).unwrap();
                }
            }
        }
        assert!(world.commands() > 1_000, "seed {seed}");
        // A power cut: nobody knows any more how much of it is chosen.
        for id in world.ids() {
            world.forget_applied(id).unwrap();
        }
        world.heal().unwrap();
        if let Err(violation) = world.demand_progress() {
            panic!("seed {seed}: {violation:?}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut world = World::new(3, seed);
        run(&mut world, 600, false).unwrap();
        (world.chosen, world.ticks)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
