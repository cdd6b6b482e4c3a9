//! Whether a replica holds what a load was told it has done.

use std::collections::{BTreeMap, BTreeSet};

use d3b::Digest;
use d3b::api::MediaInfo;

use super::d3b::{content, given_id, stored_id};
use super::ledger::{Ledger, Number, Tally};

/// Tells each client's rows, as [`Tally`] counts them.
pub const ENTRIES: &str =
    "SELECT client, count(*), sum(number), sum(number * number % 1000003) FROM entries GROUP BY client";
/// Tells how many rows there are to be changed, and the changes, as [`Tally`] counts them.
pub const THINGS: &str = "SELECT count(*), coalesce(sum(changes), 0), coalesce(sum(changes * id), 0), \
    coalesce(sum(changes * (id * id % 1000003)), 0) FROM things";
/// Files whose digests are compared; more of them are compared by their number and sizes.
pub const DIGESTS_MAX: usize = 1_000;

/// What there was before the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Rows to be read and changed.
    pub rows: u64,
    /// Files to be fetched.
    pub files: u64,
    /// Bytes of every file.
    pub media_size: usize,
}

/// What a replica holds of one database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Rows, by client.
    pub inserted: BTreeMap<u64, Tally>,
    /// Of the rows whose outcome is unknown, those that are there, and how often.
    pub present: BTreeMap<Number, u64>,
    /// Rows that were there from the beginning.
    pub rows: u64,
    /// Their changes.
    pub updated: Tally,
    /// Its files.
    pub media: Vec<MediaInfo>,
}

/// A query that gives, of some rows whose outcome is unknown, client, number and how often they are there.
#[must_use]
pub fn present_query(rows: &[Number]) -> String {
    let rows: Vec<String> = rows.iter().map(|(client, number)| format!("({client},{number})")).collect();
    format!(
        "SELECT client, number, count(*) FROM entries WHERE (client, number) IN (VALUES {}) GROUP BY client, number",
        rows.join(",")
    )
}

/// What a replica holds other than it should, in words; nothing if all is well.
#[must_use]
pub fn compare(given: Given, ledger: &Ledger, found: &Found) -> Vec<String> {
    let mut complaints = Vec::new();
    inserted(ledger, found, &mut complaints);
    updated(given, ledger, found, &mut complaints);
    media(given, ledger, found, &mut complaints);
    complaints
}

/// Every acknowledged row once, every unknown one at most once, and no other one.
fn inserted(ledger: &Ledger, found: &Found, complaints: &mut Vec<String>) {
    let mut expected = ledger.inserted.clone();
    for ((client, number), times) in &found.present {
        if *times > 1 {
            complaints.push(format!("client {client}: its row {number} is there {times} times"));
        }
        expected.entry(*client).or_default().add(*number);
    }
    for (client, rows) in &ledger.inserted_unknown {
        let there = rows.clone().filter(|number| found.present.contains_key(&(*client, *number))).count() as u64;
        if there > 0 && there < rows.end - rows.start {
            let all = rows.end - rows.start;
            complaints.push(format!("client {client}: {there} of the {all} rows of one batch are there"));
        }
    }
    let clients: BTreeSet<u64> = expected.keys().chain(found.inserted.keys()).copied().collect();
    for client in clients {
        let expected = expected.get(&client).copied().unwrap_or_default();
        let there = found.inserted.get(&client).copied().unwrap_or_default();
        if expected.count != there.count {
            let counts = (expected.count, there.count);
            complaints.push(format!("client {client}: there should be {} rows, and {} are there", counts.0, counts.1));
        } else if expected != there {
            complaints.push(format!("client {client}: the rows that are there are not those that were acknowledged"));
        }
    }
}

/// Every acknowledged change once.
fn updated(given: Given, ledger: &Ledger, found: &Found, complaints: &mut Vec<String>) {
    if found.rows != given.rows {
        complaints.push(format!("{} rows were there to be changed, and {} are there", given.rows, found.rows));
    }
    let (least, most) = (ledger.updated.count, ledger.updated.count + ledger.updated_unknown);
    if !(least..=most).contains(&found.updated.count) {
        let unknown = ledger.updated_unknown;
        let there = found.updated.count;
        complaints.push(format!("{least} changes were acknowledged ({unknown} unknown), and {there} took effect"));
    } else if ledger.updated_unknown == 0 && found.updated != ledger.updated {
        complaints.push("other rows were changed than was acknowledged".to_owned());
    }
}

/// Every acknowledged file, of its size and with its digest; every unknown one perhaps, and no other one.
fn media(given: Given, ledger: &Ledger, found: &Found, complaints: &mut Vec<String>) {
    let there: BTreeMap<&str, &MediaInfo> = found.media.iter().map(|file| (file.file_id.as_str(), file)).collect();
    let ids = ledger.media.acknowledged.iter().map(|(client, number)| stored_id(*client, *number));
    let wanted: BTreeSet<String> = (0..given.files).map(given_id).chain(ids).collect();
    let unknown: BTreeSet<String> =
        ledger.media.unknown.iter().map(|(client, number)| stored_id(*client, *number)).collect();
    let missing = wanted.iter().filter(|id| !there.contains_key(id.as_str())).count();
    if missing > 0 {
        complaints.push(format!("{missing} of {} files are missing", wanted.len()));
    }
    let invented = there.keys().filter(|id| !wanted.contains(**id) && !unknown.contains(**id)).count();
    if invented > 0 {
        complaints.push(format!("{invented} files are there that nobody stored"));
    }
    let step = there.len().div_ceil(DIGESTS_MAX).max(1);
    let damaged = there.values().enumerate().filter(|(at, file)| {
        let size = given.media_size.max(file.file_id.len() + 1);
        file.size != size as u64
            || (at % step == 0 && Digest::of(&content(&file.file_id, given.media_size)).to_string() != file.sha256)
    });
    let damaged = damaged.count();
    if damaged > 0 {
        complaints.push(format!("{damaged} files are not what was stored"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Given = Given { rows: 10, files: 1, media_size: 30 };

    fn tally(numbers: impl IntoIterator<Item = u64>) -> Tally {
        let mut tally = Tally::default();
        numbers.into_iter().for_each(|number| tally.add(number));
        tally
    }

    fn file(id: &str) -> MediaInfo {
        let bytes = content(id, GIVEN.media_size);
        let (size, sha256) = (bytes.len() as u64, Digest::of(&bytes).to_string());
        MediaInfo { file_id: id.to_owned(), size, sha256, r#type: String::new(), slot: 1 }
    }

    /// Two clients, one of which does not know what became of two rows, and of a batch of three.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.inserted.insert(0, tally(0..100));
        ledger.inserted.insert(1, tally((0..50).chain(52..60)));
        ledger.inserted_unknown = vec![(1, 50..51), (1, 51..52), (1, 60..63)];
        ledger.updated = tally([3, 3, 7]);
        ledger.media.acknowledged = vec![(0, 0), (0, 2)];
        ledger.media.unknown = vec![(0, 1)];
        ledger
    }

    fn found() -> Found {
        Found {
            inserted: [(0, tally(0..100)), (1, tally((0..51).chain(52..60)))].into(),
            present: [((1, 50), 1)].into(),
            rows: 10,
            updated: tally([3, 3, 7]),
            media: vec![file("given-0"), file("0-0"), file("0-2")],
        }
    }

    #[track_caller]
    fn check<R>(change: impl FnOnce(&mut Ledger, &mut Found) -> R, complaint: &str) {
        let (mut ledger, mut found) = (ledger(), found());
        change(&mut ledger, &mut found);
        let complaints = compare(GIVEN, &ledger, &found);
        if complaint.is_empty() {
            assert!(complaints.is_empty(), "{complaints:?}");
        } else {
            assert!(complaints.iter().any(|it| it.contains(complaint)), "{complaint:?} is not in {complaints:?}");
        }
    }

    #[test]
    fn what_may_be_is_accepted() {
        check(|_, _| (), "");
        check(|_, found| found.media.push(file("0-1")), "");
        check(|ledger, _| ledger.updated_unknown = 1, "");
        check(
            |_, found| {
                found.present.extend([((1, 60), 1), ((1, 61), 1), ((1, 62), 1)]);
                found.inserted.insert(1, tally((0..51).chain(52..63)));
            },
            "",
        );
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_noticed() {
        check(|_, found| found.inserted.insert(0, tally(0..99)), "should be 100 rows, and 99 are there");
        check(|_, found| found.inserted.remove(&0), "should be 100 rows, and 0 are there");
        check(|_, found| found.updated = tally([3, 7]), "3 changes were acknowledged (0 unknown), and 2 took effect");
        check(|_, found| found.media.pop(), "1 of 3 files are missing");
        check(|_, found| found.rows = 9, "10 rows were there to be changed, and 9 are there");
    }

    #[test]
    fn a_write_that_happened_twice_or_that_nobody_sent_is_noticed() {
        check(|_, found| found.inserted.get_mut(&0).unwrap().add(7), "should be 100 rows, and 101 are there");
        check(|_, found| found.inserted.insert(2, tally([0])), "client 2: there should be 0 rows");
        check(|_, found| found.present.insert((1, 50), 2), "row 50 is there 2 times");
        check(|_, found| found.updated.add(3), "and 4 took effect");
        check(|_, found| found.media.push(file("9-9")), "1 files are there that nobody stored");
    }

    #[test]
    fn wrong_rows_in_the_right_number_are_noticed() {
        // One is lost and another one is doubled, so that numbers and sums agree.
        let numbers = (0..100).filter(|number| ![10, 14].contains(number)).chain([12, 12]);
        check(|_, found| found.inserted.insert(0, tally(numbers)), "not those that were acknowledged");
        check(|_, found| found.updated = tally([3, 3, 8]), "other rows were changed");
        check(|_, found| found.media[1].sha256 = "00".repeat(32), "1 files are not what was stored");
        check(|_, found| found.media[1].size += 1, "1 files are not what was stored");
    }

    #[test]
    fn a_part_of_a_batch_is_noticed() {
        check(|_, found| found.present.insert((1, 61), 1), "1 of the 3 rows of one batch are there");
    }
}
