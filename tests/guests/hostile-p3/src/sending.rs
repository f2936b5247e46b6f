//! Moving bodies over the 0.3 interface.

use misdeeds::{Answer, debug};
use wasip3::http::types::{ErrorCode, Fields, Response, Trailers};
use wasip3::wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};
use wasip3::{spawn_local, wit_future, wit_stream};

/// What is read at once.
const PIECE: usize = 65_536;

/// An answer as it stands, or what the interface says against its head.
pub(crate) fn respond(answer: Answer) -> Response {
    try_respond(answer).unwrap_or_else(|error| try_respond(Answer::of(Err(error))).expect("a plain head"))
}

fn try_respond(answer: Answer) -> Result<Response, String> {
    let fields = Fields::from_list(&answer.fields).map_err(debug)?;
    let response = streamed(fields, async move |mut body| {
        body.write_all(answer.body).await;
    });
    response.set_status_code(answer.status).map_err(debug)?;
    Ok(response)
}

/// An answer whose body comes from a task of its own.
pub(crate) fn streamed<F>(fields: Fields, produce: impl FnOnce(StreamWriter<u8>) -> F + 'static) -> Response
where
    F: Future<Output = ()>,
{
    let (body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(fields, Some(contents), trailers);
    spawn_local(async move {
        produce(body).await;
        // Nobody may be there to hear it.
        let _ = end.write(Ok(None)).await;
    });
    response
}

/// An answer that is on its way when it fails, in words of the guest's.
pub(crate) fn ended_with_error(text: String) -> Response {
    let (mut body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(contents), trailers);
    spawn_local(async move {
        body.write_all(b"the beginning".to_vec()).await;
        wasip3::clocks::monotonic_clock::wait_for(100_000_000).await;
        drop(body);
        let _ = end.write(Err(ErrorCode::InternalError(Some(text)))).await;
    });
    response
}

/// Reads a body to its end.
pub(crate) async fn body_of(
    mut contents: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Trailers>, ErrorCode>>,
    mut take: impl FnMut(&[u8]),
) -> Result<(), String> {
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        let (result, mut read) = contents.read(piece).await;
        take(&read);
        if result == StreamResult::Dropped {
            break;
        }
        read.clear();
        piece = read;
    }
    drop(contents);
    trailers.await.map(drop).map_err(debug)
}
