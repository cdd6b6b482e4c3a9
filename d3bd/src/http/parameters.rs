//! What stands in paths and query strings.

use std::time::{Duration, Instant};

use d3b::json::Integers;
use d3b::{DatabaseName, FileId, Problem, Slot};
use percent_encoding::percent_decode_str;

use super::encode::Rows;
use super::problem::bad_request;
use crate::handle::{Level, ReadOptions};

/// How long a request may take, unless it says so.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long a request may say.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Bytes of values in a result that is gathered in memory.
pub(crate) const RESULT_BYTES_MAX: u64 = 64 << 20;

/// Decodes one segment of a path.
fn decode(segment: &str) -> Result<String, Problem> {
    match percent_decode_str(segment).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(bad_request(format!("the path segment {segment:?} is not percent-encoded UTF-8"))),
    }
}

/// The database that a path names.
pub(crate) fn database(segment: &str) -> Result<DatabaseName, Problem> {
    Ok(DatabaseName::new(decode(segment)?)?)
}

/// The media file that a path names.
pub(crate) fn file_id(segment: &str) -> Result<FileId, Problem> {
    Ok(FileId::new(decode(segment)?)?)
}

/// Any other segment.
pub(crate) fn text(segment: &str) -> Result<String, Problem> {
    decode(segment)
}

/// The parameters of a query string. Each is taken once; what nobody took is unknown, which [`Parameters::finish`]
/// tells, so that a misspelled one is not silently without effect.
#[derive(Debug)]
pub(crate) struct Parameters {
    pairs: Vec<(String, String)>,
    taken: Vec<&'static str>,
}

impl Parameters {
    /// Reads a query string, in the form of HTML forms: `+` is a space.
    pub(crate) fn parse(query: &str) -> Result<Parameters, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?);
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(bad_request(format!("the parameter {name:?} is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Parameters { pairs, taken: Vec::new() })
    }

    /// Takes a parameter out.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<String> {
        self.taken.push(name);
        let index = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.swap_remove(index).1)
    }

    /// Takes a parameter that is on or off; alone, or with an empty value, it is on.
    pub(crate) fn take_flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(bad_request(format!("{name} must be true or false, not {other:?}"))),
        }
    }

    /// Takes a whole number.
    pub(crate) fn take_number(&mut self, name: &'static str) -> Result<Option<u64>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let number = text.parse().map_err(|_| bad_request(format!("{name} must be a whole number, not {text:?}")))?;
        Ok(Some(number))
    }

    /// Takes a database's name.
    pub(crate) fn take_database(&mut self, name: &'static str) -> Result<Option<DatabaseName>, Problem> {
        Ok(self.take(name).map(DatabaseName::new).transpose()?)
    }

    fn take_duration(&mut self, name: &'static str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let problem = || bad_request(format!("{name} must be a duration such as 500ms, 5s or 2m, not {text:?}"));
        parse_duration(&text).map(Some).ok_or_else(problem)
    }

    /// Takes `timeout`.
    pub(crate) fn take_timeout(&mut self) -> Result<Timeout, Problem> {
        let told = self.take_duration("timeout")?;
        if told.is_some_and(|told| told > TIMEOUT_MAX) {
            return Err(bad_request(format!("timeout is at most {} s", TIMEOUT_MAX.as_secs())));
        }
        Ok(Timeout(told))
    }

    /// Takes `level`, `slot` and `max_staleness`; `None` when none of them is given.
    pub(crate) fn take_level(&mut self) -> Result<Option<Level>, Problem> {
        let slot = self.take_number("slot")?;
        let max_staleness = self.take_duration("max_staleness")?;
        let level = self.take("level");
        match (level.as_deref(), slot, max_staleness) {
            (None, None, None) => Ok(None),
            (Some("linearizable"), None, None) => Ok(Some(Level::Linearizable)),
            (Some("stale"), None, max_staleness) => Ok(Some(Level::Stale { max_staleness })),
            (Some("at-least"), Some(slot), None) => Ok(Some(Level::AtLeast(Slot(slot)))),
            (Some("at-least"), None, _) => Err(bad_request("level=at-least needs slot=, as told by D3b-Slot")),
            (Some("linearizable" | "stale" | "at-least") | None, _, _) => {
                Err(bad_request("slot belongs to level=at-least, and max_staleness to level=stale"))
            }
            (Some(other), _, _) => {
                Err(bad_request(format!("level must be linearizable, stale or at-least, not {other:?}")))
            }
        }
    }

    /// Takes what every read has.
    pub(crate) fn take_read(&mut self) -> Result<ReadParameters, Problem> {
        Ok(ReadParameters { level: self.take_level()?.unwrap_or(Level::Linearizable), timeout: self.take_timeout()? })
    }

    /// Takes `format` and `ints`.
    pub(crate) fn take_form(&mut self) -> Result<(Rows, Integers), Problem> {
        let rows = match self.take("format").as_deref() {
            None | Some("arrays") => Rows::Arrays,
            Some("objects") => Rows::Objects,
            Some(other) => {
                return Err(bad_request(format!("format must be arrays or objects, not {other:?}"))
                    .with_hint("CSV and NDJSON are asked for with Accept: text/csv and Accept: application/x-ndjson"));
            }
        };
        let integers = match self.take("ints").as_deref() {
            None | Some("number") => Integers::Numbers,
            Some("string") => Integers::Strings,
            Some(other) => return Err(bad_request(format!("ints must be number or string, not {other:?}"))),
        };
        Ok((rows, integers))
    }

    /// Everything that the route knows has been taken.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Some((unknown, _)) = self.pairs.first() else { return Ok(()) };
        let problem = bad_request(format!("this route has no parameter {unknown:?}"));
        Err(if self.taken.is_empty() {
            problem.with_hint("it has none")
        } else {
            problem.with_hint(format!("it has {}", self.taken.join(", ")))
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// How long a request may take, counted from the moment at which its body is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeout(Option<Duration>);

impl Timeout {
    /// The deadline of a request that begins its work now.
    pub(crate) fn deadline(self) -> Instant {
        self.deadline_or(TIMEOUT_DEFAULT)
    }

    /// The same with another default.
    pub(crate) fn deadline_or(self, default: Duration) -> Instant {
        Instant::now() + self.0.unwrap_or(default)
    }
}

/// What every read has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadParameters {
    pub(crate) level: Level,
    pub(crate) timeout: Timeout,
}

impl ReadParameters {
    /// Options for a result that is gathered in memory, from now on.
    pub(crate) fn options(self) -> ReadOptions {
        ReadOptions { level: self.level, deadline: self.timeout.deadline(), result_bytes_max: Some(RESULT_BYTES_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Parameters {
        Parameters::parse(query).unwrap()
    }

    #[track_caller]
    fn check_level(query: &str, expected: Result<Option<Level>, &str>) {
        match (parse(query).take_level(), expected) {
            (Ok(level), Ok(expected)) => assert_eq!(level, expected, "{query}"),
            (Err(problem), Err(expected)) => assert!(problem.detail.contains(expected), "{query}: {problem}"),
            (found, expected) => panic!("{query}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn levels() {
        check_level("", Ok(None));
        check_level("level=linearizable", Ok(Some(Level::Linearizable)));
        check_level("level=stale", Ok(Some(Level::Stale { max_staleness: None })));
        let bound = Some(Duration::from_millis(1500));
        check_level("level=stale&max_staleness=1500ms", Ok(Some(Level::Stale { max_staleness: bound })));
        check_level("slot=7&level=at-least", Ok(Some(Level::AtLeast(Slot(7)))));
        check_level("level=at-least", Err("needs slot="));
        check_level("slot=7", Err("slot belongs to"));
        check_level("level=stale&slot=7", Err("slot belongs to"));
        check_level("level=fresh", Err("must be linearizable, stale or at-least"));
        check_level("level=at-least&slot=-1", Err("whole number"));
        check_level("level=stale&max_staleness=soon", Err("must be a duration"));
    }

    #[test]
    fn forms_and_percent_encoding() {
        let mut parameters = parse("sql=SELECT+1%2B1&format=objects&ints=string");
        assert_eq!(parameters.take("sql").as_deref(), Some("SELECT 1+1"));
        assert_eq!(parameters.take_form().unwrap(), (Rows::Objects, Integers::Strings));
        parameters.finish().unwrap();
        assert!(Parameters::parse("sql=%ff").is_err());
        assert!(Parameters::parse("a=1&a=2").unwrap_err().detail.contains("given twice"));
    }

    #[test]
    fn unknown_parameters_are_refused() {
        let mut parameters = parse("tiemout=5s");
        parameters.take_timeout().unwrap();
        let problem = parameters.finish().unwrap_err();
        assert!(problem.detail.contains("tiemout") && problem.hint.unwrap().contains("timeout"));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("5"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for bad in ["", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
        assert!(parse("timeout=2h").take_timeout().unwrap_err().detail.contains("at most"));
    }

    #[test]
    fn names_in_paths() {
        assert_eq!(database("shop").unwrap().as_str(), "shop");
        assert_eq!(file_id("a%2Fb%20c").unwrap().as_str(), "a/b c");
        assert!(database("%2e%2e").is_err());
        assert!(file_id("%ff").is_err());
        assert!(file_id("a%0ab").is_err());
    }
}
