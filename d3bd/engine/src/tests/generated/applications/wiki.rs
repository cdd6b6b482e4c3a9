//! A wiki: pages with revisions, links found in their text, and a full-text index that triggers keep.

use super::*;

pub(super) const WIKI: Application = Application {
    name: "wiki",
    schema: &[
        "CREATE TABLE page(id INTEGER PRIMARY KEY, title TEXT NOT NULL UNIQUE COLLATE NOCASE, body TEXT NOT NULL DEFAULT '', version INTEGER NOT NULL DEFAULT 1)",
        "CREATE TABLE revision(page INTEGER NOT NULL REFERENCES page ON DELETE CASCADE, version INTEGER NOT NULL, body TEXT, \
         at TEXT DEFAULT ({now}), PRIMARY KEY(page, version DESC)) WITHOUT ROWID",
        "CREATE TABLE link(source INTEGER NOT NULL REFERENCES page ON DELETE CASCADE, target TEXT NOT NULL COLLATE NOCASE, UNIQUE(source, target) ON CONFLICT IGNORE)",
        "CREATE VIRTUAL TABLE search USING fts5(title, body, content='page', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2', prefix='2')",
        "CREATE TRIGGER page_added AFTER INSERT ON page BEGIN INSERT INTO search(rowid, title, body) VALUES(new.id, new.title, new.body); END",
        "CREATE TRIGGER page_gone AFTER DELETE ON page BEGIN INSERT INTO search(search, rowid, title, body) VALUES('delete', old.id, old.title, old.body); END",
        "CREATE TRIGGER page_changed AFTER UPDATE OF title, body ON page BEGIN \
         INSERT INTO search(search, rowid, title, body) VALUES('delete', old.id, old.title, old.body); \
         INSERT INTO search(rowid, title, body) VALUES(new.id, new.title, new.body); \
         INSERT INTO revision(page, version, body) VALUES(old.id, old.version, old.body); END",
        "CREATE VIEW dangling AS SELECT DISTINCT target FROM link WHERE target NOT IN (SELECT title FROM page)",
        "CREATE TRIGGER fill_dangling INSTEAD OF DELETE ON dangling BEGIN INSERT OR IGNORE INTO page(title, body) VALUES(old.target, 'to be written'); END",
    ],
    request,
};

const TITLES: &[&str] = &["Home", "Gardening", "B\u{e4}ume", "caf\u{e9}s", "Running Shoes", "home"];

const WORDS: &[&str] =
    &["running", "runner", "trees", "B\u{e4}ume", "cafe", "the", "\u{1f333}", "water", "garden's", "shoes"];

fn prose(dice: &mut Dice) -> String {
    let count = 3 + dice.below(30);
    let words: Vec<&str> = (0..count).map(|_| dice.one_of(WORDS)).collect();
    words.join(" ")
}

fn request(dice: &mut Dice) -> Vec<Statement> {
    let title = dice.one_of(TITLES);
    match dice.below(13) {
        0..=2 => {
            vec![say("INSERT INTO page(title, body) VALUES(?, ?) RETURNING id", vec![text(title), text(prose(dice))])]
        }
        3..=5 => vec![
            affecting(
                say(
                    "UPDATE page SET body = ?, version = version + 1 WHERE title = ? AND version = ?",
                    vec![text(prose(dice)), text(title), number(1 + dice.below(4))],
                ),
                1,
            ),
            say(
                "INSERT INTO link(source, target) SELECT id, ? FROM page WHERE title = ?",
                vec![text(dice.one_of(TITLES)), text(title)],
            ),
        ],
        6 | 7 => vec![say(
            "SELECT p.title, snippet(search, 1, '[', ']', '...', 6) AS found, round(bm25(search, 10.0, 1.0), 6) AS score \
             FROM search JOIN page AS p ON p.id = search.rowid WHERE search MATCH ? ORDER BY rank, p.id LIMIT 10",
            vec![text(dice.one_of(&[
                "run",
                "tree*",
                "baume OR cafe",
                "title : home",
                "\"the water\"",
                "garden NOT shoes",
                "AND",
            ]))],
        )],
        8 => vec![say("UPDATE page SET title = ? WHERE title = ?", vec![text(dice.one_of(TITLES)), text(title)])],
        9 => vec![say("DELETE FROM page WHERE title = ? RETURNING id, version", vec![text(title)])],
        10 => vec![
            say("SELECT * FROM dangling ORDER BY 1", vec![]),
            say("DELETE FROM dangling WHERE target LIKE ?", vec![text(format!("%{}%", &title[..1]))]),
        ],
        11 => vec![say(
            "WITH RECURSIVE reach(id, depth) AS (SELECT id, 0 FROM page WHERE title = ? UNION SELECT p.id, depth + 1 FROM reach \
             JOIN link AS l ON l.source = reach.id JOIN page AS p ON p.title = l.target WHERE depth < 5) SELECT title, min(depth) FROM reach JOIN page USING(id) GROUP BY id ORDER BY 2, 1",
            vec![text(title)],
        )],
        _ => vec![say(
            dice.one_of(&[
                "INSERT INTO search(search) VALUES('optimize')",
                "INSERT INTO search(search) VALUES('rebuild')",
                "INSERT INTO search(search) VALUES('integrity-check')",
            ]),
            vec![],
        )],
    }
}
