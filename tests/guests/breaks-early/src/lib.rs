//! What it does before the first request makes every request trap: a snapshot that a reload must not let through.

use std::sync::atomic::{AtomicBool, Ordering};

use wasmcluster_guest::Request;

static IS_BROKEN: AtomicBool = AtomicBool::new(false);

fn break_it() {
    IS_BROKEN.store(true, Ordering::Relaxed);
}

#[wasmcluster_guest::main(init = break_it)]
async fn handle(_: Request) -> &'static str {
    assert!(!IS_BROKEN.load(Ordering::Relaxed), "broken by the snapshot");
    "whole"
}
