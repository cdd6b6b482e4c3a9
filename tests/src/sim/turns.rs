//! What clients do, and what they are told.

use std::collections::BTreeSet;

use bytes::Bytes;
use d3b::operation::KeyedOperation;
use d3b::{Digest, IdempotencyKey, Outcome, ReplicaId, Slot};
use d3b_engine::{Command, Origin, command};
use d3b_paxos::types::Ticks;
use d3bd::driver::{Event, ReadRequest, Ticket, Unavailable, WriteFailure, WriteRequest};

use super::clients::{Client, Request, Stage, leaves_doubt, may_repeat, observe};
use super::machine::Machine;
use super::oracle::{Violation, demand};
use super::workload::{self, Register};
use super::world::{Happening, World};
use crate::linearizability::{Action, Observed};

impl<M: Machine> World<'_, M> {
    /// A client will do its next thing after a while.
    pub(super) fn wake(&mut self, index: usize, delay: u64) {
        let client = &mut self.clients[index];
        client.turn += 1;
        let turn = client.turn;
        self.after(delay, Happening::Client { index, turn });
    }

    /// A client does its next thing.
    pub(super) fn client_turn(&mut self, index: usize, turn: u64) -> Result<(), Violation> {
        if self.clients[index].turn != turn {
            return Ok(());
        }
        match std::mem::replace(&mut self.clients[index].stage, Stage::Resting) {
            Stage::Resting => {
                let Some(request) = self.next_request(index) else { return Ok(()) };
                self.history.begin(&request);
                self.submit(index, request)
            }
            Stage::Sending(request) => self.submit(index, request),
            stage @ (Stage::Waiting { .. } | Stage::Done) => {
                self.clients[index].stage = stage;
                Ok(())
            }
        }
    }

    fn next_request(&mut self, index: usize) -> Option<Request> {
        let time = self.time;
        let client = &mut self.clients[index];
        if let Some((_, todo)) = &mut client.script {
            let Some((register, action)) = (!todo.is_empty()).then(|| todo.remove(0)) else {
                client.stage = Stage::Done;
                return None;
            };
            let token = self.history.token();
            let action = if let Action::Write(_) = action { Action::Write(token) } else { action };
            let key = Some(IdempotencyKey::new(format!("script {token}")).expect("a key that is well formed"));
            let floor = Slot::ZERO;
            return Some(Request { register, action, token, key, called: time, attempts: 0, in_doubt: false, floor });
        }
        if !self.is_rough {
            client.stage = Stage::Done;
            return None;
        }
        Some(client.draw(&self.scenario, M::DATABASES, &mut self.history, time))
    }

    /// Sends a request to some replica.
    fn submit(&mut self, index: usize, mut request: Request) -> Result<(), Violation> {
        let ids = self.ids();
        let client = &mut self.clients[index];
        let id = match &client.script {
            Some((replica, _)) => *replica,
            None => *client.random.pick(&ids),
        };
        let patience_ms = client.random.between(100, 5_000);
        let time = self.time;
        let floor = self.oracle.told();
        let node = self.nodes.get_mut(&id).expect("a replica of this world");
        let now = node.now(time);
        let Some(process) = &mut node.process else {
            // Nobody listens there: another one is tried soon.
            self.clients[index].stage = Stage::Sending(request);
            let delay = self.random.between(1_000, 50_000);
            self.wake(index, delay);
            return Ok(());
        };
        request.attempts += 1;
        if request.attempts == 1 {
            request.called = time;
            request.floor = floor;
        }
        process.next_ticket += 1;
        let ticket = Ticket(process.next_ticket);
        let deadline = Ticks(now.ticks.0 + patience_ms);
        let event = match request.action {
            Action::Read => Event::Read(ReadRequest { ticket, deadline }),
            Action::Write(_) | Action::Swap { .. } | Action::Delete => {
                let identity = process.identity;
                let origin = Origin { replica: id, incarnation: identity.incarnation, sequence: ticket.0 };
                let operation = workload::operation(request.register, request.action, request.token);
                let blob = operation.blob();
                if let Some(reference) = blob {
                    if node.full {
                        // The upload is refused before anything is proposed.
                        self.over(index, request, None);
                        return Ok(());
                    }
                    node.disk.blobs.put(reference, time);
                }
                let retry = request.key.is_some();
                let key = request.key.clone().unwrap_or_else(|| keyless(id, identity.incarnation, ticket));
                let digest = Digest::of(&request.token.to_le_bytes());
                let keyed = KeyedOperation { key, request: digest, operation };
                let command = Bytes::from(command::encode(&Command { origin, keyed }));
                Event::Write(WriteRequest { ticket, command, blob, retry, deadline })
            }
        };
        self.note(700 + request.token, |_| {
            let Request { register, action, token, .. } = &request;
            format!("client {index} asks {id}: {action:?} on {register:?}, token {token}")
        });
        self.waiting.insert((id, ticket.0), index);
        self.clients[index].stage = Stage::Waiting { request, replica: id, ticket };
        self.clients[index].turn += 1;
        let turn = self.clients[index].turn;
        self.after(patience_ms * 1_000 + 1_000_000, Happening::Patience { index, turn });
        self.event(id, event)
    }

    /// A client has waited long enough: whatever comes, it will not hear of it.
    pub(super) fn client_gives_up(&mut self, index: usize, turn: u64) -> Result<(), Violation> {
        if self.clients[index].turn != turn {
            return Ok(());
        }
        self.give_up(index);
        Ok(())
    }

    /// Whoever waits for an answer of a process that has died is told so by its connection.
    pub(super) fn abandon_clients(&mut self, id: ReplicaId) {
        let waiting: Vec<usize> = self.waiting.range((id, 0)..=(id, u64::MAX)).map(|(_, index)| *index).collect();
        for index in waiting {
            self.give_up(index);
        }
    }

    /// The files of writes under way at a replica: it keeps them for those who wait.
    pub(super) fn pinned(&self, id: ReplicaId) -> BTreeSet<Digest> {
        let waiting = self.waiting.range((id, 0)..=(id, u64::MAX));
        let files = waiting.filter_map(|(_, index)| match &self.clients[*index].stage {
            Stage::Waiting {
                request: Request { register: Register::File(_), action: Action::Write(value), .. },
                ..
            } => Some(workload::blob(*value).digest),
            Stage::Waiting { .. } | Stage::Resting | Stage::Sending(_) | Stage::Done => None,
        });
        files.collect()
    }

    /// The run ends: what has no answer now has none.
    pub(super) fn abandon_everything(&mut self) {
        for client in &mut self.clients {
            if let Stage::Waiting { request, .. } | Stage::Sending(request) = &client.stage
                && request.attempts > 0
            {
                self.history.end(request, Some(Observed::Unknown), self.time);
            }
            client.stage = Stage::Done;
        }
    }

    /// A client stops waiting for an answer, whatever may come of what it asked.
    fn give_up(&mut self, index: usize) {
        let stage = std::mem::replace(&mut self.clients[index].stage, Stage::Resting);
        let Stage::Waiting { request, replica, ticket } = stage else { return };
        self.waiting.remove(&(replica, ticket.0));
        self.take_back(index, request, true);
    }

    /// An attempt gave nothing: the request is sent again, or it is over.
    fn take_back(&mut self, index: usize, mut request: Request, in_doubt: bool) {
        request.in_doubt |= in_doubt;
        if may_repeat(&request) || self.clients[index].script.is_some() {
            self.clients[index].stage = Stage::Sending(request);
            let delay = self.random.between(1_000, 100_000);
            self.wake(index, delay);
            return;
        }
        self.over(index, request, None);
    }

    fn rest(&mut self, index: usize) {
        self.clients[index].stage = Stage::Resting;
        let usual = if self.clients[index].script.is_some() { 1_000 } else { self.scenario.rest_us };
        let delay = self.random.around(usual);
        self.wake(index, delay);
    }

    fn over(&mut self, index: usize, request: Request, observed: Option<Observed>) {
        let observed = observed.or(request.in_doubt.then_some(Observed::Unknown));
        self.history.end(&request, observed, self.time);
        self.rest(index);
    }

    /// Whom an answer is for; nobody, if it has given up.
    fn addressee(&mut self, id: ReplicaId, ticket: Ticket) -> Option<(usize, Request)> {
        let index = self.waiting.remove(&(id, ticket.0))?;
        match std::mem::replace(&mut self.clients[index].stage, Stage::Resting) {
            Stage::Waiting { request, .. } => Some((index, request)),
            Stage::Resting | Stage::Sending(_) | Stage::Done => None,
        }
    }

    /// A driver tells what came of a write.
    pub(super) fn write_done(
        &mut self,
        id: ReplicaId,
        ticket: Ticket,
        result: Result<(Slot, Outcome), WriteFailure>,
    ) -> Result<(), Violation> {
        let Some((index, request)) = self.addressee(id, ticket) else { return Ok(()) };
        self.note(800 + request.token, |_| format!("{id} answers client {index}, token {}: {result:?}", request.token));
        match result {
            Ok((slot, outcome)) => {
                self.oracle.tells(slot);
                demand!(self.node(id).applied() >= slot, "{id} answers from slot {slot} before it has applied it");
                demand!(!self.node(id).condemned, "{id} is quarantined and answers a write");
                let observed = observe(&request, &outcome);
                // Whether what it asked for was there, a replica that holds something else cannot say.
                let depends = matches!(request.action, Action::Swap { .. } | Action::Delete);
                let observed = if depends && self.node(id).rotten { Some(Observed::Unknown) } else { observed };
                if outcome.is_ok() {
                    self.check_media(id, slot, &request)?;
                }
                self.over(index, request, observed);
            }
            Err(failure) => self.take_back(index, request, leaves_doubt(&failure)),
        }
        Ok(())
    }

    /// A majority has the bytes of a file that was just acknowledged, unless it is overwritten already.
    fn check_media(&mut self, id: ReplicaId, slot: Slot, request: &Request) -> Result<(), Violation> {
        let (Register::File(_), Action::Write(value)) = (request.register, request.action) else { return Ok(()) };
        let digest = workload::blob(value).digest;
        let has_another = |node: &super::node::Node<M>| {
            let value = node.process.as_ref().map(|process| process.machine.look(request.register));
            node.applied() >= slot && value.is_some_and(|value| value != Ok(super::machine::file_value(&digest)))
        };
        if has_another(&self.nodes[&id]) {
            return Ok(());
        }
        // Whoever is ahead may have seen it overwritten, and dropped.
        let holds = |node: &super::node::Node<M>| node.wiped || node.disk.blobs.holds(&digest) || has_another(node);
        let holders: BTreeSet<ReplicaId> = self.nodes.values().filter(|node| holds(node)).map(|node| node.id).collect();
        // Whoever counted them knew this configuration, or an earlier one.
        let enough = self.oracle.configurations().any(|configuration| {
            configuration.voters().filter(|id| holders.contains(id)).count() >= configuration.majority()
        });
        demand!(enough, "a file was acknowledged that only {holders:?} hold");
        Ok(())
    }

    /// A driver says that a read may go ahead, or not.
    pub(super) fn read_done(
        &mut self,
        id: ReplicaId,
        ticket: Ticket,
        result: Result<Slot, Unavailable>,
    ) -> Result<(), Violation> {
        let Some((index, request)) = self.addressee(id, ticket) else { return Ok(()) };
        match result {
            Ok(slot) => {
                demand!(!self.node(id).condemned, "{id} is quarantined and answers a read");
                let floor = request.floor;
                let applied = self.node(id).applied();
                demand!(applied >= slot, "{id} lets a read at {slot} go ahead when it has applied {applied}");
                demand!(slot >= floor, "{id} reads as of slot {slot}, but slot {floor} was told before it was asked");
                let process = self.node(id).process.as_ref().expect("a process that has just answered");
                let value = process.machine.look(request.register).map_err(Violation)?;
                self.oracle.tells(applied);
                self.note(900 + request.token, |_| {
                    format!("{id} answers client {index}, token {}: {value}", request.token)
                });
                // What it reads from rotten data counts for nothing, and for nothing else.
                let observed = (!self.nodes[&id].rotten).then_some(Observed::Value(value));
                self.over(index, request, observed);
            }
            Err(_) => self.take_back(index, request, false),
        }
        Ok(())
    }

    /// What a stale read finds was written by somebody, some time.
    pub(super) fn check_stale(&mut self, id: ReplicaId, register: Register) -> Result<(), Violation> {
        if self.node(id).rotten {
            return Ok(());
        }
        let Some(process) = &self.node(id).process else { return Ok(()) };
        // Before the tables are there, there is nothing to read.
        let Ok(value) = process.machine.look(register) else { return Ok(()) };
        let known = self.history.written.get(&register).is_some_and(|written| written.contains(&value));
        demand!(value == 0 || known, "{id} has {value} in {register:?}, which nobody wrote");
        Ok(())
    }

    /// Adds a client that talks to one replica.
    pub(super) fn add_scripted(&mut self, replica: ReplicaId, todo: Vec<(Register, Action)>) {
        let mut client = Client::new(self.random.fork());
        client.script = Some((replica, todo));
        self.clients.push(client);
        self.wake(self.clients.len() - 1, 0);
    }
}

/// The key that a replica gives to a request that came without one.
fn keyless(id: ReplicaId, incarnation: u64, ticket: Ticket) -> IdempotencyKey {
    IdempotencyKey::new(format!("{id} {incarnation:x} {}", ticket.0)).expect("a key that is well formed")
}
