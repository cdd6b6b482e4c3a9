//! d3bd(8) says what the program says: NAME to COMMANDS come from the command line's definition, the settings'
//! variables from the table of settings, and the rest is written by hand.
//!
//! `D3B_WRITE_MANUAL=1 cargo test -p d3bd --test manual` writes the page anew.

use std::path::Path;

use d3bd::config::SETTINGS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// Text in a form that roff takes literally.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn generated() -> String {
    let command = d3bd::cli::command();
    let man = clap_mangen::Man::new(command.clone()).section("8").date("").source("d3b").manual("d3b manual");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    // Each section repeats the definition of the apostrophe; once is enough. And an empty date must be there.
    let page = String::from_utf8(page).unwrap().replace("8  d3b", "8 \"\" d3b");
    let (preamble, apostrophe) = (2, page.lines().take(2).collect::<Vec<_>>());
    let lines = page.lines().enumerate().filter(|(n, line)| *n < preamble || !apostrophe.contains(line));
    let mut page: String = lines.map(|(_, line)| format!("{line}\n")).collect();
    page.push_str(".SH COMMANDS\n");
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        page.push_str(&format!(".TP\n.B {}\n{}.\n", roff(subcommand.get_name()), roff(&about)));
        let own = subcommand.get_arguments().filter(|argument| {
            command.get_arguments().all(|global| global.get_id() != argument.get_id())
                || subcommand.get_name() == "demo"
        });
        for argument in own {
            let Some(long) = argument.get_long() else { continue };
            let value = argument.get_value_names().filter(|_| argument.get_action().takes_values());
            let value = value.and_then(|names| names.first()).map(|name| format!(" {name}")).unwrap_or_default();
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            page.push_str(&format!(".RS\n.TP\n.B {}{}\n{}.\n.RE\n", roff(&format!("--{long}")), value, roff(&help)));
        }
    }
    let mut settings = String::new();
    for setting in SETTINGS {
        let default =
            if setting.default.is_empty() { String::new() } else { format!(" Default: {}.", roff(setting.default)) };
        settings.push_str(&format!(
            ".TP\n.B {}\n{}{default}\nIn the file:\n.BR {} .\n",
            setting.variable(),
            roff(setting.help),
            setting.key
        ));
    }
    let written = std::fs::read_to_string(root().join("man/written/d3bd.8")).unwrap();
    page.push_str(&written.replace("@SETTINGS@\n", &settings));
    page
}

#[test]
fn the_page_says_what_the_program_says() {
    let path = root().join("man/d3bd.8");
    if std::env::var_os("D3B_WRITE_MANUAL").is_some() {
        std::fs::write(&path, generated()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == generated(), "man/d3bd.8 is out of date: D3B_WRITE_MANUAL=1 cargo test -p d3bd --test manual");
}

#[test]
fn every_flag_key_and_variable_is_in_the_page() {
    let page = std::fs::read_to_string(root().join("man/d3bd.8")).unwrap();
    for setting in SETTINGS {
        for word in [roff(setting.flag), setting.key.to_owned(), setting.variable()] {
            assert!(page.contains(&word), "man/d3bd.8 does not tell of {word}");
        }
    }
}
