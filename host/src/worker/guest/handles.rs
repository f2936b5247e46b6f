//! What the host keeps for an instance by its handles: header fields, and the requests and responses that have some.
//!
//! It is memory that a guest has, as its own is, and counts like it. Each call may add some, and nothing tells how much,
//! so every few calls all of it is measured. What is found then was made by calls each of which is bounded: by the size of a
//! set of fields ([`MAX_FIELDS`](crate::settings::MAX_FIELDS)), or, of a method's name, by what a call may pass.

use std::any::Any;

use http::{HeaderMap, HeaderName, HeaderValue};
use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::p2::bindings::http::types::{Method, Scheme};
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, p3};

/// Calls between two looks.
pub(crate) const MEASURE_EVERY: u32 = 4;

/// Bytes of all that is behind the handles in `table`.
pub(crate) fn measure(table: &mut ResourceTable) -> usize {
    table.iter_mut().map(|entry| size_of_entry(entry)).sum()
}

fn size_of_entry(entry: &dyn Any) -> usize {
    if let Some(map) = entry.downcast_ref::<FieldMap>() {
        fields(map)
    } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        fields(&response.headers)
    } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
        fields(&response.headers)
    } else if let Some(response) = entry.downcast_ref::<p3::Response>() {
        fields(&response.headers)
    } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        let HostOutgoingRequest { method, scheme, authority, path_with_query, headers, .. } = request;
        let method = if let Method::Other(name) = method { name.len() } else { 0 };
        let scheme = if let Some(Scheme::Other(name)) = scheme { name.len() } else { 0 };
        let target = [authority, path_with_query].map(|part| part.as_ref().map_or(0, String::len));
        method + scheme + target.iter().sum::<usize>() + fields(headers)
    } else if let Some(request) = entry.downcast_ref::<p3::Request>() {
        let p3::Request { method, scheme, authority, path_with_query, headers, .. } = request;
        let scheme = scheme.as_ref().map_or(0, |scheme| scheme.as_str().len());
        let authority = authority.as_ref().map_or(0, |authority| authority.as_str().len());
        let path = path_with_query.as_ref().map_or(0, |path| path.as_str().len());
        method.as_str().len() + scheme + authority + path + fields(headers)
    } else {
        0
    }
}

/// As wasmtime counts them.
fn fields(map: &HeaderMap) -> usize {
    let names: usize = map.keys().map(|name| name.as_str().len() + size_of::<HeaderName>()).sum();
    names + map.values().map(|value| value.len() + size_of::<HeaderValue>()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_handles_is_measured() {
        let mut table = ResourceTable::new();
        assert_eq!(measure(&mut table), 0);
        let mut map = FieldMap::new_mutable(1 << 20);
        for number in 0..100 {
            let name: HeaderName = format!("x-{number}").parse().unwrap();
            map.append_raw(name, HeaderValue::from_str(&"v".repeat(1000)).unwrap()).unwrap();
        }
        table.push(map.clone()).unwrap();
        let of_one = measure(&mut table);
        assert!((100_000..120_000).contains(&of_one), "{of_one}");
        table.push(HostOutgoingResponse { status: http::StatusCode::OK, headers: map.clone(), body: None }).unwrap();
        assert_eq!(measure(&mut table), 2 * of_one);
        let request = HostOutgoingRequest {
            method: Method::Other("M".repeat(5000)),
            scheme: None,
            authority: Some("a".repeat(500)),
            path_with_query: Some("p".repeat(50)),
            headers: map,
            body: None,
        };
        table.push(request).unwrap();
        assert_eq!(measure(&mut table), 3 * of_one + 5550);
    }
}
