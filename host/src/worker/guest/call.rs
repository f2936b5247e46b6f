//! A guest at work on one request, as those see it who wait for its answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use wasmtime_wasi_http::Error;

use super::epoch::Epoch;
use super::turns::Turns;
use crate::worker::clock;
use crate::worker::requests::Asked;

/// The head of a guest's answer, with a body that yields what the guest writes; or the guest's own refusal.
pub(crate) type Head = Result<Response<UnsyncBoxBody<Bytes, Error>>, String>;

/// A guest at work on one request. It makes progress only while it is polled, and dropping it cancels it.
pub(crate) struct Call {
    turns: Arc<Turns>,
    epoch: Arc<Epoch>,
    guest: GuestFuture,
    /// Who pays for its turns; None of a health check.
    asked: Option<Arc<Asked>>,
}

pub(super) type GuestFuture = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

impl Call {
    /// Of what runs an instance, and is polled by nothing else: here it is seen to that a guest gives way.
    pub(super) fn new(turns: Arc<Turns>, epoch: Arc<Epoch>, guest: GuestFuture, asked: Option<Arc<Asked>>) -> Self {
        Self { turns, epoch, guest, asked }
    }
}

impl Future for Call {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { turns, epoch, guest, asked } = &mut *self;
        let polled = clock::going_on(|| {
            epoch.polling(|| {
                turns.begin();
                guest.as_mut().poll(context)
            })
        });
        let took = turns.end();
        if let Some(asked) = asked {
            asked.cost().computed(took);
        }
        polled
    }
}

/// Why a guest did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// All instances of the pool are in use, or their memory is.
    Full,
    /// It trapped, or broke a rule of its interfaces.
    Trap(wasmtime::Error),
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

/// A guest's own error, in its own words where it has some.
pub(crate) fn said(error: impl Into<Error>) -> String {
    match error.into() {
        Error::InternalError(Some(text)) => text,
        error => error.to_string(),
    }
}
