use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request, name: String) -> String {
    name
}

fn main() {}
