//! The page of a scene: comments, commands, and under each command what came of it.
//!
//! A line that begins with `#` is a comment, one that begins with `> ` a command. Lines that are indented are the trace;
//! they are made anew whenever the scene is played.

/// What a line of a page is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// Kept as it is.
    Text(String),
    /// Kept, and played.
    Command(String),
}

/// A page without its trace.
#[derive(Debug)]
pub struct Page {
    /// The lines with their numbers in the file, for complaints.
    lines: Vec<(usize, Line)>,
}

/// A command that cannot be played, or an expectation that does not hold.
#[derive(Debug)]
pub struct Fault {
    /// The command's line.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

impl Page {
    /// Reads a page; its trace is left out.
    pub fn parse(text: &str) -> Page {
        let line = |(index, line): (usize, &str)| {
            let line = match line.strip_prefix("> ") {
                Some(command) => Line::Command(command.to_owned()),
                None if line.starts_with(' ') => return None,
                None => Line::Text(line.to_owned()),
            };
            Some((index + 1, line))
        };
        Page { lines: text.lines().enumerate().filter_map(line).collect() }
    }

    /// Whether it begins with a comment.
    pub fn has_header(&self) -> bool {
        matches!(self.lines.first(), Some((_, Line::Text(text))) if text.starts_with("# "))
    }

    /// Plays every command and gives the page with its trace.
    pub fn play(&self, mut run: impl FnMut(&str) -> Result<Vec<String>, String>) -> Result<String, Fault> {
        let mut text = String::new();
        for (number, line) in &self.lines {
            match line {
                Line::Text(line) => text += &format!("{line}\n"),
                Line::Command(command) => {
                    text += &format!("> {command}\n");
                    let came = run(command).map_err(|fault| Fault {
                        line: *number,
                        text: format!("{command}: {fault}\nSo far:\n{text}"),
                    })?;
                    for line in came {
                        text += &format!("  {line}\n");
                    }
                }
            }
        }
        Ok(text)
    }
}

/// How many equal lines are shown around a difference.
const CONTEXT: usize = 3;

/// The lines in which two texts differ, with some that are equal around them.
pub fn difference(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // The length of the longest common subsequence of what follows each pair of lines.
    let mut common = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i][j] =
                if before[i] == after[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines: Vec<(char, &str)> = Vec::new();
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            lines.push((' ', before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || i < before.len() && common[i + 1][j] >= common[i][j + 1] {
            lines.push(('-', before[i]));
            i += 1;
        } else {
            lines.push(('+', after[j]));
            j += 1;
        }
    }
    let near = |index: usize| {
        let around = index.saturating_sub(CONTEXT)..lines.len().min(index + CONTEXT + 1);
        lines[around].iter().any(|(sign, _)| *sign != ' ')
    };
    let shown = lines.iter().enumerate().filter(|(index, _)| near(*index));
    shown.map(|(_, (sign, line))| format!("{sign} {line}\n")).collect()
}

#[test]
fn a_difference_shows_what_went_and_what_came() {
    let shown = difference("a\nb\nc\nd\ne\nf\n", "a\nb\nc\nd\nE\nf\n");
    assert_eq!(shown, "  b\n  c\n  d\n- e\n+ E\n  f\n");
}

#[test]
fn a_page_keeps_its_words_and_loses_its_trace() {
    let page = Page::parse("# why\n\n> one\n  old\n> two\n");
    let played = page.play(|command| Ok(vec![format!("new {command}")])).unwrap();
    assert_eq!(played, "# why\n\n> one\n  new one\n> two\n  new two\n");
}
