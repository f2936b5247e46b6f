//! The values of flags and keys: how people write them, and what is wrong with what they wrote.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes of the key of a value for guests.
pub(super) const MAX_KEY: usize = 256;
/// What the host's own keys begin with.
pub(super) const OWN: &str = "wasmcluster.";
/// Longest time that can be asked for: no sum of such times overflows.
pub(super) const MAX_SPAN: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A time as people write it: `500ms`, `30s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(super) Duration);

impl Span {
    pub(crate) fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// What was said, or so many seconds.
pub(super) fn or_seconds(said: Option<Span>, default: u64) -> Duration {
    said.map_or(Duration::from_secs(default), Duration::from)
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span =
            humantime::parse_duration(text).map_err(|_| "expected a time with its unit; write 500ms, 30s or 2m")?;
        if span > MAX_SPAN { Err(format!("the limit is {} days", MAX_SPAN.as_secs() / 86_400)) } else { Ok(Self(span)) }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A part of a hundred, in tenths of one: `5`, `2.5` or `5%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub(crate) struct Percent(u32);

impl Percent {
    pub(crate) const ONE: Self = Self(10);

    pub(crate) fn thousandths(self) -> u32 {
        self.0
    }

    fn new(percent: f64) -> Result<Self, String> {
        if (0.0..=100.0).contains(&percent) {
            let thousandths = (percent * 10.0).round() as u32;
            if thousandths == 0 && percent > 0.0 {
                return Err("expected 0, or 0.1 or more".into());
            }
            Ok(Self(thousandths))
        } else {
            Err("expected a number from 0 to 100".into())
        }
    }
}

/// By how many points the share of errors of a new version may be above the old version's.
impl Default for Percent {
    fn default() -> Self {
        Self(50)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text.strip_suffix('%').unwrap_or(text).trim_end().parse().unwrap_or(f64::NAN))
    }
}

/// As files say a number that may have a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl TryFrom<NumberOrText> for Percent {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        match value {
            NumberOrText::Number(percent) => Self::new(percent),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (f64::from(self.0) / 10.0).serialize(to)
    }
}

/// A path, and perhaps a query, that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HealthPath(http::uri::PathAndQuery);

impl HealthPath {
    pub(crate) fn as_uri(&self) -> http::Uri {
        self.0.clone().into()
    }
}

impl FromStr for HealthPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("expected a path that begins with /".into());
        }
        text.parse().map(Self).map_err(|error| format!("{error}; write /health"))
    }
}

impl TryFrom<String> for HealthPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HealthPath> for String {
    fn from(path: HealthPath) -> Self {
        path.0.to_string()
    }
}

/// A number of things of which there is at least one; what the parser says of 0 helps nobody.
pub(crate) fn count<N: FromStr>(text: &str) -> Result<N, String> {
    let is_too_large =
        || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.contains(|c| c != '0');
    text.parse().map_err(|_| match is_too_large() {
        true => "the number is too large".into(),
        false => "expected a whole number, 1 or more".into(),
    })
}

/// A size as people write it: `64KiB`, `10MiB`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size(pub(super) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_) => Err("expected a size; write 64KiB, 10MiB or 1GiB".into()),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

pub(super) fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    check_variable(name, value)?;
    Ok((name.into(), value.into()))
}

/// A value for guests.
pub(super) fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    check_key(key)?;
    Ok((key.into(), value.into()))
}

pub(super) fn settings<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    table(from, |key, _| check_key(key))
}

/// Whether a value for guests may be called so.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    match key {
        "" => Err("the key is empty".into()),
        _ if key.starts_with(OWN) => Err(format!("{key:?}: keys that begin with {OWN} are the server's own")),
        _ if key.len() > MAX_KEY => Err(format!("a key has {} bytes; the limit is {MAX_KEY}", key.len())),
        _ if key.contains(|char: char| char == '=' || char.is_control()) => Err(format!("{key:?} is not a valid key")),
        _ => Ok(()),
    }
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    match name {
        "" => Err("the variable has no name".into()),
        _ if name.contains(['=', '\0']) => Err(format!("{name:?} is not a valid name for a variable")),
        _ if value.contains('\0') => Err(format!("the value of {name} contains a NUL byte")),
        _ => Ok(()),
    }
}

pub(super) fn variables<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    table(from, check_variable)
}

/// A table of the file whose entries are all right.
fn table<'de, D: serde::Deserializer<'de>>(
    from: D,
    check: impl Fn(&str, &str) -> Result<(), String>,
) -> Result<Vec<(String, String)>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(from)?;
    // As `toml` tells a date to whoever asks for a table.
    if table.contains_key("$__toml_private_datetime") {
        return Err(serde::de::Error::custom("invalid type: date, expected a table"));
    }
    table.iter().try_for_each(|(key, value)| check(key, value)).map_err(serde::de::Error::custom)?;
    Ok(table.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_bytes() {
        for (text, bytes) in [("64KiB", 65_536), ("10MiB", 10 << 20), ("1kB", 1000), ("1.5 GiB", 3 << 29), ("7", 7)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1KiB", "1 parsec"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
