//! The whole, through the real binary: each test starts a cluster of its own on a free port, in a temporary folder, and
//! leaves no process behind. The guests are built by `make guests`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "tests tell what they measured, and why they failed")]

mod capabilities;
mod client;
mod commands;
mod drain;
mod errors;
mod harness;
mod hostile;
mod lifecycle;
mod limits;
mod load;
mod output;
mod reload;
mod reuse;
mod serving;
mod soak;
mod store;
mod strictness;
mod supervision;

/// The table of Node's cases names tests that exist.
#[test]
fn the_table_of_nodes_cases_is_true() {
    let sources = [
        include_str!("commands.rs"),
        include_str!("drain.rs"),
        include_str!("errors.rs"),
        include_str!("lifecycle.rs"),
        include_str!("serving.rs"),
        include_str!("supervision.rs"),
    ]
    .concat();
    let rows = include_str!("../node-cluster.md").lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut names = 0;
    for row in rows {
        let tests = row.rsplit(" | ").next().unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            assert!(sources.contains(&format!("fn {name}()")), "there is no test {name}");
            names += 1;
        }
    }
    assert!(names > 30, "{names}");
}
