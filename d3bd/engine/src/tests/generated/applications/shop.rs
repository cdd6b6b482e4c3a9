//! A web shop: stock that must not go below zero, carts, orders that are placed in one batch, and reports.

use super::*;

pub(super) const SHOP: Application = Application {
    name: "web shop",
    schema: &[
        "CREATE TABLE product(sku TEXT PRIMARY KEY, name TEXT NOT NULL, cents INTEGER NOT NULL CHECK(cents >= 0), \
         stock INTEGER NOT NULL CHECK(stock >= 0), facts TEXT CHECK(json_valid(facts)), colour TEXT AS (facts ->> '$.colour')) STRICT",
        "CREATE TABLE customer(id INTEGER PRIMARY KEY, mail TEXT NOT NULL COLLATE NOCASE UNIQUE, token ANY DEFAULT ({random})) STRICT",
        "CREATE TABLE cart(customer INTEGER NOT NULL REFERENCES customer ON DELETE CASCADE, sku TEXT NOT NULL REFERENCES product ON UPDATE CASCADE, \
         pieces INTEGER NOT NULL DEFAULT 1 CHECK(pieces > 0), PRIMARY KEY(customer, sku)) WITHOUT ROWID",
        "CREATE TABLE purchase(id INTEGER PRIMARY KEY AUTOINCREMENT, customer INTEGER REFERENCES customer ON DELETE SET NULL, placed TEXT DEFAULT ({now}), cents INTEGER)",
        "CREATE TABLE item(purchase INTEGER NOT NULL REFERENCES purchase ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, \
         sku TEXT REFERENCES product ON DELETE RESTRICT ON UPDATE CASCADE, pieces INTEGER, cents INTEGER, UNIQUE(purchase, sku))",
        "INSERT INTO product(sku, name, cents, stock, facts) VALUES('P1', 'Cup', 900, 50, '{\"colour\":\"red\",\"sizes\":[1,2]}'), ('P2', 'Pot', 2500, 9, '{}'), ('P3', 'Pan', 3100, 30, NULL)",
        "INSERT INTO customer(mail) VALUES('one@example.org'), ('two@example.org'), ('three@example.org')",
        "CREATE INDEX product_colour ON product(colour, cents DESC)",
        "CREATE INDEX cheap ON product(lower(name)) WHERE cents < 1000",
        "CREATE TRIGGER take_stock AFTER INSERT ON item BEGIN UPDATE product SET stock = stock - new.pieces WHERE sku = new.sku; END",
        "CREATE TRIGGER give_back AFTER DELETE ON item BEGIN UPDATE product SET stock = stock + old.pieces WHERE sku = old.sku; END",
        "CREATE VIEW best AS SELECT sku, sum(pieces) AS sold, rank() OVER (ORDER BY sum(pieces) DESC) AS place FROM item GROUP BY sku",
    ],
    request,
};

fn request(dice: &mut Dice) -> Vec<Statement> {
    let sku = text(format!("P{}", dice.below(8)));
    let customer = number(1 + dice.below(5));
    match dice.below(13) {
        0 | 1 => {
            let facts = format!(
                "{{\"colour\":\"{}\",\"sizes\":[1,{}]}}",
                dice.one_of(&["red", "blue", "gr\u{fc}n"]),
                dice.below(5)
            );
            vec![say(
                "INSERT INTO product(sku, name, cents, stock, facts) VALUES(?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT(sku) DO UPDATE SET stock = stock + excluded.stock, cents = excluded.cents, facts = json_patch(facts, excluded.facts) RETURNING *",
                vec![
                    sku,
                    text(format!("Thing {}", dice.below(9))),
                    number(dice.below(3_000)),
                    number(dice.below(20)),
                    text(facts),
                ],
            )]
        }
        2 => vec![say(
            "INSERT INTO customer(mail) VALUES(?) RETURNING id",
            vec![text(format!("{}@example.org", dice.one_of(&["a", "A", "b", "c", "d"])))],
        )],
        3..=5 => vec![say(
            "INSERT INTO cart(customer, sku, pieces) VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET pieces = pieces + excluded.pieces RETURNING pieces",
            vec![customer, sku, number(dice.below(4))],
        )],
        6..=8 => vec![
            say("INSERT INTO purchase(customer) VALUES(?) RETURNING id", vec![customer.clone()]),
            say(
                "INSERT INTO item(purchase, sku, pieces, cents) SELECT last_insert_rowid(), c.sku, c.pieces, c.pieces * p.cents \
                 FROM cart AS c JOIN product AS p USING(sku) WHERE c.customer = ? ORDER BY c.sku",
                vec![customer.clone()],
            ),
            say(
                "UPDATE purchase SET cents = (SELECT total(cents) FROM item WHERE purchase = purchase.id) WHERE id = (SELECT max(id) FROM purchase)",
                vec![],
            ),
            say("DELETE FROM cart WHERE customer = ? RETURNING sku, pieces", vec![customer]),
        ],
        9 => vec![say("DELETE FROM purchase WHERE id = ?", vec![number(1 + dice.below(15))])],
        10 => vec![
            say("SELECT * FROM best WHERE place <= 3 ORDER BY place, sku", vec![]),
            say(
                "SELECT colour, count(*), avg(cents), min(name) FROM product GROUP BY colour HAVING count(*) > 0",
                vec![],
            ),
            say(
                "SELECT sku, value FROM product, json_each(facts, '$.sizes') WHERE value > 1 ORDER BY sku, value",
                vec![],
            ),
        ],
        11 => vec![say(
            "UPDATE product SET sku = ?, facts = json_set(facts, '$.old', sku) WHERE sku = ?",
            vec![text(format!("P{}", dice.below(8))), sku],
        )],
        _ => match dice.below(2) {
            0 => vec![say("DELETE FROM product WHERE sku = ?", vec![sku])],
            _ => vec![affecting(say("DELETE FROM customer WHERE id = ?", vec![customer]), 1)],
        },
    }
}
