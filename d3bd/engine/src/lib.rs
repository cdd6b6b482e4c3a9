//! The replicated state machine of d3b.
