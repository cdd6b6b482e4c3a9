//! Which files this replica should hold and does not. Those that wait to be fetched are known; after a start, and when some
//! of them were given up, nobody knows, and all that the databases name is looked up.

use std::time::{Duration, Instant};

use d3b::{BlobReference, DatabaseId};
use d3b_engine::{Engine, Fatal};

use crate::media::{BlobStore, Prefetcher};

/// After a sweep there is none for so many times as long as it took.
pub(crate) const SWEEP_PAUSE: u32 = 20;
/// How long databases are looked into in one go, but for the last one: entries wait meanwhile.
const GO: Duration = Duration::from_millis(10);
/// How long to wait before files that are still missing are looked up again; longer where a look takes long.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of the missing files.
#[derive(Debug)]
pub(crate) struct Wanting {
    /// Whether they are to be looked up.
    look_up: bool,
    /// When at the earliest, and when at the latest.
    look_after: (Instant, Instant),
    pause: Duration,
    /// Whether files were on their way when the last look ended: when none is any more, it is time for the next one.
    expects: bool,
    /// The look that is under way.
    look: Option<Look>,
    /// What the last one has found.
    found: Option<u64>,
    told: Option<u64>,
    /// Whether this replica voted when it was last asked.
    voted: bool,
}

/// A look into every database.
#[derive(Debug, Default)]
struct Look {
    /// The last database that was looked into.
    behind: Option<DatabaseId>,
    missing: u64,
    took: Duration,
    /// Whether it may have passed by what is missing by now.
    is_stale: bool,
}

impl Wanting {
    /// What a process knows that has just begun: whoever waited for files in the one before has forgotten them.
    pub(crate) fn new() -> Wanting {
        let now = Instant::now();
        Wanting {
            look_up: true,
            look_after: (now, now),
            pause: Duration::ZERO,
            expects: false,
            look: None,
            found: None,
            told: None,
            voted: false,
        }
    }

    /// Whether a look is under way.
    pub(crate) fn looks(&self) -> bool {
        self.look.is_some()
    }

    /// Goes on with looking, and has fetched what is missing; returns how many files are, as far as known, if that is news.
    ///
    /// # Errors
    /// A database cannot be read for a reason that lies in this replica.
    pub(crate) fn look(
        &mut self,
        (engine, blobs, prefetcher): (&Engine, &BlobStore, &Prefetcher),
        votes: bool,
    ) -> Result<Option<Option<u64>>, Fatal> {
        // In this order: what is given up in between is waited for, or known to be forgotten.
        let waiting = prefetcher.waiting();
        let begins_to_vote = votes && !std::mem::replace(&mut self.voted, votes);
        // From its first vote on it counts that nothing was missing after that.
        if prefetcher.has_forgotten() || begins_to_vote {
            self.doubt();
        }
        self.look_up |= !votes;
        if self.look_up && (self.looks() || self.is_due(waiting)) {
            self.look_on(engine, blobs, prefetcher, votes)?;
        }
        let known = if self.look_up { self.found.map(|found| found.max(waiting)) } else { Some(waiting) };
        let before = std::mem::replace(&mut self.told, known);
        Ok((known != before).then_some(known))
    }

    /// More may be missing than is known.
    fn doubt(&mut self) {
        self.look_up = true;
        self.found = self.found.filter(|found| *found > 0);
        if let Some(look) = &mut self.look {
            look.is_stale = true;
        }
    }

    fn is_due(&self, waiting: u64) -> bool {
        let (earliest, latest) = self.look_after;
        let now = Instant::now();
        now >= latest || now >= earliest && self.expects && waiting == 0
    }

    fn look_on(
        &mut self,
        engine: &Engine,
        blobs: &BlobStore,
        prefetcher: &Prefetcher,
        votes: bool,
    ) -> Result<(), Fatal> {
        let mut look = self.look.take().unwrap_or_default();
        let began = Instant::now();
        let mut show = |reference: BlobReference| {
            if !blobs.contains(&reference.digest) {
                look.missing += 1;
                prefetcher.want(reference);
            }
        };
        let more = engine.media_in_part(look.behind, &|| began.elapsed() >= GO, &mut show)?;
        look.took += began.elapsed();
        if more.is_some() {
            self.look = Some(Look { behind: more, ..look });
            return Ok(());
        }
        let least = look.took * SWEEP_PAUSE;
        // What cannot be had now is looked for less and less often.
        let vain = look.missing > 0 && self.found == Some(look.missing);
        self.pause = if vain { (self.pause * 2).min(PAUSE_MAX).max(least) } else { least };
        let now = Instant::now();
        self.look_after = (now + least, now + self.pause);
        self.expects = prefetcher.waiting() > 0;
        self.found = Some(look.missing).filter(|missing| *missing > 0 || !look.is_stale);
        self.look_up = look.missing > 0 || look.is_stale || !votes;
        Ok(())
    }
}
