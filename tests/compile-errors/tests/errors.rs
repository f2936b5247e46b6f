//! What the compiler tells whoever uses `#[wasmcluster_guest::main]` wrongly: each file in `cases` beside what it says of it.
//! After a change of the messages, `TRYBUILD=overwrite cargo test -p compile-errors` writes them anew: read the difference.

/// One test, because the cases are compiled in one go.
#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/cases/*.rs");
}
