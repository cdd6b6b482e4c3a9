//! SQL values as JSON.
