//! d3b itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d3b_tests::Cluster;
use d3b_tests::measure::target;
use d3bctl::bench::d3b::{D3b as Load, FILL, Spec, TABLES};
use d3bctl::bench::{Target, Work};
use serde_json::json;

use super::system::{Ask, ROWS, Running, SIZE, System};

const DB: &str = "peers";

/// d3b, as it is built here.
pub struct D3b;

impl System for D3b {
    fn name(&self) -> &'static str {
        "d3b"
    }

    fn terms(&self) -> &'static str {
        "defaults; a write is fsynced on a majority before it is answered; one SQL statement over HTTP"
    }

    fn start(&self) -> Box<dyn Running> {
        let cluster = Cluster::start();
        cluster.create(DB);
        let replica = cluster.replica(cluster.leader());
        for sql in TABLES {
            replica.sql(DB, sql, json!([]));
        }
        replica.sql(DB, FILL, json!([1, ROWS, "x".repeat(SIZE)]));
        Box::new(Started { cluster, clients: AtomicU64::new(0) })
    }
}

struct Started {
    cluster: Cluster,
    /// Clients so far: every one has a number of its own.
    clients: AtomicU64,
}

impl Running for Started {
    fn targets(&self) -> Vec<Target> {
        self.cluster.ids().into_iter().map(|id| target(&self.cluster.replica(id).address().to_string())).collect()
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.ids().into_iter().map(|id| self.cluster.replica(id).pid()).collect()
    }

    fn leader(&self) -> Option<usize> {
        let leader = self.cluster.leader();
        self.cluster.ids().iter().position(|id| *id == leader)
    }

    fn work(&self, ask: Ask, clients: usize) -> Box<dyn Work> {
        let mix = match ask {
            Ask::Write => "insert",
            Ask::Read => "read",
            Ask::StaleRead => "stale-read",
        };
        let spec = Spec {
            databases: vec![DB.to_owned()],
            mix: mix.parse().expect("a kind of operation"),
            batch: 1,
            size: SIZE,
            media_size: 0,
            rows: ROWS,
            files: 0,
            run: DB.to_owned(),
            parameters: String::new(),
        };
        let base = self.clients.fetch_add(clients as u64, Ordering::Relaxed);
        Box::new(Load::new(&Arc::new(spec), base, clients))
    }
}
