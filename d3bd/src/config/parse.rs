//! What the values of settings look like.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use d3b::ReplicaId;

/// The longest duration that a setting takes: beyond it there is only overflow.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// The shortest grace period: a file must outlive the way from its acknowledgement into the log.
const GRACE_MIN: Duration = Duration::from_secs(1);

/// Less than that a second, and nine replicas that share it would seem silent to each other.
const SNAPSHOT_RATE_MIN: u64 = 1 << 20;

pub(super) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:8055 or [::1]:8055".to_owned())
}

/// Whether a text is HOST:PORT.
pub(crate) fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && text.len() < 256);
    matches!(port.map(|(_, port)| port.parse::<u16>()), Some(Ok(port)) if port > 0)
}

pub(super) fn parse_replicas(text: &str) -> Result<BTreeMap<ReplicaId, String>, String> {
    let mut replicas = BTreeMap::new();
    for part in list(text) {
        let (id, address) = part.split_once('=').ok_or_else(|| format!("{part:?} must be ID=ADDR:PORT"))?;
        let id: ReplicaId = id.trim().parse().map_err(|error: d3b::InvalidId| error.to_string())?;
        let address = address.trim();
        if !is_address(address) {
            return Err(format!("{address:?} must be HOST:PORT"));
        }
        if replicas.insert(id, address.to_owned()).is_some() {
            return Err(format!("replica {id} is named twice"));
        }
    }
    let mut addresses: Vec<_> = replicas.values().collect();
    addresses.sort_unstable();
    if let Some(pair) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two replicas have the address {}", pair[0]));
    }
    if replicas.len() > 9 {
        return Err(format!("a cluster has at most 9 replicas, not {}", replicas.len()));
    }
    Ok(replicas)
}

pub(super) fn read_key(path: &str) -> Result<Vec<u8>, String> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let key = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let key = key.trim_ascii().to_vec();
    if key.len() < 16 {
        return Err("must hold at least 16 bytes; `head -c 32 /dev/urandom | base64` makes a good one".to_owned());
    }
    Ok(key)
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero() && *duration <= DURATION_MAX)
        .ok_or_else(|| "must be a duration above zero and up to 366 days, such as 50ms, 2s or 15min".to_owned())
}

pub(super) fn parse_grace(text: &str) -> Result<Duration, String> {
    let grace = parse_duration(text)?;
    if grace < GRACE_MIN { Err(format!("must be at least {GRACE_MIN:?}")) } else { Ok(grace) }
}

/// A number of bytes, with `KiB`, `MiB`, `GiB` or `TiB` behind it, or without.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let shift = match text[digits.len()..].trim() {
        "" | "B" => Some(0),
        "KiB" | "K" => Some(10),
        "MiB" | "M" => Some(20),
        "GiB" | "G" => Some(30),
        "TiB" | "T" => Some(40),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    match (number, shift) {
        (Some(number), Some(shift)) if number > 0 => number.checked_mul(1 << shift),
        _ => None,
    }
    .ok_or_else(|| "must be a number of bytes above zero, such as 500MiB or 64GiB".to_owned())
}

/// A size for each second, or none at all.
pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// The same for snapshots: who fetches one gives up on a peer that is too slow.
pub(super) fn parse_snapshot_rate(text: &str) -> Result<u64, String> {
    match parse_rate(text)? {
        rate if rate > 0 && rate < SNAPSHOT_RATE_MIN => Err("must be 0, or at least 1MiB".to_owned()),
        rate => Ok(rate),
    }
}

pub(super) fn check_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
