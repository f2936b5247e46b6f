//! What a guest may import: WASI, and `wasmcluster:worker`.

use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use super::otel;
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
    otel::spans::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    otel::logs::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    otel::metrics::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
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
                    let is_types =
                        (name.as_str(), package.version) == ("wasi:cli/types", "0.3") || name == "wasi:otel/types";
                    let has_functions = !is_types;
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

    /// Its functions have the types that the two drafts of `wasi:keyvalue` give them.
    #[test]
    fn key_value_stores_have_the_types_of_both_drafts() {
        let draft = |version: &str, cursor: &str, atomics: &str, many: &str| {
            let result = |ok: &str| format!("(result (result {ok} (error $error)))");
            let method = |name: &str, params: &str, ok: &str| {
                format!(
                    "(export \"[method]bucket.{name}\" (func (param \"self\" (borrow $bucket)) {params} {}))",
                    result(ok)
                )
            };
            let of_bucket = |name: &str, params: &str, ok: &str| {
                format!("(export \"{name}\" (func (param \"bucket\" (borrow $bucket)) {params} {}))", result(ok))
            };
            let key = "(param \"key\" string)";
            let uses = "(alias outer 1 $bucket-of-store (type $bucket-outer)) (export \"bucket\" (type $bucket (eq $bucket-outer)))
                (alias outer 1 $error-of-store (type $error-outer)) (export \"error\" (type $error (eq $error-outer)))";
            format!(
                "(component
                (import \"wasi:keyvalue/store@{version}\" (instance $store
                    (type $e (variant (case \"no-such-store\") (case \"access-denied\") (case \"other\" string)))
                    (export \"error\" (type $error (eq $e)))
                    (export \"bucket\" (type $bucket (sub resource)))
                    (type $k (record (field \"keys\" (list string)) (field \"cursor\" (option {cursor}))))
                    (export \"key-response\" (type $page (eq $k)))
                    (export \"open\" (func (param \"identifier\" string) {open}))
                    {get} {set} {delete} {exists} {list}))
                (alias export $store \"bucket\" (type $bucket-of-store))
                (alias export $store \"error\" (type $error-of-store))
                (import \"wasi:keyvalue/atomics@{version}\" (instance {uses} {atomics}))
                (import \"wasi:keyvalue/batch@{version}\" (instance {uses} {get_many} {set_many} {delete_many})))",
                open = result("(own $bucket)"),
                get = method("get", key, "(option (list u8))"),
                set = method("set", &format!("{key} (param \"value\" (list u8))"), ""),
                delete = method("delete", key, ""),
                exists = method("exists", key, "bool"),
                list = method("list-keys", &format!("(param \"cursor\" (option {cursor}))"), "$page"),
                get_many = of_bucket("get-many", "(param \"keys\" (list string))", many),
                set_many = of_bucket("set-many", "(param \"key-values\" (list (tuple string (list u8))))", ""),
                delete_many = of_bucket("delete-many", "(param \"keys\" (list string))", ""),
            )
        };
        let increment = |number: &str| {
            format!(
                "(export \"increment\" (func (param \"bucket\" (borrow $bucket)) (param \"key\" string) \
                 (param \"delta\" {number}) (result (result {number} (error $error)))))"
            )
        };
        let cas = "(export \"cas\" (type $cas (sub resource)))
            (type $c (variant (case \"store-error\" $error) (case \"cas-failed\" (own $cas))))
            (export \"cas-error\" (type $cas-error (eq $c)))
            (export \"[static]cas.new\" (func (param \"bucket\" (borrow $bucket)) (param \"key\" string)
                (result (result (own $cas) (error $error)))))
            (export \"[method]cas.current\" (func (param \"self\" (borrow $cas))
                (result (result (option (list u8)) (error $error)))))
            (export \"swap\" (func (param \"cas\" (own $cas)) (param \"value\" (list u8))
                (result (result (error $cas-error)))))";
        let first = draft("0.2.0-draft", "u64", &increment("u64"), "(list (option (tuple string (list u8))))");
        let second = format!("{}{cas}", increment("s64"));
        let second = draft("0.2.0-draft2", "string", &second, "(list (tuple string (option (list u8))))");
        for http in [WasiHttp::V0_2, WasiHttp::V0_3] {
            let engine = engine::for_compiler(http).unwrap();
            let linker = linker(&engine, http).unwrap();
            for text in [&first, &second] {
                let component = |text: &str| {
                    let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
                    Component::new(&engine, bytes).unwrap_or_else(|error| panic!("{error:?}\n{text}"))
                };
                linker.instantiate_pre(&component(text)).map(drop).unwrap_or_else(|error| panic!("{error:?}"));
                let other = text.replace("u64", "u32").replace("(option string)", "(option u32)");
                assert!(linker.instantiate_pre(&component(&other)).is_err());
            }
        }
    }
}
