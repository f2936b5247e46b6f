//! The error a handler returns, and how it is reported. What the client sees of it is `response`'s part.

use std::fmt;
use std::io::Write as _;

/// What a handler returns unless it says otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error. Everything that implements [`std::error::Error`] converts into it with `?`, and so do strings.
///
/// Like `anyhow::Error` it does not implement [`std::error::Error`] itself. A handler that returns it answers with
/// status 500 and a body that tells nothing; the error with its sources goes to stderr as one line.
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl Error {
    /// The error it was made from, if that is an `E`.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// The error it was made from.
    pub fn into_inner(self) -> Box<dyn std::error::Error + Send + Sync> {
        self.0
    }
}

impl<E> From<E> for Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Error {
    /// The error and its sources, separated by colons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
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
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let expected = format!("outer: {}", std::fmt::Error);
        assert_eq!(Error::from(Outer(std::fmt::Error)).to_string(), expected);
    }
}
