//! Carries out what the driver decides.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use d3b::{BlobReference, ClusterId, ReplicaId, Slot};
use d3b_paxos::types::Configuration;
use tokio::sync::watch;

use crate::catch_up::{Copy, Fetching, Order};
use crate::driver::{Effect, Event};
use crate::driving::Events;
use crate::handle::Waiting;
use crate::log::Log;
use crate::media::{BlobStore, Fetcher};
use crate::peer::Peers;
use crate::quarantine;
use crate::run::Stop;

/// Carries out effects.
pub(crate) struct Executor {
    pub(crate) data_dir: PathBuf,
    pub(crate) log: Log,
    pub(crate) peers: Peers,
    pub(crate) ranges: SyncSender<std::ops::RangeInclusive<Slot>>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) cluster: watch::Sender<Option<ClusterId>>,
    pub(crate) events: Events,
    pub(crate) blobs: BlobStore,
    pub(crate) fetcher: Fetcher,
    /// Fetches snapshots for this replica.
    pub(crate) snapshots: Fetching,
    /// The way to whoever takes them for others.
    pub(crate) orders: SyncSender<Order>,
    pub(crate) fetching: Arc<Mutex<HashSet<(ReplicaId, d3b::Digest)>>>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) stop: Arc<Stop>,
}

impl Executor {
    /// Carries out one effect; what it leads to at once is returned.
    pub(crate) fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Persist(batch) => self.log.persist(batch),
            Effect::PersistConfiguration(configuration) => {
                let (cluster, events) = (self.cluster.clone(), self.events.clone());
                self.persist(configuration, move |configuration| {
                    tracing::info!(cluster = %configuration.cluster, "the cluster is formed");
                    cluster.send_replace(Some(configuration.cluster));
                    events.send(Event::ConfigurationPersisted(configuration));
                });
            }
            Effect::Send { to, message } => self.peers.send(to, &message),
            Effect::SendDependent { proof, messages } => self.peers.send_dependent(&proof, messages),
            // The driver has one range under way at a time: there is always room, unless the applier is gone.
            Effect::Apply(range) => drop(self.ranges.try_send(range)),
            Effect::FetchBlob { from, reference } => return self.fetch(from, reference),
            Effect::PersistQuarantine(reason) => {
                if let Err(error) = quarantine::write(&self.data_dir, &reason) {
                    self.stop.fatal(format!("that this replica is quarantined cannot be written: {error}"));
                }
            }
            Effect::Connect(configuration) => {
                self.peers.connect_with(&crate::join::addresses(&configuration));
            }
            Effect::StartOver(configuration) => {
                let stop = Arc::clone(&self.stop);
                self.persist(configuration, move |_| stop.ask_again());
            }
            Effect::TakeSnapshot { to, configuration } => {
                if self.orders.try_send(Order::Copy(Copy::Snapshot { to, configuration })).is_err() {
                    let result = Err("too many ask for snapshots".to_owned());
                    return Some(Event::SnapshotTaken { to, result });
                }
            }
            Effect::FetchSnapshot { from, manifest } => {
                self.runtime.spawn(self.snapshots.clone().run(from, manifest));
            }
            Effect::InstallSnapshot { manifest } => match self.snapshots.decide(manifest) {
                Ok(()) => self.stop.ask_again(),
                Err(reason) => {
                    return Some(Event::SnapshotStaged { manifest, result: Err(reason) });
                }
            },
            Effect::MemberRequestDone { ticket, result } => self.waiting.member_request_done(ticket, result),
            Effect::CutLog(base) => self.log.cut(base),
            Effect::WriteDone { ticket, result } => self.waiting.write_done(ticket, result),
            Effect::ReadDone { ticket, result } => self.waiting.read_done(ticket, result),
        }
        None
    }

    /// Has a configuration written, and goes on when it is on disk: whoever carries this out may be the log's writer.
    fn persist(&self, configuration: Configuration, then: impl FnOnce(Configuration) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.log.persist_configuration(configuration, move |result| match result {
            Ok(configuration) => then(configuration),
            Err(error) => stop.fatal(format!("the configuration cannot be written: {error}")),
        });
    }

    /// Takes over a blob that a peer offers, and tells the driver when it is safe on this disk.
    fn fetch(&self, from: ReplicaId, reference: BlobReference) -> Option<Event> {
        if !self.fetching.lock().expect("no panic while held").insert((from, reference.digest)) {
            // The same offer again while the first one is being followed: whoever offers it learns that it is.
            return Some(Event::BlobUnderWay { from, reference });
        }
        let (blobs, fetcher, events) = (self.blobs.clone(), self.fetcher.clone(), self.events.clone());
        let fetching = Arc::clone(&self.fetching);
        self.runtime.spawn(async move {
            let result = take_over(&blobs, &fetcher, from, reference).await;
            fetching.lock().expect("no panic while held").remove(&(from, reference.digest));
            let _ = events.try_send(Event::BlobFetched { from, reference, result });
        });
        None
    }
}

/// Makes sure that a blob is on this replica's disk, with its grace period begun anew.
async fn take_over(
    blobs: &BlobStore,
    fetcher: &Fetcher,
    from: ReplicaId,
    reference: BlobReference,
) -> Result<(), String> {
    let (store, digest) = (blobs.clone(), reference.digest);
    let renewed = tokio::task::spawn_blocking(move || store.renew(&digest)).await.map_err(|panic| panic.to_string())?;
    if renewed.map_err(|error| error.to_string())? {
        return Ok(());
    }
    fetcher.fetch(reference, &[from]).await.map_err(|error| error.to_string())
}
