//! Golden traces: the protocol's documentation by example.
//!
//! Each file in `scenes/` is a page: a header that says why the scene matters and what to look for, then commands, each
//! with all that came of it. The shipped core plays it, over disks in memory and a network that does as it is told. The
//! trace must come out as it is written down; `D3B_BLESS=1 cargo test --test golden` writes it down anew, and then its
//! difference is to be read like a change of the protocol. What a scene is there to show it also demands in words
//! (`expect`), so that no blessing makes nonsense of it; and while it plays, [`world`] checks what must always hold.

mod disk;
mod expect;
mod page;
mod script;
mod words;
mod world;

use std::path::{Path, PathBuf};

use page::{Page, difference};
use world::World;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/scenes")
}

/// Plays a scene and compares what came of it with its page, or writes the page anew.
#[track_caller]
fn check(name: &str) {
    let path = directory().join(format!("{name}.scene"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let page = Page::parse(&text);
    assert!(page.has_header(), "{name}: a scene begins with why it matters");
    let mut world = World::new();
    let mut expectations = 0;
    let played = page.play(|line| {
        let command = script::parse(line)?;
        expectations += usize::from(command.is_expectation());
        world.run(command)
    });
    let played = played.unwrap_or_else(|fault| panic!("{name}, line {}: {}", fault.line, fault.text));
    assert!(expectations > 0, "{name}: a scene says in words what must come of it");
    if played == text {
        return;
    }
    if std::env::var_os("D3B_BLESS").is_some() {
        std::fs::write(&path, played).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    panic!(
        "{name} went another way than its page says (- the page, + what happened):\n{}\n\
         If that is how it should go: D3B_BLESS=1 cargo test --test golden, and read the difference.",
        difference(&text, &played)
    );
}

macro_rules! scenes {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*

        const SCENES: &[&str] = &[$($name),*];
    };
}

scenes! {
    a_clean_write: "01-clean-write",
    a_lost_leader: "02-lost-leader",
    duelling_candidates: "03-duelling-candidates",
    a_partitioned_leaders_reads: "04-partitioned-leaders-reads",
    a_gap_filled: "05-gap-filled",
    a_late_accept: "06-late-accept",
    catch_up: "07-catch-up",
    transfer: "08-transfer",
    a_read_before_the_barrier: "09-read-before-the-barrier",
    a_forgotten_commit: "10-forgotten-commit",
    a_leftover_overwritten: "11-leftover-overwritten",
    check_quorum: "12-check-quorum",
    pre_vote: "13-pre-vote",
    a_lost_disk: "14-lost-disk",
    a_slow_disk: "15-slow-disk",
    a_majority_at_one_ballot: "16-majority-at-one-ballot",
    a_promise_binds_at_once: "17-promise-binds-at-once",
    a_replica_joins: "18-a-replica-joins",
    behind_a_configuration: "19-behind-a-configuration",
    a_removed_replica: "20-a-removed-replica",
    a_candidate_of_an_old_configuration: "21-a-candidate-of-an-old-configuration",
    behind_a_cut_log: "22-behind-a-cut-log",
}

#[test]
fn every_page_is_played() {
    let entries = std::fs::read_dir(directory()).expect("the scenes can be listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let expected: Vec<String> = SCENES.iter().map(|name| format!("{name}.scene")).collect();
    assert_eq!(names, expected);
}
