//! Nothing: see `tests/errors.rs`.
