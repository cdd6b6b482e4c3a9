//! Files on their way: read for an upload, written by a download.
//!
//! A download goes to a temporary file beside its target, is verified, synced, and renamed: the target is the old file
//! or the whole new one, and nothing else is left behind.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use d3b::client::{Body, Response};
use d3b::{Digest, Hasher};
use tempfile::NamedTempFile;

use crate::error::{CliError, Damage, at};
use crate::progress::Progress;
use crate::signals::Unfinished;

/// Bytes that are moved at a time.
const PIECE: usize = 256 << 10;

/// A file that is to be sent.
#[derive(Debug)]
pub struct Source {
    file: File,
    /// In bytes.
    pub length: u64,
}

impl Source {
    /// Opens a file; standard input, which is `-`, or a pipe is copied to a temporary file first, because it may have to
    /// be sent more than once.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Source, CliError> {
        if path.as_os_str() == "-" {
            return Source::copy_of(&mut io::stdin().lock(), CliError::Input);
        }
        let mut file = File::open(path).map_err(at(path))?;
        let metadata = file.metadata().map_err(at(path))?;
        if metadata.is_file() {
            return Ok(Source { file, length: metadata.len() });
        }
        // Reading a directory says that it is one.
        Source::copy_of(&mut file, at(path))
    }

    fn copy_of(reader: &mut dyn Read, error: impl FnOnce(io::Error) -> CliError) -> Result<Source, CliError> {
        let mut file = tempfile::tempfile().map_err(at(std::env::temp_dir()))?;
        let length = io::copy(reader, &mut file).map_err(error)?;
        Ok(Source { file, length })
    }

    /// Its first bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn beginning(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length.min(usize::try_from(self.length).unwrap_or(length))];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Its digest. Reading it first costs little beside sending it, and lets the server refuse what was damaged on the
    /// way, or changed meanwhile, before anything took effect.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&self, progress: &Progress) -> io::Result<Digest> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE];
        while hasher.length() < self.length {
            let left = usize::try_from(self.length - hasher.length()).unwrap_or(PIECE).min(PIECE);
            match self.file.read_at(&mut buffer[..left], hasher.length())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => hasher.update(&buffer[..read]),
            }
            progress.set(hasher.length());
        }
        Ok(hasher.finish())
    }

    /// The body of a request.
    #[must_use]
    pub fn into_body(self) -> Body {
        Body::file(self.file, self.length)
    }
}

/// What a download must be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// In bytes.
    pub size: Option<u64>,
    /// SHA-256.
    pub digest: Option<Digest>,
}

impl Expected {
    /// Compares.
    ///
    /// # Errors
    /// In what it differs.
    pub fn check(&self, hasher: Hasher) -> Result<(), CliError> {
        let found = hasher.length();
        if let Some(expected) = self.size
            && expected != found
        {
            return Err(CliError::Damaged(Damage::Size { expected, found }));
        }
        let found = hasher.finish();
        match self.digest {
            Some(expected) if expected != found => Err(CliError::Damaged(Damage::Digest { expected, found })),
            Some(_) | None => Ok(()),
        }
    }
}

/// Where a download goes.
#[derive(Debug)]
pub struct Target {
    kind: Kind,
    /// For messages.
    path: PathBuf,
}

#[derive(Debug)]
enum Kind {
    Output,
    /// A pipe or a device, which must not be replaced by a file.
    Stream(File),
    /// A file that gets its name when it is whole.
    Fresh {
        file: NamedTempFile,
        target: PathBuf,
        _unfinished: Unfinished,
    },
    /// A file that keeps its beginning when the rest does not come.
    Partial {
        file: File,
        part: PathBuf,
        target: PathBuf,
    },
}

impl Target {
    /// A file, a device, or standard output, which is `-`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> Result<Target, CliError> {
        if path.as_os_str() == "-" {
            return Ok(Target { kind: Kind::Output, path: path.to_owned() });
        }
        // What a link points to is replaced, not the link.
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(metadata) = std::fs::metadata(&target)
            && !metadata.is_file()
        {
            let file = OpenOptions::new().write(true).open(&target).map_err(at(path))?;
            return Ok(Target { kind: Kind::Stream(file), path: path.to_owned() });
        }
        let file = tempfile::Builder::new()
            .prefix(".d3bctl-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory(&target))
            .map_err(at(path))?;
        let unfinished = Unfinished::new(file.path());
        Ok(Target { kind: Kind::Fresh { file, target, _unfinished: unfinished }, path: path.to_owned() })
    }

    /// A file that may have a beginning from an earlier time, which is read again: its hasher comes with it. It is kept
    /// as `FILE.part` until it is whole.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn resume(path: &Path, progress: &Progress) -> Result<(Target, Hasher), CliError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part).map_err(at(&part))?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE];
        loop {
            match file.read(&mut buffer).map_err(at(&part))? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
            progress.set(hasher.length());
        }
        let kind = Kind::Partial { file, part: part.clone(), target: path.to_owned() };
        Ok((Target { kind, path: part }, hasher))
    }

    /// Throws away what is there of a file that was to be resumed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn restart(&mut self) -> Result<Hasher, CliError> {
        match &mut self.kind {
            Kind::Partial { file, .. } => {
                let emptied = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)).map(|_| ()));
                emptied.map_err(at(&self.path))?;
            }
            Kind::Fresh { file, .. } => {
                let file = file.as_file_mut();
                let emptied = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)).map(|_| ()));
                emptied.map_err(at(&self.path))?;
            }
            // What has gone out cannot be taken back; the caller knows.
            Kind::Output | Kind::Stream(_) => {}
        }
        Ok(Hasher::new())
    }

    /// Whether what was written can be thrown away.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        match self.kind {
            Kind::Fresh { .. } | Kind::Partial { .. } => true,
            Kind::Output | Kind::Stream(_) => false,
        }
    }

    /// Takes in the body of an answer, after what the hasher has seen.
    ///
    /// # Errors
    /// The body broke off, or the target cannot be written.
    pub fn receive(
        &mut self,
        response: &mut Response,
        hasher: &mut Hasher,
        progress: &Progress,
    ) -> Result<(), CliError> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = match response.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(response.broken_off(&error).into()),
            };
            hasher.update(&buffer[..read]);
            self.write(&buffer[..read])?;
            progress.set(hasher.length());
        }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match &mut self.kind {
            Kind::Output => io::stdout().lock().write_all(bytes).map_err(CliError::Output),
            Kind::Stream(file) | Kind::Partial { file, .. } => file.write_all(bytes).map_err(at(&self.path)),
            Kind::Fresh { file, .. } => file.write_all(bytes).map_err(at(&self.path)),
        }
    }

    /// Verifies what was written, makes it durable, and gives it its name.
    ///
    /// # Errors
    /// It is damaged, and nothing is left of it; or the target cannot be written.
    pub fn finish(self, hasher: Hasher, expected: &Expected) -> Result<(), CliError> {
        let checked = expected.check(hasher);
        match self.kind {
            Kind::Output => {
                checked?;
                io::stdout().flush().map_err(CliError::Output)
            }
            Kind::Stream(_) => checked,
            Kind::Fresh { file, target, _unfinished } => {
                checked?;
                file.as_file().sync_all().map_err(at(&self.path))?;
                file.persist(&target).map_err(|error| at(&self.path)(error.error))?;
                sync_directory(&target).map_err(at(&self.path))
            }
            Kind::Partial { file, part, target } => {
                if let Err(damage) = checked {
                    // Going on from damaged bytes would never lead anywhere. If it cannot be removed, the next time
                    // finds the same.
                    let _ = std::fs::remove_file(&part);
                    return Err(damage);
                }
                file.sync_all().map_err(at(&part))?;
                std::fs::rename(&part, &target).map_err(at(&target))?;
                sync_directory(&target).map_err(at(&target))
            }
        }
    }
}

/// The directory in which a file lies.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

#[cfg(test)]
mod tests;
