//! What is sent over a WebSocket, and how it ends.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

/// A whole message.
///
/// ```
/// use wasmcluster_guest::websocket::Message;
///
/// assert_eq!(Message::from("text").as_text(), Some("text"));
/// assert_eq!(Message::from(vec![1, 2]).as_bytes(), [1, 2]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A text.
    Text(String),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// The bytes of either kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// A text that is this value as JSON.
    ///
    /// ```
    /// use wasmcluster_guest::websocket::Message;
    /// assert_eq!(Message::from_json(&[1, 2])?, "[1,2]".into());
    /// # Ok::<_, wasmcluster_guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the value has no JSON, such as a map whose keys are not texts.
    pub fn from_json(value: &impl Serialize) -> Result<Self> {
        Ok(Self::Text(serde_json::to_string(value)?))
    }

    /// The value that is in it as JSON.
    ///
    /// ```
    /// use wasmcluster_guest::websocket::Message;
    /// assert_eq!(Message::from("[1,2]").json::<Vec<u32>>()?, [1, 2]);
    /// # Ok::<_, wasmcluster_guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If it is not JSON that makes a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(self.as_bytes())?)
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

/// How a WebSocket was closed. As the error of a send it says that the message will not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// By whom and why.
    pub code: CloseCode,
    /// What was said about it, at most 123 bytes; often empty.
    pub reason: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the WebSocket is closed with code {}", self.code.0)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

impl std::error::Error for Closed {}

/// Why a WebSocket is closed (RFC 6455, section 7.4). Applications may use 4000 to 4999 as they like: `CloseCode(4000)`.
///
/// ```
/// use wasmcluster_guest::websocket::CloseCode;
/// assert_eq!(CloseCode::NORMAL, CloseCode(1000));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// 1000: all is done.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the client leaves the page, or this worker shuts down.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the other side broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: a kind of message that is not understood.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1005: no code was sent. Only received.
    pub const NO_STATUS: Self = Self(1005);
    /// 1006: the connection was lost. Only received.
    pub const ABNORMAL: Self = Self(1006);
    /// 1007: a message that does not make sense.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: a message that breaks a rule.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message that is too large.
    pub const TOO_LARGE: Self = Self(1009);
    /// 1011: the guest failed.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the service restarts.
    pub const RESTART: Self = Self(1012);
    /// 1013: too much to do; try again later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
}
