//! What a guest may import: WASI, and `wasmcluster:worker`.

use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use super::world::{Guest, identity, metrics, websocket, websocket_async};
use crate::wire::version::WasiHttp;

/// Everything a guest may import.
pub(crate) fn linker(engine: &Engine, http: WasiHttp) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    // The same interfaces of `wasi:io` once more, but on the table alone: a guest that only answers has no need of the
    // rest of WASI, and then it is not made.
    linker.allow_shadowing(true);
    wasmtime_wasi_io::add_to_linker_async(&mut linker)?;
    linker.allow_shadowing(false);
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if http == WasiHttp::V0_3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    super::sockets::add_to_linker(&mut linker, http)?;
    identity::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    metrics::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    super::config::add_to_linker(&mut linker)?;
    super::keyvalue::add_to_linker(&mut linker)?;
    websocket::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    if http == WasiHttp::V0_3 {
        websocket_async::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    }
    Ok(linker)
}

/// Links a component as a worker does, without an instance: an error says what it asks for in vain.
pub(crate) fn check_links(component: &Component, http: WasiHttp) -> wasmtime::Result<()> {
    let linked = linker(component.engine(), http)?.instantiate_pre(component)?;
    match http {
        WasiHttp::V0_2 => wasmtime_wasi_http::p2::bindings::ProxyPre::new(linked).map(drop),
        WasiHttp::V0_3 => wasmtime_wasi_http::p3::bindings::ServicePre::new(linked).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::engine;
    use crate::component::surface::provided;

    #[test]
    fn what_is_said_to_be_provided_is_what_is_linked() {
        for http in [WasiHttp::V0_2, WasiHttp::V0_3] {
            let mut linker = linker(&engine::for_compiler(http).unwrap(), http).unwrap();
            // Nothing can be defined twice, and a linker has one patch version of each interface.
            let mut is_linked = |interface: &str, version: &str| {
                let is_pre_release = version.contains('-');
                let exact = is_pre_release.then(|| format!("{interface}@{version}"));
                let patches =
                    (0..if is_pre_release { 0 } else { 50 }).map(|patch| format!("{interface}@{version}.{patch}"));
                exact.into_iter().chain(patches).any(|name| linker.root().func_new(&name, |_, _, _, _| Ok(())).is_err())
            };
            for package in provided(http) {
                for interface in package.interfaces {
                    let name = format!("{}/{interface}", package.name);
                    // Types alone need no definition.
                    let has_functions = (name.as_str(), package.version) != ("wasi:cli/types", "0.3");
                    assert_eq!(is_linked(&name, package.version), has_functions, "{name}@{}", package.version);
                }
            }
            for (interface, version) in [
                ("wasi:cli/run", "0.2"),
                ("wasi:clocks/timezone", "0.2"),
                ("wasi:clocks/timezone", "0.3"),
                ("wasi:http/handler", "0.3"),
                ("wasi:http/incoming-handler", "0.2"),
            ] {
                assert!(!is_linked(interface, version), "{interface}@{version}");
            }
        }
    }
}
