use wasmcluster_guest::Request;

#[wasmcluster_guest::main(threads = 2)]
async fn handle(_: Request) -> &'static str {
    "hi"
}

fn main() {}
