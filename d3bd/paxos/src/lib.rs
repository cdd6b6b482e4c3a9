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
//! now (Diss §3.10), and steps down when it hears of that campaign, be it by a refusal alone.
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
//! highest ballot that any member of a majority has accepted, or free if none has. What follows takes the members for fixed;
//! see "Changing members" for how they change. Five things deserve a closer look.
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
//! began before the read confirm nothing. A question's name is never used by two processes. A follower's question tells
//! what it had promised when it asked: where that is the leader's ballot, it is an acknowledgement given after the reads
//! began, and where two are a majority no other is needed.
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
//! # Changing members
//!
//! Who belongs to the cluster is told by a *configuration*, which is an entry of the log like any other: the one in slot s
//! governs the slots above s, up to the next one, and has a number of its own, its *epoch* (PMS §3 lets the state machine
//! tell its servers; `configuration.rs`). One thing changes at a time: a *learner* is added, a learner begins to vote, a
//! member leaves. Learners are sent everything and acknowledge it, but count in no majority and promise to nobody of their
//! configuration. It goes so:
//!
//! * A leader whose barrier is chosen proposes the configuration, and **nothing behind it**. Phase one keeps to this too: who
//!   finds an entry of a newer configuration proposes that again and leaves out all that follows.
//! * When it is chosen, whoever holds it **adopts** it: it is written to disk, and governs once it is durable. Until then the
//!   own commit does not pass it, its slot is not applied, and this replica does not campaign.
//! * A leader that has adopted it takes a **new ballot**, and runs phase one with the new majority.
//! * Every message carries the epoch of its sender. Questions of an older epoch are refused by word of the newer
//!   configuration ([`Message::Superseded`](message::Message::Superseded)); questions of a newer one are served; answers
//!   count whatever their sender knew.
//!
//! *Why that is safe.* The claim is that of above, with "a majority" now meaning one of the configuration that governs the
//! slot: where a value was chosen at some ballot, every later ballot proposes that value, if any. A ballot belongs to the
//! configuration that its leader had adopted when it campaigned. Say that it is number e, chosen in slot s, and that the next
//! one, if there is any, is chosen in slot t.
//!
//! 1. **Slots above s, up to t.** They are governed by e, and ballots of e propose in them as Paxos does: the majority that
//!    chose and the one that promised are of one configuration.
//! 2. **Slots above t are closed to ballots of e.** Slot t was chosen by a majority of e, at a ballot b. A ballot of e below b
//!    chooses nothing behind: whoever proposes there at it has another value in slot t, for it would have stopped at the
//!    configuration, and runs have no gaps, so that value would be chosen in slot t, too. A ballot of e above b has a majority of promises that includes an acceptor of b; it finds
//!    the configuration in slot t, or has it chosen in the own log, and stops there. That is why **a pending adoption blocks
//!    campaigns**: a replica that knew slot t to be chosen would ask for promises from t + 1 up, find no configuration, and
//!    propose in slots that are not for its majority.
//! 3. **Slots up to s, at a ballot of e.** A replica that adopted e as it was chosen holds all of them as they were chosen, and
//!    its phase one begins above. One that was told of e may not hold them, and proposes them again. It finds what was
//!    chosen, because **majorities of neighbours intersect**: its promises include one of an acceptor of slot s, which belongs
//!    to the configuration before e. What that acceptor holds below s it holds by its run at the ballot that chose s, or as
//!    committed; both are what was chosen, by induction over the ballots. No value at a higher ballot differs, for that ballot
//!    has come to it by this same rule. The adoption of e came after slot s was chosen, so its acceptors' promises are at
//!    least that ballot, and none of them promises this one without having held it.
//! 4. **One configuration for each number.** Only leaders of e propose number e + 1, at slots above s, and the first one that is
//!    chosen ends their slots. A rival that proposed another one further up may have left it with a minority, where the new
//!    configuration's leader finds it and proposes it again, as an entry that means nothing: what carries a number that is not
//!    above the adopted one is history. So a laggard that gets both in one run must drop the second one when it adopts the
//!    first.
//!
//! *Why answers of any epoch count.* An answer names the ballot, the nonce or the read that it answers. A promise binds the
//! acceptor, not its configuration: what it says about its records is true, and it will refuse lower ballots whatever it
//! adopts in between. Who counts is a matter of the one who asked. New members could not wait either until they have adopted
//! what makes them members: they hear of it from its leader, who needs their promise first.
//!
//! *Reads.* A leader of e confirms a read with a majority of e. Had a later configuration's majority answered anything before
//! that, then slot t was chosen at a ballot below the leader's own, or a member of both majorities has promised a higher one
//! and acknowledges nothing more. In the former case phase one has found the configuration in slot t. So a leader that
//! **has found a configuration has no barrier**, and confirms no read: it cannot know what stands behind, which its own
//! majority helped to choose (scene 21). It has a new ballot as soon as it has adopted it.
//!
//! *What a restart knows.* A replica that adopts a configuration as it was chosen holds all slots up to it durably, at its
//! leader's ballot or as committed. So after a restart its commit is at least the configuration's slot
//! ([`Restored::held`]), though its state machine may be behind. It is more than a convenience: its phase one would ask the
//! new members about slots of older configurations. **A joiner's commit does not begin there**: it was told of the
//! configuration and holds nothing, so it must ask, by rule 3. The same is true of any replica whose driver writes down what
//! `Superseded` tells it. It must, if the replicas that have adopted the configuration are no members any more: they never
//! campaign, and might be missed in the majority of those that have not. A removed replica therefore goes on to tell of
//! its removal, and does nothing else. Only members of the own configuration are believed.
//!
//! # Cutting logs
//!
//! What the state machine has applied durably need not stay in the log. [`Input::Cut`] raises the *log base*, the first slot
//! that the log holds. The record at the base stays: the next leader dates its entries by the one in its commit. Nothing is
//! forgotten thereby that Paxos needs: everything below the base is chosen, and the state machine has it.
//!
//! A promise then tells records from the base up only, and says where that is. A candidate whose commit ends before cannot
//! be told what is chosen there and would take the slots for free, so it **does not lead**. A leader that is asked for slots
//! below its base says so ([`Message::Behind`](message::Message::Behind)), and goes on sending heartbeats, which show when
//! that has changed. Either way the driver hears of it ([`Reply::Behind`]) and fetches a *snapshot*: the state machine as of
//! a slot, the record in that slot, and a configuration. To install one is a restart with `applied` and the base at that
//! slot. Promise and records above stay, since others count on them; a record in that slot gives way only to one of a higher
//! ballot. The configuration replaces an older one, and was held if the snapshot's slot is not below its own.
//!
//! # What is left out
//!
//! Learners are promoted when the driver asks for it; the core does not look whether they have caught up. There are no
//! leases: no read is served on the strength of a clock. There is no defence against replicas that lie, only against bytes
//! that make no sense: of another cluster, out of order, of a ballot that nobody can have come to by campaigning, or more of
//! them than a leader sends.
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
//! - **configuration**: who belongs to the cluster, from the slot after its entry's on. **Epoch**: its number.
//! - **adopted**: of a configuration, written to disk by a replica that knows it to be chosen; it acts by it from then on.
//! - **learner**: a member that holds what is chosen and does not vote yet.
//! - **snapshot**: the state machine as of a slot, in place of the log up to there.
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
