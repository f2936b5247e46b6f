//! Frames: whatever comes is understood or refused, and what is understood can be said again.

use std::fmt::Debug;

use nix::sys::socket::{MsgFlags, send};

use super::*;
use crate::fuzz;
use crate::wire::messages::{FromCompiler, PrimaryEnd, ToCompiler, ToPrimary, ToWorker, WorkerEnd};

#[test]
fn frames() {
    fuzz::bytes("ipc", |frame| {
        check::<ToWorker>(frame);
        check::<ToPrimary>(frame);
        check::<ToCompiler>(frame);
        check::<FromCompiler>(frame);
        a_socket_changes_nothing(frame);
    });
}

/// Whatever text an error has: cut, it always gets through.
#[test]
fn reasons() {
    fuzz::text("reason", |text| {
        let reason = bounded(text.repeat(MAX_ERROR.div_ceil(text.len().max(1))));
        assert!(encode(&ToPrimary::LoadFailed { reason: reason.clone() }).is_ok());
        assert!(encode(&FromCompiler::Refused { reason }).is_ok());
    });
}

fn check<R: Message + Serialize + Debug + PartialEq>(frame: &[u8]) {
    let Ok(message) = decode::<R>(frame) else { return };
    // A text can take more than it took, where it has escapes that it did not have.
    match encode(&message) {
        Ok(again) => {
            assert!(again.len() <= MAX_FRAME);
            assert_eq!(decode::<R>(&again).unwrap(), message);
        }
        Err(IpcError::TooLong(length)) => assert!(length > MAX_FRAME),
        Err(error) => panic!("{error}"),
    }
}

/// Except that it cuts what is too long, which is noticed.
fn a_socket_changes_nothing(frame: &[u8]) {
    let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
    send(worker.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT).unwrap();
    let decoded = decode(frame);
    match primary.receive(Wait::No) {
        Ok(Received::Message(message, descriptors)) => {
            assert!(frame.len() <= MAX_FRAME && descriptors.is_empty());
            assert_eq!(message, decoded.unwrap());
        }
        Ok(Received::Closed) => assert!(frame.is_empty()),
        Ok(Received::Nothing) => panic!("a frame is lost"),
        Err(error) => assert!(frame.len() > MAX_FRAME || decoded.is_err(), "{error}"),
    }
}
