//! Moments as people write them.

/// Milliseconds since 1970 as RFC 3339 in UTC with milliseconds (`2026-11-23T08:15:41.000Z`); a time that no calendar
/// holds is told as its number.
#[must_use]
pub fn rfc3339(time_ms: u64) -> String {
    match i64::try_from(time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        Some(timestamp) => format!("{timestamp:.3}"),
        None => time_ms.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(u64::MAX), u64::MAX.to_string());
    }
}
