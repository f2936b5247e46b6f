//! What goes wrong between us and a registry, in words that say what to do next.

use std::error::Error;
use std::io;

use anyhow::anyhow;
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use reqwest::StatusCode;

use crate::logging::one_line;
use crate::settings::ImageName;

/// Whether it may go well next time.
pub(super) fn is_passing(error: &anyhow::Error) -> bool {
    error.is::<Passing>()
}

/// What may go well next time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Passing(String);

/// A host that did not answer, or not to the end.
pub(super) fn unreachable(host: &str, error: &reqwest::Error) -> anyhow::Error {
    let causes = causes(error);
    // Whoever waited long does not wait once more.
    if error.is_timeout() {
        return anyhow!("{host} does not answer: it took too long");
    }
    let why = causes.rsplit_once(": ").map_or(&*causes, |(_, last)| last);
    // Rustls's words.
    if causes.contains("UnknownIssuer") || causes.contains("CaUsedAsEndEntity") {
        return anyhow!(
            "{host} shows a certificate by nobody whom this machine trusts; name who signed it with --registry-ca FILE"
        );
    }
    if causes.contains("invalid certificate") {
        return anyhow!("{host} shows a certificate that is not good: {}", one_line(why));
    }
    if causes.contains("InvalidContentType") {
        return anyhow!(
            "{host} does not speak TLS; if it is on a network of yours, allow clear text with --registry-plain-http {host}"
        );
    }
    if error.is_builder() {
        return anyhow!("{host} points to what cannot be asked: {}", one_line(&causes));
    }
    Passing(format!("cannot reach {host}: {}", one_line(why))).into()
}

/// An answer that did not come to its end, or is not what was asked for.
pub(super) fn broken(host: &str, error: io::Error) -> anyhow::Error {
    match error.downcast::<reqwest::Error>() {
        Ok(error) if error.is_timeout() => unreachable(host, &error),
        // Whatever cut it.
        Ok(_) => Passing(format!("{host} broke off in the middle of the component")).into(),
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<DigestError>()) => altered(host),
        Err(error) => anyhow!("{host}: {}", one_line(&causes(&error))),
    }
}

fn altered(host: &str) -> anyhow::Error {
    anyhow!("what {host} sent is not what its digest says: it was altered, or cut, on the way or in the registry")
}

/// Why the registry of an image did not do what it was asked for; `from` is where the credentials are from.
pub(super) fn explain(image: &ImageName, from: Option<&str>, error: OciDistributionError) -> anyhow::Error {
    let host = image.host();
    match error {
        OciDistributionError::RequestError(error) => unreachable(host, &error),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            anyhow!(wants_credentials(host, from))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let first = envelope.errors.first();
            let said = first.map(|error| one_line(&error.message).to_string()).unwrap_or_default();
            match first.map(|error| &error.code) {
                Some(OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound) => {
                    missing(image)
                }
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => anyhow!(wants_credentials(host, from)),
                Some(OciErrorCode::Toomanyrequests) => {
                    Passing(format!("{host} has had too many requests: {said}")).into()
                }
                _ => anyhow!("{host} says: {said}"),
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => missing(image),
        OciDistributionError::ServerError { code: 401 | 403, .. } => anyhow!(wants_credentials(host, from)),
        OciDistributionError::ServerError { code, message, .. } => {
            let status = StatusCode::from_u16(code).map_or_else(|_| code.to_string(), |status| status.to_string());
            let text = format!("{host} answered {status}: {}", one_line(message.trim()));
            if code >= 500 || code == 429 { Passing(text).into() } else { anyhow!(text) }
        }
        OciDistributionError::DigestError(_) => altered(host),
        other => anyhow!("{host}: {}", one_line(&causes(&other))),
    }
}

fn missing(image: &ImageName) -> anyhow::Error {
    anyhow!("{} has no such repository, tag or digest, or does not show it to us", image.host())
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
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
