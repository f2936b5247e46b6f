//! Key-value stores of guests (`wasi:keyvalue`), and the keeper: the process that writes those in files.
//!
//! Workers read such a store from a read-only mapping, without asking anybody ([`file`]). What they write they send to the
//! keeper ([`frames`]), which commits what comes at the same time from all of them together, and answers when it is on
//! the disk ([`keeper`]).

pub(crate) mod file;
pub(crate) mod frames;
pub(crate) mod keeper;

use serde::{Deserialize, Serialize};

use crate::settings::{MAX_KEY, size};

/// What is written, as one step: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Write {
    /// Keys with their values.
    Set(Vec<(String, Vec<u8>)>),
    Delete(Vec<String>),
    /// The value is a decimal number; that of a key that is not there is 0.
    Increment {
        key: String,
        by: i64,
    },
    /// Only if the value is still `from`.
    Swap {
        key: String,
        from: Option<Vec<u8>>,
        to: Vec<u8>,
    },
}

impl Write {
    /// What is wrong with it, where a value has at most `max_value` bytes.
    pub(crate) fn check(&self, max_value: u64) -> Result<(), String> {
        let pair = |key: &str, value: &[u8]| check_key(key).and_then(|()| check_value(value, max_value));
        match self {
            Self::Set(pairs) => pairs.iter().try_for_each(|(key, value)| pair(key, value)),
            Self::Delete(keys) => keys.iter().try_for_each(|key| check_key(key)),
            Self::Increment { key, .. } => check_key(key),
            Self::Swap { key, to, .. } => pair(key, to),
        }
    }

    /// Bytes that it takes up until it is done.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Set(pairs) => pairs.iter().map(|(key, value)| key.len() + value.len()).sum(),
            Self::Delete(keys) => keys.iter().map(String::len).sum(),
            Self::Increment { key, .. } => key.len(),
            Self::Swap { key, from, to } => key.len() + from.as_ref().map_or(0, Vec::len) + to.len(),
        }
    }

    /// How many keys it is about.
    pub(crate) fn keys(&self) -> usize {
        match self {
            Self::Set(pairs) => pairs.len(),
            Self::Delete(keys) => keys.len(),
            Self::Increment { .. } | Self::Swap { .. } => 1,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Written {
    Done,
    /// The value from now on.
    Sum(i64),
    /// Whether the value was the expected one, and is the new one.
    Swapped(bool),
}

/// Why it was not written, for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WriteFailure {
    /// Nothing of it was written.
    Refused(String),
    /// It may have been written, or not.
    Unknown(String),
}

/// A key has 1 to [`MAX_KEY`] bytes.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    match key.len() {
        0 => Err("a key has at least one byte".into()),
        1..=MAX_KEY => Ok(()),
        length => Err(format!("a key of {length} bytes is over the limit of {MAX_KEY}")),
    }
}

fn check_value(value: &[u8], max_value: u64) -> Result<(), String> {
    if value.len() as u64 <= max_value {
        return Ok(());
    }
    Err(format!("a value of {} bytes is over the limit, --kv-max-value {}", value.len(), size(max_value)))
}

/// The number that is stored as `current`, and `by`.
pub(crate) fn sum(current: Option<&[u8]>, by: i64) -> Result<i64, String> {
    let number = match current {
        None => Some(0),
        Some(digits) => str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok()),
    };
    let number = number.ok_or("the value is not a whole number of 64 bits, so it cannot be incremented")?;
    number.checked_add(by).ok_or_else(|| format!("{number} and {by} are more than 64 bits can hold"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_limits() {
        assert!(check_key("").is_err() && check_key(&"k".repeat(MAX_KEY + 1)).is_err());
        assert!(check_key("k").is_ok() && check_key(&"k".repeat(MAX_KEY)).is_ok());
        let set = |key: &str, bytes: usize| Write::Set(vec![("ok".into(), vec![]), (key.into(), vec![0; bytes])]);
        assert_eq!(set("k", 10).check(10), Ok(()));
        assert!(set("k", 11).check(10).unwrap_err().contains("--kv-max-value 10B"));
        assert!(set("", 1).check(10).is_err());
        let swap = Write::Swap { key: "k".into(), from: None, to: vec![0; 11] };
        assert!(swap.check(10).is_err() && Write::Delete(vec!["k".into(), String::new()]).check(10).is_err());
    }

    #[test]
    fn numbers_are_added_within_64_bits() {
        assert_eq!(sum(None, -3), Ok(-3));
        assert_eq!(sum(Some(b"40"), 2), Ok(42));
        assert_eq!(sum(Some(b"-9223372036854775808"), 0), Ok(i64::MIN));
        for (current, by) in [("x", 1), ("", 1), ("1.5", 1), ("9223372036854775807", 1), ("-9223372036854775808", -1)] {
            assert!(sum(Some(current.as_bytes()), by).is_err(), "{current}");
        }
        assert!(sum(Some(&[0xff]), 1).is_err());
    }
}
