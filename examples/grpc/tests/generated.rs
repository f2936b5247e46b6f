//! `src/greeter.rs` is what tonic's generator makes of `greeter.proto`. It is checked in, because the generator takes longer
//! to compile than the guest. After a change of the proto or the generator, `GENERATE=1 cargo test -p grpc --test generated`
//! writes it again.

use std::fs;
use std::path::Path;

#[test]
fn the_code_of_the_service_is_that_of_its_proto() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = tempfile::tempdir().expect("a temporary folder");
    let proto = protox::compile(["greeter.proto"], [folder]).expect("the proto is valid");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(made.path())
        .compile_fds(proto)
        .expect("it is generated");
    let (made, checked_in) = (made.path().join("greeter.rs"), folder.join("src/greeter.rs"));
    if std::env::var_os("GENERATE").is_some() {
        fs::copy(&made, &checked_in).expect("it is written");
    }
    let read = |path: &Path| fs::read_to_string(path).expect("it is readable");
    assert!(
        read(&made) == read(&checked_in),
        "greeter.proto or the generator has changed: run GENERATE=1 cargo test -p grpc --test generated"
    );
}
