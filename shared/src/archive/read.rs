//! Reading an archive that may come from anywhere: every name, length and digest is held against what was told before.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use super::{
    Database, END, End, FORMAT, File, HEADER, HEADER_BYTES_MAX, Header, LOG_BYTES_MAX, Sum, blob_name, database_name,
};
use crate::{Digest, Hasher};

/// Bytes that are moved at a time.
const PIECE: usize = 256 << 10;
/// An end is a line.
const END_BYTES_MAX: u64 = 4 << 10;
/// What stands behind the last entry: two blocks of zeros, and what fills the last record of a tape.
const TAIL_BYTES_MAX: u64 = 64 << 10;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is another kind of file.
    #[error("this is no backup of d3b: {0}")]
    Foreign(String),
    /// Another version of d3b wrote it.
    #[error("the backup has format {0}, and this version knows format {FORMAT}")]
    Format(u32),
    /// It ends too early.
    #[error("the backup is cut off: {0}")]
    Cut(String),
    /// It is not what was written.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// It cannot be read from where it is.
    #[error("the backup cannot be read")]
    Source(#[source] io::Error),
    /// Whoever takes it in cannot.
    #[error(transparent)]
    Taker(io::Error),
}

/// A part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The file of a database.
    Database(Database),
    /// A blob.
    Blob(File),
    /// A stretch of the log.
    Log {
        /// Its first slot.
        first: u64,
        /// Its last slot.
        last: u64,
    },
}

/// Takes an archive in. An error ends the reading.
pub trait Visitor {
    /// What is in it; comes first.
    ///
    /// # Errors
    /// It is not wanted.
    fn header(&mut self, header: &Header) -> io::Result<()>;
    /// A part begins, of so many bytes.
    ///
    /// # Errors
    /// It is not wanted.
    fn begin(&mut self, part: &Part, length: u64) -> io::Result<()>;
    /// The next bytes of the part.
    ///
    /// # Errors
    /// They cannot be taken.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The part is whole, and has its digest, if the header told one.
    ///
    /// # Errors
    /// It is not wanted.
    fn end(&mut self) -> io::Result<()>;
}

/// Reads one archive to its end, and not a byte further.
///
/// # Errors
/// See [`ArchiveError`].
pub fn read(from: &mut dyn BufRead, visitor: &mut dyn Visitor) -> Result<Header, ArchiveError> {
    let source = Source { from, failed: None };
    let mut decoder = zstd::Decoder::with_buffer(source).map_err(ArchiveError::Source)?.single_frame();
    decoder.window_log_max(27).map_err(ArchiveError::Source)?;
    let mut archive = tar::Archive::new(decoder);
    let result = Reading { visitor, sum: Sum::default(), buffer: vec![0; PIECE] }.entries(&mut archive);
    let mut decoder = archive.into_inner();
    let result = result.and_then(|header| finish(&mut decoder).map(|()| header));
    let failed = decoder.get_mut().failed.take();
    match (result, failed) {
        (Err(ArchiveError::Taker(error)), _) => Err(ArchiveError::Taker(error)),
        (_, Some(error)) => Err(ArchiveError::Source(error)),
        (result, None) => result,
    }
}

/// Reads one archive that is alone, and tells how many of its bytes have been verified.
///
/// # Errors
/// See [`ArchiveError`].
pub fn verify(from: &mut dyn BufRead, progress: &mut dyn FnMut(&Header, u64)) -> Result<Header, ArchiveError> {
    struct Verifier<'a> {
        header: Option<Header>,
        bytes: u64,
        progress: &'a mut dyn FnMut(&Header, u64),
    }
    impl Visitor for Verifier<'_> {
        fn header(&mut self, header: &Header) -> io::Result<()> {
            self.header = Some(header.clone());
            Ok(())
        }

        fn begin(&mut self, _: &Part, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.bytes += bytes.len() as u64;
            if let Some(header) = &self.header {
                (self.progress)(header, self.bytes);
            }
            Ok(())
        }

        fn end(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let header = read(from, &mut Verifier { header: None, bytes: 0, progress })?;
    match from.fill_buf().map_err(ArchiveError::Source)?.is_empty() {
        true => Ok(header),
        false => Err(ArchiveError::Damaged("something follows behind its end".to_owned())),
    }
}

/// Behind the end there are zeros, then the compressed frame ends, with a checksum of its own.
fn finish(decoder: &mut dyn Read) -> Result<(), ArchiveError> {
    let mut tail = Vec::new();
    decoder.take(TAIL_BYTES_MAX).read_to_end(&mut tail).map_err(|error| broken(&error))?;
    if tail.len() as u64 == TAIL_BYTES_MAX || tail.iter().any(|byte| *byte != 0) {
        return Err(ArchiveError::Damaged("something follows behind its end".to_owned()));
    }
    Ok(())
}

/// An error of decompression or of the tar stream.
fn broken(error: &io::Error) -> ArchiveError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ArchiveError::Cut("there is no more of it".to_owned())
    } else {
        ArchiveError::Damaged(error.to_string())
    }
}

/// Remembers what is an error of the source, and not of what it holds.
struct Source<'a> {
    from: &'a mut dyn BufRead,
    failed: Option<io::Error>,
}

impl Source<'_> {
    fn note(&mut self, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        if error.kind() != io::ErrorKind::Interrupted {
            self.failed = Some(error);
        }
        copy
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer) {
            Ok(read) => Ok(read),
            Err(error) => Err(self.note(error)),
        }
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // Asked twice, because a failure must be noted while nothing is borrowed.
        if let Err(error) = self.from.fill_buf() {
            return Err(self.note(error));
        }
        self.from.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.from.consume(amount);
    }
}

struct Reading<'a> {
    visitor: &'a mut dyn Visitor,
    sum: Sum,
    buffer: Vec<u8>,
}

type Entry<'a, R> = tar::Entry<'a, R>;

impl Reading<'_> {
    fn entries<R: Read>(mut self, archive: &mut tar::Archive<R>) -> Result<Header, ArchiveError> {
        let entries = archive.entries().map_err(|error| broken(&error))?;
        // What an archive begins with tells whether it is one at all.
        let mut entries = entries.map(|entry| entry.map_err(|error| broken(&error)));
        let header = match entries.next() {
            Some(Ok(entry)) => self.first(entry)?,
            Some(Err(ArchiveError::Damaged(problem))) => return Err(ArchiveError::Foreign(problem)),
            Some(Err(error)) => return Err(error),
            None => return Err(ArchiveError::Foreign("it is empty".to_owned())),
        };
        self.visitor.header(&header).map_err(ArchiveError::Taker)?;
        let mut next = || match entries.next() {
            Some(entry) => entry,
            None => Err(ArchiveError::Cut("its end is missing".to_owned())),
        };
        for database in &header.databases {
            let part = Part::Database(database.clone());
            self.part(next()?, &database_name(&database.id), &part, Some(database.file))?;
        }
        for file in &header.blobs {
            self.part(next()?, &blob_name(file), &Part::Blob(*file), Some(*file))?;
        }
        let mut slot = header.log.first;
        while slot <= header.log.last {
            let entry = next()?;
            let name = name_of(&entry)?;
            let last = name.strip_prefix(&format!("log/{slot}-")).and_then(|last| last.parse::<u64>().ok());
            let Some(last) = last.filter(|last| (slot..=header.log.last).contains(last)) else {
                return Err(ArchiveError::Damaged(format!("{name} stands where the log should go on at slot {slot}")));
            };
            if entry.size() > LOG_BYTES_MAX {
                return Err(ArchiveError::Damaged(format!("{name} has {} bytes", entry.size())));
            }
            self.part(entry, &name, &Part::Log { first: slot, last }, None)?;
            slot = last + 1;
        }
        self.last(next()?)?;
        match entries.next() {
            None => Ok(header),
            Some(_) => Err(ArchiveError::Damaged("something follows behind its end".to_owned())),
        }
    }

    fn first<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<Header, ArchiveError> {
        let (name, length) = (name_of(&entry)?, entry.size());
        if name != HEADER || length > HEADER_BYTES_MAX {
            return Err(ArchiveError::Foreign(format!("it begins with {name}")));
        }
        self.sum.begin(&name, length);
        let bytes = whole(&mut entry, length)?;
        self.sum.bytes(&bytes);
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        let malformed = |error: serde_json::Error| ArchiveError::Damaged(format!("its header does not parse: {error}"));
        let Version { format } = serde_json::from_slice(&bytes).map_err(malformed)?;
        if format != FORMAT {
            return Err(ArchiveError::Format(format));
        }
        let header: Header = serde_json::from_slice(&bytes).map_err(malformed)?;
        check(&header).map_err(|problem| ArchiveError::Damaged(format!("its header contradicts itself: {problem}")))?;
        Ok(header)
    }

    fn part<R: Read>(
        &mut self,
        mut entry: Entry<'_, R>,
        name: &str,
        part: &Part,
        file: Option<File>,
    ) -> Result<(), ArchiveError> {
        let (found, length) = (name_of(&entry)?, entry.size());
        if found != name {
            return Err(ArchiveError::Damaged(format!("{found} stands where {name} is due")));
        }
        if let Some(file) = file.filter(|file| file.size != length) {
            return Err(ArchiveError::Damaged(format!("{name} has {length} bytes instead of {}", file.size)));
        }
        self.sum.begin(name, length);
        self.visitor.begin(part, length).map_err(ArchiveError::Taker)?;
        let mut hasher = Hasher::new();
        loop {
            let read = entry.read(&mut self.buffer).map_err(|error| broken(&error))?;
            if read == 0 {
                break;
            }
            let bytes = &self.buffer[..read];
            self.sum.bytes(bytes);
            hasher.update(bytes);
            self.visitor.bytes(bytes).map_err(ArchiveError::Taker)?;
        }
        if hasher.length() != length {
            return Err(ArchiveError::Cut(format!("it ends within {name}")));
        }
        let found: Digest = hasher.finish();
        if let Some(file) = file.filter(|file| file.sha256 != found) {
            return Err(ArchiveError::Damaged(format!("{name} has SHA-256 {found} instead of {}", file.sha256)));
        }
        self.visitor.end().map_err(ArchiveError::Taker)
    }

    fn last<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), ArchiveError> {
        let (name, length) = (name_of(&entry)?, entry.size());
        if name != END || length > END_BYTES_MAX {
            return Err(ArchiveError::Damaged(format!("{name} stands where its end is due")));
        }
        let bytes = whole(&mut entry, length)?;
        let end: End = serde_json::from_slice(&bytes)
            .map_err(|error| ArchiveError::Damaged(format!("its end does not parse: {error}")))?;
        let found = std::mem::take(&mut self.sum).end();
        if (end.sha256, end.entries) != (found.sha256, found.entries) {
            let text = format!("its SHA-256 is {} instead of {}", found.sha256, end.sha256);
            return Err(ArchiveError::Damaged(text));
        }
        Ok(())
    }
}

fn name_of<R: Read>(entry: &Entry<'_, R>) -> Result<String, ArchiveError> {
    String::from_utf8(entry.path_bytes().into_owned())
        .map_err(|_| ArchiveError::Damaged("it holds a name that is no text".to_owned()))
}

fn whole(entry: &mut dyn Read, length: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(length).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    if bytes.len() as u64 != length {
        return Err(ArchiveError::Cut("it ends within its first or last entry".to_owned()));
    }
    Ok(bytes)
}

fn check(header: &Header) -> Result<(), String> {
    let mut ids = BTreeSet::new();
    for database in &header.databases {
        database.id.parse::<Digest>().map_err(|_| format!("{:?} is no id of a database", database.id))?;
        if !ids.insert(&database.id) {
            return Err(format!("database {} is in it twice", database.id));
        }
        if database.slot > header.slot {
            return Err(format!("database {} is beyond its slot", database.id));
        }
    }
    let mut blobs = BTreeSet::new();
    if let Some(twice) = header.blobs.iter().find(|file| !blobs.insert(file.sha256)) {
        return Err(format!("file {} is in it twice", twice.sha256));
    }
    let catalogue = crate::DatabaseId::catalogue().to_string();
    if header.databases.first().is_none_or(|database| database.id != catalogue) {
        return Err("the catalogue is not its first database".to_owned());
    }
    let log = header.log;
    if header.slot >= i64::MAX.unsigned_abs() || header.from > header.slot || log.first == 0 {
        return Err("its slots are out of order".to_owned());
    }
    if log.first > header.from + 1 || log.last != header.slot {
        return Err("its log does not reach from its files to its slot".to_owned());
    }
    Ok(())
}
