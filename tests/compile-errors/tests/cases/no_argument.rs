#[wasmcluster_guest::main]
async fn handle() -> &'static str {
    "hi"
}

fn main() {}
