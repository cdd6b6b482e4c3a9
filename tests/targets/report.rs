//! What is wanted, what was measured, and whether it is enough.

use d3b_tests::measure::Spread;

/// What a target asks for.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// The median is not higher.
    MedianAtMost(f64),
    /// The median is not lower.
    MedianAtLeast(f64),
    /// The highest sample is not higher.
    HighestAtMost(f64),
}

/// A target.
#[derive(Debug)]
pub struct Goal {
    /// What it is about.
    pub name: &'static str,
    /// What is wanted, in words.
    pub wanted: &'static str,
    /// The same.
    pub limit: Limit,
    /// Of the samples.
    pub unit: &'static str,
}

/// One insert against one fdatasync.
pub const LATENCY: Goal = Goal {
    name: "latency: insert, 1 client, p50 against fdatasync p50",
    wanted: "at most 2.5 times",
    limit: Limit::MedianAtMost(2.5),
    unit: "times",
};
/// Three replicas against one.
pub const REPLICATION: Goal = Goal {
    name: "replication: inserts of three replicas against one",
    wanted: "at least 50 %",
    limit: Limit::MedianAtLeast(50.0),
    unit: "%",
};
/// One replica against a group commit.
pub const GROUP_COMMIT: Goal = Goal {
    name: "replication: inserts of one replica against HTTP with SQLite's group commit",
    wanted: "at least 50 %",
    limit: Limit::MedianAtLeast(50.0),
    unit: "%",
};
/// Linearizable reads against stale ones.
pub const READS: Goal = Goal {
    name: "reads: linearizable against stale",
    wanted: "at least 70 %",
    limit: Limit::MedianAtLeast(70.0),
    unit: "%",
};
/// Stale reads against nothing but HTTP.
pub const STALE_READS: Goal = Goal {
    name: "reads: stale against HTTP with a constant answer",
    wanted: "at least 60 %",
    limit: Limit::MedianAtLeast(60.0),
    unit: "%",
};
/// Batches against the harder of a number and a part of a local SQLite.
pub const BATCHES: Goal = Goal {
    name: "batches: rows of the harder of 100,000 rows/s and 25 % of a local SQLite",
    wanted: "at least 100 %",
    limit: Limit::MedianAtLeast(100.0),
    unit: "%",
};
/// Downloads against nginx.
pub const MEDIA_GET: Goal = Goal {
    name: "media: GET against nginx with sendfile",
    wanted: "at least 80 %",
    limit: Limit::MedianAtLeast(80.0),
    unit: "%",
};
/// Uploads against plain code.
pub const MEDIA_PUT: Goal = Goal {
    name: "media: PUT against writing, hashing and syncing three copies",
    wanted: "at least 70 %",
    limit: Limit::MedianAtLeast(70.0),
    unit: "%",
};
/// Memory of a replica that has nothing to do.
pub const MEMORY_IDLE: Goal = Goal {
    name: "memory: an idle replica, resident",
    wanted: "at most 30 MB",
    limit: Limit::HighestAtMost(30.0),
    unit: "MB",
};
/// The most memory that a replica ever had.
pub const MEMORY_PEAK: Goal = Goal {
    name: "memory: a replica after the loads above, highest resident",
    wanted: "at most 200 MB",
    limit: Limit::HighestAtMost(200.0),
    unit: "MB",
};
/// A leader that dies.
pub const KILL: Goal = Goal {
    name: "failover: leader killed, to the next acknowledged write",
    wanted: "median at most 150 ms",
    limit: Limit::MedianAtMost(150.0),
    unit: "ms",
};
/// The same at worst.
pub const KILL_WORST: Goal = Goal {
    name: "failover: the same, worst",
    wanted: "at most 500 ms",
    limit: Limit::HighestAtMost(500.0),
    unit: "ms",
};
/// A leader that stands still.
pub const STOP: Goal = Goal {
    name: "failover: leader stopped, to the next acknowledged write",
    wanted: "median at most 700 ms",
    limit: Limit::MedianAtMost(700.0),
    unit: "ms",
};
/// A leader that hands over.
pub const TRANSFER: Goal = Goal {
    name: "failover: planned transfer, longest silence from the request to shortly after its answer",
    wanted: "median at most 50 ms",
    limit: Limit::MedianAtMost(50.0),
    unit: "ms",
};

/// Samples of one thing.
#[derive(Debug)]
struct Figure {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    goals: Vec<(&'static Goal, Vec<f64>)>,
    figures: Vec<Figure>,
    notes: Vec<String>,
    /// Whether something went wrong that no figure makes good.
    pub failed: bool,
}

impl Report {
    /// A sample of what a target is about.
    pub fn sample(&mut self, goal: &'static Goal, sample: f64) {
        match self.goals.iter_mut().find(|(known, _)| known.name == goal.name) {
            Some((_, samples)) => samples.push(sample),
            None => self.goals.push((goal, vec![sample])),
        }
    }

    /// A sample of something that targets were reckoned from.
    pub fn figure(&mut self, name: &str, unit: &'static str, sample: f64) {
        eprintln!("  {name}: {} {unit}", number(sample));
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.samples.push(sample),
            None => self.figures.push(Figure { name: name.to_owned(), unit, samples: vec![sample] }),
        }
    }

    /// Something to know.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("  {note}");
            self.notes.push(note);
        }
    }

    /// Something that should not be.
    pub fn failure(&mut self, failure: &str) {
        self.failed = true;
        self.note(format!("WRONG: {failure}"));
    }

    /// Prints the targets, and below what they were reckoned from.
    pub fn print(&self) {
        println!("| target | wanted | measured | samples | met |");
        println!("|---|---|---|---|---|");
        for (goal, samples) in &self.goals {
            let spread = Spread::of(samples.clone());
            let met = match goal.limit {
                Limit::MedianAtMost(limit) => spread.median <= limit,
                Limit::MedianAtLeast(limit) => spread.median >= limit,
                Limit::HighestAtMost(limit) => spread.highest <= limit,
            };
            let met = if met { "yes" } else { "no" };
            println!("| {} | {} | {} | {} | {met} |", goal.name, goal.wanted, told(spread, goal.unit), samples.len());
        }
        println!("\n| figure | measured | samples |\n|---|---|---|");
        for Figure { name, unit, samples } in &self.figures {
            println!("| {name} | {} | {} |", told(Spread::of(samples.clone()), unit), samples.len());
        }
        println!();
        for note in &self.notes {
            println!("* {note}");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!("* the machine: {cores} cores, which servers and generator share");
    }
}

/// The median, and from where to where samples went.
fn told(spread: Spread, unit: &str) -> String {
    format!("{} {unit} ({} to {})", number(spread.median), number(spread.lowest), number(spread.highest))
}

/// With as many digits as mean something.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 10.0 => 2,
        small if small < 1_000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
