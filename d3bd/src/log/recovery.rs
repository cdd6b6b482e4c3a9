//! The log of a replica whose cluster has lost its majority for good.

use std::path::Path;

use d3b::{ClusterId, ReplicaId, Slot};
use d3b_paxos::Storage as _;
use d3b_paxos::types::{Configuration, Epoch, Member, Payload};

use super::directory::Directory;
use super::store::{self, Store};
use super::{LogError, LogReader, open_offline};

/// How many bytes of records are read at once.
const READ_BYTES: usize = 4 << 20;

/// The log of a replica that does not run, and cannot be started as long as this lives.
#[derive(Debug)]
pub struct Survivor {
    _directory: Directory,
    store: Store,
    reader: LogReader,
    /// Whose it is.
    pub replica: ReplicaId,
    /// The cluster that it belongs to.
    pub configuration: Configuration,
    /// The first slot that the log holds.
    pub base: Slot,
    /// The last one.
    pub last: Slot,
    /// The last slot that a database may have applied although the log does not reach it, as it came with a snapshot.
    pub ahead: Slot,
}

impl Survivor {
    /// Opens the log in a data directory that nobody uses.
    ///
    /// # Errors
    /// There is none, it is in use, damaged, or belongs to no cluster.
    pub fn open(directory: &Path) -> Result<Survivor, LogError> {
        let missing = || LogError::Missing { path: directory.to_owned() };
        if !directory.join(store::FILE).exists() {
            return Err(missing());
        }
        let locked = Directory::open(directory)?;
        let replica = store::whose(directory)?;
        let store = Store::open(directory, replica, d3b::DiskId([0; 16]), false)?;
        let configuration = store.identity()?.configuration.ok_or_else(missing)?.configuration;
        let (base, last, ahead) = (store.base()?, store.last()?, store.ahead()?);
        let reader = open_offline(directory)?;
        Ok(Survivor { _directory: locked, store, reader, replica, configuration, base, last, ahead })
    }

    /// The log time of the last entry, in milliseconds since 1970.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn last_time_ms(&self) -> Result<Option<u64>, LogError> {
        if self.last < self.base {
            return Ok(None);
        }
        let records = self.read(self.last, self.last)?;
        Ok(records.first().map(|record| record.entry.stamp.time_ms))
    }

    fn read(&self, from: Slot, upto: Slot) -> Result<Vec<d3b_paxos::types::Record>, LogError> {
        let failed = |error: d3b_paxos::StorageError| LogError::Damaged {
            place: format!("between slots {from} and {upto}"),
            problem: error.message,
        };
        self.reader.read(from, upto, READ_BYTES).map_err(failed)
    }

    /// The configuration of a new cluster of this replica alone.
    ///
    /// What stands above `applied` in the log will be chosen once this replica leads alone, and there may be changes of
    /// the old configuration among it. A number above all of theirs makes them history; ids stay used.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn alone(&self, cluster: ClusterId, applied: Slot) -> Result<Configuration, LogError> {
        let old = &self.configuration;
        let (mut epoch, mut next_id, mut execution) = (old.epoch, old.next_id, old.execution);
        let mut next = applied.next().max(self.base);
        while next <= self.last {
            let records = self.read(next, self.last)?;
            let Some(end) = records.last().map(|record| record.slot) else { break };
            for record in &records {
                if let Payload::Configuration(pending) = &record.entry.payload {
                    epoch = epoch.max(pending.epoch);
                    next_id = next_id.max(pending.next_id);
                    execution = execution.max(pending.execution);
                }
            }
            next = end.next();
        }
        let peer = old.members.get(&self.replica).map(|member| member.peer.clone()).unwrap_or_default();
        let members = [(self.replica, Member::voter(self.store.disk(), peer))].into();
        // It governs everything that is not applied yet, which this replica alone decides on; nothing below it is claimed
        // to be held as it was chosen.
        Ok(Configuration { cluster, epoch: Epoch(epoch.0 + 1), slot: applied, members, next_id, execution })
    }

    /// Makes a configuration that of this replica, durably. The promise and the records stay.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn adopt(&mut self, configuration: &Configuration) -> Result<(), LogError> {
        self.store.persist_configuration(configuration)
    }
}
