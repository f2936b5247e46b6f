//! The heads of guests' answers: what is harmless in them is mended, what would change where an answer ends is refused.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};

/// Whether such an answer ends with its head, whatever that says (RFC 9112, section 6.3).
pub(super) fn has_no_body(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Mends what is wrong with the head of a guest's answer and harmless. An error is what would change where the answer ends.
pub(super) fn repair(head: &mut http::response::Parts, is_empty: bool) -> Result<(), &'static str> {
    if head.status.is_informational() {
        return Err("its status is informational (1xx), not final");
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let (Some(first), is_one) = (lengths.next(), lengths.next().is_none()) else { return Ok(()) };
    // RFC 9110, section 8.6: it must not be sent, and says nothing.
    if head.status == StatusCode::NO_CONTENT {
        head.headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let is_number = is_one && !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    let length = match content_length(&head.headers)? {
        length if is_number => length,
        length => {
            head.headers.insert(CONTENT_LENGTH, length.into());
            length
        }
    };
    if length > 0 && is_empty && head.status != StatusCode::NOT_MODIFIED {
        return Err("its body is empty, but its content-length is not 0");
    }
    Ok(())
}

/// As RFC 9110, section 8.6, has it: digits and nothing else. What is said more than once must be the same.
pub(super) fn content_length(headers: &HeaderMap) -> Result<u64, &'static str> {
    let values = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut lengths = values.map(|digits| {
        let digits = str::from_utf8(digits.trim_ascii()).ok()?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
    });
    let first = lengths.next().flatten().ok_or("its content-length is not a number")?;
    let is_same = lengths.all(|length| length == Some(first));
    if is_same { Ok(first) } else { Err("it has more than one content-length, and they differ") }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    /// What is sent of a head with these lengths; `None` if it cannot be.
    fn repaired(status: u16, lengths: &[&str], is_empty: bool) -> Option<Vec<String>> {
        let mut answer = Response::builder().status(status);
        for length in lengths {
            answer = answer.header(CONTENT_LENGTH, *length);
        }
        let mut head = answer.body(()).unwrap().into_parts().0;
        repair(&mut head, is_empty).ok()?;
        Some(head.headers.get_all(CONTENT_LENGTH).iter().map(|length| length.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn what_is_harmless_in_a_head_is_repaired() {
        let check = |status, lengths: &[&str], is_empty, expected: Option<&[&str]>| {
            let expected = expected.map(|lengths| lengths.iter().map(ToString::to_string).collect());
            assert_eq!(repaired(status, lengths, is_empty), expected, "{status} {lengths:?}");
        };
        check(200, &[], true, Some(&[]));
        check(200, &["5"], false, Some(&["5"]));
        check(200, &["5", "5"], false, Some(&["5"]));
        check(200, &["5, 5"], false, Some(&["5"]));
        check(204, &["0"], true, Some(&[]));
        check(204, &["5", "x"], true, Some(&[]));
        check(304, &["5"], true, Some(&["5"]));
        check(200, &["0"], true, Some(&["0"]));
        for lengths in [&["5", "6"][..], &["5, 6"], &["abc"], &["+5"], &[""], &["5,"], &["-1"], &["5 5"]] {
            check(200, lengths, false, None);
        }
        check(200, &["5"], true, None);
        check(100, &[], true, None);
    }
}
