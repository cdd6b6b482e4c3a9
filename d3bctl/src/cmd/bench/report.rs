//! What a load came to, for people and for programs.

use std::time::Duration;

use d3b::Value;
use serde::Serialize;

use super::verify::Verification;
use crate::bench::d3b::Spec;
use crate::bench::measure::{Latency, Outcome};
use crate::cli::{Bench, BenchTarget, Format};
use crate::error::CliError;
use crate::output::{Column, Output, json, number, text};
use crate::session::Session;

/// The part of a core from which on the generator may have been the bottleneck.
const BUSY: f64 = 0.9;

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Latencies {
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Latencies {
    fn new(latency: &Latency) -> Latencies {
        Latencies {
            mean: rounded(latency.mean()),
            p50: latency.quantile(0.5),
            p90: latency.quantile(0.9),
            p99: latency.quantile(0.99),
            p999: latency.quantile(0.999),
            max: latency.max(),
        }
    }
}

/// One kind of operation.
#[derive(Debug, Serialize)]
struct KindReport {
    kind: String,
    done: u64,
    per_second: f64,
    rows_per_second: f64,
    latency_us: Latencies,
}

/// One second.
#[derive(Debug, Serialize)]
struct SecondReport {
    second: usize,
    done: u64,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
}

/// What the generator itself cost.
#[derive(Debug, Serialize)]
struct GeneratorReport {
    cpu_us_per_request: f64,
    /// Of one core for each of its threads.
    busy: f64,
}

/// An open loop.
#[derive(Debug, Serialize)]
struct OpenLoop {
    rate: f64,
    backlog_max: u64,
    unsent: u64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    work: String,
    endpoints: Vec<String>,
    target: &'static str,
    clients: u32,
    threads: u32,
    databases: usize,
    batch: u64,
    size: usize,
    media_size: usize,
    warm_up_seconds: f64,
    seconds: f64,
    interrupted: bool,
    done: u64,
    per_second: f64,
    latency_us: Latencies,
    kinds: Vec<KindReport>,
    longest_gap_ms: Option<f64>,
    open_loop: Option<OpenLoop>,
    errors: u64,
    refused: u64,
    unknown: u64,
    reconnects: u64,
    messages: Vec<String>,
    generator: GeneratorReport,
    timeline: Vec<SecondReport>,
    verification: serde_json::Value,
    #[serde(skip)]
    verified: String,
    #[serde(skip)]
    complaints: Vec<String>,
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

impl Report {
    pub(super) fn new(
        arguments: &Bench,
        spec: &Spec,
        outcome: &Outcome,
        verification: &Verification,
        session: &Session,
    ) -> Report {
        let seconds = outcome.measured.as_secs_f64().max(f64::EPSILON);
        let kinds = outcome.kinds.iter().map(|kind| KindReport {
            kind: kind.name.to_owned(),
            done: kind.done,
            per_second: rounded(kind.done as f64 / seconds),
            rows_per_second: rounded(kind.rows as f64 / seconds),
            latency_us: Latencies::new(&kind.latency),
        });
        let timeline = outcome.timeline.iter().enumerate().map(|(second, moment)| SecondReport {
            second,
            done: moment.done,
            p50_us: moment.p50,
            p99_us: moment.p99,
            max_us: moment.max,
        });
        let threads = arguments.threads.min(arguments.clients);
        let open_loop =
            arguments.rate.map(|rate| OpenLoop { rate, backlog_max: outcome.backlog_max, unsent: outcome.unsent });
        Report {
            work: spec.mix.to_string(),
            endpoints: session.client.endpoints().iter().map(ToString::to_string).collect(),
            target: match arguments.target {
                BenchTarget::All => "all",
                BenchTarget::First => "first",
                BenchTarget::Leader => "leader",
            },
            clients: arguments.clients,
            threads,
            databases: spec.databases.len(),
            batch: spec.batch,
            size: spec.size,
            media_size: spec.media_size,
            warm_up_seconds: arguments.warm_up.as_secs_f64(),
            seconds: (seconds * 1000.0).round() / 1000.0,
            interrupted: outcome.interrupted,
            done: outcome.done(),
            per_second: rounded(outcome.rate()),
            latency_us: Latencies::new(&outcome.latency()),
            kinds: kinds.collect(),
            longest_gap_ms: outcome.gap.map(|gap| rounded(gap.as_secs_f64() * 1000.0)),
            open_loop,
            errors: outcome.errors,
            refused: outcome.refused,
            unknown: outcome.unknown,
            reconnects: outcome.reconnects,
            messages: outcome.examples.clone(),
            generator: GeneratorReport {
                cpu_us_per_request: rounded(outcome.cpu_per_operation().as_secs_f64() * 1e6),
                busy: rounded(outcome.cpu.as_secs_f64() / seconds / f64::from(threads)),
            },
            timeline: timeline.collect(),
            verified: verified(verification),
            complaints: verification.problems.clone(),
            verification: serde_json::to_value(verification).expect("our own types are JSON"),
        }
    }

    /// Writes it in the form that was asked for.
    pub(super) fn write(&self, timeline: bool, output: &mut Output) -> Result<(), CliError> {
        match output.format() {
            Format::Json | Format::Ndjson => return output.line(&json(self)),
            Format::Csv | Format::Line => return output.list(&[], KIND_COLUMNS, &self.rows()),
            Format::Table => {}
        }
        output.object(&[], self.head())?;
        output.raw(b"\n")?;
        output.list(&[], KIND_COLUMNS, &self.rows())?;
        output.raw(b"\n")?;
        if timeline {
            output.list(&[], SECOND_COLUMNS, &self.timeline)?;
            output.raw(b"\n")?;
        }
        output.object(&[], self.tail())?;
        for message in self.messages.iter().chain(&self.complaints) {
            output.line(format!("  {message}").as_bytes())?;
        }
        Ok(())
    }

    /// Each kind, and all together if there are several.
    fn rows(&self) -> Vec<KindRow> {
        let rows_per_second = self.kinds.iter().map(|kind| kind.rows_per_second).sum();
        let row = |kind: &KindReport| (kind.kind.clone(), kind.done, kind.per_second, kind.rows_per_second);
        let mut rows: Vec<KindRow> =
            self.kinds.iter().map(|kind| KindRow { told: row(kind), latency: kind.latency_us }).collect();
        if rows.len() > 1 {
            let told = ("all".to_owned(), self.done, self.per_second, rows_per_second);
            rows.push(KindRow { told, latency: self.latency_us });
        }
        rows
    }

    fn head(&self) -> Vec<(&'static str, Value)> {
        let databases = match self.databases {
            1 => String::new(),
            several => format!(" over {several} databases"),
        };
        let whom = match self.target {
            "all" => counted(self.endpoints.len() as u64, "endpoint"),
            other => format!("the {other} endpoint").replace("the leader endpoint", "the leader"),
        };
        let clients = counted(self.clients.into(), "client");
        let loops = match &self.open_loop {
            Some(open) => format!("open loop, {} requests/s", open.rate),
            None => "closed loop".to_owned(),
        };
        let ended = if self.interrupted { ", ended early" } else { "" };
        vec![
            ("work", text(format!("{}{databases}", self.work))),
            ("load", text(format!("{loops}, {clients} on {whom}"))),
            ("measured", text(format!("{} s after {} s of warm-up{ended}", self.seconds, self.warm_up_seconds))),
        ]
    }

    fn tail(&self) -> Vec<(&'static str, Value)> {
        let mut fields = Vec::new();
        if let Some(gap) = self.longest_gap_ms {
            fields.push(("longest gap", text(format!("{gap} ms without an acknowledged write"))));
        }
        if let Some(open) = &self.open_loop {
            let told =
                format!("{} requests waited for a client at most; {} were never sent", open.backlog_max, open.unsent);
            fields.push(("backlog", text(told)));
        }
        let failures = [
            (self.errors, "answered with an error"),
            (self.refused, "refused for now"),
            (self.unknown, "of unknown outcome"),
            (self.reconnects, "connections lost or not made"),
        ];
        let failures: Vec<String> =
            failures.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        fields.push(("failures", text(if failures.is_empty() { "none".to_owned() } else { failures.join(", ") })));
        let GeneratorReport { cpu_us_per_request, busy } = &self.generator;
        let warning = if *busy >= BUSY { "; it may have been the bottleneck, see --threads" } else { "" };
        let percent = busy * 100.0;
        let cost = format!("used {cpu_us_per_request} us of CPU per request, {percent:.0} % of a core{warning}");
        fields.push(("generator", text(cost)));
        fields.push(("verified", text(&self.verified)));
        fields
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What the verification found, in a sentence.
fn verified(verification: &Verification) -> String {
    let written = [(verification.rows, "row"), (verification.changes, "change"), (verification.files, "file")];
    let written: Vec<String> =
        written.iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(*count, what)).collect();
    let written = if written.is_empty() { "nothing was written".to_owned() } else { written.join(", ") };
    let asked = verification.replicas.len() - verification.unasked();
    let replicas = counted(asked as u64, "replica");
    let found = match verification.problems.len() {
        0 if asked == 0 => "on no replica".to_owned(),
        0 => format!("on {replicas} at slot {}, with equal fingerprints", verification.slot),
        problems => format!(
            "NOT as acknowledged: {} on {replicas} at slot {}",
            counted(problems as u64, "problem"),
            verification.slot
        ),
    };
    let unasked: Vec<String> = verification
        .replicas
        .iter()
        .filter_map(|replica| {
            Some(format!("; replica {} could not be asked: {}", replica.id, replica.unasked.as_ref()?))
        })
        .collect();
    format!("{written} {found}{}", unasked.concat())
}

/// A line of the table.
#[derive(Serialize)]
struct KindRow {
    told: (String, u64, f64, f64),
    latency: Latencies,
}

/// Microseconds as milliseconds.
fn milliseconds(micros: u64) -> Value {
    text(format!("{:.3}", Duration::from_micros(micros).as_secs_f64() * 1000.0))
}

const KIND_COLUMNS: &[Column<KindRow>] = &[
    ("kind", |row| text(&row.told.0)),
    ("done", |row| number(row.told.1)),
    ("per second", |row| text(format!("{:.1}", row.told.2))),
    ("rows/s", |row| text(format!("{:.1}", row.told.3))),
    ("p50 ms", |row| milliseconds(row.latency.p50)),
    ("p90 ms", |row| milliseconds(row.latency.p90)),
    ("p99 ms", |row| milliseconds(row.latency.p99)),
    ("p99.9 ms", |row| milliseconds(row.latency.p999)),
    ("max ms", |row| milliseconds(row.latency.max)),
];

const SECOND_COLUMNS: &[Column<SecondReport>] = &[
    ("second", |second| number(second.second as u64)),
    ("done", |second| number(second.done)),
    ("p50 ms", |second| milliseconds(second.p50_us)),
    ("p99 ms", |second| milliseconds(second.p99_us)),
    ("max ms", |second| milliseconds(second.max_us)),
];
