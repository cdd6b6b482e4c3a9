//! `d3bd recover`: makes a new cluster of one surviving replica, when the majority of its old one is gone for good.

use std::io::{BufRead, Write};
use std::path::Path;

use d3b::{ClusterId, ReplicaId, Slot};
use d3b_engine::Engine;

use crate::log::{LogError, Survivor};
use crate::quarantine;
use crate::time::rfc3339;

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The databases.
    #[error("the databases cannot be opened")]
    Engine(#[from] d3b_engine::Fatal),
    /// The log does not go as far as a database does.
    #[error(
        "a database here has applied slot {newest}, and the log ends at slot {last} (hint: take another survivor, or restore a backup)"
    )]
    Ahead {
        /// The slot of the database.
        newest: Slot,
        /// The end of the log.
        last: Slot,
    },
    /// Nobody can be asked.
    #[error(
        "this gives up what only the lost replicas have, and nobody can be asked whether that is meant (hint: --yes says so)"
    )]
    NeedsYes,
    /// Whoever was asked did not say yes.
    #[error("nothing was changed")]
    Declined,
    /// The terminal or the directory failed.
    #[error("cannot read or write")]
    Io(#[from] std::io::Error),
    /// No random bytes.
    #[error("the system refused random bytes: {0}")]
    Random(String),
}

/// How to ask whether it is meant.
pub struct Asking<'a> {
    /// Nobody needs to be asked.
    pub yes: bool,
    /// Where an answer comes from; `None` without a terminal.
    pub answers: Option<&'a mut dyn BufRead>,
    /// Where questions and facts go.
    pub out: &'a mut dyn Write,
}

/// Makes the replica of a data directory, which does not run, a cluster of its own.
///
/// # Errors
/// See [`RecoverError`]; nothing was changed then.
pub fn recover(data_dir: &Path, mut asking: Asking<'_>) -> Result<(), RecoverError> {
    let mut survivor = Survivor::open(data_dir)?;
    let engine = Engine::open(&data_dir.join("databases"), d3b_engine::Options::default())?;
    let applied = engine.resume_after();
    let newest = engine.newest_slot()?;
    drop(engine);
    // Such a database would take what comes next at those slots for something that it has applied already.
    let newest = newest.max(survivor.ahead);
    if newest > survivor.last {
        return Err(RecoverError::Ahead { newest, last: survivor.last });
    }
    let quarantined = quarantine::read(data_dir)?;
    tell(&survivor, applied, quarantined.as_deref(), asking.out)?;
    ask(&mut asking)?;
    let mut cluster = [0; 16];
    getrandom::fill(&mut cluster).map_err(|error| RecoverError::Random(error.to_string()))?;
    let configuration = survivor.alone(ClusterId(cluster), applied)?;
    survivor.adopt(&configuration)?;
    // Nobody is left whom it could differ from.
    quarantine::remove(data_dir)?;
    writeln!(
        asking.out,
        "Replica {} is the cluster {} now. Start it as before; add replicas with fresh directories and ids from {} up.",
        survivor.replica, configuration.cluster, configuration.next_id
    )?;
    Ok(())
}

fn tell(
    survivor: &Survivor,
    applied: Slot,
    quarantined: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), RecoverError> {
    let Survivor { replica, configuration, base, last, .. } = survivor;
    let others: Vec<ReplicaId> = configuration.members.keys().copied().filter(|id| id != replica).collect();
    let others = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let others = if others.is_empty() { "none".to_owned() } else { others };
    let time =
        survivor.last_time_ms()?.map_or_else(String::new, |time_ms| format!(", the last of {}", rfc3339(time_ms)));
    writeln!(out, "cluster   {} (epoch {})", configuration.cluster, configuration.epoch.0)?;
    writeln!(out, "replica   {replica}; the others are {others}")?;
    writeln!(out, "log       slots {base} to {last}{time}")?;
    writeln!(out, "applied   durably up to slot {applied}")?;
    if let Some(reason) = quarantined {
        writeln!(out, "\nTHIS REPLICA IS QUARANTINED: {reason}\nAnother survivor is to be preferred to it.")?;
    }
    writeln!(
        out,
        "
This makes a new cluster of this replica alone. It is for when a majority of the replicas is gone for good; while
they can come back, wait for them and nothing is lost.

What may be lost or differ:
  * Writes that were acknowledged to clients and did not reach this replica are lost. Where several replicas have
    survived, take the one whose log ends last.
  * Writes that reached this log and were never acknowledged will take effect (only slots above {applied} can be such).
  * Files whose bytes only the lost replicas have stay lost.

The other replicas ({others}) belong to the old cluster for good. A majority of them would go on with it: see to it
that nobody starts them again, and wipe their directories before they join this one."
    )?;
    Ok(())
}

fn ask(asking: &mut Asking<'_>) -> Result<(), RecoverError> {
    if asking.yes {
        return Ok(());
    }
    let Some(answers) = &mut asking.answers else { return Err(RecoverError::NeedsYes) };
    write!(asking.out, "\nType yes to go on: ")?;
    asking.out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(RecoverError::Declined) }
}
