//! The host, as the rest of the crate sees it, whichever it is: `Incoming`, the body of what comes in; `fetch`, `sleep`,
//! `random`, `worker`, `metric`, `config`; `websocket`, `stores`; and, on WebAssembly, `export!`, which makes a function the component's handler.

/// Of `wit/worker.wit`. Generated and checked in, as the generator takes longer to compile than all of a guest:
/// `scripts/generate-bindings` of the repository writes it.
#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
mod bindings;
#[cfg(target_arch = "wasm32")]
mod cluster;
/// Of `wasi:config`, likewise.
#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
mod config_bindings;
#[cfg(target_arch = "wasm32")]
mod code;
/// Of the export that is called when a component is compiled, likewise.
#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, clippy::unnecessary_operation, reason = "no person writes it")]
pub mod init_bindings;
/// Of `wasi:keyvalue`, likewise.
#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
mod keyvalue_bindings;
/// Of `wasi:otel`, likewise.
#[cfg(all(target_arch = "wasm32", feature = "tracing"))]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
mod otel_bindings;
#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(all(target_arch = "wasm32", feature = "tracing"))]
mod otel;
#[cfg(all(target_arch = "wasm32", feature = "p2"))]
mod p2;
#[cfg(all(target_arch = "wasm32", feature = "p3", not(feature = "p2")))]
mod p3;
#[cfg(target_arch = "wasm32")]
pub(crate) mod stores;

#[cfg(target_arch = "wasm32")]
pub(crate) use cluster::*;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;
#[cfg(all(target_arch = "wasm32", feature = "tracing"))]
pub(crate) use otel::*;
#[cfg(all(target_arch = "wasm32", feature = "p2"))]
pub(crate) use p2::*;
#[cfg(all(target_arch = "wasm32", feature = "p3", not(feature = "p2")))]
pub(crate) use p3::*;
