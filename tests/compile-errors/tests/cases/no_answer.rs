use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> u32 {
    7
}

fn main() {}
