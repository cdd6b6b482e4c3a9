//! Whole databases in and out.

use d3b::Code;
use d3b::api::{DatabaseChange, DatabaseInfo, Schema};
use d3b_tests::sample::{SHOP, database_bytes, dump};
use d3b_tests::{Cluster, Http};
use serde_json::json;

#[test]
fn a_database_uploaded_at_one_replica_is_usable_on_all() {
    let cluster = Cluster::start();
    let file = database_bytes(SHOP);
    let change: DatabaseChange = cluster.replica(2).put("/v1/db/shop/file", &file).expect(201).json();
    assert!(!change.replaced);
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        assert_eq!(replica.value("shop", "SELECT total FROM spending WHERE name = 'Ann'"), 10.0);
        replica.sql("shop", "INSERT INTO orders(user, total) VALUES(3, ?)", json!([id]));
        let schema: Schema = replica.get("/v1/db/shop/schema").expect(200).json();
        let names: Vec<_> = schema.objects.iter().map(|object| object.name.as_str()).collect();
        assert!(names.contains(&"spending") && names.contains(&"no_gifts"), "{names:?}");
        assert!(names.iter().all(|name| !name.starts_with("_d3b_")), "{names:?}");
        let info: DatabaseInfo = replica.get("/v1/db/shop").expect(200).json();
        assert_eq!((info.name, info.id), ("shop".to_owned(), change.id.clone()));
    }
    let downloads: Vec<Vec<u8>> =
        cluster.ids().iter().map(|id| cluster.replica(*id).get("/v1/db/shop/file").expect(200).body).collect();
    for file in &downloads {
        assert_eq!(&file[18..20], [1, 1], "a download is in rollback mode");
        assert!(!dump(file).contains("_d3b_"), "a download has none of d3b's tables");
        assert_eq!(dump(file), dump(&downloads[0]));
    }
    // Downloaded, replaced with itself, still the same; and the name is free for others after a deletion.
    let again: DatabaseChange = cluster.replica(3).put("/v1/db/shop/file", &downloads[0]).expect(200).json();
    assert!(again.replaced && again.id != change.id);
    assert_eq!(dump(&cluster.replica(1).get("/v1/db/shop/file").expect(200).body), dump(&downloads[0]));
    cluster.replica(1).delete("/v1/db/shop").expect(200);
    cluster.create("shop");
    cluster.replica(2).try_sql("shop", "SELECT * FROM users", json!([])).expect_problem(Code::SqlError);
    cluster.assert_same_everywhere();
}

#[test]
fn the_catalogue_can_be_read_like_any_database() {
    let cluster = Cluster::start();
    cluster.create("shop");
    for id in cluster.ids() {
        let rows = cluster.replica(id).sql("schemas", "SELECT name FROM tables", json!([]));
        assert_eq!(rows, json!([["shop"]]));
        let raw = json!({"table": "schemas", "query": "SELECT name FROM tables", "args": []});
        assert_eq!(
            cluster.replica(id).post("/", &raw).expect(200).json::<serde_json::Value>(),
            json!([{"name": "shop"}])
        );
    }
    let refused = cluster.replica(1).try_sql("schemas", "DELETE FROM tables", json!([]));
    assert!(matches!(refused.status, 400 | 403), "{} {}", refused.status, refused.text());
    assert_eq!(cluster.replica(2).value("schemas", "SELECT count(*) FROM tables"), 1);
}

#[test]
fn two_clients_upload_the_same_name_at_once() {
    let cluster = Cluster::start();
    let versions: Vec<Vec<u8>> =
        (0..4).map(|n| database_bytes(&format!("CREATE TABLE t(n); INSERT INTO t VALUES({n})"))).collect();
    let upload_all = |name: &str, headers: &[(&str, &str)]| -> Vec<u16> {
        std::thread::scope(|scope| {
            let uploads: Vec<_> = versions
                .iter()
                .enumerate()
                .map(|(n, version)| {
                    let id = u32::try_from(n).expect("few") % 3 + 1;
                    let url = cluster.replica(id).url(&format!("/v1/db/{name}/file"));
                    scope.spawn(move || Http::new().send("PUT", &url, headers, version.as_slice()).status)
                })
                .collect();
            uploads.into_iter().map(|upload| upload.join().expect("an answer")).collect()
        })
    };
    let content = |name: &str| -> i64 {
        let values: Vec<_> =
            cluster.ids().iter().map(|id| cluster.replica(*id).value(name, "SELECT n FROM t")).collect();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        values[0].as_i64().expect("a number")
    };

    let statuses = upload_all("created", &[("if-none-match", "*")]);
    let winners: Vec<usize> = (0..4).filter(|n| statuses[*n] == 201).collect();
    assert_eq!((winners.len(), statuses.iter().filter(|status| **status == 409).count()), (1, 3), "{statuses:?}");
    assert_eq!(usize::try_from(content("created")), Ok(winners[0]), "the winner's content");

    let statuses = upload_all("replaced", &[]);
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert!((0..4).contains(&content("replaced")));
    assert_eq!(cluster.replica(1).databases().iter().filter(|info| info.name == "replaced").count(), 1);
    cluster.assert_same_everywhere();
}
