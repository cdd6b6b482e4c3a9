//! `d3bd demo`, as a newcomer meets it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use d3b_tests::cluster::{Permit, d3bd};
use d3b_tests::process::{Process, is_alive};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Http, wait_until};
use serde_json::{Value, json};

#[test]
fn demo_starts_explains_and_cleans_up() {
    let _permit = Permit::wait();
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut command = d3bd(home.path());
    command.arg("demo").env("TMPDIR", home.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = Process::spawn(&mut command);
    let mut out = BufReader::new(demo.child().stdout.take().expect("a pipe"));

    // It speaks until it has told everything, which ends with how to end it.
    let mut said = String::new();
    while !said.contains("Ctrl-C") {
        if out.read_line(&mut said).expect("text") == 0 {
            let mut errors = String::new();
            let _ = demo.child().stderr.take().expect("a pipe").read_to_string(&mut errors);
            panic!("the demonstration ended early:\n{said}\n{errors}");
        }
    }
    let mut endpoints: Vec<String> = said
        .split_whitespace()
        .filter(|word| word.starts_with("http://127.0.0.1:") && !word[17..].contains('/'))
        .filter(|word| !word.contains(','))
        .map(str::to_owned)
        .collect();
    endpoints.sort();
    endpoints.dedup();
    assert_eq!(endpoints.len(), 3, "three endpoints are told:\n{said}");
    assert!(said.contains("curl") && said.contains("d3bctl"), "what to try is told:\n{said}");
    let pids: Vec<u32> = said
        .split_whitespace()
        .zip(said.split_whitespace().skip(1))
        .filter(|(word, _)| *word == "pid")
        .map(|(_, pid)| pid.parse().expect("a process id"))
        .collect();
    assert_eq!(pids.len(), 3, "three processes are told:\n{said}");
    assert!(pids.iter().all(|pid| is_alive(*pid)));

    let http = Http::new();
    for endpoint in &endpoints {
        let query = json!({"sql": "SELECT count(*) FROM birds"});
        let answer: Value = http.post(&format!("{endpoint}/v1/db/birds/query"), &query).expect(200).json();
        assert!(answer["rows"][0][0].as_u64().is_some_and(|count| count > 0), "{answer}");
    }
    // Every curl line that it prints works as it stands.
    for line in said.lines().map(str::trim).filter(|line| line.starts_with("curl ")) {
        let output = std::process::Command::new("bash").args(["-c", &format!("{line} --fail-with-body")]).output();
        let output = output.expect("bash can be run");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
    }

    demo.signal(libc::SIGINT);
    let status = demo.wait_for_end(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}");
    wait_until("no process is left", PATIENCE, || pids.iter().all(|pid| !is_alive(*pid)));
    let left: Vec<_> =
        std::fs::read_dir(home.path()).expect("a directory").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?} are left behind");
}
