//! Archives that are whole, cut off, changed, or something else.

use std::io;

use super::*;
use crate::DatabaseId;

const IMAGE: &[u8] = &[7; 70_000];
const CATALOGUE: &[u8] = b"not really a database";
const CAT: &[u8] = b"a cat";

fn file(bytes: &[u8]) -> File {
    File { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

fn header() -> Header {
    let database = |name: &str, id: String, bytes: &[u8]| Database {
        name: name.to_owned(),
        id,
        slot: 11,
        fingerprint: String::new(),
        file: file(bytes),
    };
    Header {
        format: FORMAT,
        d3b: "0.1.0".to_owned(),
        execution: 1,
        cluster: "c".to_owned(),
        time: "2026-11-24T00:00:00Z".to_owned(),
        slot: 14,
        time_ms: 5,
        from: 10,
        members: vec![Member { id: 1, peer: "127.0.0.1:1".to_owned(), role: "voter".to_owned() }],
        databases: vec![
            database("schemas", DatabaseId::catalogue().to_string(), CATALOGUE),
            database("shop", Digest::of(b"shop").to_string(), IMAGE),
        ],
        blobs: vec![file(CAT)],
        log: LogRange { first: 8, last: 14 },
    }
}

fn archive(header: &Header) -> Vec<u8> {
    let mut writer = ArchiveWriter::begin(Vec::new(), header).unwrap();
    writer.database(&header.databases[0], &mut &*CATALOGUE).unwrap();
    writer.database(&header.databases[1], &mut &*IMAGE).unwrap();
    writer.blob(&header.blobs[0], &mut &*CAT).unwrap();
    writer.log(8, 12, b"five records").unwrap();
    writer.log(13, 14, b"two records").unwrap();
    writer.finish().unwrap()
}

fn check(bytes: &[u8]) -> Result<Header, ArchiveError> {
    verify(&mut &*bytes, &mut |_, _| {})
}

/// Gathers what it is shown.
#[derive(Default)]
struct Gatherer(Vec<(String, Vec<u8>)>);

impl Visitor for Gatherer {
    fn header(&mut self, _: &Header) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self, part: &Part, _: u64) -> io::Result<()> {
        let name = match part {
            Part::Database(database) => database.name.clone(),
            Part::Blob(file) => file.size.to_string(),
            Part::Log { first, last } => format!("{first} to {last}"),
        };
        self.0.push((name, Vec::new()));
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.last_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_was_written_is_read() {
    let bytes = archive(&header());
    let mut seen = Gatherer::default();
    assert_eq!(read(&mut bytes.as_slice(), &mut seen).unwrap(), header());
    let names: Vec<&str> = seen.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["schemas", "shop", "5", "8 to 12", "13 to 14"]);
    assert!(seen.0[1].1 == IMAGE && seen.0[2].1 == CAT);
    assert_eq!((header().slot_min(), header().bytes()), (11, 70_026));
}

#[test]
fn one_archive_behind_another_is_read_by_itself() {
    let both = [archive(&header()), archive(&header())].concat();
    let mut rest = both.as_slice();
    for _ in 0..2 {
        read(&mut rest, &mut Gatherer::default()).unwrap();
    }
    assert!(rest.is_empty());
    assert!(matches!(check(&both), Err(ArchiveError::Damaged(_))));
}

#[test]
fn what_is_cut_off_is_noticed_wherever() {
    let bytes = archive(&header());
    for end in 0..bytes.len() {
        assert!(check(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
    }
    assert!(matches!(check(&bytes[..bytes.len() - 3]), Err(ArchiveError::Cut(_))));
    assert!(check(&bytes).is_ok());
}

#[test]
fn what_was_changed_is_noticed_wherever() {
    let bytes = archive(&header());
    let read = |bytes: &[u8]| {
        let mut seen = Gatherer::default();
        read(&mut &*bytes, &mut seen).map(|header| (header, seen.0))
    };
    let whole = read(&bytes).unwrap();
    let mut harmless = 0;
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        // Some bits of a compressed stream mean nothing, or the same either way: how much memory it takes to read, or from
        // which of several equal places bytes are repeated.
        if let Ok(found) = read(&bytes) {
            assert!(found == whole, "flipped at {at}");
            harmless += 1;
        }
    }
    assert!(harmless * 10 < bytes.len(), "{harmless} of {}", bytes.len());
}

#[test]
fn other_files_are_none() {
    assert!(matches!(check(b"SQLite format 3\0"), Err(ArchiveError::Foreign(_) | ArchiveError::Damaged(_))));
    assert!(check(b"").is_err());
    let newer = Header { format: 9, ..header() };
    assert!(matches!(check(&archive(&newer)), Err(ArchiveError::Format(9))));
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let bad: [&dyn Fn(&mut Header); 6] = [
        &|it| it.databases[1].id = it.databases[0].id.clone(),
        &|it| it.databases[1].slot = 15,
        &|it| it.databases[1].id = "../../etc/passwd".to_owned(),
        &|it| it.databases.swap(0, 1),
        &|it| it.from = 5,
        &|it| it.slot = 15,
    ];
    for (number, change) in bad.into_iter().enumerate() {
        let mut header = header();
        change(&mut header);
        let mut writer = ArchiveWriter::begin(Vec::new(), &header).unwrap();
        let _ = writer.log(8, 14, b"");
        assert!(matches!(check(&writer.finish().unwrap()), Err(ArchiveError::Damaged(_))), "{number}");
    }
}

#[test]
fn a_file_that_is_not_what_the_header_says_is_not_written() {
    let header = header();
    let mut writer = ArchiveWriter::begin(Vec::new(), &header).unwrap();
    assert!(writer.database(&header.databases[0], &mut &b"not really a databasE"[..]).is_err());
    assert!(writer.blob(&header.blobs[0], &mut &b"a"[..]).is_err());
}
