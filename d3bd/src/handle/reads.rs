//! Reads: as fresh as they ask to be, in SQLite on the spot where that is quick, and else on a thread that may block.

use std::time::{Duration, Instant};

use d3b::{Code, DatabaseName, Operation, Problem, Rejection, RowSink, Slot, Statement};
use d3b_engine::reader::{Kind, Readers};

use super::{Executed, Handle, Level, ReadOptions, WriteOptions, about, stopping, unavailable};
use crate::driver::{Event, ReadRequest};

/// How long a streamed read waits for its turn.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

impl Handle {
    /// Runs one statement, which may be a read or a write: that is found out here.
    ///
    /// # Errors
    /// What SQLite or d3b has against the statement, or why the group cannot answer.
    pub async fn execute<S: RowSink + 'static>(
        &self,
        db: DatabaseName,
        statement: Statement,
        read: ReadOptions,
        write: WriteOptions,
        sink: S,
    ) -> Result<Executed<S>, Problem> {
        self.check_quarantine()?;
        let kind = match self.classify(&db, &statement).await {
            Ok(kind) => kind,
            Err(rejection) => self.classify_again(&db, &statement, rejection, read, &write).await?,
        };
        match kind {
            Kind::Read => {
                let (sink, slot) = self.query(db, statement, read, sink).await?;
                Ok(Executed::Read { sink, slot })
            }
            Kind::Write => {
                let operation =
                    Operation::Sql { db, statements: vec![statement], deferred_foreign_keys: false, media: None };
                Ok(Executed::Write(self.write(operation, write).await?))
            }
        }
    }

    /// A statement that cannot be prepared here: perhaps only because this replica is behind.
    async fn classify_again(
        &self,
        db: &DatabaseName,
        statement: &Statement,
        rejection: Rejection,
        read: ReadOptions,
        write: &WriteOptions,
    ) -> Result<Kind, Problem> {
        if read.level != Level::Linearizable || rejection.code == Code::StatementDenied {
            return Err(about(db, rejection));
        }
        self.catch_up(read).await?;
        match self.classify(db, statement).await {
            Ok(kind) => Ok(kind),
            // An earlier request with this key may have succeeded, or may be under way still. Only the log can tell.
            Err(rejection) if write.key.is_some() && rejection.code == Code::SqlError => Ok(Kind::Write),
            Err(rejection) => Err(about(db, rejection)),
        }
    }

    async fn classify(&self, db: &DatabaseName, statement: &Statement) -> Result<Kind, Rejection> {
        if let Some(classified) = self.parts().readers.classify_now(db, &statement.sql) {
            return classified;
        }
        let (readers, db, sql) = (self.parts().readers.clone(), db.clone(), statement.sql.clone());
        tokio::task::spawn_blocking(move || readers.classify(&db, &sql))
            .await
            .unwrap_or_else(|panic| Err(Rejection::new(Code::Internal, panic.to_string())))
    }

    /// Runs one read.
    ///
    /// # Errors
    /// `method-not-allowed` for a statement that writes; else as [`Handle::execute`].
    pub async fn read<S: RowSink + 'static>(
        &self,
        db: DatabaseName,
        statement: Statement,
        options: ReadOptions,
        sink: S,
    ) -> Result<(S, Slot), Problem> {
        self.check_quarantine()?;
        if let Ok(Kind::Write) = self.classify(&db, &statement).await {
            return Err(Problem::new(Code::MethodNotAllowed, "the statement writes, and this route only reads")
                .with_hint(format!("send it with POST /v1/db/{db}/query")));
        }
        self.query(db, statement, options, sink).await
    }

    async fn query<S: RowSink + 'static>(
        &self,
        db: DatabaseName,
        statement: Statement,
        options: ReadOptions,
        mut sink: S,
    ) -> Result<(S, Slot), Problem> {
        let options = match options.result_bytes_max {
            None => options,
            Some(_) => {
                self.catch_up(options).await?;
                // Most reads are over sooner than another thread would be awake.
                if sink.restart()
                    && let Some(result) = self.parts().readers.query_now(&db, &statement, &mut sink)
                {
                    return result.map(|slot| (sink, slot)).map_err(|rejection| about(&db, rejection));
                }
                sink.restart();
                ReadOptions { level: Level::Stale { max_staleness: None }, ..options }
            }
        };
        let _stream = match options.result_bytes_max {
            Some(_) => None,
            None => Some(self.place_for_stream(options.deadline).await?),
        };
        self.on_readers(options, move |readers| {
            let slot = readers
                .query(&db, &statement, options.deadline, options.result_bytes_max, &mut sink)
                .map_err(|rejection| about(&db, rejection))?;
            Ok((sink, slot))
        })
        .await
    }

    async fn place_for_stream(&self, deadline: Instant) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
        let deadline = tokio::time::Instant::from_std(deadline.min(Instant::now() + STREAM_PATIENCE));
        let place = tokio::time::timeout_at(deadline, self.inner.streams.acquire()).await;
        place
            .map_err(|_| Problem::new(Code::Overloaded, "too many streamed reads are running"))
            .map(|place| place.expect("the semaphore is never closed"))
    }

    /// Brings this replica up to date as the options ask, then runs `work` on a thread that may block.
    pub(super) async fn on_readers<T: Send + 'static>(
        &self,
        options: ReadOptions,
        work: impl FnOnce(&Readers) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.catch_up(options).await?;
        let deadline = tokio::time::Instant::from_std(options.deadline);
        let _permit = tokio::time::timeout_at(deadline, self.inner.reads.acquire())
            .await
            .map_err(|_| Problem::new(Code::Overloaded, "too many reads are running"))?
            .expect("the semaphore is never closed");
        let readers = self.parts().readers.clone();
        tokio::task::spawn_blocking(move || work(&readers))
            .await
            .unwrap_or_else(|panic| Err(Problem::new(Code::Internal, panic.to_string())))
    }

    /// Waits until a read with these options may look at the local databases.
    async fn catch_up(&self, options: ReadOptions) -> Result<(), Problem> {
        self.check_quarantine()?;
        match options.level {
            Level::Linearizable => self.read_index(options.deadline).await.map(|_| ()),
            Level::Stale { max_staleness: None } => Ok(()),
            Level::Stale { max_staleness: Some(bound) } => self.check_staleness(bound),
            Level::AtLeast(slot) => self.wait_applied(slot, options.deadline).await,
        }
    }

    fn check_staleness(&self, bound: Duration) -> Result<(), Problem> {
        let status = self.status();
        let now = self.ticks(Instant::now());
        let age = status.leader_heard_at.map(|heard| Duration::from_millis(now.0.saturating_sub(heard.0)));
        match age {
            Some(age) if age <= bound => Ok(()),
            Some(age) => {
                let detail = format!(
                    "the leader was last heard {} ms ago, the bound is {} ms",
                    age.as_millis(),
                    bound.as_millis()
                );
                Err(Problem::new(Code::NotReady, detail))
            }
            None => Err(Problem::new(Code::NotReady, "no leader has been heard from yet")),
        }
    }

    /// Waits until this replica has applied a slot.
    async fn wait_applied(&self, slot: Slot, deadline: Instant) -> Result<(), Problem> {
        let mut applied = self.parts().applied.clone();
        let reached = applied.wait_for(|applied| *applied >= slot);
        match tokio::time::timeout_at(tokio::time::Instant::from_std(deadline), reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => {
                let applied = *self.parts().applied.borrow();
                let detail = format!("slot {slot} is not applied here yet; this replica is at slot {applied}");
                Err(Problem::new(Code::NotReady, detail).with_hint("try again, or ask another replica"))
            }
        }
    }

    /// Asks the group for a read index and waits until this replica has applied it.
    ///
    /// # Errors
    /// `no-quorum`, `not-ready` or `overloaded`.
    pub async fn read_index(&self, deadline: Instant) -> Result<Slot, Problem> {
        let ticket = self.ticket();
        let answer = self.parts().waiting.expect_read(ticket);
        self.send(Event::Read(ReadRequest { ticket, deadline: self.ticks(deadline) }))?;
        answer.await.map_or_else(|| Err(stopping()), |result| result.map_err(unavailable))
    }
}
