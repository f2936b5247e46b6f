//! Reads a body: by chunks, or in full up to a limit that the handler names. The status of an error says whose fault it
//! is: the client's, or that of the server that the guest asked.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;

use super::{Body, BodyError};
use crate::{Error, Result};

impl Body {
    /// What to answer when its contents are wrong, if it is `status` where the client has sent it.
    pub(crate) fn blame(&self, status: StatusCode) -> StatusCode {
        if self.is_fetched { StatusCode::BAD_GATEWAY } else { status }
    }

    /// The next chunk, never empty; `None` at the end. Trailers are passed over: `http_body::Body` yields them.
    ///
    /// ```
    /// # use wasmcluster_guest::{Request, Result, testing};
    /// async fn count(request: Request) -> Result<String> {
    ///     let (mut body, mut bytes) = (request.into_body(), 0);
    ///     while let Some(chunk) = body.chunk().await? {
    ///         bytes += chunk.len();
    ///     }
    ///     Ok(format!("{bytes} bytes"))
    /// }
    /// # assert_eq!(testing::call(count, Request::new("text".into())).text(), "4 bytes");
    /// ```
    ///
    /// # Errors
    ///
    /// When the body ends before it is complete, because the client left for example.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await;
            match frame.transpose().map_err(BodyError::into_inner)? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(chunk) = frame.into_data()
                        && !chunk.is_empty()
                    {
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, TooLarge, testing};
    /// # testing::block_on(async {
    /// assert_eq!(Body::from("text").bytes(4).await.unwrap(), "text");
    /// let error = Body::from("text").bytes(3).await.unwrap_err();
    /// assert_eq!((error.status().as_u16(), error.downcast_ref()), (413, Some(&TooLarge { limit: 3 })));
    /// # });
    /// ```
    ///
    /// # Errors
    ///
    /// [`TooLarge`] with status 413, as soon as the body is known to exceed the limit; otherwise those of [`Body::chunk`].
    /// The status is 502 where the body is that of a response which was [fetched](crate::fetch).
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes> {
        let status = self.blame(StatusCode::PAYLOAD_TOO_LARGE);
        let too_large = || Error::new(status, TooLarge { limit });
        if self.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        if first.len() > limit {
            return Err(too_large());
        }
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if chunk.len() > limit - whole.len() {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
            next = self.chunk().await?;
        }
        Ok(whole.freeze())
    }

    /// The whole body as text, if it has at most `limit` bytes.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, testing};
    /// # testing::block_on(async {
    /// assert_eq!(Body::from("text").text(64).await.unwrap(), "text");
    /// # });
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Body::bytes`], and one with status 400, or 502, when the body is not UTF-8.
    pub async fn text(self, limit: usize) -> Result<String> {
        let status = self.blame(StatusCode::BAD_REQUEST);
        String::from_utf8(self.bytes(limit).await?.into()).map_err(|error| Error::new(status, error))
    }
}

/// A body was longer than the limit of the handler.
///
/// ```
/// use wasmcluster_guest::TooLarge;
/// assert_eq!(TooLarge { limit: 3 }.to_string(), "the body is larger than 3 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body is larger than {} bytes", self.limit)
    }
}

impl StdError for TooLarge {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::tests::streamed;
    use crate::testing::block_on;

    #[track_caller]
    fn check(body: Body, limit: usize, expected: Option<&str>) {
        match (block_on(body.text(limit)), expected) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected),
            (Err(error), None) => assert_eq!(error.downcast_ref(), Some(&TooLarge { limit })),
            (result, _) => panic!("{result:?}"),
        }
    }

    #[test]
    fn a_body_is_read_up_to_its_limit() {
        check(().into(), 0, Some(""));
        check("abc".into(), 3, Some("abc"));
        check(vec![b'a'; 4].into(), 3, None);
        check(streamed(&[]), 0, Some(""));
        check(streamed(&["abc"]), 3, Some("abc"));
        check(streamed(&["abcd"]), 3, None);
        check(streamed(&["a", "", "b", "c"]), 3, Some("abc"));
        check(streamed(&["a", "b", "cd"]), 3, None);
        check(Body::new(Body::from(String::from("abc"))), 3, Some("abc"));
    }

    #[test]
    fn chunks_come_one_by_one_and_never_empty() {
        let mut body = streamed(&["a", "", "b"]);
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "a");
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "b");
        assert!(block_on(body.chunk()).expect("readable").is_none());
    }

    #[test]
    fn a_fetched_body_is_not_the_client_s_fault() {
        let status = |body: Body| block_on(body.text(3)).expect_err("wrong").status();
        assert_eq!(
            (status("abcd".into()), status(vec![0xff].into())),
            (StatusCode::PAYLOAD_TOO_LARGE, StatusCode::BAD_REQUEST)
        );
        let fetched = |bytes: &'static [u8]| status(Body::from(Bytes::from_static(bytes)).fetched());
        assert_eq!((fetched(b"abcd"), fetched(b"\xff")), (StatusCode::BAD_GATEWAY, StatusCode::BAD_GATEWAY));
    }
}
