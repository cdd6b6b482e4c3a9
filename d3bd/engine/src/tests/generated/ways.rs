//! Other ways to apply the same log: in other batches, with fewer connections, databases in another order and on other
//! threads, with restarts, with crashes at any write, in a process of another time zone. Answers, chains and content must
//! be the same.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use super::log::{files_in, other_dice};
use super::promises::is_omitted;
use super::*;
use crate::clock;
use crate::tests::crash::content;

/// Tells the child where its log is.
const DIRECTORY: &str = "D3B_FUZZ_DIRECTORY";
/// Tells the child the seed of its choices.
const CHOICES: &str = "D3B_FUZZ_CHOICES";

/// What a replica has told, slot by slot, and what it holds in the end.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Answers, as long as they were known.
    answers: Vec<Option<String>>,
    /// The chain after each slot, where it was told.
    chains: Vec<Option<String>>,
    content: Vec<String>,
}

impl Told {
    /// Takes in what came of an entry.
    ///
    /// # Errors
    /// It was told before, and otherwise.
    fn hear(&mut self, applied: &Applied) -> Result<(), String> {
        let at = applied.slot.0 as usize;
        self.answers.resize(self.answers.len().max(at), None);
        self.chains.resize(self.chains.len().max(at), None);
        let kept = applied.outcome.as_ref().filter(|outcome| !is_omitted(outcome));
        let answer = kept.map(|outcome| format!("{} {outcome:?}", applied.executed_at));
        agree(applied.slot, &mut self.answers[at - 1], answer)?;
        agree(applied.slot, &mut self.chains[at - 1], applied.fingerprint.map(|chain| chain.to_string()))
    }

    /// Compares with what another replica has told.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, other: &Told) -> Result<(), String> {
        for (kind, mine, theirs) in
            [("answers", &self.answers, &other.answers), ("chains", &self.chains, &other.chains)]
        {
            for (index, pair) in mine.iter().zip(theirs).enumerate() {
                if let (Some(mine), Some(theirs)) = pair
                    && mine != theirs
                {
                    return Err(format!("slot {}: {kind} differ:\n  {mine}\n  {theirs}", index + 1));
                }
            }
        }
        same_lines(&self.content, &other.content)
    }

    /// As text, for another process.
    fn write(&self) -> String {
        let line = |told: &Option<String>| told.clone().unwrap_or_default().replace('\n', "\u{2028}") + "\n";
        let mut text = format!("{}\n", self.answers.len());
        self.answers.iter().chain(&self.chains).for_each(|told| text += &line(told));
        self.content.iter().for_each(|content| text += &line(&Some(content.clone())));
        text
    }

    fn read(text: &str) -> Told {
        let mut lines = text.lines();
        let count: usize = lines.next().unwrap().parse().unwrap();
        let mut rest = lines.map(|line| line.replace('\u{2028}', "\n"));
        let mut part = || {
            let part: Vec<String> = rest.by_ref().take(count).collect();
            part.into_iter().map(|told| if told.is_empty() { None } else { Some(told) }).collect()
        };
        Told { answers: part(), chains: part(), content: rest.collect() }
    }
}

fn agree(slot: Slot, known: &mut Option<String>, told: Option<String>) -> Result<(), String> {
    match (&known, told) {
        (Some(before), Some(now)) if *before != now => Err(format!("slot {slot} was told twice:\n  {before}\n  {now}")),
        (Some(_), _) | (None, None) => Ok(()),
        (None, Some(now)) => {
            *known = Some(now);
            Ok(())
        }
    }
}

/// Holds content line by line.
///
/// # Errors
/// The first lines that only one side has.
pub(crate) fn same_lines(mine: &[String], theirs: &[String]) -> Result<(), String> {
    let only = |some: &[String], others: &[String]| some.iter().find(|line| !others.contains(line)).cloned();
    if mine == theirs {
        return Ok(());
    }
    Err(format!("content differs:\n  {:?}\n  {:?}", only(mine, theirs), only(theirs, mine)))
}

/// What the lab that made the log has told.
pub(crate) fn reference(lab: &mut Lab, applied: &[Applied]) -> Result<Told, String> {
    let mut told = Told::default();
    applied.iter().try_for_each(|applied| told.hear(applied))?;
    lab.engine().checkpoint().unwrap();
    told.content = content(lab);
    Ok(told)
}

/// How a log is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// In batches, with restarts between them.
    Restarts,
    /// In batches, with crashes within them too.
    Crashes,
}

/// Applies a log in one of many ways, which the dice choose.
pub(crate) fn apply_otherwise(log: &[Entry], files: Files, dice: &mut Dice, way: Way) -> Result<Told, String> {
    let mut lab = Lab::in_memory(Options {
        connections_max: 1 + dice.below(3) as usize,
        // Writes fail on the thread that has asked for it.
        workers: if way == Way::Crashes { 0 } else { dice.below(3) as usize },
        lane_order: Some(dice.below(u64::MAX)),
        ..Options::default()
    });
    lab.log = log.to_vec();
    lab.files = files;
    let batch_max = 1 + dice.below(40);
    let mut told = Told::default();
    while (lab.engine().applied().0 as usize) < lab.log.len() {
        let crashes = way == Way::Crashes && dice.one_in(2);
        if crashes {
            clock::fail_writes_after(Some(dice.below(30)));
        }
        let batch = 1 + dice.below(batch_max) as usize;
        let result = lab.try_pull(batch);
        let marks = result.is_ok() && dice.one_in(3);
        let crashed = result.is_err() || (marks && lab.engine().checkpoint().is_err());
        if let Ok(progress) = result {
            progress.applied.iter().try_for_each(|applied| told.hear(applied))?;
        } else if !crashes {
            return Err(format!("the replica stopped: {:?}", result.err()));
        }
        if crashed || dice.one_in(6) {
            lab.engine = None;
            clock::fail_writes_after(None);
            lab.restart();
        }
        clock::fail_writes_after(None);
    }
    lab.engine().checkpoint().unwrap();
    told.content = content(&lab);
    Ok(told)
}

/// Applies the log of a lab in a process of its own, which lives in another time zone.
pub(crate) fn apply_elsewhere(lab: &Lab, seed: u64) -> Result<Told, String> {
    let entries: Vec<(u64, Option<Vec<u8>>)> =
        lab.log.iter().map(|entry| (entry.time_ms, entry.command.clone())).collect();
    fs::write(lab.directory.path().join("log"), postcard::to_stdvec(&entries).unwrap()).unwrap();
    let zone = other_dice(seed, 99).one_of(&["XYZ-9:30", "ABC7", "UTC0", "Pacific/Apia"]).to_owned();
    let child = Process::new(env::current_exe().unwrap())
        .args(["--exact", "tests::generated::ways::elsewhere", "--nocapture"])
        .env(DIRECTORY, lab.directory.path())
        .env(CHOICES, seed.to_string())
        .env("TZ", &zone)
        .output()
        .unwrap();
    if !child.status.success() {
        return Err(format!("the process in zone {zone} failed: {}", String::from_utf8_lossy(&child.stderr)));
    }
    Ok(Told::read(&fs::read_to_string(lab.directory.path().join("told")).unwrap()))
}

/// Not a test by itself: the other process of the logs that are applied elsewhere.
#[test]
fn elsewhere() {
    let Some(directory) = env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let seed: u64 = env::var(CHOICES).unwrap().parse().unwrap();
    let log = read_log(&directory);
    let told = apply_otherwise(&log, files_in(&directory), &mut other_dice(seed, 3), Way::Restarts).unwrap();
    fs::write(directory.join("told"), told.write()).unwrap();
}

fn read_log(directory: &Path) -> Vec<Entry> {
    let entries: Vec<(u64, Option<Vec<u8>>)> = postcard::from_bytes(&fs::read(directory.join("log")).unwrap()).unwrap();
    let entry = |(index, (time_ms, command)): (usize, _)| Entry { slot: Slot(index as u64 + 1), time_ms, command };
    entries.into_iter().enumerate().map(entry).collect()
}
