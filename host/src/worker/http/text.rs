//! Text that is put together for each request: lines of the access log, and fields. `fmt` would take longer than all the rest of
//! such a line.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

/// Text that grows.
#[derive(Debug, Default)]
pub(super) struct TextBuffer(Vec<u8>);

impl TextBuffer {
    /// With room for a field's value.
    pub(super) fn for_field() -> Self {
        Self(Vec::with_capacity(128))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a field's value; none if it cannot be one.
    pub(super) fn into_field(self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(Bytes::from(self.0)).ok()
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn number(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.text(itoa::Buffer::new().format(number))
    }

    /// Exactly so many digits.
    pub(super) fn digits<const COUNT: usize>(&mut self, mut number: u32) -> &mut Self {
        let mut digits = [b'0'; COUNT];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.0.extend_from_slice(&digits);
        self
    }

    /// With three places behind the point.
    pub(super) fn milliseconds(&mut self, time: Duration) -> &mut Self {
        let (seconds, micros) = (time.as_secs(), (time.subsec_nanos() + 500) / 1000);
        let (millis, micros) = (micros / 1000, micros % 1000);
        // Most times are as short.
        if seconds == 0 && millis < 10 {
            let digits = [millis, micros / 100, micros / 10 % 10, micros % 10].map(|digit| b'0' + digit as u8);
            self.0.extend_from_slice(&[digits[0], b'.', digits[1], digits[2], digits[3]]);
            return self;
        }
        self.number(seconds.saturating_mul(1000).saturating_add(millis.into())).text(".").digits::<3>(micros)
    }

    /// As JSON has it, quotes included.
    pub(super) fn json(&mut self, text: &str) -> &mut Self {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            return self.text("\"").text(text).text("\"");
        }
        // It is written into memory.
        let _ = serde_json::to_writer(&mut self.0, text);
        self
    }

    pub(super) fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => {
                let [first, rest @ ..] = address.octets();
                rest.into_iter().fold(self.number(first), |text, part| text.text(".").number(part))
            }
            IpAddr::V6(address) => self.display(address),
        }
    }

    /// Null, if there is none.
    pub(super) fn optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        match value {
            Some(value) => put(self, value),
            None => self.text("null"),
        }
    }

    /// What has a form of its own.
    fn display(&mut self, value: impl std::fmt::Display) -> &mut Self {
        use std::io::Write;
        // Likewise.
        let _ = write!(self.0, "{value}");
        self
    }

    /// Between quotes; nobody breaks out of them or begins a line of his own.
    pub(super) fn quoted(&mut self, bytes: &[u8]) -> &mut Self {
        self.text("\"").escaped(bytes).text("\"")
    }

    /// What would be mistaken for something else is `\\xHH`.
    pub(super) fn escaped(&mut self, bytes: &[u8]) -> &mut Self {
        for &byte in bytes {
            match byte {
                b'"' | b'\\' | 0..0x20 | 0x7f.. => {
                    self.display(format_args!("\\x{byte:02X}"));
                }
                byte => self.0.push(byte),
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(put: impl FnOnce(&mut TextBuffer) -> &mut TextBuffer) -> String {
        let mut buffer = TextBuffer::default();
        put(&mut buffer);
        String::from_utf8(buffer.0).unwrap()
    }

    #[test]
    fn parts_are_as_they_are_read() {
        let ms = |nanos| put(|text| text.milliseconds(Duration::from_nanos(nanos)));
        assert_eq!(
            [0, 499, 500, 999_500, 1_000_000, 9_999_499, 9_999_500, 999_999_500, 1_234_567_890].map(ms),
            ["0.000", "0.000", "0.001", "1.000", "1.000", "9.999", "10.000", "1000.000", "1234.568"]
        );
        assert_eq!(put(|text| text.milliseconds(Duration::MAX)), format!("{}.000", u64::MAX));
        assert_eq!(put(|text| text.digits::<6>(42).text(" ").number(-7)), "000042 -7");
        for plain in ["", "a", " ~", "a\"\n", "\\", "\u{7f}", "\u{e4}", "a\u{0}"] {
            assert_eq!(put(|text| text.json(plain)), serde_json::to_string(plain).unwrap());
        }
        for address in ["0.0.0.0", "127.0.0.1", "255.10.200.9", "::1", "2001:db8::f"] {
            assert_eq!(put(|text| text.address(address.parse().unwrap())), address);
        }
        assert_eq!(
            put(|text| text.optional(None::<u8>, |text, _| text).optional(Some(1), |text, it| text.number(it))),
            "null1"
        );
        assert_eq!(put(|text| text.escaped(b"a\"b\\c\nd\xc3\xa4")), "a\\x22b\\x5Cc\\x0Ad\\xC3\\xA4");
        assert_eq!(put(|text| text.quoted(b"\xe4")), "\"\\xE4\"");
    }
}
