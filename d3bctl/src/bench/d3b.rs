//! What a load asks of d3bd.

use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use d3b::splitmix64;

use super::answer::Answer;
use super::ledger::Ledger;
use super::mix::{Mix, Sort};
use super::work::{Kind, Lost, Verdict, Work};

/// Bytes of an answer that are told when it is wrong.
const TOLD_MAX: usize = 300;

/// Makes the tables of a load.
pub const TABLES: [&str; 2] = [
    // Nothing is unique but SQLite's own row numbers: a row that is inserted twice must be seen.
    "CREATE TABLE entries(client INTEGER NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE things(id INTEGER PRIMARY KEY, changes INTEGER NOT NULL, text TEXT NOT NULL)",
];
/// Fills `things` with rows from `?1` to `?2`; `?3` is what their texts end with.
pub const FILL: &str = "INSERT INTO things SELECT id, 0, id || ':' || ?3 FROM \
    (WITH RECURSIVE ids(id) AS (SELECT ?1 UNION ALL SELECT id + 1 FROM ids WHERE id < ?2) SELECT id FROM ids)";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Names of the databases, which are there with [`TABLES`].
    pub databases: Vec<String>,
    /// What kinds of operations.
    pub mix: Mix,
    /// Rows of a batch.
    pub batch: u64,
    /// Bytes of a row's text, roughly.
    pub size: usize,
    /// Bytes of a file.
    pub media_size: usize,
    /// Rows of each database's `things`, with ids from 1.
    pub rows: u64,
    /// Files of each database that are there to be fetched.
    pub files: u64,
    /// A name of this run, for its idempotency keys.
    pub run: String,
    /// What every target ends with: nothing, or a query string.
    pub parameters: String,
}

/// The bytes of a file: its id, and as many more as make up its size.
#[must_use]
pub fn content(id: &str, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size.max(id.len() + 1));
    write_content(id, size, &mut bytes);
    bytes
}

fn write_content(id: &str, size: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(id.as_bytes());
    out.push(b':');
    out.resize(out.len() + size.saturating_sub(id.len() + 1), b'.');
}

/// The id of a file that is there to be fetched.
#[must_use]
pub fn given_id(file: u64) -> String {
    format!("given-{file}")
}

/// The id of a file that a client stores.
#[must_use]
pub fn stored_id(client: u64, number: u64) -> String {
    format!("{client}-{number}")
}

/// What a client is about.
#[derive(Debug, Clone)]
struct Operation {
    sort: Sort,
    /// The index of the database.
    database: usize,
    /// Numbers of rows or of a file to write; the id of a row or of a file to change or read.
    numbers: Range<u64>,
}

#[derive(Debug)]
struct Client {
    operation: Operation,
    /// The number of the next row or file that it writes.
    next: u64,
}

/// The operations of one thread's clients.
#[derive(Debug)]
pub struct D3b {
    spec: Arc<Spec>,
    kinds: Vec<Kind>,
    /// The number of its first client among all.
    base: u64,
    clients: Vec<Client>,
    random: u64,
    /// How many operations were begun: they go round the databases.
    turn: u64,
    /// What rows' texts are made of.
    text: String,
    body: Vec<u8>,
    /// What was acknowledged, database by database.
    ledgers: Vec<Ledger>,
}

impl D3b {
    /// Operations for so many clients, of which the first one has the number `base`.
    #[must_use]
    pub fn new(spec: &Arc<Spec>, base: u64, clients: usize) -> D3b {
        let idle = Operation { sort: Sort::Insert, database: 0, numbers: 0..0 };
        D3b {
            kinds: spec.mix.kinds(),
            base,
            clients: (0..clients).map(|_| Client { operation: idle.clone(), next: 0 }).collect(),
            random: base,
            turn: base,
            text: "x".repeat(spec.size),
            body: Vec::new(),
            ledgers: vec![Ledger::default(); spec.databases.len()],
            spec: Arc::clone(spec),
        }
    }

    /// What was acknowledged, database by database.
    #[must_use]
    pub fn into_ledgers(self) -> Vec<Ledger> {
        self.ledgers
    }

    fn number_of(&self, client: usize) -> u64 {
        self.base + client as u64
    }

    /// Takes note of an operation that was done, and tells how many rows or files that are.
    fn acknowledge(&mut self, client: usize) -> u64 {
        let number = self.number_of(client);
        let Operation { sort, database, numbers } = &self.clients[client].operation;
        let ledger = &mut self.ledgers[*database];
        match sort {
            Sort::Insert | Sort::KeyedInsert | Sort::Batch => {
                let tally = ledger.inserted.entry(number).or_default();
                numbers.clone().for_each(|number| tally.add(number));
            }
            Sort::Update => ledger.updated.add(numbers.start),
            Sort::MediaPut => ledger.media.acknowledged.push((number, numbers.start)),
            Sort::Read | Sort::StaleRead | Sort::MediaGet => {}
        }
        numbers.end - numbers.start
    }

    /// Takes note of an operation of which nobody knows.
    fn forget(&mut self, client: usize) {
        let number = self.number_of(client);
        let Operation { sort, database, numbers } = &self.clients[client].operation;
        let ledger = &mut self.ledgers[*database];
        match sort {
            Sort::Insert | Sort::KeyedInsert | Sort::Batch => ledger.inserted_unknown.push((number, numbers.clone())),
            Sort::Update => ledger.updated_unknown += 1,
            Sort::MediaPut => ledger.media.unknown.push((number, numbers.start)),
            Sort::Read | Sort::StaleRead | Sort::MediaGet => {}
        }
    }

    /// Writes the body of a request to `self.body`.
    fn write_body(&mut self, client: usize) {
        let number = self.number_of(client);
        let Operation { sort, numbers, .. } = &self.clients[client].operation;
        let (body, text) = (&mut self.body, &self.text);
        body.clear();
        let first = numbers.start;
        let insert = |body: &mut Vec<u8>, row: u64| {
            write!(body, r#"{{"sql":"INSERT INTO entries VALUES(?,?,?)","args":[{number},{row},"{text}"]}}"#)
        };
        let written = match sort {
            Sort::Insert | Sort::KeyedInsert => insert(body, first),
            Sort::Batch => {
                body.extend_from_slice(br#"{"statements":["#);
                let rows = numbers.clone().try_for_each(|row| {
                    body.extend_from_slice(if row > first { b"," } else { b"" });
                    insert(body, row)
                });
                body.extend_from_slice(b"]}");
                rows
            }
            Sort::Update => write!(
                body,
                r#"{{"sql":"UPDATE things SET changes=changes+1,text=?1 WHERE id=?2","args":["{first}:{text}",{first}]}}"#
            ),
            Sort::Read | Sort::StaleRead => {
                write!(body, r#"{{"sql":"SELECT id,text FROM things WHERE id=?","args":[{first}]}}"#)
            }
            Sort::MediaPut => {
                write_content(&stored_id(number, first), self.spec.media_size, body);
                Ok(())
            }
            Sort::MediaGet => Ok(()),
        };
        written.expect("a buffer takes everything");
    }

    /// Whether an answer with a good status says what it should.
    fn is_right(&self, client: usize, body: &[u8]) -> bool {
        let Operation { sort, numbers, .. } = &self.clients[client].operation;
        let first = numbers.start;
        match sort {
            Sort::Insert | Sort::KeyedInsert | Sort::Update => contains(body, br#""rows_affected":1,"#),
            Sort::Batch => {
                let word = br#""rows_affected":1,"#;
                body.windows(word.len()).filter(|window| window == word).count() as u64 == numbers.end - first
            }
            Sort::Read | Sort::StaleRead => contains(body, format!(r#""rows":[[{first},"{first}:"#).as_bytes()),
            Sort::MediaPut => true,
            Sort::MediaGet => {
                let id = given_id(first);
                body.len() == self.spec.media_size.max(id.len() + 1) && body.starts_with(id.as_bytes())
            }
        }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

impl Work for D3b {
    fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    fn begin(&mut self, client: usize) -> usize {
        let (kind, sort) = self.spec.mix.choose(splitmix64(&mut self.random));
        let mut pick = |count: u64| {
            let at = splitmix64(&mut self.random) % count.max(1);
            at..at + 1
        };
        let it = &mut self.clients[client];
        let numbers = match sort {
            Sort::Insert | Sort::KeyedInsert | Sort::MediaPut => it.next..it.next + 1,
            Sort::Batch => it.next..it.next + self.spec.batch,
            Sort::Update | Sort::Read | Sort::StaleRead => {
                let at = pick(self.spec.rows);
                at.start + 1..at.end + 1
            }
            Sort::MediaGet => pick(self.spec.files),
        };
        if matches!(sort, Sort::Insert | Sort::KeyedInsert | Sort::MediaPut | Sort::Batch) {
            it.next = numbers.end;
        }
        let databases = self.spec.databases.len() as u64;
        let database = usize::try_from(self.turn % databases).expect("an index of a list");
        self.turn += 1;
        it.operation = Operation { sort, database, numbers };
        kind
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        self.write_body(client);
        let number = self.number_of(client);
        let Operation { sort, database, numbers } = &self.clients[client].operation;
        let Spec { databases, run, parameters, .. } = &*self.spec;
        let (db, first, length) = (&databases[*database], numbers.start, self.body.len());
        let json = "content-type: application/json\r\n";
        let written = match sort {
            Sort::Insert | Sort::Update | Sort::Read => {
                write!(out, "POST /v1/db/{db}/query{parameters} HTTP/1.1\r\n{json}")
            }
            Sort::KeyedInsert => write!(
                out,
                "POST /v1/db/{db}/query{parameters} HTTP/1.1\r\n{json}idempotency-key: {run}-{number}-{first}\r\n"
            ),
            Sort::Batch => write!(out, "POST /v1/db/{db}/batch{parameters} HTTP/1.1\r\n{json}"),
            Sort::StaleRead => {
                let sign = if parameters.is_empty() { '?' } else { '&' };
                write!(out, "POST /v1/db/{db}/query{parameters}{sign}level=stale HTTP/1.1\r\n{json}")
            }
            Sort::MediaPut => {
                let id = stored_id(number, first);
                write!(out, "PUT /v1/db/{db}/media/{id}{parameters} HTTP/1.1\r\n")
            }
            Sort::MediaGet => write!(out, "GET /v1/db/{db}/media/{} HTTP/1.1\r\n", given_id(first)),
        };
        let written = written.and_then(|()| match sort {
            Sort::MediaGet => write!(out, "host: {host}\r\n\r\n"),
            _ => write!(out, "host: {host}\r\ncontent-length: {length}\r\n\r\n"),
        });
        written.expect("a buffer takes everything");
        out.extend_from_slice(&self.body);
    }

    fn judge(&mut self, client: usize, answer: &Answer<'_>) -> Verdict {
        match answer.status {
            200 | 201 if self.is_right(client, answer.body) => Verdict::Done(self.acknowledge(client)),
            429 | 503 => Verdict::Refused,
            504 => match self.lost(client, false) {
                Lost::Repeat => Verdict::Repeat,
                Lost::Unknown => Verdict::Unknown,
            },
            status => {
                self.forget(client);
                let told = &answer.body[..answer.body.len().min(TOLD_MAX)];
                let sort = self.clients[client].operation.sort.name();
                Verdict::Wrong(format!("{sort}: {status} {}", String::from_utf8_lossy(told).escape_debug()))
            }
        }
    }

    fn lost(&mut self, client: usize, finally: bool) -> Lost {
        let again = match self.clients[client].operation.sort {
            Sort::Insert | Sort::Update | Sort::Batch => false,
            Sort::KeyedInsert | Sort::Read | Sort::StaleRead | Sort::MediaPut | Sort::MediaGet => true,
        };
        if again && !finally {
            return Lost::Repeat;
        }
        self.forget(client);
        Lost::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(mix: &str) -> D3b {
        let spec = Spec {
            databases: vec!["one".to_owned(), "two".to_owned()],
            mix: mix.parse().unwrap(),
            batch: 3,
            size: 4,
            media_size: 20,
            rows: 10,
            files: 2,
            run: "run".to_owned(),
            parameters: String::new(),
        };
        D3b::new(&Arc::new(spec), 5, 2)
    }

    fn ask(work: &mut D3b, client: usize) -> String {
        work.begin(client);
        let mut out = Vec::new();
        work.request(client, "127.0.0.1:1", &mut out);
        String::from_utf8(out).unwrap()
    }

    fn judge(work: &mut D3b, client: usize, status: u16, body: &str) -> Verdict {
        work.judge(client, &Answer { status, body: body.as_bytes() })
    }

    const ONE: &str = r#"{"columns":[],"types":[],"rows":[],"rows_affected":1,"slot":9}"#;

    #[test]
    fn requests_have_their_length_and_go_round_the_databases() {
        let mut work = work("keyed-insert");
        let requests = [ask(&mut work, 1), ask(&mut work, 1)];
        let body = r#"{"sql":"INSERT INTO entries VALUES(?,?,?)","args":[6,0,"xxxx"]}"#;
        let (head, found) = requests[0].split_once("\r\n\r\n").unwrap();
        assert_eq!(found, body);
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("idempotency-key: run-6-0"), "{head}");
        assert!(requests.iter().any(|it| it.starts_with("POST /v1/db/one/query ")));
        assert!(requests.iter().any(|it| it.starts_with("POST /v1/db/two/query ")));
    }

    #[test]
    fn what_is_acknowledged_is_written_down_and_what_is_unknown_too() {
        let mut work = work("batch");
        ask(&mut work, 0);
        let three = format!("[{ONE},{ONE},{ONE}]");
        assert_eq!(judge(&mut work, 0, 200, &three), Verdict::Done(3));
        ask(&mut work, 0);
        assert_eq!(judge(&mut work, 0, 503, ""), Verdict::Refused);
        assert_eq!(judge(&mut work, 0, 504, ""), Verdict::Unknown);
        ask(&mut work, 0);
        assert!(matches!(judge(&mut work, 0, 200, ONE), Verdict::Wrong(_)), "one row where there should be three");
        let mut all = Ledger::default();
        work.into_ledgers().into_iter().for_each(|ledger| all.merge(ledger));
        assert_eq!(all.inserted[&5], super::super::Tally { count: 3, sum: 3, squares: 5 });
        let mut unknown = all.inserted_unknown.clone();
        unknown.sort_by_key(|(_, rows)| rows.start);
        assert_eq!(unknown, [(5, 3..6), (5, 6..9)]);
    }

    #[test]
    fn only_what_does_no_harm_twice_is_sent_again() {
        for (mix, lost) in [
            ("insert", Lost::Unknown),
            ("update", Lost::Unknown),
            ("batch", Lost::Unknown),
            ("keyed-insert", Lost::Repeat),
            ("read", Lost::Repeat),
            ("media-put", Lost::Repeat),
        ] {
            let mut work = work(mix);
            work.begin(0);
            assert_eq!(work.lost(0, false), lost, "{mix}");
        }
    }

    #[test]
    fn answers_must_be_those_to_what_was_asked() {
        let mut work = work("read");
        let request = ask(&mut work, 0);
        let id = request.rsplit_once('[').unwrap().1.trim_end_matches(['}', ']']).to_owned();
        let row = |id: &str| format!(r#"{{"columns":["id","text"],"rows":[[{id},"{id}:xxxx"]],"slot":3}}"#);
        assert_eq!(judge(&mut work, 0, 200, &row(&id)), Verdict::Done(1));
        assert!(matches!(judge(&mut work, 0, 200, &row("99")), Verdict::Wrong(_)));
        assert!(matches!(judge(&mut work, 0, 400, "no"), Verdict::Wrong(_)));
        let content = content("given-1", 20);
        assert_eq!(content, b"given-1:............");
    }
}
