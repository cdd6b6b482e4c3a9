//! d3bctl(1) says what the program says: NAME to COMMANDS come from the command line's definition, and the rest is
//! written by hand.
//!
//! `D3B_WRITE_MANUAL=1 cargo test -p d3bctl --test manual` writes the page anew.

use std::path::Path;

use clap::{Arg, Command};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// Text in a form that roff takes literally.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// The options that every command takes.
fn globals(command: &Command) -> Vec<Arg> {
    command.get_arguments().filter(|argument| argument.is_global_set()).cloned().collect()
}

fn generated() -> String {
    let command = d3bctl::cli::command();
    let man = clap_mangen::Man::new(command.clone()).section("1").date("").source("d3b").manual("d3b manual");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    let page = String::from_utf8(page).unwrap().replace("1  d3b", "1 \"\" d3b");
    // Each section repeats the definition of the apostrophe; once is enough.
    let apostrophe: Vec<&str> = page.lines().take(2).collect();
    let lines = page.lines().enumerate().filter(|(n, line)| *n < 2 || !apostrophe.contains(line));
    let mut page: String = lines.map(|(_, line)| format!("{line}\n")).collect();
    page.push_str(".SH SYNOPSIS\n.B d3bctl\n.RI [ option ...]\\~ command\n.RI [ argument ...]\n.SH DESCRIPTION\n");
    let about = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    for (index, paragraph) in about.split("\n\n").enumerate() {
        page.push_str(if index > 0 { ".PP\n" } else { "" });
        page.push_str(&format!("{}\n", roff(paragraph.trim_end_matches('.'))));
        page.insert(page.len() - 1, '.');
    }
    page.push_str(".SH COMMANDS\n");
    describe(&mut page, &command, "");
    page.push_str(".SH OPTIONS\nThey may stand anywhere; two dashes end them.\n");
    for argument in globals(&command) {
        option(&mut page, &argument);
    }
    page.push_str(".TP\n.B \\-h, \\-\\-help\nPrint help, also that of a command.\n");
    page.push_str(".TP\n.B \\-V, \\-\\-version\nPrint the version of d3bctl.\n");
    page.push_str(&std::fs::read_to_string(root().join("man/written/d3bctl.1")).unwrap());
    page
}

/// Each command with what is its own.
fn describe(page: &mut String, command: &Command, path: &str) {
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let path = format!("{path}{} ", subcommand.get_name());
        if subcommand.has_subcommands() {
            describe(page, subcommand, &path);
            continue;
        }
        let positionals = subcommand.get_positionals().map(|argument| {
            let name = value_name(argument);
            let repeated = argument.get_num_args().is_some_and(|range| range.max_values() > 1);
            let name = if repeated { format!("{name}...") } else { name };
            if argument.is_required_set() { name } else { format!("[{name}]") }
        });
        let positionals: Vec<String> = positionals.collect();
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = roff(&positionals.join(" "));
        page.push_str(&format!(".SS {} {usage}\n{}.\n", roff(path.trim_end()), roff(&about)));
        let own = subcommand.get_arguments().filter(|argument| !argument.is_global_set());
        for argument in own.filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version")) {
            option(page, argument);
        }
    }
}

fn value_name(argument: &Arg) -> String {
    argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default()
}

fn option(page: &mut String, argument: &Arg) {
    let value = if argument.get_action().takes_values() { value_name(argument) } else { String::new() };
    let name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("\\-{short}, {}", roff(&format!("--{long}"))),
        (None, Some(long)) => roff(&format!("--{long}")),
        (Some(short), None) => format!("\\-{short}"),
        (None, None) => String::new(),
    };
    let separator = if name.is_empty() || value.is_empty() { "" } else { " " };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    page.push_str(&format!(".TP\n.B {name}{separator}\\fI{}\\fR\n{}.\n", roff(&value), roff(&help)));
    if let Some(variable) = argument.get_env() {
        page.push_str(&format!("Environment:\n.BR {} .\n", variable.to_string_lossy()));
    }
    let possible = possible_values(argument);
    let told: Vec<_> = possible.iter().filter(|value| value.get_help().is_some()).collect();
    if !told.is_empty() {
        page.push_str(".RS\n");
        for value in told {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            page.push_str(&format!(".TP\n.B {}\n{}.\n", roff(value.get_name()), roff(&help)));
        }
        page.push_str(".RE\n");
    } else if !possible.is_empty() {
        let names: Vec<String> = possible.iter().map(|value| roff(value.get_name())).collect();
        page.push_str(&format!("It is one of {}.\n", names.join(", ")));
    }
}

/// What an argument can be; a flag has no value.
fn possible_values(argument: &Arg) -> Vec<clap::builder::PossibleValue> {
    if argument.get_action().takes_values() { argument.get_possible_values() } else { Vec::new() }
}

#[test]
fn the_page_says_what_the_program_says() {
    let path = root().join("man/d3bctl.1");
    if std::env::var_os("D3B_WRITE_MANUAL").is_some() {
        std::fs::write(&path, generated()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == generated(), "man/d3bctl.1 is out of date: D3B_WRITE_MANUAL=1 cargo test -p d3bctl --test manual");
}

/// Every command, every option of it, and every variable.
fn collect_words(command: &Command, path: &str, words: &mut Vec<String>) {
    for argument in command.get_arguments() {
        words.extend(argument.get_long().map(|long| roff(&format!("--{long}"))));
        words.extend(argument.get_short().map(|short| format!("\\-{short}")));
        words.extend(argument.get_env().map(|variable| variable.to_string_lossy().into_owned()));
        words.extend(possible_values(argument).iter().map(|value| roff(value.get_name())));
    }
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let path = format!("{path}{}", subcommand.get_name());
        if !subcommand.has_subcommands() {
            words.push(format!(".SS {}", roff(&path)));
        }
        collect_words(subcommand, &format!("{path} "), words);
    }
}

#[test]
fn every_command_flag_variable_and_code_is_in_the_page() {
    let page = generated();
    let mut wanted = Vec::new();
    collect_words(&d3bctl::cli::command(), "", &mut wanted);
    wanted.extend(d3b::Code::ALL.iter().map(|code| roff(code.name())));
    let missing: Vec<&String> = wanted.iter().filter(|word| !page.contains(*word)).collect();
    assert!(missing.is_empty(), "man/d3bctl.1 does not tell of {missing:?}");
}

/// The section on exit codes, by code.
fn exit_codes(page: &str) -> std::collections::BTreeMap<u8, String> {
    let section = page.split(".SH EXIT STATUS\n").nth(1).and_then(|rest| rest.split(".SH ").next()).unwrap();
    let paragraphs = section.split(".TP\n.B ").skip(1);
    paragraphs
        .map(|paragraph| {
            let (code, text) = paragraph.split_once('\n').unwrap();
            (code.parse().unwrap_or_else(|_| panic!("{code:?} is no exit code")), text.to_owned())
        })
        .collect()
}

#[test]
fn every_code_stands_at_its_exit_code() {
    let page = generated();
    let told = exit_codes(&page);
    for code in d3b::Code::ALL {
        let text = told.get(&code.exit_code()).unwrap_or_else(|| panic!("the page has no exit code of {code}"));
        let words: Vec<&str> = text.split([' ', '\n', ',', '.', ';']).collect();
        assert!(words.contains(&roff(code.name()).as_str()), "{code} is not told of at {}", code.exit_code());
    }
    let expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130, 141];
    assert_eq!(told.into_keys().collect::<Vec<_>>(), expected);
}
