//! The rules of the house that the compiler does not hold: who may know of whom, and what a file may hold.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Lines of one source file. Around 600 it is time to look whether two things live there.
const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}

/// A file of the source tree.
struct Source {
    /// Below the root, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The lines that are code, with their numbers: neither comments nor docs.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The code that ships: up to the tests at the end of a file.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
    }

    /// Whether it ships at all.
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }
}

/// Every file below a directory, in order, without what is built or is git's.
fn files(directory: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join(directory), &mut paths);
    paths.sort();
    let sources = paths.into_iter().filter_map(|path| {
        // What is no text, such as a database, has no rules here.
        let text = std::fs::read_to_string(&path).ok()?;
        let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        Some(Source { path, text })
    });
    sources.collect()
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for path in entries.map(|entry| entry.expect("a directory can be read").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // In a linked worktree .git is a file.
        if matches!(name.as_ref(), "target" | ".git") {
            continue;
        }
        if path.is_dir() {
            walk(&path, paths);
        } else {
            paths.push(path);
        }
    }
}

fn rust(directory: &str) -> Vec<Source> {
    files(directory).into_iter().filter(|source| source.path.ends_with(".rs")).collect()
}

/// Whether a text holds a word, not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next()))
}

#[track_caller]
fn check(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Demands that no shipped code below a directory holds any of some words, once what is allowed has been taken out.
#[track_caller]
fn check_never_says(directory: &str, words: &[&str], allowed: &[&str]) {
    let mut complaints = Vec::new();
    let sources = rust(directory);
    assert!(!sources.is_empty(), "there is nothing in {directory}");
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (number, line) in source.shipped() {
            let rest = allowed.iter().fold(line.to_owned(), |line, allowed| line.replace(allowed, ""));
            for word in words.iter().filter(|word| has_word(&rest, word)) {
                complaints.push(format!("{}:{number}: {word} has no place here", source.path));
            }
        }
    }
    check(complaints);
}

/// The packages that a crate depends on, also for its tests.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(manifest)).expect("a manifest");
    let manifest: toml::Table = text.parse().expect("a manifest is TOML");
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"].into_iter();
    let tables = sections.filter_map(|section| manifest.get(section)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

#[track_caller]
fn check_depends_on_none_of(manifest: &str, forbidden: &[&str]) {
    let found = dependencies(manifest);
    let wrong: Vec<_> = forbidden.iter().filter(|name| found.contains(**name)).collect();
    assert!(wrong.is_empty(), "{manifest}: {wrong:?}");
}

const RUNTIMES: &[&str] = &["tokio", "tokio-util", "hyper", "hyper-util", "warp", "ureq"];

#[test]
fn the_core_depends_on_nothing_that_acts() {
    let allowed = ["bytes", "d3b", "postcard", "serde", "thiserror"];
    let wrong: Vec<_> =
        dependencies("d3bd/paxos/Cargo.toml").into_iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(wrong.is_empty(), "d3b-paxos depends on {wrong:?}");
}

#[test]
fn the_core_knows_no_time_no_chance_and_no_input_or_output() {
    let words = [
        "tokio",
        "rusqlite",
        "rand",
        "getrandom",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "RandomState",
        "thread",
        "Mutex",
        "RwLock",
        "Atomic",
        "AtomicU64",
        "AtomicBool",
        "OnceLock",
        "File",
        "TcpStream",
        "println",
        "eprintln",
    ];
    check_never_says("d3bd/paxos/src", &words, &[]);
    check_never_says(
        "d3bd/paxos/src",
        &["std::fs", "std::net", "std::io", "std::env", "std::process", "std::time"],
        &[],
    );
}

#[test]
fn the_engine_knows_nothing_of_consensus_and_sockets() {
    check_depends_on_none_of("d3bd/engine/Cargo.toml", &[RUNTIMES, &["d3b-paxos", "d3bd"]].concat());
    let words = ["ballot", "Ballot", "quorum", "Quorum", "leader", "tokio", "d3b_paxos", "TcpStream", "TcpListener"];
    check_never_says("d3bd/engine/src", &words, &[]);
}

/// Planted bugs are there for tests: no manifest may bring them into what ships, by a dependency or by default.
#[test]
fn planted_bugs_are_for_tests_only() {
    let feature = toml::Value::from("planted-bugs");
    let has = |list: Option<&toml::Value>| {
        list.and_then(toml::Value::as_array).is_some_and(|list| {
            list.iter().any(|it| *it == feature || it.as_str().is_some_and(|it| it.ends_with("/planted-bugs")))
        })
    };
    let mut complaints = Vec::new();
    for source in files("").iter().filter(|source| source.path.ends_with("Cargo.toml")) {
        let manifest: toml::Table = source.text.parse().expect("a manifest is TOML");
        let workspace = manifest.get("workspace").and_then(toml::Value::as_table);
        let tables = [manifest.get("dependencies"), manifest.get("build-dependencies")].into_iter();
        let tables = tables.chain([workspace.and_then(|workspace| workspace.get("dependencies"))]).flatten();
        for (name, dependency) in tables.filter_map(toml::Value::as_table).flatten() {
            if has(dependency.get("features")) {
                complaints.push(format!("{}: {name} comes with planted bugs", source.path));
            }
        }
        if has(manifest.get("features").and_then(|features| features.get("default"))) {
            complaints.push(format!("{}: planted bugs by default", source.path));
        }
    }
    check(complaints);
}

#[test]
fn the_vocabulary_depends_on_no_part_of_the_house() {
    check_depends_on_none_of(
        "shared/Cargo.toml",
        &["tokio", "hyper", "warp", "rusqlite", "d3b-paxos", "d3b-engine", "d3bd"],
    );
    let text = std::fs::read_to_string(root().join("shared/Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = text.parse().expect("a manifest is TOML");
    let client = &manifest["dependencies"]["ureq"];
    assert_eq!(client.get("optional").and_then(toml::Value::as_bool), Some(true), "the client is behind a feature");
}

#[test]
fn the_command_line_knows_the_daemon_by_its_http_only() {
    check_depends_on_none_of("d3bctl/Cargo.toml", &["d3bd", "d3b-paxos", "d3b-engine", "rusqlite", "tokio"]);
}

#[test]
fn http_sees_the_handle_and_nothing_behind_it() {
    let words = [
        "rusqlite",
        "libsqlite3_sys",
        "d3b_paxos",
        "d3b_engine",
        "crate::log",
        "crate::peer",
        "crate::media",
        "crate::driver",
        "crate::run",
        "crate::applier",
        "crate::config",
    ];
    check_never_says("d3bd/src/http", &words, &["crate::media::file_stream"]);
}

#[test]
fn log_media_and_peer_know_no_insides_of_each_other() {
    let above =
        ["crate::http", "crate::driver", "crate::handle", "crate::schema", "crate::run", "crate::applier", "warp"];
    for (module, others) in [("log", ["media", "peer"]), ("media", ["log", "peer"]), ("peer", ["log", "media"])] {
        check_never_says(&format!("d3bd/src/{module}"), &above, &[]);
        let mut complaints = Vec::new();
        for source in rust(&format!("d3bd/src/{module}")) {
            for (number, line) in source.shipped() {
                for other in others {
                    // Its types may be named, its modules may not.
                    let insides = line.split(&format!("crate::{other}::")).skip(1).any(|rest| {
                        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                        name.starts_with(|c: char| c.is_lowercase()) && rest[name.len()..].starts_with("::")
                    });
                    if insides {
                        complaints.push(format!("{}:{number}: an inside of {other}", source.path));
                    }
                }
            }
        }
        check(complaints);
    }
    check_never_says("d3bd/src/log", &["crate::media", "crate::peer", "tokio"], &[]);
}

#[test]
fn the_driver_decides_and_does_not_act() {
    let words = [
        "tokio",
        "rusqlite",
        "Instant",
        "SystemTime",
        "TcpStream",
        "thread",
        "File",
        "std::fs",
        "std::net",
        "crate::http",
    ];
    check_never_says("d3bd/src/driver", &words, &[]);
}

#[test]
fn no_file_is_too_long() {
    let long = rust("").into_iter().filter(|source| source.text.lines().count() > LINES_MAX);
    check(long.map(|source| format!("{} has {} lines", source.path, source.text.lines().count())).collect());
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = rust("").into_iter().filter(|source| !source.text.starts_with("//!"));
    check(silent.map(|source| format!("{} does not begin with its purpose", source.path)).collect());
}

#[test]
fn what_ships_never_unwraps() {
    let mut complaints = Vec::new();
    for source in rust("").iter().filter(|source| !source.is_test()) {
        let unwraps = source.shipped().filter(|(_, line)| line.contains(concat!(".unw", "rap()")));
        complaints.extend(unwraps.map(|(number, _)| format!("{}:{number}", source.path)));
    }
    check(complaints);
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    let words = [
        concat!("to", "do!"),
        concat!("unimpl", "emented!"),
        concat!("db", "g!"),
        concat!("#[ign", "ore"),
        concat!("allow(dead", "_code)"),
        concat!("FIX", "ME"),
        concat!("XX", "X "),
    ];
    let mut complaints = Vec::new();
    for source in rust("") {
        for (number, line) in source.text.lines().enumerate() {
            let found = words.iter().filter(|word| line.contains(**word));
            complaints.extend(found.map(|word| format!("{}:{}: {word}", source.path, number + 1)));
        }
    }
    check(complaints);
}

#[test]
fn tests_wait_on_conditions() {
    let pauses = rust("tests")
        .into_iter()
        .filter(|source| source.path != "tests/src/wait.rs" && source.text.contains(concat!("thread::", "sleep")));
    check(pauses.map(|source| format!("{} lets time pass by itself", source.path)).collect());
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("..", "/shared/")];
    let mut complaints = Vec::new();
    for source in files("").into_iter().filter(|source| source.path != "Cargo.lock") {
        for place in places.iter().filter(|place| source.text.contains(**place)) {
            complaints.push(format!("{} names {place}", source.path));
        }
    }
    check(complaints);
}

#[test]
fn the_two_commands_of_the_readme_exist() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("a README");
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("cargo ")).collect();
    assert!(commands.iter().any(|line| line.starts_with("cargo run --release --bin d3bd -- demo")), "{commands:?}");
    assert!(commands.iter().any(|line| line.starts_with("cargo test")), "{commands:?}");
    let manifest = std::fs::read_to_string(root().join("d3bd/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains("name = \"d3bd\"") && root().join("d3bd/src/main.rs").exists());
    let cli = std::fs::read_to_string(root().join("d3bd/src/cli.rs")).expect("the command line");
    assert!(has_word(&cli, "Demo"), "d3bd has no demo");
}

#[test]
fn every_path_in_the_architecture_exists() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page");
    let quoted = page.split('`').skip(1).step_by(2);
    let paths =
        quoted.filter(|text| text.contains('/') && !text.contains([' ', '<', '{', ':']) && !text.starts_with("DATA"));
    let missing = paths.filter(|path| !root().join(path).exists());
    check(missing.map(|path| format!("ARCHITECTURE.md names {path}, which does not exist")).collect());
}

#[test]
fn every_test_that_the_page_of_faults_names_exists() {
    let page = std::fs::read_to_string(root().join("docs/faults.md")).expect("the page");
    let named: Vec<(&str, &str)> =
        page.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once("::")).collect();
    assert!(named.len() > 50, "the page names tests as FILE::NAME");
    let missing = named.into_iter().filter(|(file, name)| {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        !text.contains(&format!("fn {name}("))
    });
    check(missing.map(|(file, name)| format!("docs/faults.md names {file}::{name}, which does not exist")).collect());
}
