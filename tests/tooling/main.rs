//! What people type, read and write: commands, messages, pages, projects, the SDK, metrics, examples.
//! The crate `harness` tells how a test is written.

#![expect(clippy::print_stdout, reason = "tests tell what they measured, and what they skipped")]

mod building;
mod commands;
mod doctor;
mod errors;
mod examples;
mod messages;
mod metrics;
mod packages;
mod pages;
mod projects;
mod publishing;
mod sdk;
mod site;
mod tables;
mod top;
