//! A time series store: samples that arrive late and twice, buckets, retention, and rollups.

use super::*;

pub(super) const SERIES: Application = Application {
    name: "time series",
    schema: &[
        "CREATE TABLE series(id INTEGER PRIMARY KEY, name TEXT NOT NULL, tags TEXT NOT NULL DEFAULT '{}', UNIQUE(name, tags))",
        "CREATE TABLE sample(series INTEGER NOT NULL REFERENCES series ON DELETE CASCADE, at INTEGER NOT NULL, value REAL, PRIMARY KEY(series, at)) STRICT, WITHOUT ROWID",
        "CREATE TABLE hourly(series INTEGER NOT NULL, hour TEXT NOT NULL, samples INTEGER, low, high, mean, PRIMARY KEY(hour, series)) WITHOUT ROWID",
        "CREATE TABLE noise(at TEXT DEFAULT ({now}), value DEFAULT ({random}))",
        "INSERT INTO series(name) VALUES('load'), ('free')",
        "CREATE INDEX recent ON sample(at DESC, series) WHERE value IS NOT NULL",
        "CREATE TRIGGER no_future BEFORE INSERT ON sample WHEN new.at > 1800000000 BEGIN SELECT RAISE(ABORT, 'from the future'); END",
    ],
    request,
};

fn request(dice: &mut Dice) -> Vec<Statement> {
    let series = number(1 + dice.below(4));
    let at = 1_700_000_000 + 600 * dice.below(60);
    match dice.below(11) {
        0 => vec![say(
            "INSERT INTO series(name, tags) VALUES(?, json_object('host', ?)) ON CONFLICT DO NOTHING RETURNING id",
            vec![text(dice.one_of(&["cpu", "memory"])), text(dice.one_of(&["h1", "h2"]))],
        )],
        1..=3 => (0..=dice.below(3))
            .map(|step| {
                let value = match dice.below(6) {
                    0 => Value::Null,
                    1 => Value::Real(f64::INFINITY),
                    2 => Value::Real(f64::NAN),
                    _ => Value::Real(dice.below(1_000) as f64 / 7.0),
                };
                say("INSERT INTO sample VALUES(?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = coalesce(excluded.value, value)", vec![series.clone(), number(at + 10 * step), value])
            })
            .collect(),
        4 => vec![say(
            "INSERT OR REPLACE INTO sample SELECT ?1, ?2 + 30 * i, sin FROM (WITH RECURSIVE n(i, sin) AS (SELECT 0, 0.5 UNION ALL \
             SELECT i + 1, 3.9 * sin * (1 - sin) FROM n LIMIT 40) SELECT * FROM n)",
            vec![series, number(at)],
        )],
        5 => vec![say("INSERT INTO sample VALUES(?, ?, 1.0)", vec![series, number(1_900_000_000)])],
        6 => vec![say(
            "INSERT INTO hourly SELECT series, strftime('%Y-%m-%dT%H', at, 'unixepoch'), count(value), min(value), max(value), avg(value) \
             FROM sample GROUP BY 1, 2 ON CONFLICT DO UPDATE SET samples = excluded.samples, low = excluded.low, high = excluded.high, mean = excluded.mean",
            vec![],
        )],
        7 => vec![say(
            "SELECT at, value, avg(value) OVER (ORDER BY at ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS moving, \
             value - lag(value) OVER (ORDER BY at) AS change, at - lag(at, 1, at) OVER (ORDER BY at) AS gap FROM sample WHERE series = ? ORDER BY at DESC LIMIT 20",
            vec![series],
        )],
        8 => vec![say(
            "SELECT s.name, s.tags ->> 'host' AS host, h.* FROM hourly AS h JOIN series AS s ON s.id = h.series ORDER BY h.hour, h.series LIMIT 20",
            vec![],
        )],
        9 => vec![say("DELETE FROM sample WHERE at < ? RETURNING series", vec![number(at)])],
        _ => match dice.below(3) {
            0 => vec![say("DELETE FROM series WHERE id = ?", vec![series])],
            1 => vec![say("ANALYZE", vec![])],
            _ => vec![say("INSERT INTO noise DEFAULT VALUES RETURNING *", vec![])],
        },
    }
}
