//! Corrects what clap suggests for a mistake on the command line.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::settings::OTHER_WORDS;

/// The same error with a better suggestion: the flag that a common word stands for. Never suggests `-- --flag`, which would
/// take the flag for a file.
pub(super) fn improve(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && ["--set-secret", "--kv", "--otlp"].iter().any(|secret| flag.starts_with(secret))
        && error.get(ContextKind::InvalidValue).is_some()
    {
        // A password, perhaps, which would get into the log of a service.
        error.insert(ContextKind::InvalidValue, ContextValue::String("…".into()));
    }
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return error };
    if !given.starts_with("--") {
        // A short flag or a negative number: clap would suggest to pass it as a file.
        error.remove(ContextKind::Suggested);
        return error;
    }
    let word = given.trim_start_matches('-').replace('_', "-").to_ascii_lowercase();
    let known = OTHER_WORDS.iter().find(|(other, _)| *other == word);
    error.remove(ContextKind::Suggested);
    if let Some((_, flag)) = known {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{flag}")));
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_value_that_may_be_a_secret_is_not_repeated() {
        for (flag, value) in [
            ("--set-secret", "db=hush"),
            ("--kv", "a=redis://user:hush@host:port"),
            ("--otlp", "http://me:hush@host:1"),
            ("--otlp-header", "a=hush"),
        ] {
            let error = improve(Cli::try_parse_from(["wasmcluster", "serve", "app.wasm", flag, value]).unwrap_err());
            let error = error.to_string();
            assert!(error.contains(flag) && error.contains("'…'") && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_mistyped_flag_is_answered_with_one_that_exists() {
        for (flag, suggested) in [
            ("--port", Some("'--listen'")),
            ("--threads", Some("'--workers'")),
            ("--log_level", Some("'--log-level'")),
            ("--wokers", Some("'--workers'")),
            ("--zzzzzz", None),
            ("-1", None),
            ("-p", None),
        ] {
            let error = improve(Cli::try_parse_from(["wasmcluster", "serve", "app.wasm", flag, "1"]).unwrap_err());
            let error = error.to_string();
            assert!(!error.contains("-- --"), "{error}");
            match suggested {
                Some(suggested) => assert!(error.contains(suggested), "{error}"),
                None => assert!(!error.contains("tip:"), "{error}"),
            }
        }
    }
}
