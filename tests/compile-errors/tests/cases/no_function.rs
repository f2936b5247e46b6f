#[wasmcluster_guest::main]
struct App;

fn main() {}
