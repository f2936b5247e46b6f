//! Requests to other servers.
//!
//! A guest may send requests only where the server allows them:
//! `wasmcluster serve --allow-host https://example.com app.wasm`.

mod hop_by_hop;
mod redirect;

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde::Serialize;

use crate::{Body, Request, Response, Result, host, time};
use hop_by_hop::hop_by_hop;
use redirect::{NextBody, Redirect, redirect};

/// Begins a GET.
///
/// ```
/// use std::time::Duration;
/// use serde::Deserialize;
/// use wasmcluster_guest::{Json, Request, Result, fetch};
///
/// #[derive(Deserialize)]
/// struct Rate {
///     eur: f64,
/// }
///
/// async fn rate(_: Request) -> Result<String> {
///     let response = fetch::get("http://rates.example/usd").timeout(Duration::from_secs(2)).await?;
///     let Json(rate) = Json::<Rate>::read(response, 64 * 1024).await?;
///     Ok(format!("{} EUR", rate.eur))
/// }
/// # use wasmcluster_guest::{Response, testing::Host};
/// # let host = Host::new().on_fetch(|_| async { Response::new(r#"{"eur":0.5}"#) });
/// # assert_eq!(host.call(rate, Request::default()).text(), "0.5 EUR");
/// ```
pub fn get(uri: impl TryInto<Uri>) -> Fetch {
    Fetch::new(Method::GET, uri)
}

/// Begins a POST.
///
/// ```
/// # use wasmcluster_guest::{Request, Response, Result, fetch, testing::Host};
/// async fn handle(_: Request) -> Result<Response> {
///     fetch::post("http://queue.example/jobs").json(&["build", "test"]).await
/// }
/// # let host = Host::new().on_fetch(|request| async { request.into_body() });
/// # assert_eq!(host.call(handle, Request::default()).text(), r#"["build","test"]"#);
/// ```
pub fn post(uri: impl TryInto<Uri>) -> Fetch {
    Fetch::new(Method::POST, uri)
}

/// Begins a request with any method, to an absolute URI.
///
/// ```
/// # use wasmcluster_guest::{Request, Response, Result, fetch, testing::Host};
/// /// Passes everything on, without holding more than a chunk of it.
/// async fn proxy(mut request: Request) -> Result<Response> {
///     let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
///     *request.uri_mut() = format!("http://upstream.example{path}").parse()?;
///     fetch::request(request).await
/// }
/// # let host = Host::new().on_fetch(|request| async move { request.uri().to_string() });
/// # assert_eq!(host.call(proxy, Request::get("/a?b").body(().into()).unwrap()).text(), "http://upstream.example/a?b");
/// ```
pub fn request<B: Into<Body>>(request: Request<B>) -> Fetch {
    Fetch { request: Ok(request.map(Into::into)), timeout: None, idle_timeout: None, redirects: None }
}

/// A request that is sent when it is awaited. The response is ready as soon as its head has arrived; both bodies stream.
///
/// ```
/// # use std::time::Duration;
/// # use wasmcluster_guest::{Response, Result, fetch};
/// # async fn with_token() -> Result<Response> {
/// let response = fetch::get("https://api.example/")
///     .header("authorization", "Bearer x")
///     .timeout(Duration::from_secs(2))
///     .await?;
/// # Ok(response) }
/// ```
#[must_use = "nothing is sent before it is awaited"]
#[derive(Debug)]
pub struct Fetch {
    /// Or what is wrong with it.
    request: Result<Request, FetchError>,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    /// How many, and what follows them: guests that follow none do not have its code.
    redirects: Option<(usize, Redirect)>,
}

impl Fetch {
    fn new(method: Method, uri: impl TryInto<Uri>) -> Self {
        let request = uri.try_into().map_err(|_| FetchError::Invalid("its URI is not valid".into())).map(|uri| {
            let mut request = Request::new(Body::empty());
            (*request.method_mut(), *request.uri_mut()) = (method, uri);
            request
        });
        Self { request, timeout: None, idle_timeout: None, redirects: None }
    }

    fn change(mut self, change: impl FnOnce(Request) -> Result<Request, FetchError>) -> Self {
        self.request = self.request.and_then(change);
        self
    }

    /// Adds a header.
    pub fn header(self, name: impl TryInto<HeaderName>, value: impl TryInto<HeaderValue>) -> Self {
        self.change(|mut request| {
            let invalid = || FetchError::Invalid("one of its headers is not valid".into());
            let (name, value) = (name.try_into().map_err(|_| invalid())?, value.try_into().map_err(|_| invalid())?);
            request.headers_mut().append(name, value);
            Ok(request)
        })
    }

    /// With this body.
    pub fn body(self, body: impl Into<Body>) -> Self {
        self.change(|request| Ok(request.map(|_| body.into())))
    }

    /// With this value as its body.
    pub fn json(self, value: &impl Serialize) -> Self {
        self.change(|mut request| {
            let json = serde_json::to_vec(value).map_err(|error| FetchError::Invalid(error.to_string()))?;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(request.map(|_| json.into()))
        })
    }

    /// Follows up to so many redirects; none without it, so that whoever passes requests on passes these on, too.
    ///
    /// A request with a body follows as far as its method stays the same (307, 308) only if the body is known in full. To
    /// another server go neither `authorization` nor `cookie`. Each of the places must be granted. Cookies that an answer
    /// sets are not kept.
    ///
    /// ```
    /// # use wasmcluster_guest::{IntoResponse, Request, Response, Result, fetch, testing::Host};
    /// async fn handle(_: Request) -> Result<Response> {
    ///     fetch::get("http://old.example/").follow_redirects(5).await
    /// }
    /// # let host = Host::new().on_fetch(|request| async move {
    /// #     match request.uri().host() {
    /// #         Some("old.example") => (http::StatusCode::FOUND, [(http::header::LOCATION, "//new.example/a")], ()).into_response(),
    /// #         _ => request.uri().to_string().into_response(),
    /// #     }
    /// # });
    /// # assert_eq!(host.call(handle, Request::default()).text(), "http://new.example/a");
    /// ```
    pub fn follow_redirects(mut self, most: usize) -> Self {
        self.redirects = Some((most, redirect));
        self
    }

    /// How long the head of the response may take, that of the last if redirects are followed. Without it, the server's
    /// limits apply.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the response's body may pause between chunks.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    async fn send(self) -> Result<Response, FetchError> {
        let sending = follow(self.request?, self.redirects, self.idle_timeout);
        match self.timeout {
            None => sending.await,
            Some(timeout) => time::timeout(timeout, sending).await.unwrap_or(Err(FetchError::TimedOut)),
        }
    }
}

/// Sends a request, and those that it is redirected to.
async fn follow(
    request: Request,
    redirects: Option<(usize, Redirect)>,
    idle_timeout: Option<Duration>,
) -> Result<Response, FetchError> {
    let Some((most, redirect)) = redirects else { return send_one(request, idle_timeout).await };
    let (mut head, mut body) = request.into_parts();
    for left in (0..=most).rev() {
        // What was sent is gone, unless it is known.
        let kept = if left > 0 { body.copy() } else { None };
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (head.method.clone(), head.uri.clone());
        *request.headers_mut() = head.headers.clone();
        let response = send_one(request, idle_timeout).await?;
        body = match (redirect(&mut head, response.status(), response.headers()), kept) {
            (None, _) => return Ok(response),
            (Some(_), _) if left == 0 => return Err(FetchError::Redirected(most)),
            (Some(NextBody::None), _) => Body::empty(),
            (Some(NextBody::Same), Some(kept)) => kept,
            (Some(NextBody::Same), None) => return Ok(response),
        };
    }
    Err(FetchError::Redirected(most))
}

async fn send_one(mut request: Request, idle_timeout: Option<Duration>) -> Result<Response, FetchError> {
    let uri = request.uri();
    if uri.authority().is_none() || uri.scheme().is_none() {
        return Err(FetchError::Invalid(format!("its URI must be absolute, but is {uri:?}")));
    }
    hop_by_hop(request.headers_mut());
    #[cfg(feature = "tracing")]
    crate::trace::leave(request.headers_mut());
    let mut response = host::fetch(request, idle_timeout).await?;
    hop_by_hop(response.headers_mut());
    Ok(response.map(Body::fetched))
}

impl IntoFuture for Fetch {
    type Output = Result<Response>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Response>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.send().await?) })
    }
}

/// Why there was no response.
///
/// ```
/// # use wasmcluster_guest::fetch::{self, FetchError};
/// # use wasmcluster_guest::{Request, Response, Result, testing};
/// async fn handle(_: Request) -> Result<&'static str> {
///     match fetch::get("http://upstream.example/").await {
///         Ok(_) => Ok("up"),
///         Err(error) if matches!(error.downcast_ref(), Some(FetchError::TimedOut)) => Ok("slow"),
///         Err(error) => Err(error),
///     }
/// }
/// # assert_eq!(testing::call(handle, Request::default()).status(), 500);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchError {
    /// The request is not valid, and was not sent.
    Invalid(String),
    /// The server does not allow requests there.
    Denied(String),
    /// It took longer than its timeout, or than the server allows.
    TimedOut,
    /// It was redirected more often than it was to follow.
    Redirected(usize),
    /// It failed: the name of the error in WASI.
    Failed(String),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) => write!(f, "the request cannot be sent: {reason}"),
            Self::Denied(place) => {
                write!(f, "the server does not allow requests to {place}; grant them with --allow-host {place}")
            }
            Self::TimedOut => f.write_str("the request took too long"),
            Self::Redirected(most) => write!(f, "the request was redirected more than {most} times"),
            Self::Failed(reason) => write!(f, "the request failed: {reason}"),
        }
    }
}

impl std::error::Error for FetchError {}

/// Where a request goes, as `--allow-host` names it.
pub(crate) fn place(uri: &Uri) -> String {
    format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |authority| authority.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Host;

    #[track_caller]
    fn check(fetch: Fetch, expected: &str) {
        let host = Host::new().on_fetch(|_| async { "sent" });
        let error = host.block_on(fetch.into_future()).expect_err("must not be sent");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_cannot_be_sent_says_why() {
        check(get("a b"), "the request cannot be sent: its URI is not valid");
        check(get("/path"), "the request cannot be sent: its URI must be absolute, but is /path");
        check(get("http://h/").header("a b", "1"), "the request cannot be sent: one of its headers is not valid");
    }

    /// The servers that were asked, and how.
    fn asked(fetch: Fetch) -> (Vec<String>, Result<String>) {
        let asked = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let seen = asked.clone();
        let host = Host::new().on_fetch(move |request| {
            let seen = seen.clone();
            async move {
                let (method, uri) = (request.method().clone(), request.uri().clone());
                let body = request.into_body().text(64).await.unwrap();
                seen.borrow_mut().push(format!("{method} {} {body}", uri.path()));
                let status: u16 = uri.path()[1..4].parse().unwrap();
                let next = uri.path().get(4..).filter(|next| !next.is_empty()).unwrap_or("/200");
                let response = Response::builder().status(status).header("location", next);
                response.body(Body::from(status.to_string())).unwrap()
            }
        });
        let ended = host.block_on(async { fetch.await?.into_body().text(64).await });
        (asked.take(), ended)
    }

    #[test]
    fn redirects_are_followed_when_that_is_asked_for() {
        let check = |fetch: Fetch, expected: &[&str], answer: Result<&str, &str>| {
            let (asked, ended) = asked(fetch);
            assert_eq!(asked, expected);
            assert_eq!(ended.as_deref().map_err(ToString::to_string), answer.map_err(str::to_owned));
        };
        check(get("http://h/302"), &["GET /302 "], Ok("302"));
        check(get("http://h/302/307").follow_redirects(2), &["GET /302/307 ", "GET /307 ", "GET /200 "], Ok("200"));
        let most = "the request was redirected more than 1 times";
        check(get("http://h/302/307").follow_redirects(1), &["GET /302/307 ", "GET /307 "], Err(most));
        let post = |uri: &str| post(uri).body("text").follow_redirects(3);
        check(post("http://h/307/308"), &["POST /307/308 text", "POST /308 text", "POST /200 text"], Ok("200"));
        check(post("http://h/303"), &["POST /303 text", "GET /200 "], Ok("200"));
        // What streams is gone.
        let streamed = post("http://h/307").body(Body::from_writer(async |mut out| out.write("text").await));
        check(streamed, &["POST /307 text"], Ok("307"));
    }

    #[test]
    fn a_slow_server_is_not_waited_for() {
        let host = Host::new().on_fetch(|_| async { time::sleep(Duration::from_secs(9)).await });
        let slow = host.block_on(get("http://h/").timeout(Duration::from_secs(3)).into_future());
        assert_eq!(slow.expect_err("late").downcast_ref(), Some(&FetchError::TimedOut));
        let patient = host.block_on(get("http://h/").timeout(Duration::from_secs(10)).into_future());
        assert_eq!(patient.expect("in time").status(), 200);
    }
}
