//! A ledger: entries that must balance when their batch ends, balances kept by triggers, and nothing that can be undone.

use super::*;

pub(super) const LEDGER: Application = Application {
    name: "ledger",
    schema: &[
        "CREATE TABLE account(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK(kind IN ('asset', 'income', 'debt')), \
         parent INTEGER REFERENCES account DEFERRABLE INITIALLY DEFERRED, balance INTEGER NOT NULL DEFAULT 0)",
        "CREATE TABLE booking(id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, at TEXT NOT NULL DEFAULT ({now}), nonce DEFAULT ({random}), closed INTEGER NOT NULL DEFAULT 0)",
        "CREATE TABLE posting(id INTEGER PRIMARY KEY, booking INTEGER NOT NULL REFERENCES booking ON DELETE RESTRICT, \
         account INTEGER NOT NULL REFERENCES account ON DELETE RESTRICT DEFERRABLE INITIALLY DEFERRED, cents INTEGER NOT NULL CHECK(cents <> 0))",
        "INSERT INTO account(id, name, kind, parent) VALUES(1, 'account 0', 'asset', NULL), (2, 'bank', 'asset', 1), (3, 'rent', 'debt', 5), (5, 'debts', 'debt', NULL)",
        "CREATE INDEX posting_account ON posting(account, id)",
        "CREATE TRIGGER posted AFTER INSERT ON posting BEGIN UPDATE account SET balance = balance + new.cents WHERE id = new.account; END",
        "CREATE TRIGGER written_once BEFORE UPDATE ON posting BEGIN SELECT RAISE(ROLLBACK, 'postings are never changed'); END",
        "CREATE TRIGGER kept BEFORE DELETE ON posting BEGIN SELECT RAISE(FAIL, 'postings are never removed'); END",
        "CREATE TRIGGER closing BEFORE UPDATE OF closed ON booking WHEN new.closed AND (SELECT total(cents) FROM posting WHERE booking = new.id) <> 0 \
         BEGIN SELECT RAISE(ABORT, 'the booking does not balance'); END",
        "CREATE TRIGGER closed_for_good BEFORE INSERT ON posting WHEN (SELECT closed FROM booking WHERE id = new.booking) \
         BEGIN SELECT RAISE(ABORT, 'the booking is closed'); END",
        "CREATE VIEW tree(id, name, depth, path, balance) AS WITH RECURSIVE t AS (SELECT id, name, 0 AS depth, name AS path, balance FROM account WHERE parent IS NULL \
         UNION ALL SELECT a.id, a.name, depth + 1, path || '/' || a.name, a.balance FROM account AS a JOIN t ON a.parent = t.id ORDER BY 4) SELECT * FROM t",
        "CREATE VIEW entry AS SELECT b.text, a.name AS account, p.cents FROM posting AS p JOIN booking AS b ON b.id = p.booking JOIN account AS a ON a.id = p.account",
        "CREATE TRIGGER enter INSTEAD OF INSERT ON entry BEGIN INSERT INTO booking(text) VALUES(new.text); \
         INSERT INTO posting(booking, account, cents) SELECT (SELECT max(id) FROM booking), id, new.cents FROM account WHERE name = new.account; END",
    ],
    request,
};

fn request(dice: &mut Dice) -> Vec<Statement> {
    let (from, to) = (number(1 + dice.below(6)), number(1 + dice.below(7)));
    let cents = dice.below(9_000) as i64;
    match dice.below(12) {
        0 | 1 => {
            let parent = if dice.one_in(2) { Value::Null } else { to };
            vec![say(
                "INSERT INTO account(name, kind, parent) VALUES(?, ?, ?)",
                vec![
                    text(format!("account {}", dice.below(8))),
                    text(dice.one_of(&["asset", "income", "debt", "gift"])),
                    parent,
                ],
            )]
        }
        2..=5 => vec![
            say("INSERT INTO booking(text) VALUES('transfer') RETURNING id", vec![]),
            say(
                "INSERT INTO posting(booking, account, cents) SELECT max(id), ?, ? FROM booking",
                vec![from, Value::Integer(-cents)],
            ),
            say(
                "INSERT INTO posting(booking, account, cents) SELECT max(id), ?, ? FROM booking",
                vec![to, Value::Integer(cents)],
            ),
            affecting(say("UPDATE booking SET closed = 1 WHERE id = (SELECT max(id) FROM booking)", vec![]), 1),
        ],
        6 => vec![
            say(
                "INSERT INTO posting(booking, account, cents) VALUES(?, ?, ?)",
                vec![number(1 + dice.below(9)), from, Value::Integer(cents)],
            ),
            say("UPDATE booking SET closed = 1 WHERE id = ?", vec![number(1 + dice.below(9))]),
        ],
        7 => vec![say(
            "INSERT INTO entry(text, account, cents) VALUES('by the view', ?, ?)",
            vec![text(format!("account {}", dice.below(8))), Value::Integer(cents)],
        )],
        8 => vec![say("UPDATE posting SET cents = cents + 1 WHERE id = ?", vec![to])],
        9 => vec![
            say("INSERT INTO booking(text) VALUES('x')", vec![]),
            say("DELETE FROM posting WHERE id >= ?", vec![to]),
        ],
        10 => vec![
            say("SELECT * FROM tree", vec![]),
            say("SELECT account, count(*) FROM entry GROUP BY account ORDER BY account", vec![]),
        ],
        _ => vec![
            say(
                "SELECT *, sum(cents) OVER (PARTITION BY account ORDER BY id) AS running FROM posting ORDER BY id DESC LIMIT 12",
                vec![],
            ),
            say(
                "SELECT kind, sum(balance) AS cents, printf('%,.2f', sum(balance) / 100.0) AS shown FROM account GROUP BY kind ORDER BY kind",
                vec![],
            ),
            say("DELETE FROM account WHERE balance = 0 AND id = ?", vec![to]),
        ],
    }
}
