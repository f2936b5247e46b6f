#[wasmcluster_guest::main]
fn app() -> String {
    "hi".into()
}

fn main() {}
