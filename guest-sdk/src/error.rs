//! The error a handler returns, and how it is reported.

use std::error::Error as StdError;
use std::fmt;
use std::io::Write as _;

use http::StatusCode;

use crate::{IntoResponse, Response};

/// The usual result of a handler.
///
/// ```
/// fn number(text: &str) -> wasmcluster_guest::Result<u32> {
///     Ok(text.parse()?)
/// }
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error. Everything that implements [`std::error::Error`] converts into it with `?`, and so do strings.
///
/// A handler that returns it answers with status 500 and a body that reveals nothing; the error with its sources goes to
/// stderr as one line. Give an error that the client caused another status, and the client gets its text:
///
/// ```
/// use wasmcluster_guest::http::StatusCode;
/// use wasmcluster_guest::{Error, Result};
///
/// fn user(name: &str) -> Result<u32> {
///     match name {
///         "ada" => Ok(1),
///         _ => Err(Error::new(StatusCode::NOT_FOUND, "no such user")),
///     }
/// }
/// assert_eq!(user("eve").unwrap_err().status(), 404);
/// ```
///
/// Like `anyhow::Error` it does not implement [`std::error::Error`] itself.
pub struct Error {
    status: StatusCode,
    inner: Box<dyn StdError + Send + Sync>,
}

impl Error {
    /// An error whose answer has this status. Below 500, its text goes to the client and not to stderr.
    pub fn new(status: StatusCode, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { status, inner: error.into() }
    }

    /// The status of its answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The error it was made from, if that is an `E`.
    ///
    /// ```
    /// let error = wasmcluster_guest::Error::from("x".parse::<u8>().unwrap_err());
    /// assert!(error.downcast_ref::<std::num::ParseIntError>().is_some());
    /// ```
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.inner.downcast_ref()
    }

    /// The error it was made from.
    pub fn into_inner(self) -> Box<dyn StdError + Send + Sync> {
        self.inner
    }
}

impl<E> From<E> for Error
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn from(error: E) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl fmt::Display for Error {
    /// The error and its sources, separated by colons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chain(&*self.inner, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}

impl IntoResponse for Error {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            report("handler failed", &self);
            let reason = self.status.canonical_reason().unwrap_or("Internal Server Error");
            return (self.status, format!("{reason}\n")).into_response();
        }
        (self.status, format!("{self}\n")).into_response()
    }
}

/// The error and its sources, separated by colons.
pub(crate) fn chain(error: &(dyn StdError + 'static), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut source = error.source();
    while let Some(error) = source {
        write!(f, ": {error}")?;
        source = error.source();
    }
    Ok(())
}

/// Writes one line on stderr, in one call, so that lines of other instances cannot come between.
pub(crate) fn report(what: &str, error: impl fmt::Display) {
    let line = format!("{what}: {error}").replace(['\n', '\r'], " ") + "\n";
    // There is nobody left to tell that stderr is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_strings_convert() {
        fn parse(text: &str) -> Result<u8> {
            if text.is_empty() {
                return Err("nothing to parse".into());
            }
            Ok(text.parse()?)
        }
        assert_eq!(parse("7").expect("parses"), 7);
        assert_eq!(parse("").expect_err("refused").to_string(), "nothing to parse");
        let error = parse("x").expect_err("refused");
        assert!(error.downcast_ref::<std::num::ParseIntError>().is_some());
        assert_eq!(Error::from(format!("no {}", 1)).to_string(), "no 1");
    }

    #[test]
    fn sources_follow_the_error() {
        #[derive(Debug)]
        struct Outer(std::fmt::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let expected = format!("outer: {}", std::fmt::Error);
        assert_eq!(Error::from(Outer(std::fmt::Error)).to_string(), expected);
    }

    #[track_caller]
    fn check(error: Error, status: u16, body: &str) {
        let response = error.into_response();
        assert_eq!(response.status(), status);
        assert_eq!(response.into_body().known().expect("known in full"), body);
    }

    #[test]
    fn only_the_client_s_own_errors_are_told() {
        check("the password is x".into(), 500, "Internal Server Error\n");
        check(Error::new(StatusCode::BAD_GATEWAY, "the password is x"), 502, "Bad Gateway\n");
        check(Error::new(StatusCode::CONFLICT, "taken"), 409, "taken\n");
    }
}
