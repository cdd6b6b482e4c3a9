//! Downloads, verified.
