//! Settings: flag, then environment, then file, then default; each value remembers where it came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use d3b::ReplicaId;
use serde::Deserialize;

mod parse;

pub(crate) use parse::is_address;
use parse::{
    check_filter, list, parse_address, parse_duration, parse_grace, parse_rate, parse_replicas, parse_size,
    parse_snapshot_rate, read_key,
};

/// Settings that can stand on the command line; the same keys, spelled for each place, make up all other sources.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Read settings from this file (default: d3b.toml in the working directory or /etc/d3b, if there is one)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This replica's id: a number from 1 up, its own within the cluster
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Where this replica keeps its log, databases and blobs
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address for HTTP
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Also serve HTTP on a unix socket at this path
    #[arg(long, value_name = "PATH")]
    pub listen_unix: Option<String>,
    /// Names by which HTTP clients may address this server, besides addresses and localhost
    #[arg(long, value_name = "NAME,...")]
    pub hosts: Option<String>,
    /// Address for the other replicas
    #[arg(long, value_name = "ADDR:PORT")]
    pub peer_listen: Option<String>,
    /// Every replica of the cluster with its peer address, this one included
    #[arg(long, value_name = "ID=ADDR:PORT,...")]
    pub replicas: Option<String>,
    /// URL of any replica of a running cluster that this one is to join
    #[arg(long, value_name = "URL")]
    pub join: Option<String>,
    /// File with the secret that the cluster's replicas share
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<String>,
    /// How often a leader makes itself heard
    #[arg(long, value_name = "DURATION")]
    pub heartbeat: Option<String>,
    /// How long a replica waits for a leader before it campaigns; drawn between this and twice this
    #[arg(long, value_name = "DURATION")]
    pub election_timeout: Option<String>,
    /// Largest database or media file that is taken in
    #[arg(long, value_name = "SIZE")]
    pub upload_max: Option<String>,
    /// How long a file that nothing refers to is kept
    #[arg(long, value_name = "DURATION")]
    pub blob_grace: Option<String>,
    /// Rebuild this replica from a peer by itself when its data differs from the majority's
    #[arg(long, value_name = "true|false")]
    pub repair_auto: Option<String>,
    /// How much is read each second to look for damage on the disk; 0 looks for none
    #[arg(long, value_name = "SIZE")]
    pub scrub_bytes_per_second: Option<String>,
    /// What to log: error, warn, info, debug, or a filter such as d3bd=debug
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// How much of the replicated log is kept at most; a replica that needs more of it gets a snapshot
    #[arg(long, value_name = "SIZE")]
    pub log_retain_bytes: Option<String>,
    /// How long the replicated log is kept at most
    #[arg(long, value_name = "DURATION")]
    pub log_retain_age: Option<String>,
    /// How much is read and sent each second at most for replicas that need a snapshot; 0 sets no bound
    #[arg(long, value_name = "SIZE")]
    pub snapshot_bytes_per_second: Option<String>,
    /// Allow plain, unauthenticated listening beyond this machine
    #[arg(long)]
    pub insecure: bool,
}

/// What the names of our environment variables begin with.
pub(crate) const VARIABLE: &str = "D3BD_";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag(&'static str),
    /// The environment.
    Environment(String),
    /// A file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(flag) => write!(f, "flag {flag}"),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be; the source names line and column.
    #[error("the configuration file {} is in error", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// An environment variable that no setting has.
    #[error("the environment variable {name} names no setting{}", hint(.suggestion))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The closest one that exists.
        suggestion: Option<String>,
    },
    /// An environment variable of ours whose value is not text.
    #[error("the environment variable {name} is not UTF-8")]
    NotText {
        /// The variable.
        name: String,
    },
    /// A value that makes no sense.
    #[error("{key} = {value:?} ({source_of_value}): {problem}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// Where it came from.
        source_of_value: Source,
        /// What is wrong with it.
        problem: String,
    },
    /// Values that do not fit together.
    #[error("{problem} (hint: {hint})")]
    Conflict {
        /// What does not fit.
        problem: String,
        /// What would.
        hint: String,
    },
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// One setting: its key in files, its flag, its default, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `section.key`, as in d3b.toml.
    pub key: &'static str,
    /// The flag.
    pub flag: &'static str,
    /// In the form of a flag's value; "" where the default depends on other settings.
    pub default: &'static str,
    /// What it means, for the manual.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable: `D3BD_SECTION_KEY`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("D3BD_{}", self.key.replace('.', "_").to_uppercase())
    }
}

macro_rules! settings {
    ($($key:literal, $flag:literal, $default:literal, $help:literal;)*) => {
        /// Every setting there is.
        pub const SETTINGS: &[Setting] = &[$(Setting { key: $key, flag: $flag, default: $default, help: $help }),*];
    };
}

settings! {
    "replica.id", "--id", "1", "This replica's id: a number from 1 up, its own within the cluster.";
    "replica.data_dir", "--data-dir", "", "Where this replica keeps its log, databases and blobs.";
    "http.listen", "--listen", "127.0.0.1:8055", "Address for HTTP.";
    "http.listen_unix", "--listen-unix", "", "Path of a unix socket on which HTTP is served as well.";
    "http.hosts", "--hosts", "", "Names by which HTTP clients may address this server, besides addresses and localhost.";
    "peer.listen", "--peer-listen", "127.0.0.1:8124", "Address for the other replicas.";
    "peer.replicas", "--replicas", "", "Every replica of the cluster with its peer address, this one included.";
    "peer.join", "--join", "", "URL of any replica of a running cluster that this one is to join.";
    "peer.key_file", "--cluster-key-file", "", "File with the secret that the cluster's replicas share.";
    "paxos.heartbeat", "--heartbeat", "50ms", "How often a leader makes itself heard.";
    "paxos.election_timeout", "--election-timeout", "300ms",
        "How long a replica waits for a leader before it campaigns; drawn between this and twice this.";
    "limits.upload_max", "--upload-max", "64GiB", "Largest database or media file that is taken in.";
    "blobs.grace", "--blob-grace", "15min", "How long a file that nothing refers to is kept.";
    "repair.auto", "--repair-auto", "false",
        "Whether this replica is rebuilt from a peer by itself when its data differs from the majority's.";
    "repair.scrub_bytes_per_second", "--scrub-bytes-per-second", "8MiB",
        "How much is read each second to look for damage on the disk; 0 looks for none.";
    "log.level", "--log-level", "info", "What to log: error, warn, info, debug, or a filter such as d3bd=debug.";
    "log.retain_bytes", "--log-retain-bytes", "256MiB",
        "How much of the replicated log is kept at most; a replica that needs more of it gets a snapshot.";
    "log.retain_age", "--log-retain-age", "168h", "How long the replicated log is kept at most.";
    "snapshot.bytes_per_second", "--snapshot-bytes-per-second", "64MiB",
        "How much is read and sent each second at most for replicas that need a snapshot; 0 sets no bound.";
    "security.insecure", "--insecure", "false", "Allow plain, unauthenticated listening beyond this machine.";
}

/// What a daemon runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This replica.
    pub id: ReplicaId,
    /// Whether somebody has named it, so that it is not just the default.
    pub id_given: bool,
    /// Any replica of the cluster that it is to join.
    pub join: Option<String>,
    /// Its directory.
    pub data_dir: PathBuf,
    /// HTTP.
    pub listen: SocketAddr,
    /// HTTP on a unix socket.
    pub listen_unix: Option<PathBuf>,
    /// Host names that are this server's.
    pub hosts: Vec<String>,
    /// Peers.
    pub peer_listen: SocketAddr,
    /// The cluster.
    pub replicas: BTreeMap<ReplicaId, String>,
    /// The cluster's secret; empty without one.
    pub cluster_key: Vec<u8>,
    /// How often a leader makes itself heard.
    pub heartbeat: Duration,
    /// The least time without a leader before a campaign.
    pub election_timeout: Duration,
    /// Bytes.
    pub upload_max: u64,
    /// How long an unreferenced blob is kept.
    pub blob_grace: Duration,
    /// Whether it is rebuilt from a peer without being told to.
    pub repair_auto: bool,
    /// How much is read each second to look for damage; 0 looks for none.
    pub scrub_bytes_per_second: u64,
    /// A `tracing` filter.
    pub log_level: String,
    /// How many bytes the Paxos log keeps at most, roughly.
    pub log_retain_bytes: u64,
    /// How old what it keeps is at most, roughly.
    pub log_retain_age: Duration,
    /// How much is done each second for the sake of snapshots; 0 sets no bound.
    pub snapshot_bytes_per_second: u64,
}

/// The variables that are ours, among all of them. What others are made of is none of our business, be it text or not.
///
/// # Errors
/// One of ours is not text.
pub fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let named = variables.map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let ours = named.filter(|(name, _)| name.starts_with(VARIABLE));
    ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(ConfigError::NotText { name }),
    })
    .collect()
}

/// The values that were found, by key.
#[derive(Debug, Clone)]
pub struct Merged {
    values: BTreeMap<&'static str, (String, Source)>,
}

impl Merged {
    /// Collects the values of all sources.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, or a `D3BD_` variable that names no setting.
    pub fn collect(flags: &Flags, environment: &BTreeMap<String, String>) -> Result<Merged, ConfigError> {
        let mut values: BTreeMap<&'static str, (String, Source)> =
            SETTINGS.iter().map(|setting| (setting.key, (setting.default.to_owned(), Source::Default))).collect();
        if let Some(path) = file_to_read(flags, environment) {
            for (key, value) in read_file(&path)? {
                values.insert(key, (value, Source::File(path.clone())));
            }
        }
        for (name, value) in environment.iter().filter(|(name, _)| name.starts_with(VARIABLE) && *name != "D3BD_CONFIG")
        {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == *name) else {
                let suggestion = SETTINGS.iter().map(Setting::variable).find(|known| known.ends_with(last_word(name)));
                return Err(ConfigError::UnknownVariable { name: name.clone(), suggestion });
            };
            values.insert(setting.key, (value.clone(), Source::Environment(name.clone())));
        }
        for (key, value) in flag_values(flags) {
            let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("every flag is a setting");
            values.insert(setting.key, (value, Source::Flag(setting.flag)));
        }
        Ok(Merged { values })
    }

    fn get(&self, key: &'static str) -> &str {
        &self.values.get(key).expect("every setting has a value").0
    }

    fn is_given(&self, key: &'static str) -> bool {
        !matches!(self.values.get(key), Some((_, Source::Default)) | None)
    }

    fn parse<T, E: fmt::Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        let (value, source) = self.values.get(key).expect("every setting has a value");
        parse(value).map_err(|problem| ConfigError::Value {
            key,
            value: value.clone(),
            source_of_value: source.clone(),
            problem: problem.to_string(),
        })
    }

    /// Checks every value, and whether they fit together.
    ///
    /// # Errors
    /// Names the setting, its value, where it came from, and what is wrong.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let id: ReplicaId = self.parse("replica.id", str::parse)?;
        let peer_listen: SocketAddr = self.parse("peer.listen", parse_address)?;
        let mut replicas = self.parse("peer.replicas", parse_replicas)?;
        if replicas.is_empty() {
            replicas.insert(id, peer_listen.to_string());
        }
        let settings = Settings {
            id,
            data_dir: self.data_dir(id)?,
            listen: self.parse("http.listen", parse_address)?,
            listen_unix: (!self.get("http.listen_unix").is_empty()).then(|| self.get("http.listen_unix").into()),
            hosts: list(self.get("http.hosts")),
            peer_listen,
            id_given: self.is_given("replica.id"),
            join: Some(self.get("peer.join").trim().trim_end_matches('/').to_owned()).filter(|url| !url.is_empty()),
            replicas,
            cluster_key: self.parse("peer.key_file", read_key)?,
            heartbeat: self.parse("paxos.heartbeat", parse_duration)?,
            election_timeout: self.parse("paxos.election_timeout", parse_duration)?,
            upload_max: self.parse("limits.upload_max", parse_size)?,
            blob_grace: self.parse("blobs.grace", parse_grace)?,
            repair_auto: self.parse("repair.auto", str::parse)?,
            scrub_bytes_per_second: self.parse("repair.scrub_bytes_per_second", parse_rate)?,
            log_level: self.parse("log.level", check_filter)?,
            log_retain_bytes: self.parse("log.retain_bytes", parse_size)?,
            log_retain_age: self.parse("log.retain_age", parse_duration)?,
            snapshot_bytes_per_second: self.parse("snapshot.bytes_per_second", parse_snapshot_rate)?,
        };
        check(&settings, self.parse("security.insecure", str::parse::<bool>)?)?;
        Ok(settings)
    }

    fn data_dir(&self, id: ReplicaId) -> Result<PathBuf, ConfigError> {
        let given = self.get("replica.data_dir");
        if !given.is_empty() {
            return Ok(given.into());
        }
        match directories::ProjectDirs::from("", "", "d3b") {
            Some(directories) => Ok(directories.data_dir().join(format!("replica-{id}"))),
            None => Err(ConfigError::Conflict {
                problem: "there is no home directory to keep data in".to_owned(),
                hint: "name a directory with --data-dir".to_owned(),
            }),
        }
    }

    /// Every setting with its value and where it came from, one a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for setting in SETTINGS {
            let (value, source) = self.values.get(setting.key).expect("every setting has a value");
            text.push_str(&format!("{:<24} = {:<28} # {source}\n", setting.key, format!("{value:?}")));
        }
        text
    }
}

fn last_word(name: &str) -> &str {
    name.rsplit('_').next().unwrap_or(name)
}

fn flag_values(flags: &Flags) -> Vec<(&'static str, String)> {
    let given = [
        ("replica.id", &flags.id),
        ("replica.data_dir", &flags.data_dir),
        ("http.listen", &flags.listen),
        ("http.listen_unix", &flags.listen_unix),
        ("http.hosts", &flags.hosts),
        ("peer.listen", &flags.peer_listen),
        ("peer.replicas", &flags.replicas),
        ("peer.join", &flags.join),
        ("peer.key_file", &flags.cluster_key_file),
        ("paxos.heartbeat", &flags.heartbeat),
        ("paxos.election_timeout", &flags.election_timeout),
        ("limits.upload_max", &flags.upload_max),
        ("blobs.grace", &flags.blob_grace),
        ("repair.auto", &flags.repair_auto),
        ("repair.scrub_bytes_per_second", &flags.scrub_bytes_per_second),
        ("log.level", &flags.log_level),
        ("log.retain_bytes", &flags.log_retain_bytes),
        ("log.retain_age", &flags.log_retain_age),
        ("snapshot.bytes_per_second", &flags.snapshot_bytes_per_second),
    ];
    let mut values: Vec<_> = given.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
    if flags.insecure {
        values.push(("security.insecure", "true".to_owned()));
    }
    values
}

fn file_to_read(flags: &Flags, environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    flags
        .config
        .clone()
        .or_else(|| environment.get("D3BD_CONFIG").map(PathBuf::from))
        .or_else(|| ["d3b.toml", "/etc/d3b/d3b.toml"].iter().map(PathBuf::from).find(|path| path.exists()))
}

/// d3b.toml. Unknown keys are refused with their line and column.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    replica: ReplicaSection,
    http: HttpSection,
    peer: PeerSection,
    paxos: PaxosSection,
    limits: LimitsSection,
    blobs: BlobsSection,
    repair: RepairSection,
    log: LogSection,
    snapshot: SnapshotSection,
    security: SecuritySection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReplicaSection {
    id: Option<u32>,
    data_dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpSection {
    listen: Option<String>,
    listen_unix: Option<String>,
    hosts: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PeerSection {
    listen: Option<String>,
    replicas: Option<Vec<String>>,
    join: Option<String>,
    key_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PaxosSection {
    heartbeat: Option<String>,
    election_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    upload_max: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BlobsSection {
    grace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RepairSection {
    auto: Option<bool>,
    scrub_bytes_per_second: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogSection {
    level: Option<String>,
    retain_bytes: Option<String>,
    retain_age: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SnapshotSection {
    bytes_per_second: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SecuritySection {
    insecure: Option<bool>,
}

fn read_file(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let file: File = toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let found = [
        ("replica.id", file.replica.id.map(|id| id.to_string())),
        ("replica.data_dir", file.replica.data_dir),
        ("http.listen", file.http.listen),
        ("http.listen_unix", file.http.listen_unix),
        ("http.hosts", file.http.hosts.map(|hosts| hosts.join(","))),
        ("peer.listen", file.peer.listen),
        ("peer.replicas", file.peer.replicas.map(|replicas| replicas.join(","))),
        ("peer.join", file.peer.join),
        ("peer.key_file", file.peer.key_file),
        ("paxos.heartbeat", file.paxos.heartbeat),
        ("paxos.election_timeout", file.paxos.election_timeout),
        ("limits.upload_max", file.limits.upload_max),
        ("blobs.grace", file.blobs.grace),
        ("repair.auto", file.repair.auto.map(|auto| auto.to_string())),
        ("repair.scrub_bytes_per_second", file.repair.scrub_bytes_per_second),
        ("log.level", file.log.level),
        ("log.retain_bytes", file.log.retain_bytes),
        ("log.retain_age", file.log.retain_age),
        ("snapshot.bytes_per_second", file.snapshot.bytes_per_second),
        ("security.insecure", file.security.insecure.map(|insecure| insecure.to_string())),
    ];
    Ok(found.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

fn check(settings: &Settings, insecure: bool) -> Result<(), ConfigError> {
    let conflict = |problem: String, hint: &str| Err(ConfigError::Conflict { problem, hint: hint.to_owned() });
    if !settings.replicas.contains_key(&settings.id) && settings.join.is_none() {
        return conflict(
            format!("this is replica {}, and --replicas does not name it", settings.id),
            "--replicas names every replica of the cluster, this one included",
        );
    }
    if settings.election_timeout < settings.heartbeat * 3 {
        return conflict(
            format!(
                "the election timeout {:?} is too close to the heartbeat {:?}",
                settings.election_timeout, settings.heartbeat
            ),
            "let it be at least three heartbeats, six are better",
        );
    }
    if insecure {
        return Ok(());
    }
    if !is_loopback(settings.listen.ip()) {
        return conflict(
            format!("HTTP on {} would be open to the network without encryption or authentication", settings.listen),
            "listen on 127.0.0.1, or say --insecure",
        );
    }
    if !is_loopback(settings.peer_listen.ip()) && settings.cluster_key.is_empty() {
        return conflict(
            format!("peers on {} could be joined by anyone", settings.peer_listen),
            "give every replica the same --cluster-key-file, or say --insecure",
        );
    }
    Ok(())
}

fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(flags: Flags, environment: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Merged::collect(&flags, &environment)?.settings()
    }

    fn file(text: &str) -> (tempfile::TempDir, Flags) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d3b.toml");
        std::fs::write(&path, text).unwrap();
        (directory, Flags { config: Some(path), ..Flags::default() })
    }

    #[track_caller]
    fn check_error(result: Result<Settings, ConfigError>, expected: &str) {
        use std::error::Error as _;
        let error = result.expect_err("these settings are wrong");
        let text = format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(expected), "{text:?} should tell {expected:?}");
    }

    #[test]
    fn without_anything_said_it_is_a_cluster_of_one_on_loopback() {
        let settings = merge(Flags::default(), &[]).unwrap();
        assert_eq!(settings.replicas, BTreeMap::from([(ReplicaId(1), "127.0.0.1:8124".to_owned())]));
        assert!(settings.listen.ip().is_loopback());
        assert_eq!(settings.upload_max, 64 << 30);
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let (_directory, mut flags) =
            file("[replica]\nid = 3\n[http]\nlisten = '127.0.0.1:1'\n[paxos]\nheartbeat = '20ms'");
        flags.listen = Some("127.0.0.1:3".to_owned());
        let settings = merge(flags, &[("D3BD_HTTP_LISTEN", "127.0.0.1:2"), ("D3BD_REPLICA_ID", "2")]).unwrap();
        assert_eq!(settings.id, ReplicaId(2));
        assert_eq!(settings.listen.port(), 3);
        assert_eq!(settings.heartbeat, Duration::from_millis(20));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        let (_directory, flags) = file("[http]\nlistn = '127.0.0.1:1'");
        check_error(merge(flags, &[]), "line 2, column 1");
        check_error(merge(Flags::default(), &[("D3BD_LISTEN", "127.0.0.1:2")]), "did you mean D3BD_HTTP_LISTEN?");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let flags = |id: &str, replicas: &str| Flags {
            id: Some(id.to_owned()),
            replicas: Some(replicas.to_owned()),
            ..Flags::default()
        };
        check_error(merge(flags("0", ""), &[]), "must be a number from 1 up");
        check_error(merge(flags("2", "1=127.0.0.1:1"), &[]), "does not name it");
        check_error(merge(flags("1", "1=127.0.0.1:1,1=127.0.0.1:2"), &[]), "named twice");
        check_error(merge(flags("1", "1=127.0.0.1:1,2=127.0.0.1:1"), &[]), "two replicas have the address");
        check_error(merge(flags("1", "1=127.0.0.1"), &[]), "must be HOST:PORT");
        check_error(merge(Flags::default(), &[("D3BD_PAXOS_HEARTBEAT", "fast")]), "must be a duration");
        check_error(merge(Flags::default(), &[("D3BD_LIMITS_UPLOAD_MAX", "many")]), "must be a number of bytes");
        let slow = [("D3BD_SNAPSHOT_BYTES_PER_SECOND", "64KiB")];
        check_error(merge(Flags::default(), &slow), "at least 1MiB");
    }

    #[test]
    fn durations_that_would_overflow_are_refused() {
        for key in ["D3BD_PAXOS_HEARTBEAT", "D3BD_PAXOS_ELECTION_TIMEOUT", "D3BD_BLOBS_GRACE"] {
            check_error(merge(Flags::default(), &[(key, "2500000000000000h")]), "up to 366 days");
        }
        check_error(merge(Flags::default(), &[("D3BD_BLOBS_GRACE", "10ms")]), "at least 1s");
    }

    #[test]
    fn the_environment_may_hold_anything_under_the_names_of_others() {
        use std::os::unix::ffi::OsStringExt as _;
        let junk = || OsString::from_vec(vec![0xff]);
        let variables = |name: &str| [(junk(), junk()), ("D3BD_REPLICA_ID".into(), "2".into()), (name.into(), junk())];
        let found = environment(variables("LANG").into_iter()).unwrap();
        assert_eq!(found, BTreeMap::from([("D3BD_REPLICA_ID".to_owned(), "2".to_owned())]));
        let error = environment(variables("D3BD_LOG_LEVEL").into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "the environment variable D3BD_LOG_LEVEL is not UTF-8");
    }

    #[test]
    fn the_network_is_closed_unless_told_otherwise() {
        let open = Flags { listen: Some("0.0.0.0:8055".to_owned()), ..Flags::default() };
        check_error(merge(open.clone(), &[]), "--insecure");
        assert!(merge(Flags { insecure: true, ..open }, &[]).is_ok());
        let peers = Flags { peer_listen: Some("0.0.0.0:8124".to_owned()), ..Flags::default() };
        check_error(merge(peers, &[]), "--cluster-key-file");
    }

    #[test]
    fn every_key_of_the_file_is_a_setting_and_every_setting_a_key_of_the_file() {
        let text = "[replica]\nid=1\ndata_dir='d'\n[http]\nlisten='127.0.0.1:1'\nlisten_unix='u'\nhosts=['h']\n\
                    [peer]\nlisten='127.0.0.1:2'\nreplicas=['1=127.0.0.1:2']\njoin='u'\nkey_file='k'\n\
                    [paxos]\nheartbeat='1ms'\nelection_timeout='9ms'\n[limits]\nupload_max='1'\n\
                     [blobs]\ngrace='1s'\n[repair]\nauto=false\nscrub_bytes_per_second='0'\n\
                     [log]\nlevel='info'\nretain_bytes='1'\nretain_age='1h'\n[snapshot]\nbytes_per_second='0'\n[security]\ninsecure=true";
        let (directory, _) = file(text);
        let keys: Vec<_> =
            read_file(&directory.path().join("d3b.toml")).unwrap().into_iter().map(|(key, _)| key).collect();
        let known: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys, known);
    }
}
