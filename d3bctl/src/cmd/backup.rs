//! `backup`, `restore`: everything, out and in.

use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use d3b::api;
use d3b::archive::{self, ArchiveError, Header};
use d3b::client::{ClientError, Method, Request, Response};
use d3b::{Code, Hasher};

use crate::cli::{Backup, Restore};
use crate::error::{CliError, UsageError, at};
use crate::output::{Output, number, text};
use crate::progress::{Progress, Shown};
use crate::session::{CATALOGUE, Session};
use crate::settings::Settings;
use crate::transfer::{Expected, Source, Target};

/// How long a server may take to make its copies, unless it is told.
const COPIES_WAIT: Duration = Duration::from_secs(3600);
/// What a restore needs to be brought to a majority and into place: this, and a second for so many bytes of the archive.
const RESTORE_WAIT: Duration = Duration::from_secs(60);
const RESTORE_BYTES_PER_SECOND: u64 = 1 << 20;
/// The most that a server can be told to wait.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// Takes a backup, or verifies one.
pub(super) fn backup(arguments: &Backup, session: &Session) -> Result<(), CliError> {
    if let Some(file) = &arguments.verify {
        return verify(file, session);
    }
    if arguments.file.as_deref().is_some_and(is_output) && io::stdout().is_terminal() {
        return Err(UsageError::BackupToTerminal.into());
    }
    let progress = Progress::waiting(&session.settings, "waiting for copies of everything");
    let wait = session.settings.timeout.unwrap_or(COPIES_WAIT);
    let request = Request::get(&["v1", "backup"]).waiting(wait, session.settings.timeout.is_some()).probing("readyz");
    let mut response = session.send(&request)?;
    drop(progress);
    let path = match &arguments.file {
        Some(path) => path.clone(),
        None => {
            let slot = response.number("d3b-slot").unwrap_or_default();
            let path = PathBuf::from(format!("d3b-{slot}.d3b"));
            // Only a file that was named is replaced.
            if path.exists() {
                return Err(CliError::FileExists(path));
            }
            path
        }
    };
    let mut target = Target::create(&path)?;
    let mut bar = Bar::new(&session.settings, "backing up");
    let tee = Tee { response: &mut response, target: &mut target, hasher: Hasher::new(), failed: None };
    let mut reader = BufReader::with_capacity(PIECE, tee);
    let verified = archive::verify(&mut reader, &mut |header, bytes| bar.show(header, bytes));
    let Tee { hasher, failed, .. } = reader.into_inner();
    drop(bar);
    if let Some(error) = failed {
        return Err(error);
    }
    let header = verified.map_err(CliError::Archive)?;
    let length = hasher.length();
    target.finish(hasher, &Expected::default())?;
    session.note(&format!("{} in {} bytes: {}", words(&header), length, path.display()));
    Ok(())
}

fn is_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn words(header: &Header) -> String {
    let databases = header.databases.len().saturating_sub(1);
    format!("slot {}, {databases} databases, {} files", header.slot, header.blobs.len())
}

fn verify(file: &Path, session: &Session) -> Result<(), CliError> {
    let mut bar = Bar::new(&session.settings, "verifying");
    let mut show = |header: &Header, bytes| bar.show(header, bytes);
    let verified = if is_output(file) {
        archive::verify(&mut BufReader::with_capacity(PIECE, io::stdin().lock()), &mut show)
    } else {
        let opened = std::fs::File::open(file).map_err(at(file))?;
        archive::verify(&mut BufReader::with_capacity(PIECE, opened), &mut show)
    };
    drop(bar);
    let header = verified.map_err(|error| match error {
        ArchiveError::Source(error) => at(file)(error),
        other => CliError::Archive(other),
    })?;
    let first = header.slot_min();
    session.note(&format!(
        "{}: whole; {}; it can be restored to slots from {first} on",
        file.display(),
        words(&header)
    ));
    Ok(())
}

/// A bar whose length the archive tells.
struct Bar<'a> {
    settings: &'a Settings,
    what: &'static str,
    shown: Option<Shown>,
}

impl<'a> Bar<'a> {
    fn new(settings: &'a Settings, what: &'static str) -> Bar<'a> {
        Bar { settings, what, shown: None }
    }

    fn show(&mut self, header: &Header, bytes: u64) {
        let shown = self.shown.get_or_insert_with(|| Progress::bytes(self.settings, self.what, Some(header.bytes())));
        // The log comes on top, and its length is not told.
        shown.set(bytes.min(header.bytes()));
    }
}

/// Writes what is read.
struct Tee<'a> {
    response: &'a mut Response,
    target: &'a mut Target,
    hasher: Hasher,
    failed: Option<CliError>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let failed = match self.response.read(buffer) {
            Ok(read) => {
                self.hasher.update(&buffer[..read]);
                match self.target.write(&buffer[..read]) {
                    Ok(()) => return Ok(read),
                    Err(error) => error,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => self.response.broken_off(&error).into(),
        };
        self.failed = Some(failed);
        Err(io::Error::other("the backup could not be taken in"))
    }
}

/// Restores a backup.
pub(super) fn restore(arguments: &Restore, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let source = Source::open(&arguments.file)?;
    let mut curl = vec!["--data-binary".to_owned(), format!("@{}", arguments.file.display())];
    let mut length = source.length;
    let mut body = source.into_body();
    let mut request = Request::new(Method::POST, &["v1", "restore"]);
    if let Some(slot) = arguments.to_slot {
        request = request.parameter("slot", slot.to_string());
    }
    if let Some(time) = &arguments.to_time {
        request = request.parameter("time", time);
    }
    if let Some(log) = &arguments.log {
        let later = Source::open(log)?;
        length += later.length;
        body = body.then(later.into_body());
        request = request.parameter("log", "true");
        curl = vec!["-T".to_owned(), "-".to_owned()];
    }
    let what = format!("restoring {}", arguments.file.display());
    let progress = Progress::bytes(&session.settings, what, Some(length));
    let wait = (RESTORE_WAIT + Duration::from_secs(length / RESTORE_BYTES_PER_SECOND)).min(WAIT_MAX);
    let request = session
        .change(request.body(archive::MEDIA_TYPE, body), CATALOGUE)
        .waiting(session.settings.timeout.unwrap_or(wait), true)
        .probing("readyz")
        .reporting(progress.setter());
    let sent = session.write(&request, &curl).map_err(|error| match error {
        CliError::Client(ClientError::Problem { problem, .. }) if problem.code == Code::Exists => {
            CliError::ClusterNotEmpty(problem.detail)
        }
        other => other,
    });
    let Some(response) = sent? else { return Ok(()) };
    drop(progress);
    let (restored, body): (api::Restore, _) = response.json()?;
    let api::Restore { slot, cluster, restored_slot, restored_time, databases, media } = restored;
    let sentence =
        format!("restored {databases} databases and {media} media files as of slot {restored_slot} ({restored_time})");
    let fields = vec![
        ("slot", number(slot)),
        ("cluster", text(&cluster)),
        ("restored_slot", number(restored_slot)),
        ("restored_time", text(&restored_time)),
        ("databases", number(databases)),
        ("media", number(media)),
    ];
    output.change(&body, &sentence, fields)
}
