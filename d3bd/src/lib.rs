//! The d3b daemon.
