//! Answers every request with one line.

use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> &'static str {
    "Hello from wasmcluster!\n"
}
