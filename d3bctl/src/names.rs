//! File ids as names of files.

use std::fmt::Write as _;

use d3b::Digest;

/// The longest name that is made, so that a suffix still fits what file systems take.
const NAME_BYTES_MAX: usize = 240;

/// A name for a file id, in one directory whatever the id is: ids are any text, such as `a/b`, `..` or `C:\x`.
///
/// Ids that differ have names that differ. Usual names stay as they are; other characters become `%XX`.
#[must_use]
pub fn file_name(file_id: &str) -> String {
    let mut name = String::with_capacity(file_id.len());
    for (index, c) in file_id.char_indices() {
        let hidden = index == 0 && c == '.';
        let plain = c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ' | '+' | ',' | '=' | '@' | '(' | ')');
        if plain && !hidden {
            name.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                write!(name, "%{byte:02X}").expect("writing into a string does not fail");
            }
        }
    }
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    // Too long ids keep their beginning, and are told apart by their digest.
    let digest = Digest::of(file_id.as_bytes()).to_string();
    let suffix = format!("~{}", &digest[..32]);
    let mut end = NAME_BYTES_MAX - suffix.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name + &suffix
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Component, Path};

    use super::*;

    #[track_caller]
    fn check(file_id: &str, expected: &str) {
        assert_eq!(file_name(file_id), expected);
    }

    #[test]
    fn usual_ids_keep_their_names() {
        check("cat.jpg", "cat.jpg");
        check("K\u{e4}tzchen (2).jpg", "K\u{e4}tzchen (2).jpg");
        check("a-b_c+d", "a-b_c+d");
    }

    #[test]
    fn ids_never_leave_the_directory() {
        check("..", "%2E.");
        check(".", "%2E");
        check("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd");
        check("/etc/passwd", "%2Fetc%2Fpasswd");
        check("a\\b", "a%5Cb");
        check("C:x", "C%3Ax");
        check(".bashrc", "%2Ebashrc");
        check("50%2F", "50%252F");
        check("a\u{202e}b", "a%E2%80%AEb");
        for id in ["..", ".", "/", "//", "a/..", "../a", "\\..", "~", "%", "%2E", "-rf", " "] {
            let name = file_name(id);
            let components: Vec<_> = Path::new(&name).components().collect();
            assert!(matches!(components.as_slice(), [Component::Normal(_)]), "{id:?} becomes {name:?}");
        }
    }

    #[test]
    fn ids_that_differ_have_names_that_differ() {
        let long = "\u{1f600}".repeat(63);
        let ids =
            ["a/b", "a%2Fb", "a%2fb", "a_b", "A/b", long.as_str(), &long[..248], &"/".repeat(255), &"/".repeat(254)];
        let names: BTreeSet<String> = ids.iter().map(|id| file_name(id)).collect();
        assert_eq!(names.len(), ids.len());
        assert!(names.iter().all(|name| name.len() <= NAME_BYTES_MAX), "{names:?}");
    }
}
