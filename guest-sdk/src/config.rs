//! Values that the operator sets, and may change while the server runs: `wasi:config`.
//!
//! ```
//! use wasmcluster_guest::testing::Host;
//! use wasmcluster_guest::{Request, config};
//!
//! async fn greet(_: Request) -> String {
//!     format!("{}!", config::get("greeting").unwrap_or_else(|| "Hello".into()))
//! }
//!
//! let host = Host::new().with_config("greeting", "Good morning");
//! assert_eq!(host.call(greet, Request::default()).text(), "Good morning!");
//! ```
//!
//! With wasmcluster they come from `--set greeting=Hello`, from the table `[config]` of the configuration file, and from
//! `wasmcluster config set greeting=Hello`, which changes them in every worker without a restart. A request keeps the values
//! that it started with.
//!
//! A guest that calls these functions runs on hosts that have `wasi:config/store@0.2.0-rc.1`. The component of any other guest
//! has no trace of it.

use std::collections::BTreeMap;

use crate::host;

/// The value of a key, if it is set.
///
/// ```
/// assert_eq!(wasmcluster_guest::config::get("greeting"), None);
/// ```
pub fn get(key: &str) -> Option<String> {
    host::config(key)
}

/// All that is set.
///
/// ```
/// assert!(wasmcluster_guest::config::all().is_empty());
/// ```
pub fn all() -> BTreeMap<String, String> {
    host::all_config().into_iter().collect()
}
