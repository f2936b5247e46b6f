//! The target of a request, taken apart.

/// The query of a request's target. `+` and `%XX` are decoded.
#[derive(Clone, Debug)]
pub struct Query(String);

/// The path and the query of `target`.
pub fn split(target: &str) -> (&str, Query) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (path, Query(query.into()))
}

impl Query {
    /// The value of a parameter, if it is there.
    pub fn text(&self, name: &str) -> Option<String> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| decode(value))
    }

    /// The number that a parameter is. Traps when it is none: then the test is wrong.
    pub fn optional(&self, name: &str) -> Option<u64> {
        self.text(name).map(|text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
    }

    /// As [`Self::optional`], with a value for when the parameter is missing.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.optional(name).unwrap_or(default)
    }

    /// A time given in milliseconds, in the nanoseconds that WASI counts.
    pub fn nanoseconds(&self, name: &str) -> Option<u64> {
        self.optional(name).map(|milliseconds| milliseconds.saturating_mul(1_000_000))
    }
}

fn decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = value.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The value that [`decode`] makes `text` of.
pub(crate) fn encode(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}
