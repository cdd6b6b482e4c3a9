//! Range requests and entity tags (RFC 9110).

/// Which bytes of a representation to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selected {
    /// All of them.
    Whole,
    /// Some of them: at least one.
    Part {
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// None that exists.
    Unsatisfiable,
}

/// Reads a `Range` header. What is not understood, and more than one range, is as if it were not there, as the standard
/// wants it.
pub(crate) fn select(header: Option<&str>, size: u64) -> Selected {
    let Some(range) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Selected::Whole;
    };
    let Some((first, last)) = range.split_once('-') else { return Selected::Whole };
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (Some(offset), _) if offset >= size && (last.is_empty() || number(last).is_some()) => Selected::Unsatisfiable,
        (Some(offset), Some(last)) if last >= offset => {
            Selected::Part { offset, length: last.min(size - 1) - offset + 1 }
        }
        (Some(offset), None) if last.is_empty() => Selected::Part { offset, length: size - offset },
        (None, Some(suffix)) if first.is_empty() => {
            let length = suffix.min(size);
            if length == 0 { Selected::Unsatisfiable } else { Selected::Part { offset: size - length, length } }
        }
        (Some(_) | None, Some(_) | None) => Selected::Whole,
    }
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// Whether a list of entity tags, as in `If-None-Match`, has this one or is `*`. Tags compare weakly: ours are made of
/// the contents.
pub(crate) fn matches(header: &str, tag: &str) -> bool {
    header.split(',').map(str::trim).any(|item| item == "*" || item.strip_prefix("W/").unwrap_or(item) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &str, size: u64, expected: Selected) {
        assert_eq!(select(Some(header), size), expected, "{header} of {size}");
    }

    fn part(offset: u64, length: u64) -> Selected {
        Selected::Part { offset, length }
    }

    #[test]
    fn ranges() {
        assert_eq!(select(None, 10), Selected::Whole);
        check("bytes=0-0", 10, part(0, 1));
        check("bytes=2-5", 10, part(2, 4));
        check("bytes=2-", 10, part(2, 8));
        check("bytes=2-99", 10, part(2, 8));
        check("bytes=-3", 10, part(7, 3));
        check("bytes=-99", 10, part(0, 10));
        check("bytes=10-", 10, Selected::Unsatisfiable);
        check("bytes=10-20", 10, Selected::Unsatisfiable);
        check("bytes=-0", 10, Selected::Unsatisfiable);
        check("bytes=0-", 0, Selected::Unsatisfiable);
        check("bytes=-5", 0, Selected::Unsatisfiable);
        check("bytes=18446744073709551615-", 10, Selected::Unsatisfiable);
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for header in
            ["bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b", "bytes=99999999999999999999-"]
        {
            check(header, 10, Selected::Whole);
        }
    }

    #[test]
    fn entity_tags() {
        assert!(matches("\"a\", W/\"b\"", "\"b\""));
        assert!(matches("*", "\"b\""));
        assert!(!matches("\"a\"", "\"b\""));
    }
}
