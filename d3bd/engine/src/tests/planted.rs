//! Each planted bug is found: so the checks can fail.
//!
//! A rule is broken for a whole process, so this test program starts itself again for each of them, and runs the test
//! that is to find it. `D3B_PLANTED_ALL` shows for every bug which other tests would have found it too, and how soon.

use std::env;
use std::process::Command as Process;
use std::time::Instant;

use crate::planted::{Planted, VARIABLE};

/// The quickest test that finds each.
fn finder(planted: Planted) -> &'static str {
    match planted {
        Planted::AppliedSlotOutsideTransaction | Planted::KeysOutsideTransaction => {
            "tests::crash::a_crash_at_any_write"
        }
        Planted::KeysExpireByWallClock => "tests::keys::a_repeated_request_gives_the_stored_answer",
        Planted::ReplicasClockInSql => "tests::sameness::the_order_of_the_schema_in_memory_does_not_show",
        Planted::ReplicasDiceInSql => "tests::generated::generated_logs",
        Planted::ConnectionStateKept => "tests::operations::sql_cannot_ask_what_other_operations_did",
        Planted::SchemaKeptInMemory => "tests::sameness::the_order_of_the_schema_in_memory_does_not_show",
        Planted::KeysLostOnReplace => "tests::keys::a_database_that_replaces_another_inherits_its_keys",
        Planted::CreatedRowsOutsideChain => "tests::sameness::the_rows_of_a_table_that_a_query_made_are_in_the_chain",
        Planted::ModulesKeptInMemory => "tests::sameness::what_full_text_search_remembers_does_not_show",
        Planted::EffectsHeldBack => {
            "tests::sameness::what_full_text_search_holds_back_is_in_the_chain_of_its_operation"
        }
        Planted::EndedTransactionNotDoneAgain => "tests::operations::what_ends_the_transaction_fails_alone",
        Planted::DeferredKeysUnchecked => {
            "tests::operations::deferred_foreign_keys_are_checked_at_the_end_of_each_operation"
        }
        Planted::NamesResolvedAsOfNow => "tests::crash::databases_may_be_ahead_of_the_catalogue_and_behind_it",
        Planted::EarlierProcessTakenForSynced => {
            "tests::crash::what_an_earlier_process_applied_is_made_durable_before_the_mark_passes_it"
        }
        Planted::StepsOfKeptStatements => "tests::hostile::a_statement_that_is_kept_prepared_counts_from_the_beginning",
        Planted::GreatestRowidAllowed => "tests::operations::a_full_sequence_is_an_outcome",
        Planted::DroppedFilesRemovedUnderSnapshot
        | Planted::MarkOfSnapshotLeftAsItIs
        | Planted::SchemaVersionOfCopyChanged => "tests::snapshot::whoever_takes_a_snapshot_over",
        Planted::RefusalsNotKept => "tests::keys::a_refusal_is_stored_as_well",
    }
}

/// The layers of tests in this program.
const LAYERS: &[&str] = &[
    "tests::crash",
    "tests::keys",
    "tests::sameness",
    "tests::operations",
    "tests::catalogue",
    "tests::hostile",
    "tests::snapshot",
    "tests::generated",
];

/// Runs the tests of that name in a process with the bug, and tells the first complaint.
fn run(planted: Planted, tests: &str) -> Option<String> {
    let began = Instant::now();
    let output = Process::new(env::current_exe().unwrap())
        .args([tests, "--test-threads=1"])
        .env(VARIABLE, format!("{planted:?}"))
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    if output.status.success() {
        return None;
    }
    let told = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("    tests::")).collect();
    let seed = told.lines().find(|line| line.starts_with("seed ")).and_then(|line| line.split(';').next());
    let slot = told.lines().find_map(|line| line.split_once("slot ").map(|(_, rest)| rest));
    let slot = slot.and_then(|rest| rest.split([':', ' ']).next()).unwrap_or("?");
    let where_found = seed.map_or_else(|| failed.join(", "), |seed| format!("{seed}, slot {slot}"));
    Some(format!("{where_found} ({:.1?})", began.elapsed()))
}

#[test]
fn every_planted_bug_is_found() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let all = env::var_os("D3B_PLANTED_ALL").is_some();
    let mut missed = Vec::new();
    for planted in Planted::ALL {
        match run(*planted, finder(*planted)) {
            Some(found) => println!("{planted:?}: {found}"),
            None => missed.push(*planted),
        }
        for layer in LAYERS.iter().filter(|_| all) {
            let found = run(*planted, layer);
            println!("    {layer}: {}", found.unwrap_or_else(|| "not found".to_owned()));
        }
    }
    assert!(missed.is_empty(), "nothing has found {missed:?}");
}
