//! A job queue: workers claim the next job in one statement, finish it, or lose it when their claim runs out.

use super::*;

pub(super) const QUEUE: Application = Application {
    name: "job queue",
    schema: &[
        "CREATE TABLE job(id INTEGER PRIMARY KEY, queue TEXT NOT NULL DEFAULT 'default', payload TEXT NOT NULL, priority INTEGER NOT NULL DEFAULT 0, \
         run_at INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0, worker TEXT, token DEFAULT ({random}), claimed_until INTEGER, unique_key TEXT, added TEXT DEFAULT ({now}))",
        "CREATE UNIQUE INDEX once ON job(unique_key) WHERE unique_key IS NOT NULL",
        "CREATE INDEX next ON job(queue, priority DESC, run_at, id) WHERE worker IS NULL",
        "CREATE TABLE dead(id INTEGER PRIMARY KEY, payload TEXT, tries INTEGER, reason TEXT)",
        "CREATE TABLE stat(queue TEXT PRIMARY KEY, added INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
        "CREATE TRIGGER job_added AFTER INSERT ON job BEGIN INSERT INTO stat(queue, added) VALUES(new.queue, 1) ON CONFLICT DO UPDATE SET added = added + 1; END",
        "CREATE TRIGGER job_done AFTER DELETE ON job BEGIN UPDATE stat SET done = done + 1 WHERE queue = old.queue; END",
        "CREATE TRIGGER too_often BEFORE UPDATE OF tries ON job WHEN new.tries > 3 BEGIN \
         INSERT INTO dead VALUES(old.id, old.payload, old.tries, 'too many tries'); DELETE FROM job WHERE id = old.id; SELECT RAISE(IGNORE); END",
    ],
    request,
};

fn request(dice: &mut Dice) -> Vec<Statement> {
    let queue = text(dice.one_of(&["default", "mail", "mail"]));
    let worker = text(format!("w{}", dice.below(3)));
    let now = 1_000 + dice.below(200);
    match dice.below(12) {
        0..=3 => {
            let key = if dice.one_in(3) { text(format!("once {}", dice.below(6))) } else { Value::Null };
            vec![say_named(
                "INSERT INTO job(queue, payload, priority, run_at, unique_key) VALUES($queue, json_object('to', $to), $priority, $at, $key) ON CONFLICT DO NOTHING RETURNING id",
                vec![
                    ("$queue", queue),
                    ("$to", number(dice.below(99))),
                    ("$priority", number(dice.below(3))),
                    ("$at", number(now)),
                    ("$key", key),
                ],
            )]
        }
        4..=6 => vec![say(
            "UPDATE job SET worker = ?1, claimed_until = ?2 + 30, tries = tries + 1 WHERE id = (SELECT id FROM job WHERE queue = ?3 \
             AND worker IS NULL AND run_at <= ?2 ORDER BY priority DESC, run_at, id LIMIT 1) RETURNING id, payload, tries",
            vec![worker, number(now), queue],
        )],
        7 | 8 => vec![affecting(
            say("DELETE FROM job WHERE id = (SELECT min(id) FROM job WHERE worker = ?1) AND worker = ?1", vec![worker]),
            1,
        )],
        9 => vec![say(
            "UPDATE job SET worker = NULL, claimed_until = NULL, run_at = run_at + (tries << 2) WHERE claimed_until < ? RETURNING id",
            vec![number(now + 20)],
        )],
        10 => vec![
            say(
                "SELECT queue, count(*), sum(worker IS NULL), min(run_at) FROM job GROUP BY queue ORDER BY queue",
                vec![],
            ),
            say("SELECT * FROM stat", vec![]),
            say("SELECT * FROM dead ORDER BY id DESC LIMIT 3", vec![]),
        ],
        _ => vec![
            say("INSERT INTO job(payload, run_at) SELECT payload, ? FROM dead", vec![number(now)]),
            say("DELETE FROM dead", vec![]),
        ],
    }
}
