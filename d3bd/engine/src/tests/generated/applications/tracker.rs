//! An issue tracker: projects with issues that count by themselves, labels, comments, and a history kept by triggers.

use super::*;

pub(super) const TRACKER: Application = Application {
    name: "issue tracker",
    schema: &[
        "CREATE TABLE project(key TEXT PRIMARY KEY COLLATE NOCASE, title TEXT NOT NULL, next INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID",
        "CREATE TABLE person(id INTEGER PRIMARY KEY, login TEXT NOT NULL UNIQUE CHECK(length(login) BETWEEN 2 AND 20))",
        "CREATE TABLE issue(id INTEGER PRIMARY KEY AUTOINCREMENT, project TEXT NOT NULL REFERENCES project ON UPDATE CASCADE, \
         number INTEGER NOT NULL, title TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'open' CHECK(state IN ('open', 'doing', 'done')), \
         assignee INTEGER REFERENCES person ON DELETE SET NULL, opened TEXT NOT NULL DEFAULT ({now}), \
         slug AS (lower(project) || '-' || number) STORED, UNIQUE(project, number))",
        "CREATE TABLE label(issue INTEGER NOT NULL REFERENCES issue ON DELETE CASCADE, name TEXT NOT NULL, PRIMARY KEY(issue, name)) WITHOUT ROWID",
        "CREATE TABLE comment(id INTEGER PRIMARY KEY, issue INTEGER NOT NULL REFERENCES issue ON DELETE CASCADE, \
         author INTEGER REFERENCES person ON DELETE SET NULL, body TEXT NOT NULL, at TEXT DEFAULT ({now}))",
        "CREATE TABLE history(id INTEGER PRIMARY KEY, issue INTEGER, was TEXT, became TEXT, at TEXT DEFAULT ({now}))",
        "INSERT INTO project(key, title) VALUES('CORE', 'The core'), ('Web', 'The web'), ('DOC', 'The manual')",
        "INSERT INTO person(login) VALUES('eve'), ('fred'), ('gus')",
        "CREATE INDEX open_issue ON issue(assignee, opened) WHERE state <> 'done'",
        "CREATE INDEX comment_issue ON comment(issue)",
        "CREATE TRIGGER issue_number AFTER INSERT ON issue BEGIN UPDATE project SET next = next + 1 WHERE key = new.project; END",
        "CREATE TRIGGER issue_state AFTER UPDATE OF state ON issue WHEN old.state IS NOT new.state \
         BEGIN INSERT INTO history(issue, was, became) VALUES(new.id, old.state, new.state); END",
        "CREATE VIEW board AS SELECT state, count(*) AS issues, group_concat(slug, ' ' ORDER BY slug) AS slugs FROM issue GROUP BY state",
    ],
    request,
};

fn request(dice: &mut Dice) -> Vec<Statement> {
    let key = dice.one_of(&["CORE", "core", "Web", "DOC"]);
    let (issue, person) = (number(1 + dice.below(25)), number(1 + dice.below(6)));
    match dice.below(14) {
        0 => vec![say(
            "INSERT INTO project(key, title) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET title = excluded.title RETURNING *",
            vec![text(key), text(format!("The {key}"))],
        )],
        1 => vec![say(
            "INSERT INTO person(login) VALUES(?) ON CONFLICT DO NOTHING RETURNING id",
            vec![text(dice.one_of(&["ann", "bob", "x", "\u{e9}lo\u{ef}se", "dan"]))],
        )],
        2..=4 => vec![
            returning(say("SELECT next FROM project WHERE key = ?", vec![text(key)]), 1),
            say(
                "INSERT INTO issue(project, number, title) SELECT key, next, ?2 FROM project WHERE key = ?1 RETURNING id, slug, opened",
                vec![text(key), text(format!("problem {}", dice.below(99)))],
            ),
            say("INSERT INTO label VALUES(last_insert_rowid(), 'new')", vec![]),
        ],
        5 => vec![say(
            "INSERT OR IGNORE INTO label VALUES(?, ?)",
            vec![issue, text(dice.one_of(&["bug", "idea", "new"]))],
        )],
        6 | 7 => vec![affecting(
            say(
                "UPDATE issue SET state = ? WHERE id = ? AND state <> ?1",
                vec![text(dice.one_of(&["open", "doing", "done", "lost"])), issue],
            ),
            1,
        )],
        8 => vec![say("UPDATE issue SET assignee = ? WHERE id = ?", vec![person, issue])],
        9 => vec![say_named(
            "INSERT INTO comment(issue, author, body) VALUES(:issue, :author, :body) RETURNING id, at",
            vec![(":issue", issue), (":author", person), (":body", text("I see this **too**"))],
        )],
        10 => vec![
            say("SELECT * FROM board ORDER BY state", vec![]),
            say("SELECT * FROM history ORDER BY id DESC LIMIT 5", vec![]),
        ],
        11 => vec![say(
            "SELECT i.slug, i.title, p.login, count(c.id) AS comments, json_group_array(DISTINCT l.name) AS labels FROM issue AS i \
             LEFT JOIN person AS p ON p.id = i.assignee LEFT JOIN comment AS c ON c.issue = i.id LEFT JOIN label AS l ON l.issue = i.id \
             WHERE i.state <> 'done' GROUP BY i.id ORDER BY i.id DESC LIMIT 10",
            vec![],
        )],
        12 => vec![say("DELETE FROM person WHERE id = ?", vec![person])],
        _ => match dice.below(3) {
            0 => vec![say("DELETE FROM issue WHERE id = ? RETURNING slug", vec![issue])],
            1 => vec![say(
                "UPDATE project SET key = ? WHERE key = ?",
                vec![text(format!("{key}{}", dice.below(3))), text(key)],
            )],
            _ => vec![say("DELETE FROM project WHERE key = ?", vec![text(key)])],
        },
    }
}
