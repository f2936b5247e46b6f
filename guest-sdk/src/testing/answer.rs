//! A response as a test sees it: read in full, with its trailers, and whether it was cut short.

use std::future::poll_fn;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use serde::de::DeserializeOwned;

use crate::{Error, Response};

/// A response that was read to its end.
///
/// ```
/// use wasmcluster_guest::{Json, Request, testing};
///
/// async fn handle(_: Request) -> Json<[u32; 2]> {
///     Json([1, 2])
/// }
/// let answer = testing::call(handle, Request::default());
/// assert_eq!(answer.headers()["content-type"], "application/json");
/// assert_eq!(answer.json::<Vec<u32>>(), [1, 2]);
/// assert!(answer.is_whole());
/// ```
#[derive(Debug)]
pub struct Answer {
    head: Response<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
    cut: Option<Error>,
}

impl Answer {
    pub(super) async fn read(response: Response) -> Self {
        let (head, body) = response.into_parts();
        let (mut body, mut whole) = (pin!(body), BytesMut::new());
        let (mut trailers, mut cut) = (None, None);
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => whole.extend_from_slice(&data),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(error) => {
                    cut = Some(error.into_inner());
                    break;
                }
            }
        }
        Self { head: Response::from_parts(head, ()), body: whole.freeze(), trailers, cut }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.head.status()
    }

    /// Its headers, without those that a server adds.
    pub fn headers(&self) -> &HeaderMap {
        self.head.headers()
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its body as text.
    ///
    /// # Panics
    ///
    /// If it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Its body as JSON.
    ///
    /// # Panics
    ///
    /// If it is not JSON that makes a `T`.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).expect("the body is the JSON expected")
    }

    /// Its trailers.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Whether its body is complete. A client sees if it is not.
    pub fn is_whole(&self) -> bool {
        self.cut.is_none()
    }
}
