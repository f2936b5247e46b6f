//! `wasi:config`: values that the operator sets, and may change while the cluster runs.
//!
//! An instance has the values that there were when it was made, as long as it lives: a request that runs keeps those it
//! started with, and an instance with older values is not used again.

use wasmtime::component::{ComponentType, Lift, Linker, Lower};

use super::world::Guest;

/// The interface, under all the names that it has had. None of them is final.
const NAMES: [&str; 5] = [
    "wasi:config/store@0.2.0-rc.1",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/runtime@0.2.0-draft-2024-09-27",
];

/// The interface's own. Nothing here fails.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for name in NAMES {
        let mut interface = linker.instance(name)?;
        interface.func_wrap("get", |store, (key,): (String,)| {
            Ok((Ok::<_, ConfigError>(store.data().values().get(&key).cloned()),))
        })?;
        interface.func_wrap("get-all", |store, (): ()| {
            let all = store.data().values().iter().map(|(key, value)| (key.clone(), value.clone()));
            Ok((Ok::<_, ConfigError>(all.collect::<Vec<_>>()),))
        })?;
    }
    Ok(())
}
