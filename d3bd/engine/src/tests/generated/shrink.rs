//! What is left of a log on which replicas differ, when everything is taken out without which they still do.

use d3b::Operation;

use super::ways::Told;
use super::*;

/// The operations of the smallest log that was found on which a replica that restarts after every entry differs from
/// one that never does; `None` where they do not differ on the whole of it.
pub(crate) fn shrink(log: &[Entry], files: &Files) -> Option<String> {
    let mut problem = difference(log, files)?;
    let mut left = log.to_vec();
    let mut size = left.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < left.len() {
            let mut fewer = left.clone();
            fewer.drain(at..(at + size).min(left.len()));
            match difference(&fewer, files) {
                Some(other) => (left, problem) = (fewer, other),
                None => at += size,
            }
        }
        size /= 2;
    }
    let operations = left.iter().map(|entry| match entry.command.as_deref().map(command::decode) {
        Some(Ok(Command { keyed, .. })) => format!("{} {}", keyed.key, told(&keyed.operation)),
        Some(Err(_)) | None => "nothing".to_owned(),
    });
    Some(format!("{problem}\nin the log\n{}", operations.collect::<Vec<_>>().join("\n")))
}

fn told(operation: &Operation) -> String {
    match operation {
        Operation::Sql { db, statements, media, .. } => {
            let texts: Vec<String> = statements.iter().map(|it| format!("{} {:?}", it.sql, it.arguments)).collect();
            format!("{db} {media:?}\n    {}", texts.join("\n    "))
        }
        Operation::Catalogue(change) => format!("{change:?}"),
    }
}

fn difference(log: &[Entry], files: &Files) -> Option<String> {
    let tell = |restarts: bool| -> Result<Told, String> {
        let mut lab = Lab::in_memory(Options::default());
        lab.files = Files(files.0.clone());
        lab.log = log.to_vec();
        for (index, entry) in lab.log.iter_mut().enumerate() {
            entry.slot = Slot(index as u64 + 1);
        }
        let mut applied = Vec::new();
        while applied.len() < lab.log.len() {
            applied.extend(lab.pull(1).applied);
            if restarts {
                lab.engine().checkpoint().unwrap();
                lab.restart();
            }
        }
        ways::reference(&mut lab, &applied)
    };
    tell(false).and_then(|once| once.compare(&tell(true)?)).err()
}
