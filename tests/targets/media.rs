//! Large files, against nginx and against plain code.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use d3b::splitmix64;
use d3b_tests::Cluster;
use d3b_tests::cluster::free_port;
use d3b_tests::measure::is_wanted;
use d3b_tests::process::{Process, last_lines};
use d3b_tests::wait::{PATIENCE, wait_until};
use sha2::{Digest as _, Sha256};

use super::Settings;
use super::report::{MEDIA_GET, MEDIA_PUT, Report};

const DB: &str = "media";
/// Copies of a file, as many as there are replicas.
const COPIES: usize = 3;
/// Downloads from each server in a round; the median counts.
const DOWNLOADS: usize = 5;
/// Bytes that are hashed and written, or read, at a time.
const PIECE: usize = 1 << 20;

/// Measures one round.
pub fn round(settings: &Settings, round: usize, report: &mut Report) {
    if !is_wanted(&settings.only, "media") {
        return;
    }
    let cluster = Cluster::start();
    cluster.create(DB);
    let leader = cluster.replica(cluster.leader()).address();
    let directory = tempfile::Builder::new().prefix("d3b-targets-").tempdir().expect("a temporary directory");
    let content = content(settings.media_mib, round);
    let mib_per_second = |took: Duration| settings.media_mib as f64 / took.as_secs_f64();
    let upload = || mib_per_second(put(leader, &content));
    let plain = || mib_per_second(write_copies(directory.path(), &content));
    // Who comes first changes from round to round.
    let (own, other) = if round.is_multiple_of(2) {
        let own = upload();
        (own, plain())
    } else {
        let other = plain();
        (upload(), other)
    };
    report.figure("media PUT", "MiB/s", own);
    report.figure("writing, hashing and syncing three copies", "MiB/s", other);
    report.sample(&MEDIA_PUT, 100.0 * own / other);
    let path = format!("/v1/db/{DB}/media/file");
    let Some(nginx) = Nginx::start(directory.path()) else {
        report.note("nginx is not installed, so that GET of media is measured against nothing".to_owned());
        report.figure("media GET", "MiB/s", mib_per_second(get(leader, &path, content.len())));
        return;
    };
    let (mut own, mut other) = (Vec::new(), Vec::new());
    // The first look brings both files into the page cache, and does not count.
    for _ in 0..=DOWNLOADS {
        own.push(mib_per_second(get(leader, &path, content.len())));
        other.push(mib_per_second(get(nginx.address, "/copy-0", content.len())));
    }
    let median = |samples: &[f64]| d3b_tests::measure::Spread::of(samples[1..].to_vec()).median;
    let (own, other) = (median(&own), median(&other));
    report.figure("media GET", "MiB/s", own);
    report.figure("nginx GET", "MiB/s", other);
    report.sample(&MEDIA_GET, 100.0 * own / other);
}

/// Bytes that no other round has.
fn content(mib: usize, round: usize) -> Vec<u8> {
    let mut state = round as u64 ^ u64::from(std::process::id()) << 32;
    (0..mib << 17).flat_map(|_| splitmix64(&mut state).to_le_bytes()).collect()
}

/// Stores the file, and tells how long it took until that was acknowledged.
fn put(address: SocketAddr, content: &[u8]) -> Duration {
    let length = content.len();
    let head = format!("PUT /v1/db/{DB}/media/file HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n");
    let began = Instant::now();
    let (status, _) = exchange(address, &head, content);
    assert_eq!(status, 201, "a fresh file is stored");
    began.elapsed()
}

/// Fetches a file.
fn get(address: SocketAddr, path: &str, length: usize) -> Duration {
    let began = Instant::now();
    let (status, found) = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n"), &[]);
    assert_eq!((status, found), (200, length), "{address} has {path}");
    began.elapsed()
}

/// Sends a request and takes in its answer, as cheaply as it goes; gives its status and the length of its body.
fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> (u16, usize) {
    let mut stream = TcpStream::connect(address).expect("a server that listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a connection has options");
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("a server that listens");
    let mut buffer = vec![0; PIECE];
    let mut filled = 0;
    let end = loop {
        let count = stream.read(&mut buffer[filled..]).expect("an answer");
        assert!(count > 0, "the answer breaks off within its head");
        filled += count;
        if let Some(at) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.and_then(|word| word.trim().parse().ok()).expect("a length");
    let mut found = filled - end;
    while found < length {
        match stream.read(&mut buffer).expect("an answer") {
            0 => break,
            count => found += count,
        }
    }
    (status, found)
}

/// Writes, hashes and syncs the copies, all at once.
fn write_copies(directory: &Path, content: &[u8]) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for copy in 0..COPIES {
            scope.spawn(move || {
                let mut file = File::create(directory.join(format!("copy-{copy}"))).expect("a file of ours");
                let mut hasher = Sha256::new();
                for piece in content.chunks(PIECE) {
                    hasher.update(piece);
                    file.write_all(piece).expect("a file of ours can be written");
                }
                file.sync_all().expect("a file of ours can be synced");
                std::hint::black_box(hasher.finalize());
            });
        }
    });
    began.elapsed()
}

/// nginx, serving a directory.
struct Nginx {
    address: SocketAddr,
    _process: Process,
}

impl Nginx {
    /// Starts it, if it is installed.
    fn start(directory: &Path) -> Option<Nginx> {
        let program = installed()?;
        let port = free_port();
        let at = directory.display();
        // One process, which dies when it is killed.
        let conf = format!(
            "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log; events {{}}\n\
             http {{ access_log off; sendfile on; tcp_nopush on;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
        );
        let path = directory.join("nginx.conf");
        std::fs::write(&path, conf).expect("a file of ours");
        let mut command = Command::new(program);
        command.arg("-p").arg(directory).arg("-e").arg(directory.join("nginx.log")).arg("-c").arg(&path);
        let mut process = Process::spawn(command.stdin(Stdio::null()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until("nginx listens", PATIENCE, || {
            let ended = process.ended();
            assert!(ended.is_none(), "nginx has ended: {}", last_lines(&directory.join("nginx.log"), 5));
            TcpStream::connect(address).is_ok()
        });
        Some(Nginx { address, _process: process })
    }
}

/// Where nginx is.
fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.map(|place| place.join("nginx")).find(|program| program.exists())
}
