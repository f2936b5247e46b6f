//! What can go wrong with HTTP, by the names that WASI gives. The `Debug` of the bindings would tell as much, but weighs
//! more than all other code for errors, in every component.

#[cfg(feature = "p2")]
use wasip2::http::types::ErrorCode;
#[cfg(all(feature = "p3", not(feature = "p2")))]
use wasip3::http::types::ErrorCode;

/// The name, and what the host says about it.
pub(super) fn name(code: ErrorCode) -> String {
    if let ErrorCode::InternalError(Some(reason)) = code {
        return format!("internal-error: {reason}");
    }
    bare_name(&code).into()
}

/// Patterns with braces fit variants with and without a payload.
fn bare_name(code: &ErrorCode) -> &'static str {
    match code {
        ErrorCode::DnsTimeout => "DNS-timeout",
        ErrorCode::DnsError { .. } => "DNS-error",
        ErrorCode::DestinationNotFound => "destination-not-found",
        ErrorCode::DestinationUnavailable => "destination-unavailable",
        ErrorCode::DestinationIpProhibited => "destination-IP-prohibited",
        ErrorCode::DestinationIpUnroutable => "destination-IP-unroutable",
        ErrorCode::ConnectionRefused => "connection-refused",
        ErrorCode::ConnectionTerminated => "connection-terminated",
        ErrorCode::ConnectionTimeout => "connection-timeout",
        ErrorCode::ConnectionReadTimeout => "connection-read-timeout",
        ErrorCode::ConnectionWriteTimeout => "connection-write-timeout",
        ErrorCode::ConnectionLimitReached => "connection-limit-reached",
        ErrorCode::TlsProtocolError => "TLS-protocol-error",
        ErrorCode::TlsCertificateError => "TLS-certificate-error",
        ErrorCode::TlsAlertReceived { .. } => "TLS-alert-received",
        ErrorCode::HttpRequestDenied => "HTTP-request-denied",
        ErrorCode::HttpRequestLengthRequired => "HTTP-request-length-required",
        ErrorCode::HttpRequestBodySize { .. } => "HTTP-request-body-size",
        ErrorCode::HttpRequestMethodInvalid => "HTTP-request-method-invalid",
        ErrorCode::HttpRequestUriInvalid => "HTTP-request-URI-invalid",
        ErrorCode::HttpRequestUriTooLong => "HTTP-request-URI-too-long",
        ErrorCode::HttpRequestHeaderSectionSize { .. } => "HTTP-request-header-section-size",
        ErrorCode::HttpRequestHeaderSize { .. } => "HTTP-request-header-size",
        ErrorCode::HttpRequestTrailerSectionSize { .. } => "HTTP-request-trailer-section-size",
        ErrorCode::HttpRequestTrailerSize { .. } => "HTTP-request-trailer-size",
        ErrorCode::HttpResponseIncomplete => "HTTP-response-incomplete",
        ErrorCode::HttpResponseHeaderSectionSize { .. } => "HTTP-response-header-section-size",
        ErrorCode::HttpResponseHeaderSize { .. } => "HTTP-response-header-size",
        ErrorCode::HttpResponseBodySize { .. } => "HTTP-response-body-size",
        ErrorCode::HttpResponseTrailerSectionSize { .. } => "HTTP-response-trailer-section-size",
        ErrorCode::HttpResponseTrailerSize { .. } => "HTTP-response-trailer-size",
        ErrorCode::HttpResponseTransferCoding { .. } => "HTTP-response-transfer-coding",
        ErrorCode::HttpResponseContentCoding { .. } => "HTTP-response-content-coding",
        ErrorCode::HttpResponseTimeout => "HTTP-response-timeout",
        ErrorCode::HttpUpgradeFailed => "HTTP-upgrade-failed",
        ErrorCode::HttpProtocolError => "HTTP-protocol-error",
        ErrorCode::LoopDetected => "loop-detected",
        ErrorCode::ConfigurationError => "configuration-error",
        ErrorCode::InternalError { .. } => "internal-error",
    }
}
