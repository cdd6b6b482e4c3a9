//! Files: where their bytes are, and that they go when they should.

use d3b::api::{MediaInfo, MediaList};
use d3b::{Code, Digest};
use d3b_tests::sample::{Noise, SHOP, database_bytes};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;
use ureq::SendBody;

#[test]
fn media_is_served_by_a_replica_that_lacks_the_bytes() {
    let cluster = Cluster::start();
    cluster.create("shop");
    let bytes = Noise::new(7, 3_000_000).bytes();
    let digest = Digest::of(&bytes);
    let stored: MediaInfo = cluster.replica(1).put("/v1/db/shop/media/film.mp4", &bytes).expect(201).json();
    assert_eq!((stored.sha256, stored.size), (digest.to_string(), 3_000_000));
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        replica.wait_for_blob(&digest);
        let _ = replica.databases();
        std::fs::remove_file(replica.blob(&digest)).expect("the blob's file");
        let answer = replica.get("/v1/db/shop/media/film.mp4").expect(200);
        assert_eq!(answer.header("etag"), Some(format!("\"sha256-{digest}\"").as_str()));
        assert!(answer.body == bytes, "replica {id} serves other bytes");
        let range = cluster.http.send(
            "GET",
            &replica.url("/v1/db/shop/media/film.mp4"),
            &[("range", "bytes=1000000-1999999")],
            SendBody::none(),
        );
        assert!(range.expect(206).body == bytes[1_000_000..2_000_000], "replica {id} serves another range");
        // The others have it, so that the next round has somebody to ask.
        std::fs::write(replica.blob(&digest), &bytes).expect("the blob's file can be put back");
    }
}

#[test]
fn a_start_gets_the_files_that_are_missing() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    let digest = Digest::of(b"film");
    cluster.replica(1).put("/v1/db/shop/media/film.mp4", b"film").expect(201);
    let leader = cluster.leader();
    let id = cluster.ids().into_iter().find(|id| *id != leader).expect("three replicas");
    cluster.replica(id).wait_for_blob(&digest);
    cluster.replica_mut(id).kill();
    std::fs::remove_file(cluster.replica(id).blob(&digest)).expect("the blob's file");
    cluster.replica_mut(id).start();
    // Nobody asks for it.
    cluster.replica(id).wait_for_blob(&digest);
}

#[test]
fn media_follows_its_metadata() {
    let cluster = Cluster::start();
    cluster.replica(1).put("/v1/db/shop/file", &database_bytes(SHOP)).expect(201);
    let url = cluster.replica(2).url("/v1/db/shop/media/a%2Fb%20c%20%C3%A4.txt");
    let sent = cluster.http.send("PUT", &url, &[("content-type", "text/plain")], &b"hello"[..]).expect(201);
    let digest = Digest::of(b"hello");
    assert_eq!(sent.header("etag"), Some(format!("\"sha256-{digest}\"").as_str()));
    assert_eq!(sent.header("repr-digest"), Some(digest.to_repr_digest().as_str()));
    assert!(sent.header("location").is_some());
    let info: MediaInfo = sent.json();
    assert_eq!((info.file_id.as_str(), info.r#type.as_str(), info.size), ("a/b c ä.txt", "text/plain", 5));
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        // One linearized query, then any number of plain GETs.
        let list: MediaList = replica.get("/v1/db/shop/media").expect(200).json();
        assert_eq!(list.media.as_slice(), std::slice::from_ref(&info));
        let path = "/v1/db/shop/media/a%2Fb%20c%20%C3%A4.txt";
        let got = replica.get(path).expect(200);
        assert_eq!((got.body.as_slice(), got.header("content-type")), (&b"hello"[..], Some("text/plain")));
        let etag = got.header("etag").expect("an ETag").to_owned();
        let url = replica.url(path);
        cluster.http.send("GET", &url, &[("if-none-match", &etag)], SendBody::none()).expect(304);
        let head = cluster.http.send("HEAD", &url, &[], SendBody::none()).expect(200);
        assert_eq!((head.body.len(), head.header("content-length")), (0, Some("5")));
        cluster.http.send("GET", &url, &[("range", "bytes=1-2")], SendBody::none()).expect(206);
        cluster.http.send("GET", &url, &[("range", "bytes=9-")], SendBody::none()).expect_problem(Code::Range);
    }
    // Replaced, then deleted, seen by all.
    cluster.http.send("PUT", &url, &[], &b"hello again"[..]);
    for id in cluster.ids() {
        let _ = cluster.replica(id).databases();
        assert_eq!(
            cluster.replica(id).get("/v1/db/shop/media/a%2Fb%20c%20%C3%A4.txt").expect(200).body,
            b"hello again"
        );
    }
    cluster.http.delete(&url);
    for id in cluster.ids() {
        let _ = cluster.replica(id).databases();
        cluster.replica(id).get("/v1/db/shop/media/a%2Fb%20c%20%C3%A4.txt").expect_problem(Code::MediaNotFound);
    }
    cluster.http.delete(&url).expect_problem(Code::MediaNotFound);
}

#[test]
fn deletion_removes_database_media_and_files_on_every_replica() {
    let cluster = Cluster::with(Options::default().flag("--blob-grace", "1s"));
    let image = database_bytes(SHOP);
    cluster.replica(1).put("/v1/db/shop/file", &image).expect(201);
    cluster.create("other");
    let kept = b"a picture that stays";
    cluster.replica(3).put("/v1/db/other/media/kept.jpg", kept).expect(201);
    let pictures: [&[u8]; 2] = [b"a first picture", b"a second picture"];
    for (n, picture) in pictures.iter().enumerate() {
        cluster.replica(2).put(&format!("/v1/db/shop/media/{n}.jpg"), picture).expect(201);
    }
    let shop = cluster.replica(1).databases().into_iter().find(|info| info.name == "shop").expect("it was uploaded");
    let holds =
        |id: u32, text: &str| cluster.replica(id).files().iter().any(|path| path.to_string_lossy().contains(text));
    for id in cluster.ids() {
        wait_until(&format!("replica {id} has everything"), PATIENCE, || {
            holds(id, &shop.id) && pictures.iter().all(|picture| holds(id, &Digest::of(picture).to_string()))
        });
    }

    cluster.replica(3).delete("/v1/db/shop/media/0.jpg").expect(200);
    for id in cluster.ids() {
        wait_until(&format!("replica {id} drops a deleted media file"), PATIENCE, || {
            !holds(id, &Digest::of(pictures[0]).to_string())
        });
    }
    cluster.replica(2).delete("/v1/db/shop").expect(200);
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        assert!(replica.databases().iter().all(|info| info.name != "shop"));
        replica.try_sql("shop", "SELECT 1", json!([])).expect_problem(Code::DatabaseNotFound);
        replica.get("/v1/db/shop/media/1.jpg").expect_problem(Code::DatabaseNotFound);
        replica.get("/v1/db/shop/file").expect_problem(Code::DatabaseNotFound);
        wait_until(&format!("replica {id} drops the files"), PATIENCE, || {
            !holds(id, &shop.id)
                && !holds(id, &Digest::of(pictures[1]).to_string())
                && !holds(id, &Digest::of(&image).to_string())
        });
        assert!(holds(id, &Digest::of(kept).to_string()), "replica {id} has dropped what is referred to");
        assert_eq!(replica.get("/v1/db/other/media/kept.jpg").expect(200).body, kept);
    }
    cluster.replica(1).delete("/v1/db/shop").expect_problem(Code::DatabaseNotFound);
    cluster.assert_same_everywhere();
}

#[test]
fn only_hashed_ids_on_disk() {
    let cluster = Cluster::start();
    cluster.replica(1).put("/v1/db/Secret-Shop.2/file", &database_bytes(SHOP)).expect(201);
    cluster.replica(2).put("/v1/db/Secret-Shop.2/media/secret-cat.jpg", b"meow").expect(201);
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        replica.wait_for_blob(&Digest::of(b"meow"));
        let databases = replica.databases();
        let shop = databases.iter().find(|info| info.name == "Secret-Shop.2").expect("it was uploaded");
        assert!(shop.id.len() == 64 && shop.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", shop.id);
        for path in replica.files() {
            let name = path
                .strip_prefix(&replica.data_dir)
                .expect("below the data directory")
                .to_string_lossy()
                .to_lowercase();
            assert!(!name.contains("secret"), "{name} tells a name");
        }
        assert!(replica.data_dir.join("databases").join(format!("{}.sqlite3", shop.id)).exists());
    }
}
