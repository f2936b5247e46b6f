//! What a worker and the keeper say to each other, over a pair of stream sockets: frames with their length before them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use super::{Write, WriteFailure, Written};
use crate::settings::MAX_HOSTCALL;

/// Longest frame: a compare-and-set has two values, each as large as a guest's call may be.
const MAX_FRAME: usize = 2 * MAX_HOSTCALL + 64 * 1024;

/// What a worker wants of the keeper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriteOrder {
    /// What the answer is to name.
    pub(crate) id: u64,
    /// Which of the stores that the worker has.
    pub(crate) store: u16,
    pub(crate) write: Write,
}

/// What the keeper tells a worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeeperAnswer {
    /// Whether a store can be used now, or why it cannot; once for each.
    Opened { store: u16, opened: Result<(), String> },
    /// What came of an order.
    Done { id: u64, written: Result<Written, WriteFailure> },
}

/// How frames are told apart.
pub(crate) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec()
}

pub(crate) fn encode(message: &impl Serialize) -> anyhow::Result<bytes::Bytes> {
    Ok(postcard::to_stdvec(message)?.into())
}

pub(crate) fn decode<T: DeserializeOwned>(frame: &[u8]) -> anyhow::Result<T> {
    Ok(postcard::from_bytes(frame)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let swap = Write::Swap { key: "ä".into(), from: Some(vec![0, 255]), to: vec![] };
        for write in [swap, Write::Set(vec![("k".into(), b"v".to_vec())]), Write::Delete(vec!["k".into()])] {
            let order = WriteOrder { id: u64::MAX, store: 3, write };
            assert_eq!(decode::<WriteOrder>(&encode(&order).unwrap()).unwrap(), order);
        }
        let done = KeeperAnswer::Done { id: 7, written: Err(WriteFailure::Unknown("late".into())) };
        assert_eq!(decode::<KeeperAnswer>(&encode(&done).unwrap()).unwrap(), done);
        assert!(decode::<WriteOrder>(b"").is_err() && decode::<WriteOrder>(&[0xff; 30]).is_err());
    }
}
