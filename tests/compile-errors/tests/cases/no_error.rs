use wasmcluster_guest::Request;

struct Broken;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Result<&'static str, Broken> {
    Err(Broken)
}

fn main() {}
