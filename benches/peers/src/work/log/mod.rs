//! Appending to a log, and reading all of it by groups that each keep their own place.

pub mod locked_vec;
pub mod postroom;
