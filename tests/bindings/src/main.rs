//! Prints the SDK's bindings of `wit/worker.wit`, for `scripts/generate-bindings`, which writes them where they belong.
//! Its test fails when the file that is checked in is another.

use std::io::Write as _;

use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::Opts;

const WIT: &str = include_str!("../../../wit/worker.wit");

fn main() {
    std::io::stdout().write_all(&generate()).expect("somebody reads it");
}

/// The bindings, as a file of Rust.
fn generate() -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("wit/worker.wit", WIT).expect("the package is valid");
    let world = resolve.select_world(&[package], Some("imports")).expect("it has this world");
    let options = Opts {
        format: true,
        // These bindings serve WASI 0.2 and 0.3, whose crates bring two versions of the generator's runtime.
        runtime_path: Some("crate::host::cluster::runtime".into()),
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).expect("the world has bindings");
    let (_, contents) = files.iter().next().expect("it makes one file");
    contents.into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sdk_has_the_bindings_that_are_generated_today() {
        let checked_in = include_bytes!("../../../guest-sdk/src/host/bindings.rs");
        assert!(super::generate() == checked_in, "wit/ or the generator has changed: run scripts/generate-bindings");
    }
}
