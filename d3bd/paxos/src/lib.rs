//! The consensus core of d3b: Multi-Paxos over one log, for one to nine replicas.
//!
//! The core is pure. It does no I/O, reads no clock, spawns no thread and draws no randomness of its own: time and a
//! seed are arguments, durable records are read through [`Storage`], and all else comes in by [`Replica::step`] and
//! [`Replica::tick`] and goes out by [`Replica::ready`]. The same inputs give the same outputs, so that the daemon, the
//! simulator and the model checker run this very code. [`Replica`] is `Clone + Eq + Hash` if its storage is.
//!
//! # How it works
//!
//! The log is a sequence of slots, and every slot is an instance of Paxos (PMS §2): a value is *chosen* when a majority
//! of acceptors has accepted it at one ballot. All slots share their ballots and one promise (PMS §3).
//!
//! **Phase one** (`candidate.rs`). A replica that hears no leader asks around whether a campaign would be welcome
//! (pre-vote, Diss §9.6); that leaves no trace anywhere. Then it takes a ballot above all that it has promised or
//! seen, makes it durable, and sends Prepare over its whole suffix: every slot above its commit. Members answer with a
//! promise and with every record that they hold there, in chunks. A majority of promises, the own one included once it
//! is durable, makes a leader.
//!
//! **Phase two** (`leader.rs`). For each of those slots the leader proposes again, at its own ballot, the value that was
//! accepted at the highest ballot; then a no-op, its *barrier*; then what its driver asks for. There are no gaps to
//! fill, as records have none. Accepts are sent at once, while the leader's own write is under way, pipelined and batched; several
//! may be on their way to a peer, within a bound of bytes. Followers answer when the entries are durable.
//!
//! **Learning.** The leader's commit is the largest slot that a majority holds durably at its ballot; it travels in the
//! next Accept. A replica applies the slots up to the commit that it heard, as far as its own durable run reaches.
//!
//! **Reads** (`reads.rs`) are linearizable without clocks: the leader notes its commit, one heartbeat round of a
//! majority confirms its ballot, and the noted commit is the read's index (Diss §6.4).
//!
//! **Leaving.** A leader without acknowledgements for an election timeout steps down (check-quorum, Diss §6.2); one
//! that meets a higher promise asks around for a campaign above it; one that hands over tells its successor to campaign
//! now (Diss §3.10).
//!
//! `tests/golden/scenes` shows all of this by example: a page for each scene, with every message and write.
//!
//! **Patience.** A campaign takes two syncs one after the other, and as many round trips as its promises
//! have chunks, which may well take longer than anybody waits for a leader. So whoever has made a promise begins to wait
//! when it is durable, and again with every chunk that the candidate asks for; no member welcomes another campaign
//! meanwhile; and a candidate whose time was too short has twice as long for the next try.
//!
//! # Why it is safe
//!
//! *At most one value is chosen per slot.* This is Paxos (PMS §2.2, P2c): a ballot has one value per slot, because it
//! belongs to one leader, which never uses a ballot twice (the ballot is durable before its Prepare leaves, and a
//! campaign starts above the durable promise, after a restart too); and the value that a leader proposes is that of the
//! highest ballot that any member of a majority has accepted, or free if none has. Five things deserve a closer look.
//!
//! 1. **The promise binds in memory, messages wait for the disk** (`acceptor.rs`). From the moment that a Prepare is
//!    received, older Accepts are refused, long before the promise is durable. Promise and Accepted leave only when
//!    what they say is durable. A crash in between takes back a promise that nobody has heard of.
//! 2. **Runs instead of truncation.** A follower holds a *run* at its leader's ballot: the slots from its commit to
//!    `upto`, all accepted at this ballot. It accepts an offer that begins at or before the run's end, and asks for
//!    what is missing otherwise. So records never have gaps, and one number acknowledges many slots. Nothing is ever cut
//!    off: what older ballots left behind the run stays until it is overwritten, for it may have been chosen. As a ballot
//!    has one value per slot, every Prepare and Accept may be lost, doubled, or arrive late.
//! 3. **A commit is no licence by itself.** That slot 7 is chosen does not mean that what *this* replica holds in slot 7
//!    is what was chosen: it may be a leftover. Only what it holds at the ballot of the leader that told the commit, or
//!    a later one, is. Hence a replica's own commit is the largest `min(heard commit, durable upto)` that it ever
//!    reached, and a run begins there. After a restart it begins at what was applied; the leader sends the rest again.
//! 4. **A majority at one ballot.** The leader counts only what is durable at its own ballot. Entries that a majority
//!    holds at older ballots are not thereby chosen (Raft §5.4.2); they are when they have been accepted again.
//! 5. **The barrier.** A new leader knows that everything ever answered is in its log, but not yet that all of it is
//!    chosen, so its commit may lie below what clients have seen. When its barrier is chosen everything before it is,
//!    too; only from then on are reads confirmed (Diss §6.4, step 1).
//!
//! *Reads are linearizable.* What was answered before a read was asked was chosen at a ballot at or below that of the
//! leader that confirms it, and so stands at or below the index: a higher ballot needs the promise of a member of every
//! majority, and such a member does not acknowledge the older ballot's round any more. Acknowledgements of rounds that
//! began before the read confirm nothing. A question's name is never used by two processes.
//!
//! *A lost disk never votes.* The configuration names every member's disk. A replica that finds itself on another one
//! has forgotten promises, and stays silent for good (`formation.rs`).
//!
//! Nothing here depends on clocks. Timeouts, pre-votes, the check of the quorum, reset connections and transfers decide
//! who leads and when, never what is chosen.
//!
//! # Log time
//!
//! The leader stamps entries with its clock, above every stamp in its log, and never more than a bound ahead of what a
//! majority's clocks have reached. An entry keeps its stamp when a later leader proposes it again. So along any one
//! leader's log stamps rise. What phase one finds may be of several leaders, though: a leader stamps slot 5 without
//! knowing of a slot 6 that an older ballot left with a minority, and the next leader finds both, slot 6 dated before
//! slot 5. Such a slot was not chosen, and nothing after it: had slot 6 been chosen at ballot b, each of the acceptors
//! that did it would have held in slot 5 the value of b's leader, or a chosen one, which that leader had too. Either way
//! that value was chosen, so it is what phase one finds in slot 5 (P2c), and b's leader stamped slot 6 above it. The new
//! leader therefore leaves out what begins with a fallback of ballot *and* of stamp, puts its barrier there, and its own
//! log rises again. Stamps are data here, kept rising by every leader; what clocks show does not matter.
//!
//! # What is left out
//!
//! Membership is static: every message carries the configuration's epoch, and one of another epoch is dropped. Logs are
//! not cut, so there are no snapshots to catch up with: a candidate that is behind somebody's log base does not lead,
//! and a follower that is behind the leader's stays behind. There are no leases: no read is served on the strength of a
//! clock. There is no defence against replicas that lie, only against bytes that make no sense: of another cluster, out of
//! order, of a ballot that nobody can have come to by campaigning, or more of them than a leader sends.
//!
//! # Words
//!
//! - **ballot**: a numbered attempt to lead, (round, replica).
//! - **slot**: a position in the log. **Entry**: the value in it. **Record**: slot, ballot and entry, as accepted.
//! - **promise**: the ballot below which an acceptor accepts nothing any more.
//! - **accepted**: by one acceptor. **Chosen**: accepted by a majority at one ballot; forever.
//! - **commit**: the end of the contiguous prefix that is known to be chosen. **Applied**: by the state machine.
//! - **run**: what a follower holds at one ballot, from its commit to **upto**.
//! - **barrier**: the no-op behind all that phase one found.
//! - **round** of heartbeats: what an acknowledgement refers to.
//! - **log base**: the first slot that the log holds. base - 1 <= applied <= commit <= last.
//!
//! # Papers
//!
//! - **PMS**: L. Lamport, *Paxos Made Simple*, 2001. Section 2 is single-slot Paxos, section 3 the shared ballots.
//! - **Raft**: D. Ongaro, J. Ousterhout, *In Search of an Understandable Consensus Algorithm*, 2014. Section 5.4.2: why
//!   counting across ballots is wrong.
//! - **Diss**: D. Ongaro, *Consensus: Bridging Theory and Practice*, 2014. Sections 3.10 (transfer), 6.2 (check-quorum),
//!   6.4 (read index), 9.6 (pre-vote).
//! - **MP**: R. van Renesse, D. Altinbuken, *Paxos Made Moderately Complex*, 2015: leaders, acceptors and replicas of the
//!   many-slot protocol in full.

mod acceptor;
mod candidate;
pub mod configuration;
mod core;
mod follower;
pub mod formation;
pub mod interface;
mod leader;
pub mod message;
mod peer;
mod planted;
mod quorum;
mod reads;
pub mod replica;
pub mod types;

pub use interface::{
    ConfirmedRead, Input, PeerStatus, PersistBatch, Proposal, Ready, Reply, Restored, Role, Settings, Status, Storage,
    StorageError,
};
#[cfg(feature = "planted-bugs")]
pub use planted::Planted;
pub use replica::Replica;
