use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
fn handle(_: Request) -> &'static str {
    "hi"
}

fn main() {}
