//! Requests that guests send: upstreams at the edges of HTTP, name servers, ports.
