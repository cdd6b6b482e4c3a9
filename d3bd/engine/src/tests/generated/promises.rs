//! What was promised for keys, as a model: a request happens once, however often it comes within 24 hours.

use std::collections::HashMap;

use d3b::{Answer, CatalogueChange, Code, DatabaseId, DatabaseName, IdempotencyKey, Operation, Outcome, Slot};

use super::log::Making;
use crate::command;
use crate::requests::{KEY_AGE_MAX_MS, KEY_AHEAD_MAX_MS};

/// What is known of a key.
#[derive(Clone)]
struct Known {
    request: d3b::Digest,
    slot: Slot,
    time_ms: u64,
    outcome: Outcome,
}

/// Holds every answer of a log against the model.
///
/// # Errors
/// What was answered and what should have been.
pub(crate) fn check(making: &Making<'_>) -> Result<(), String> {
    let mut keys: HashMap<DatabaseId, HashMap<IdempotencyKey, Known>> = HashMap::new();
    let mut live: HashMap<DatabaseName, DatabaseId> = HashMap::new();
    for (entry, applied) in making.lab.log.iter().zip(&making.applied) {
        let Some(Ok(command)) = entry.command.as_deref().map(command::decode) else { continue };
        let Some(outcome) = applied.outcome.clone() else { return Err(format!("slot {} has no answer", entry.slot)) };
        let keyed = command.keyed;
        let id = applied.database.unwrap_or_else(DatabaseId::catalogue);
        let known = keys.entry(id).or_default();
        let found =
            known.get(&keyed.key).filter(|found| entry.time_ms <= found.time_ms + KEY_AGE_MAX_MS + KEY_AHEAD_MAX_MS);
        let executed = match found {
            Some(found) if found.request != keyed.request => {
                expect(applied.slot, outcome.as_ref().is_err_and(|it| it.code == Code::KeyReused), "a key used again")?;
                false
            }
            Some(found) => {
                expect(
                    applied.slot,
                    applied.executed_at == found.slot && (outcome == found.outcome || is_omitted(&outcome)),
                    "a repeated request",
                )?;
                false
            }
            None if out_of_time(&keyed.key, entry.time_ms) => {
                expect(
                    applied.slot,
                    outcome.as_ref().is_err_and(|it| it.code == Code::KeyExpired),
                    "a key out of time",
                )?;
                false
            }
            None => {
                expect(applied.slot, applied.executed_at == applied.slot, "a new request")?;
                true
            }
        };
        if !executed {
            continue;
        }
        let now = Known { request: keyed.request, slot: entry.slot, time_ms: entry.time_ms, outcome: outcome.clone() };
        known.insert(keyed.key, now);
        follow(&keyed.operation, &outcome, entry.slot, &mut keys, &mut live);
    }
    Ok(())
}

/// Whether an answer was too long to be kept, and only its length is told.
pub(crate) fn is_omitted(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(|rejection| rejection.detail.contains("too large to be kept"))
}

fn expect(slot: Slot, holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("slot {slot}: {what} was not answered as promised")) }
}

fn out_of_time(key: &IdempotencyKey, now_ms: u64) -> bool {
    key.uuid_v7_time_ms().is_some_and(|key_ms| key_ms + KEY_AGE_MAX_MS < now_ms || key_ms > now_ms + KEY_AHEAD_MAX_MS)
}

/// A database that replaces another inherits its keys.
fn follow(
    operation: &Operation,
    outcome: &Outcome,
    slot: Slot,
    keys: &mut HashMap<DatabaseId, HashMap<IdempotencyKey, Known>>,
    live: &mut HashMap<DatabaseName, DatabaseId>,
) {
    let made = match (operation, outcome) {
        (Operation::Catalogue(CatalogueChange::Upload { name, .. }), Ok(Answer::Catalogue { id, .. })) => {
            (name.clone(), *id)
        }
        (Operation::Catalogue(CatalogueChange::Delete { name }), Ok(_)) => {
            live.remove(name);
            return;
        }
        (Operation::Catalogue(CatalogueChange::RawUpload { statement, file_id, .. }), Ok(_)) => {
            let name = statement.sql.split('\'').nth(1).and_then(|name| DatabaseName::new(name).ok());
            let name = name.expect("the generator writes the name first");
            let id = DatabaseId::derive(&name, &format!("{}\0{slot}", file_id.as_str()));
            (name, id)
        }
        // Which name went does not matter: a database of that name would begin without keys in any case.
        (Operation::Catalogue(CatalogueChange::RawDelete { .. }), Ok(_)) => {
            live.clear();
            return;
        }
        (Operation::Catalogue(_) | Operation::Sql { .. }, _) => return,
    };
    let (name, id) = made;
    if let Some(replaced) = live.insert(name, id) {
        let inherited = keys.get(&replaced).cloned().unwrap_or_default();
        keys.insert(id, inherited);
    }
}
