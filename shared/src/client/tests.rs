//! The client against servers of a few lines.
