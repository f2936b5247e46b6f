//! What goes wrong between us and a registry, in words that say what to do next.

use std::error::Error;

use anyhow::anyhow;
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::logging::one_line;

/// Whether it may go well next time.
pub(super) fn is_passing(error: &anyhow::Error) -> bool {
    error.is::<Passing>()
}

/// What may go well next time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Passing(String);

/// What a registry says of an error.
#[derive(Deserialize)]
struct Envelope {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    code: String,
    #[serde(default)]
    message: String,
}

/// A host that did not answer, or not in time.
pub(super) fn unreachable(error: &reqwest::Error) -> anyhow::Error {
    let host = host(error);
    // Whoever waited long does not wait once more.
    if error.is_timeout() {
        return anyhow!("{host} does not answer: it took too long");
    }
    let causes = causes(error);
    // Rustls's words.
    if causes.contains("UnknownIssuer") || causes.contains("CaUsedAsEndEntity") {
        return anyhow!(
            "{host} shows a certificate by nobody whom this machine trusts; name who signed it with --registry-ca FILE"
        );
    }
    let why = causes.rsplit_once(": ").map_or(&*causes, |(_, last)| last);
    if causes.contains("invalid peer certificate") {
        return anyhow!("{host} shows a certificate that is not good: {}", one_line(why));
    }
    if causes.contains("InvalidContentType") {
        return anyhow!(
            "{host} does not speak TLS; if it is on a network of yours, allow clear text with --registry-plain-http {host}"
        );
    }
    Passing(format!("cannot reach {host}: {}", one_line(why))).into()
}

/// An answer that did not come to its end.
pub(super) fn broken(error: &reqwest::Error) -> anyhow::Error {
    let host = host(error);
    match error.is_timeout() {
        true => anyhow!("{host} sends too slowly, or has stopped in the middle"),
        false => Passing(format!("{host} broke off in the middle")).into(),
    }
}

fn host(error: &reqwest::Error) -> String {
    error.url().map_or_else(|| "the registry".into(), host_of)
}

/// With its port, if it has one of its own.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// An answer of a host that is not what was asked for, with the `text` that came with it. `from` is where the credentials are
/// from.
pub(super) fn refused(host: &str, from: Option<&str>, status: StatusCode, text: &[u8]) -> anyhow::Error {
    let complaint = serde_json::from_slice::<Envelope>(text).ok().and_then(|it| it.errors.into_iter().next());
    let (code, said) = match complaint {
        Some(Complaint { code, message }) => (code, message),
        None => (String::new(), String::from_utf8_lossy(text).trim().to_owned()),
    };
    let said = match said.is_empty() {
        true => String::new(),
        false => format!(": {}", one_line(&said)),
    };
    match (status, &*code) {
        (_, "TOOMANYREQUESTS") | (StatusCode::TOO_MANY_REQUESTS, _) => {
            Passing(format!("{host} has had too many requests{said}")).into()
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) | (_, "UNAUTHORIZED" | "DENIED") => {
            anyhow!(wants_credentials(host, from))
        }
        (StatusCode::NOT_FOUND, _) => {
            anyhow!("{host} has no such repository, tag or digest, or does not show it to us")
        }
        (status, _) if status.is_server_error() => Passing(format!("{host} answered {status}{said}")).into(),
        (status, _) => anyhow!("{host} answered {status}{said}"),
    }
}

/// Bytes that are not those of their digest.
pub(super) fn altered(host: &str) -> anyhow::Error {
    anyhow!("what {host} sent is not what its digest says: it was altered, or cut, on the way or in the registry")
}

/// Credentials that are missing, or not good enough.
pub(super) fn wants_credentials(host: &str, from: Option<&str>) -> String {
    match from {
        None => format!(
            "{host} wants credentials: run `docker login {host}` or `podman login {host}`, or set REGISTRY_AUTH_FILE"
        ),
        Some(file) => format!("{host} does not accept the credentials in {file}, or not for this repository"),
    }
}

/// What failed, and why in the end.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
