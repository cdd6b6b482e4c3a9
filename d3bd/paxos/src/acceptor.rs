//! The acceptor: promise, records, and the run that this replica holds at the ballot of its leader. All that the
//! protocol's safety rests on is here; roles, timers and sending only decide when it is used.

use std::collections::BTreeMap;

use d3b::{ReplicaId, Slot};

use crate::interface::{PersistBatch, Restored, Storage, StorageError};
use crate::message::Message;
use crate::planted::{Mutation, Planted};
use crate::types::{Ballot, Configuration, Entry, Epoch, Payload, PersistId, Record, Uncompared};

/// An Accept, as the acceptor sees it.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The leader's ballot.
    pub(crate) ballot: Ballot,
    /// The slot of the first entry.
    pub(crate) start: Slot,
    /// In order of slots.
    pub(crate) entries: Vec<Entry>,
    /// The leader's commit.
    pub(crate) commit: Slot,
    /// The leader's heartbeat round.
    pub(crate) round: u64,
}

/// A batch between [`crate::Ready`] and [`crate::Input::Persisted`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writing {
    /// Its name. The name is no part of the state: two replicas that wrote the same in other batches are equal.
    id: Uncompared<PersistId>,
    /// The promise that is durable with it.
    promised: Ballot,
    /// What storage does not give back yet.
    records: BTreeMap<Slot, Record>,
    /// The run at the time, and its end.
    run: Ballot,
    upto: Slot,
    /// The configuration that is adopted with it.
    configuration: Option<Configuration>,
}

/// What a batch that is durable has brought.
#[derive(Debug)]
pub(crate) enum Persisted {
    /// It is none that was under way.
    Nothing,
    /// Promise and records.
    Records,
    /// And a configuration to adopt.
    Adopted(Configuration),
}

/// An answer to Prepare that waits until it is true of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwedPromise {
    to: ReplicaId,
    ballot: Ballot,
    from: Slot,
}

/// An answer to Accept that waits until it is true of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum OwedAccepted {
    Nothing,
    /// Entries came: an answer before they are durable would say nothing new.
    Entries,
    /// A new round came: the leader waits to hear that it still leads, however far the disk is.
    Round,
}

/// What to say, and what must be durable before.
pub(crate) struct Answers {
    /// Is true of the disk already.
    pub(crate) now: Vec<(ReplicaId, Message)>,
    /// Is true once the batch that was just begun is durable.
    pub(crate) after: Vec<(ReplicaId, Message)>,
}

/// Facts of the replica that answers carry along.
pub(crate) struct Colours {
    pub(crate) id: ReplicaId,
    pub(crate) clock_ms: u64,
    pub(crate) applied: Slot,
    pub(crate) bytes_max: usize,
}

/// Promise, records and run of one replica.
///
/// Invariants: `promised_durable <= promised`; `run <= promised`; `commit <= upto_durable <= upto <= last`; records
/// stand in every slot of `base..=last`; those in `commit+1..=upto` are of ballot `run`; those at or below `commit` are
/// chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Acceptor<S> {
    pub(crate) storage: S,
    pub(crate) mutation: Mutation,
    /// The first slot that the log holds.
    base: Slot,
    /// Binds from the moment at which a message raises it.
    promised: Ballot,
    /// What a crash leaves of it.
    promised_durable: Ballot,
    /// The end of the log, durable or not.
    last: Slot,
    /// The end of what storage gives back.
    last_durable: Slot,
    /// The ballot whose Accepts were taken last.
    run: Ballot,
    /// The end of the run: every slot up to here is accepted at `run`, or at or below `commit`.
    upto: Slot,
    /// The end of its durable part.
    upto_durable: Slot,
    /// The highest heartbeat round of `run`.
    round: u64,
    /// The highest commit that any leader told; says nothing about what is held here.
    heard: Slot,
    /// What lies up to here the last Accept took this replica to have.
    told: Uncompared<Slot>,
    /// The largest `min(heard, upto_durable)` ever reached.
    commit: Slot,
    /// Accepted since the last batch was begun.
    unwritten: BTreeMap<Slot, Record>,
    /// The sum of their entries' sizes.
    unwritten_bytes: usize,
    /// The batch that is under way.
    writing: Option<Writing>,
    persist_id: Uncompared<PersistId>,
    owed_promise: Option<OwedPromise>,
    owed_accepted: OwedAccepted,
    /// Configurations that are accepted at `run` and not adopted yet. The commit does not pass the first of them before
    /// it is, as it governs what follows.
    proposed: BTreeMap<Slot, Configuration>,
    /// The number of the configuration that is adopted; those that entries carry at or below it are history.
    epoch: Epoch,
}

impl<S: Storage> Acceptor<S> {
    pub(crate) fn new(restored: &Restored, storage: S) -> Acceptor<S> {
        // After a restart nothing is known of runs: what is held at which ballot is on disk, but only what was applied
        // is known to be chosen, and a run begins there.
        let commit = restored.applied.max(restored.held);
        Acceptor {
            storage,
            mutation: Mutation::default(),
            base: restored.base.max(Slot(1)),
            promised: restored.promised,
            promised_durable: restored.promised,
            last: restored.last.max(commit),
            last_durable: restored.last.max(commit),
            run: Ballot::ZERO,
            upto: commit,
            upto_durable: commit,
            round: 0,
            heard: commit,
            told: Uncompared(commit),
            commit,
            unwritten: BTreeMap::new(),
            unwritten_bytes: 0,
            writing: None,
            persist_id: Uncompared(PersistId(0)),
            owed_promise: None,
            owed_accepted: OwedAccepted::Nothing,
            proposed: BTreeMap::new(),
            epoch: restored.configuration.epoch,
        }
    }

    pub(crate) fn promised(&self) -> Ballot {
        self.promised
    }

    pub(crate) fn promised_durable(&self) -> Ballot {
        self.promised_durable
    }

    /// Whether the promise is still on its way to the disk, so that nobody has heard of it.
    pub(crate) fn is_promising(&self) -> bool {
        self.promised_durable < self.promised
    }

    pub(crate) fn run(&self) -> Ballot {
        self.run
    }

    pub(crate) fn upto(&self) -> Slot {
        self.upto
    }

    pub(crate) fn upto_durable(&self) -> Slot {
        self.upto_durable
    }

    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    pub(crate) fn commit(&self) -> Slot {
        self.commit
    }

    /// The end of what it has heard to be chosen.
    pub(crate) fn heard(&self) -> Slot {
        self.heard
    }

    /// The same or more: what its leader takes it to have.
    pub(crate) fn told(&self) -> Slot {
        self.heard.max(self.told.0)
    }

    pub(crate) fn last(&self) -> Slot {
        self.last
    }

    pub(crate) fn base(&self) -> Slot {
        self.base
    }

    pub(crate) fn outstanding(&self) -> Option<PersistId> {
        self.writing.as_ref().map(|writing| writing.id.0)
    }

    /// Everything up to here may be applied: chosen, and durable here at the ballot of the leader that said so.
    pub(crate) fn applicable(&self) -> Slot {
        if self.mutation.breaks(Planted::ApplyBeyondDurableUpto) {
            return self.commit.max(self.heard.min(self.last_durable));
        }
        // A configuration counts as applied once it is adopted: after a crash in between it is met again.
        self.adoptable().map_or(self.commit, |configuration| self.commit.min(configuration.slot.previous()))
    }

    /// The log is cut below this slot.
    pub(crate) fn cut(&mut self, base: Slot) {
        self.base = self.base.max(base.min(self.commit));
    }

    // Configurations.

    /// Whether a configuration is on its way into the log, or chosen and not adopted yet.
    pub(crate) fn is_changing(&self) -> bool {
        !self.proposed.is_empty()
    }

    /// The configuration that is chosen and not adopted yet. Until it is, this replica must not campaign: it would ask
    /// the members of an old configuration about slots that the new one governs.
    pub(crate) fn adoptable(&self) -> Option<&Configuration> {
        let unchosen = self.mutation.breaks(Planted::ConfigurationAdoptedUnchosen);
        let first = self.proposed.first_key_value();
        first.filter(|(slot, _)| unchosen || **slot <= self.commit).map(|(_, configuration)| configuration)
    }

    // Phase one.

    /// Promises a ballot that is not below the promise. It binds at once, long before it is durable.
    pub(crate) fn promise(&mut self, ballot: Ballot) {
        debug_assert!(ballot >= self.promised, "a promise never falls");
        self.promised = self.promised.max(ballot);
        if self.owed_promise.as_ref().is_some_and(|owed| owed.ballot < ballot) {
            self.owed_promise = None;
        }
    }

    /// Will answer a Prepare, or the question for a further chunk, of the ballot that is promised. Once Accepts of that
    /// ballot have come, its phase one is over and the question is an old one, which nobody waits to have answered.
    pub(crate) fn owe_promise(&mut self, to: ReplicaId, ballot: Ballot, from: Slot) {
        if self.run != ballot {
            self.owed_promise = Some(OwedPromise { to, ballot, from });
        }
    }

    // Phase two.

    /// Whether an Accept of this ballot is refused for good.
    pub(crate) fn refuses(&self, ballot: Ballot) -> bool {
        ballot < self.promised && !self.mutation.breaks(Planted::NoPromiseCheck)
    }

    /// Begins the run of a ballot at the own commit, unless it is under way.
    pub(crate) fn begin_run(&mut self, ballot: Ballot) {
        if self.run == ballot {
            return;
        }
        self.promise(ballot.max(self.promised));
        self.run = ballot;
        self.upto = self.commit;
        self.upto_durable = self.commit;
        let commit = self.commit;
        self.proposed.retain(|slot, _| *slot <= commit);
        self.round = 0;
        self.owed_accepted = OwedAccepted::Nothing;
        self.owed_promise = None;
    }

    /// Takes an offer that is not refused. What comes when `unwritten_bytes_max` wait for the disk is lost, as if it had
    /// not arrived: no leader of ours has so much under way, and whoever does would fill the memory.
    ///
    /// # Errors
    /// The offer leaves a hole after the run: the slot where the run could be continued.
    pub(crate) fn accept(&mut self, offer: Offer, unwritten_bytes_max: usize) -> Result<(), Slot> {
        self.begin_run(offer.ballot);
        let new_round = offer.round > self.round;
        self.round = self.round.max(offer.round);
        let hole = offer.start > self.upto.next();
        self.told = Uncompared(offer.start.previous());
        if !hole {
            if new_round {
                self.owed_accepted = OwedAccepted::Round;
            } else if !offer.entries.is_empty() && self.owed_accepted == OwedAccepted::Nothing {
                self.owed_accepted = OwedAccepted::Entries;
            }
            for (slot, entry) in (offer.start.0..).map(Slot).zip(offer.entries) {
                // Below the end of the run stands this very entry already: a ballot has one value per slot.
                if slot > self.upto {
                    if self.unwritten_bytes >= unwritten_bytes_max {
                        break;
                    }
                    self.append(entry);
                }
            }
        }
        self.hear_commit(offer.commit);
        if hole { Err(self.upto.next()) } else { Ok(()) }
    }

    /// Accepts the entry after the end of the run.
    pub(crate) fn append(&mut self, entry: Entry) -> Slot {
        let slot = self.upto.next();
        self.unwritten_bytes += entry.size();
        if let Payload::Configuration(configuration) = &entry.payload
            && configuration.epoch > self.epoch
        {
            self.proposed.insert(slot, Configuration { slot, ..(**configuration).clone() });
        }
        if let Some(replaced) = self.unwritten.insert(slot, Record { slot, ballot: self.run, entry }) {
            self.unwritten_bytes -= replaced.entry.size();
        }
        self.upto = slot;
        self.last = self.last.max(slot);
        slot
    }

    /// A leader of ballot `run`, or an earlier one, says that every slot up to here is chosen. Of the entries that are
    /// held here only those of the run can be the ones that it means.
    pub(crate) fn hear_commit(&mut self, commit: Slot) {
        self.heard = self.heard.max(commit);
        let held = if self.mutation.breaks(Planted::CommitBelievedAsHeard) { self.last } else { self.upto_durable };
        let governed = self.proposed.first_key_value().map_or(Slot(u64::MAX), |(slot, _)| *slot);
        self.commit = self.commit.max(self.heard.min(held).min(governed));
        if self.mutation.breaks(Planted::CommitBelievedAsHeard) {
            self.upto = self.upto.max(self.commit);
            self.upto_durable = self.upto_durable.max(self.commit);
        }
    }

    // The disk.

    /// What to write next; nothing while a batch is under way.
    pub(crate) fn begin_batch(&mut self) -> Option<PersistBatch> {
        let risen = self.promised > self.promised_durable;
        let configuration = self.adoptable().cloned();
        if self.writing.is_some() || (!risen && self.unwritten.is_empty() && configuration.is_none()) {
            return None;
        }
        self.persist_id.0.0 += 1;
        let records = std::mem::take(&mut self.unwritten);
        self.unwritten_bytes = 0;
        let batch = PersistBatch {
            id: self.persist_id.0,
            promised: risen.then_some(self.promised),
            records: records.values().cloned().collect(),
            configuration: configuration.clone(),
        };
        let Acceptor { promised, run, upto, .. } = *self;
        self.writing = Some(Writing { id: self.persist_id, promised, records, run, upto, configuration });
        Some(batch)
    }

    /// A batch is durable.
    pub(crate) fn persisted(&mut self, id: PersistId) -> Persisted {
        if self.outstanding() != Some(id) {
            return Persisted::Nothing;
        }
        let Some(writing) = self.writing.take() else { return Persisted::Nothing };
        self.promised_durable = self.promised_durable.max(writing.promised);
        if let Some((slot, _)) = writing.records.last_key_value() {
            self.last_durable = self.last_durable.max(*slot);
        }
        if writing.run == self.run {
            self.upto_durable = self.upto_durable.max(writing.upto);
        }
        if let Some(configuration) = &writing.configuration {
            self.epoch = configuration.epoch;
            // With it goes what another leader of the same configuration proposed in its place, if it was left behind it.
            self.proposed.retain(|_, other| other.epoch > configuration.epoch);
        }
        self.hear_commit(self.heard);
        writing.configuration.map_or(Persisted::Records, Persisted::Adopted)
    }

    /// The answers that can be given, now or after the batch that [`Acceptor::begin_batch`] began in this same round.
    pub(crate) fn answers(&mut self, began: bool, colours: &Colours) -> Result<Answers, StorageError> {
        let mut answers = Answers { now: Vec::new(), after: Vec::new() };
        if let Some(owed) = self.owed_promise.take() {
            if owed.ballot <= self.promised_durable {
                answers.now.push((owed.to, self.promise_chunk(&owed, colours)?));
            } else if began {
                answers.after.push((owed.to, self.promise_chunk(&owed, colours)?));
            } else {
                self.owed_promise = Some(owed);
            }
        }
        self.answer_accept(began, colours, &mut answers);
        Ok(answers)
    }

    fn answer_accept(&mut self, began: bool, colours: &Colours, answers: &mut Answers) {
        let to = self.run.replica;
        if to == colours.id || self.run == Ballot::ZERO {
            return;
        }
        // Every batch that makes more of the run durable is reported, whatever else is owed.
        let news = |writing: &Writing| writing.run == self.run && writing.upto > self.upto_durable;
        let pending = self.promised_durable < self.run;
        if began && (self.writing.as_ref().is_some_and(news) || pending) {
            answers.after.push((to, self.accepted(self.upto, colours)));
        }
        if pending {
            if began {
                self.owed_accepted = OwedAccepted::Nothing;
            }
            return;
        }
        let caught_up = self.upto == self.upto_durable;
        let upto =
            if self.mutation.breaks(Planted::LoseAcknowledgedEntryAtCrash) { self.upto } else { self.upto_durable };
        match self.owed_accepted {
            OwedAccepted::Nothing => return,
            OwedAccepted::Entries if caught_up => answers.now.push((to, self.accepted(upto, colours))),
            OwedAccepted::Entries => {}
            OwedAccepted::Round => answers.now.push((to, self.accepted(upto, colours))),
        }
        self.owed_accepted = OwedAccepted::Nothing;
    }

    fn accepted(&self, upto: Slot, colours: &Colours) -> Message {
        let (clock_ms, applied) = (colours.clock_ms, colours.applied);
        Message::Accepted { ballot: self.run, upto, round: self.round, clock_ms, applied }
    }

    fn promise_chunk(&self, owed: &OwedPromise, colours: &Colours) -> Result<Message, StorageError> {
        let from = owed.from.max(self.base);
        let records = self.read(from, self.last, colours.bytes_max)?;
        let next = records.last().map(|record| record.slot.next()).filter(|next| *next <= self.last);
        Ok(Message::Promise {
            ballot: owed.ballot,
            commit: self.commit,
            log_start: self.base,
            from,
            records,
            next,
            clock_ms: colours.clock_ms,
        })
    }

    // Reading.

    fn pending(&self, slot: Slot) -> Option<&Record> {
        let writing = || self.writing.as_ref().and_then(|writing| writing.records.get(&slot));
        self.unwritten.get(&slot).or_else(writing)
    }

    /// The records of `from..=upto` as they stand now, durable or not, as many as fit but at least one.
    pub(crate) fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        let upto = upto.min(self.last);
        let mut records: Vec<Record> = Vec::new();
        let mut durable = Vec::new().into_iter().peekable();
        let mut bytes = 0;
        let mut slot = from;
        let mut asked = false;
        while slot <= upto {
            let record = match self.pending(slot) {
                Some(record) => record.clone(),
                None => {
                    if !asked {
                        asked = true;
                        durable =
                            self.storage.read(slot, upto, bytes_max.saturating_sub(bytes))?.into_iter().peekable();
                    }
                    while durable.next_if(|record: &Record| record.slot < slot).is_some() {}
                    match durable.next_if(|record| record.slot == slot) {
                        Some(record) => record,
                        None if records.is_empty() => return Err(missing(slot)),
                        None => break,
                    }
                }
            };
            bytes += record.entry.size();
            if !records.is_empty() && bytes > bytes_max {
                break;
            }
            records.push(record);
            slot = slot.next();
        }
        Ok(records)
    }

    /// The record of one slot; `None` outside the log.
    pub(crate) fn record(&self, slot: Slot) -> Result<Option<Record>, StorageError> {
        if slot < self.base || slot > self.last {
            return Ok(None);
        }
        Ok(self.read(slot, slot, 0)?.into_iter().next())
    }
}

fn missing(slot: Slot) -> StorageError {
    StorageError { message: format!("the log has no record for slot {slot}, which it was said to hold") }
}
