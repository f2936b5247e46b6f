//! Files: whatever it is, it is told what it is.

use super::*;
use crate::fuzz;

#[test]
fn files() {
    fuzz::bytes("component", |bytes| {
        let Ok(binary) = to_binary(bytes) else { return };
        assert!(binary.starts_with(b"\0asm"));
        let Ok(surface) = Surface::read(&binary) else { return };
        match surface.handler() {
            Ok(http) => {
                assert!(surface.imports.iter().all(|import| grant(import, http) != Grant::Unknown));
                // Whatever the answer: no panic.
                let _ = crate::component::servable::check(&binary, &surface, crate::worker::check_links);
            }
            Err(Unservable::Middleware(import)) => assert!(surface.imports.contains(&import)),
            Err(Unservable::NoHandler(exports)) => assert_eq!(exports, surface.exports),
            Err(Unservable::UnknownImports(unknown, http)) => {
                assert!(!unknown.is_empty() && unknown.iter().all(|import| grant(import, http) == Grant::Unknown));
            }
            Err(refusal) => panic!("{refusal}"),
        }
    });
}
