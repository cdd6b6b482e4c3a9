//! A curve: points that are printed as they come, and written as CSV and as a picture at the end.

use std::path::Path;

use super::chart::{short, svg};

/// Some figures over one that grows.
#[derive(Debug)]
pub struct Curve {
    /// What it is called; its files, too.
    pub name: &'static str,
    /// What a reader has to know.
    pub title: String,
    /// What grows.
    pub x: &'static str,
    /// What is measured, with its unit.
    pub columns: &'static [&'static str],
    /// In the order in which they were measured.
    pub points: Vec<(f64, Vec<f64>)>,
}

impl Curve {
    /// One without points, whose head is printed.
    pub fn new(name: &'static str, title: &str, x: &'static str, columns: &'static [&'static str]) -> Curve {
        println!("\n{title}\n\n| {x} | {} |", columns.join(" | "));
        println!("|{}", "---|".repeat(columns.len() + 1));
        Curve { name, title: title.to_owned(), x, columns, points: Vec::new() }
    }

    /// Adds a point, and prints it.
    ///
    /// # Panics
    /// When it has not one value for each column.
    pub fn point(&mut self, x: f64, values: &[f64]) {
        assert_eq!(values.len(), self.columns.len(), "a value for each column of {}", self.name);
        let told: Vec<String> = values.iter().map(|value| short(*value)).collect();
        println!("| {} | {} |", short(x), told.join(" | "));
        self.points.push((x, values.to_vec()));
    }

    /// Writes `NAME.csv` and `NAME.svg`.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, directory: &Path) {
        let mut csv = format!("{},{}\n", self.x, self.columns.join(","));
        for (x, values) in &self.points {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            csv.push_str(&format!("{x},{}\n", values.join(",")));
        }
        for (ending, text) in [("csv", csv), ("svg", svg(self))] {
            let path = directory.join(format!("{}.{ending}", self.name));
            std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
