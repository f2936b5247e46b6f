use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle<T>(_: Request) -> &'static str {
    "hi"
}

fn main() {}
