//! Asks its host for a variable before the first request, when nobody can answer for all instances.

use std::sync::OnceLock;

use wasmcluster_guest::Request;

static GREETING: OnceLock<String> = OnceLock::new();

fn greeting() -> String {
    std::env::var("GREETING").unwrap_or_else(|_| "hello".into())
}

fn prepare() {
    GREETING.set(greeting()).expect("it is called once");
}

#[wasmcluster_guest::main(init = prepare)]
async fn handle(_: Request) -> &'static str {
    GREETING.get_or_init(greeting)
}
