//! Values of a handler's own types, read from requests.

use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::response::typed;
use crate::{Body, Error, IntoResponse, Request, Response, Result};

/// A value as JSON, read from a body or returned as an answer.
///
/// ```
/// # use wasmcluster_guest::testing;
/// use wasmcluster_guest::{Json, Request, Result};
///
/// async fn sum(request: Request) -> Result<Json<u64>> {
///     let Json(numbers) = Json::<Vec<u64>>::read(request, 64 * 1024).await?;
///     Ok(Json(numbers.iter().sum()))
/// }
/// # assert_eq!(testing::call(sum, Request::post("/").body("[1,2]".into()).unwrap()).text(), "3");
/// # assert_eq!(testing::call(sum, Request::post("/").body("[1,".into()).unwrap()).status(), 400);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> Json<T> {
    /// The body of a request, or of a response, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Those of [`Body::bytes`]; one with status 400 when the body is not JSON that makes a `T`, or 502 where the body is
    /// that of a response which was [fetched](crate::fetch). The content type is ignored.
    pub async fn read(message: impl HasBody, limit: usize) -> Result<Self> {
        let body = message.body();
        let status = body.blame(StatusCode::BAD_REQUEST);
        match serde_json::from_slice(&body.bytes(limit).await?) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Error::new(status, format!("the body is not the expected JSON: {error}"))),
        }
    }
}

/// What has a body to read.
///
/// ```
/// use wasmcluster_guest::Json;
/// # wasmcluster_guest::testing::block_on(async {
/// let body = wasmcluster_guest::Body::from("[1]");
/// assert_eq!(Json::<[u8; 1]>::read(body, 64).await.unwrap(), Json([1]));
/// # });
/// ```
pub trait HasBody {
    /// The body.
    fn body(self) -> Body;
}

impl HasBody for Body {
    fn body(self) -> Body {
        self
    }
}

impl HasBody for Request {
    fn body(self) -> Body {
        self.into_body()
    }
}

impl HasBody for Response {
    fn body(self) -> Body {
        self.into_body()
    }
}

/// JSON with status 200, or a 500 if the value cannot be JSON, such as a map whose keys are not strings.
impl<T: Serialize> IntoResponse for Json<T> {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(json) => typed("application/json", json),
            Err(error) => Error::from(error).into_response(),
        }
    }
}

/// The query of a request's URI, as `application/x-www-form-urlencoded`.
///
/// ```
/// use serde::Deserialize;
/// use wasmcluster_guest::{Query, Request, Result};
///
/// #[derive(Deserialize)]
/// struct Page {
///     #[serde(default)]
///     number: u32,
/// }
///
/// async fn page(request: Request) -> Result<String> {
///     let Query(page) = Query::<Page>::of(&request)?;
///     Ok(format!("page {}", page.number))
/// }
/// # let call = |uri| wasmcluster_guest::testing::call(page, Request::get(uri).body(().into()).unwrap());
/// # assert_eq!(call("/?number=2").text(), "page 2");
/// # assert_eq!(call("/?number=x").status(), 400);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> Query<T> {
    /// The query of `request`. A missing query counts as an empty one.
    ///
    /// # Errors
    ///
    /// One with status 400 when the query is not a `T`.
    pub fn of<B>(request: &Request<B>) -> Result<Self> {
        form(request.uri().query().unwrap_or_default(), "the query").map(Self)
    }
}

/// The parts of a request's path that a pattern names, decoded.
///
/// A pattern is a path as in axum: `{name}` stands for one segment, `{*name}` at the end for all that are left, at least
/// one. `T` is a struct with fields of these names, or a map.
///
/// ```
/// use serde::Deserialize;
/// use wasmcluster_guest::{IntoResponse, Path, Request, Response, Result};
/// use wasmcluster_guest::http::StatusCode;
///
/// #[derive(Deserialize)]
/// struct User {
///     id: u32,
/// }
///
/// async fn handle(request: Request) -> Result<Response> {
///     if let Some(Path(user)) = Path::<User>::of("/users/{id}", &request)? {
///         return Ok(format!("user {}", user.id).into_response());
///     }
///     Ok(StatusCode::NOT_FOUND.into_response())
/// }
/// # let call = |uri| wasmcluster_guest::testing::call(handle, Request::get(uri).body(().into()).unwrap());
/// # assert_eq!(call("/users/7").text(), "user 7");
/// # assert_eq!(call("/users/x").status(), 400);
/// # assert_eq!(call("/users/7/x").status(), 404);
/// ```
///
/// For more than a few routes there is the feature `axum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned> Path<T> {
    /// What `pattern` names in the path of `request`; `None` if the path does not match.
    ///
    /// # Errors
    ///
    /// One with status 400 when the path matches, but its values are not a `T`.
    pub fn of<B>(pattern: &str, request: &Request<B>) -> Result<Option<Self>> {
        match captures(pattern, request.uri().path()) {
            Some(captures) => form(&captures, "the path").map(|value| Some(Self(value))),
            None => Ok(None),
        }
    }
}

fn form<T: DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    serde_urlencoded::from_str(text)
        .map_err(|error| Error::new(StatusCode::BAD_REQUEST, format!("{what} is not as expected: {error}")))
}

/// What `pattern` names in `path`, as a form.
fn captures(pattern: &str, path: &str) -> Option<String> {
    let mut form = String::new();
    let mut left = Some(path);
    for expected in pattern.split('/') {
        let here = left?;
        let name = expected.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
        if let Some(name) = name.and_then(|name| name.strip_prefix('*')) {
            (!here.is_empty()).then(|| push(&mut form, name, here))?;
            left = None;
            continue;
        }
        let (segment, rest) = here.split_once('/').map_or((here, None), |(segment, rest)| (segment, Some(rest)));
        match name {
            Some(name) => (!segment.is_empty()).then(|| push(&mut form, name, segment))?,
            None if segment != expected => return None,
            None => {}
        }
        left = rest;
    }
    left.is_none().then_some(form)
}

/// A segment is encoded as a form is, but for the characters that mean something there.
fn push(form: &mut String, name: &str, value: &str) {
    if !form.is_empty() {
        form.push('&');
    }
    form.push_str(name);
    form.push('=');
    form.push_str(&value.replace('+', "%2B").replace('&', "%26"));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: Option<&[(&str, &str)]>) {
        let request = Request::get(path).body(()).expect("a path");
        let found = Path::<BTreeMap<String, String>>::of(pattern, &request).expect("a map takes all");
        let expected =
            expected.map(|pairs| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
        assert_eq!(found.map(|Path(map)| map), expected, "{pattern} {path}");
    }

    #[test]
    fn patterns_fit_whole_paths() {
        check("/", "/", Some(&[]));
        check("/", "/a", None);
        check("/a", "/a", Some(&[]));
        check("/a", "/a/", None);
        check("/a/", "/a", None);
        check("/{x}", "/a", Some(&[("x", "a")]));
        check("/{x}", "/", None);
        check("/{x}", "/a/b", None);
        check("/{x}/c/{y}", "/a/c/b", Some(&[("x", "a"), ("y", "b")]));
        check("/f/{*rest}", "/f/a/b", Some(&[("rest", "a/b")]));
        check("/f/{*rest}", "/f/", None);
        check("/f/{*rest}", "/f", None);
    }

    #[test]
    fn segments_are_decoded() {
        check("/{x}", "/a%20b", Some(&[("x", "a b")]));
        check("/{x}", "/a+b&c=d", Some(&[("x", "a+b&c=d")]));
        check("/{x}", "/%2F%26", Some(&[("x", "/&")]));
    }
}
