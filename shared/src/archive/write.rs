//! Writing an archive, in the order of its parts.

use std::io::{self, Read, Write};

use super::{Database, END, File, HEADER, Header, Sum, blob_name, database_name, log_name};
use crate::{Digest, Hasher};

/// Fast rather than small: the disk and the network are to be the slower part.
const LEVEL: i32 = 3;
/// Bytes that are moved at a time.
const PIECE: usize = 256 << 10;

/// Writes an archive as a stream; what is dropped before [`ArchiveWriter::finish`] has no end, and every reader says so.
pub struct ArchiveWriter<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, W>>,
    sum: Sum,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(to: W, header: &Header) -> io::Result<ArchiveWriter<W>> {
        let mut encoder = zstd::Encoder::new(to, LEVEL)?;
        encoder.include_checksum(true)?;
        let mut writer = ArchiveWriter { tar: tar::Builder::new(encoder), sum: Sum::default() };
        let bytes = serde_json::to_vec_pretty(header).map_err(io::Error::other)?;
        writer.entry(HEADER, bytes.len() as u64, &mut bytes.as_slice())?;
        Ok(writer)
    }

    /// Adds the next database of the header.
    ///
    /// # Errors
    /// Its file is not what the header says, or something cannot be read or written.
    pub fn database(&mut self, database: &Database, from: &mut dyn Read) -> io::Result<()> {
        self.file(&database_name(&database.id), &database.file, from)
    }

    /// Adds the next blob of the header.
    ///
    /// # Errors
    /// Its file is not what the header says, or something cannot be read or written.
    pub fn blob(&mut self, file: &File, from: &mut dyn Read) -> io::Result<()> {
        self.file(&blob_name(file), file, from)
    }

    /// Adds the next stretch of the log.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn log(&mut self, first: u64, last: u64, records: &[u8]) -> io::Result<()> {
        self.entry(&log_name(first, last), records.len() as u64, &mut &*records).map(|_| ())
    }

    /// Says that this was all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        let end = serde_json::to_vec(&std::mem::take(&mut self.sum).end()).map_err(io::Error::other)?;
        self.entry(END, end.len() as u64, &mut end.as_slice())?;
        self.tar.into_inner()?.finish()
    }

    fn file(&mut self, name: &str, file: &File, from: &mut dyn Read) -> io::Result<()> {
        let found = self.entry(name, file.size, from)?;
        if found != file.sha256 {
            let text = format!("{name} is damaged on this disk: its SHA-256 is {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, length: u64, from: &mut dyn Read) -> io::Result<Digest> {
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o644);
        self.sum.begin(name, length);
        let mut watched = Watched { from: from.take(length), sum: &mut self.sum, hasher: Hasher::new() };
        header.set_path(name)?;
        header.set_cksum();
        let mut buffered = io::BufReader::with_capacity(PIECE, &mut watched);
        self.tar.append(&header, &mut buffered)?;
        if watched.hasher.length() != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} is shorter than it should be")));
        }
        Ok(watched.hasher.finish())
    }
}

/// Digests what goes through.
struct Watched<'f, 'd, 's> {
    from: io::Take<&'f mut (dyn Read + 'd)>,
    sum: &'s mut Sum,
    hasher: Hasher,
}

impl Read for Watched<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.sum.bytes(&buffer[..read]);
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
