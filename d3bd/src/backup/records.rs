//! Records of the log as an archive holds them.

use d3b::archive::LOG_BYTES_MAX;
use d3b_paxos::types::Record;

/// The version of the encoding, its first byte.
const VERSION: u8 = 1;

/// The bytes of a stretch of the log.
pub(super) fn encode(records: &[Record]) -> Vec<u8> {
    postcard::to_extend(records, vec![VERSION]).expect("plain data can be written")
}

/// Reads a stretch of the log: all of its slots, in order.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(bytes: &[u8], first: u64, last: u64) -> Result<Vec<Record>, String> {
    if bytes.len() as u64 > LOG_BYTES_MAX {
        return Err(format!("the log's slots {first} to {last} have {} bytes", bytes.len()));
    }
    let records = match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes::<Vec<Record>>(body).map_err(|error| error.to_string())?,
        Some((version, _)) => return Err(format!("its log has version {version}, and only {VERSION} is known")),
        None => return Err("a stretch of its log is empty".to_owned()),
    };
    if records.iter().map(|record| record.slot.0).eq(first..=last) {
        Ok(records)
    } else {
        Err(format!("the log's slots {first} to {last} are not all there"))
    }
}
