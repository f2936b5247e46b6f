//! `--otlp`: who is sent traces, and how.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};

use super::secrets::{self, Secret, SecretPlace};

const FORM: &str = "expected http://HOST:4318, https://HOST:4318/PATH, grpc://HOST:4317 or grpcs://HOST:4317";
/// Where OTLP over HTTP takes traces, unless the URL says otherwise.
const HTTP_PATH: &str = "/v1/traces";
/// Bytes of all header fields. Even full of quotes, they fit into the message that takes them to the exporter.
const MAX_FIELDS: usize = 24 * 1024;
/// The method that takes them over gRPC.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OtlpProtocol {
    /// Protobuf in a POST.
    Http,
    Grpc,
}

/// A collector that takes traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct OtlpUrl {
    /// As it was said.
    said: String,
    pub(crate) protocol: OtlpProtocol,
}

impl OtlpUrl {
    /// Where requests go.
    pub(crate) fn uri(&self) -> Uri {
        let (scheme, rest) = self.said.split_once("://").unwrap_or(("http", &self.said));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = match (self.protocol, path) {
            (OtlpProtocol::Grpc, _) => GRPC_PATH,
            (OtlpProtocol::Http, "" | "/") => HTTP_PATH,
            (OtlpProtocol::Http, path) => path,
        };
        let scheme = if matches!(scheme, "https" | "grpcs") { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
        uri.unwrap_or_default()
    }
}

impl FromStr for OtlpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let protocol = match scheme {
            "http" | "https" => OtlpProtocol::Http,
            "grpc" | "grpcs" => OtlpProtocol::Grpc,
            _ => return Err(FORM.into()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(
                "a password in the URL would be seen by others; use --otlp-header authorization=file:PATH".into()
            );
        }
        if path.contains('?') {
            return Err("what stands behind a ? would be seen by others; use --otlp-header NAME=file:PATH".into());
        }
        let authority: Authority = authority.parse().map_err(|_| FORM)?;
        let has_no_path = path.is_empty() || path == "/";
        let is_good =
            authority.port_u16().is_some_and(|port| port > 0) && (has_no_path || protocol == OtlpProtocol::Http);
        if !is_good || (!has_no_path && path.parse::<http::uri::PathAndQuery>().is_err()) {
            return Err(FORM.into());
        }
        Ok(Self { said: text.into(), protocol })
    }
}

impl TryFrom<String> for OtlpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OtlpUrl> for String {
    fn from(url: OtlpUrl) -> Self {
        url.said
    }
}

impl fmt::Display for OtlpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

/// Where traces go, and what is said to be let in there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Otlp {
    pub(crate) url: OtlpUrl,
    pub(crate) headers: Vec<(String, Secret)>,
}

impl Otlp {
    /// Reads the values of `--otlp-header`.
    pub(super) fn new(url: OtlpUrl, fields: &[SecretPlace]) -> anyhow::Result<Self> {
        let (mut headers, mut bytes) = (Vec::new(), 0);
        for (name, value) in secrets::read(fields).context("--otlp-header")? {
            ensure!(
                HeaderName::try_from(&name).is_ok() && HeaderValue::try_from(value.reveal()).is_ok(),
                "--otlp-header {name}: it is no header field"
            );
            bytes += name.len() + value.reveal().len();
            ensure!(
                bytes <= MAX_FIELDS,
                "--otlp-header {name}: all of them together have more than {MAX_FIELDS} bytes"
            );
            headers.push((name, value));
        }
        Ok(Self { url, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_traces_go() {
        let check = |said: &str, protocol: OtlpProtocol, uri: &str| {
            let url: OtlpUrl = said.parse().unwrap();
            assert_eq!((url.protocol, url.uri().to_string(), url.to_string()), (protocol, uri.into(), said.into()));
        };
        check("http://localhost:4318", OtlpProtocol::Http, "http://localhost:4318/v1/traces");
        check("http://localhost:4318/", OtlpProtocol::Http, "http://localhost:4318/v1/traces");
        check("https://a.test:443/otlp/v1/traces", OtlpProtocol::Http, "https://a.test:443/otlp/v1/traces");
        check("grpc://[::1]:4317", OtlpProtocol::Grpc, &format!("http://[::1]:4317{GRPC_PATH}"));
        check("grpcs://a.test:4317", OtlpProtocol::Grpc, &format!("https://a.test:4317{GRPC_PATH}"));
        for bad in [
            "",
            "localhost:4318",
            "http://localhost",
            "ftp://a:1",
            "grpc://a:1/path",
            "http://a:b",
            "http://a:0",
            "http://:1 ",
        ] {
            assert!(bad.parse::<OtlpUrl>().is_err(), "{bad}");
        }
        assert!("http://a:1/?key=hush".parse::<OtlpUrl>().unwrap_err().contains("--otlp-header"));
        assert!("http://me:hush@a:1".parse::<OtlpUrl>().unwrap_err().contains("--otlp-header"));
    }
}
