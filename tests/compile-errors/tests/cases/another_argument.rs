#[wasmcluster_guest::main]
async fn handle(name: String) -> String {
    name
}

fn main() {}
