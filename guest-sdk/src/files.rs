//! Files of a folder that was granted: `wasmcluster serve --dir ./public::/public:ro app.wasm`.
//!
//! What the client has already is not sent again (`if-none-match`, `if-modified-since`), a part is sent alone if that is
//! asked for (`range`), and a file that has a compressed neighbour (`app.js.br`, `app.js.zst`, `app.js.gz`) is sent as that to
//! clients that take it. Follows RFC 9110, sections 12 to 14.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
    LOCATION, RANGE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_range_header::{RangeUnsatisfiableError, parse_range_header};

use crate::{Body, IntoResponse, Response};

/// Bytes of a file that are read at a time.
const CHUNK: usize = 32 * 1024;
/// What a folder is answered with, if it has that.
const INDEX: &str = "index.html";
/// Hidden files are not served, but this folder is (RFC 8615).
const WELL_KNOWN: &str = ".well-known";
/// Encodings of compressed neighbours, the best first, and how their names end.
const ENCODINGS: [(&str, &str); 3] = [("br", "br"), ("zstd", "zst"), ("gzip", "gz")];

/// Answers with the file at `path` below `folder`, which is a path of the guest's. `path` is that of a URI, as it came or
/// without what stands in front of the files.
///
/// A file counts as changed when its length or the time of its last change does: do not set that to one and the same time for
/// all versions, as some tools for reproducible images do.
///
/// A folder is answered with its `index.html`. What is not there, is hidden (`.env`), or would be outside of the folder, is
/// 404; a method other than GET and HEAD is 405.
///
/// ```
/// use wasmcluster_guest::{Request, Response, files};
///
/// async fn handle(request: Request) -> Response {
///     match request.uri().path().strip_prefix("/static/") {
///         Some(path) => files::serve("/public", path, &request),
///         None => Response::new("hello".into()),
///     }
/// }
/// # use wasmcluster_guest::testing;
/// # let request = Request::get("/static/../secret").body(().into()).unwrap();
/// # assert_eq!(testing::call(handle, request).status(), 404);
/// ```
pub fn serve<B>(folder: impl AsRef<Path>, path: &str, request: &Request<B>) -> Response {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], ()).into_response();
    }
    let Some(mut place) = below(folder.as_ref(), path) else { return StatusCode::NOT_FOUND.into_response() };
    if std::fs::metadata(&place).is_ok_and(|found| found.is_dir()) {
        if !request.uri().path().ends_with('/') {
            return to_folder(request.uri());
        }
        place.push(INDEX);
    } else if path.ends_with('/') {
        return StatusCode::NOT_FOUND.into_response();
    }
    match Found::open(&place, request.headers()) {
        Ok(found) => found.answer(request),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied) =>
        {
            StatusCode::NOT_FOUND.into_response()
        }
        Err(error) => crate::Error::from(error).into_response(),
    }
}

/// A folder is asked for with a slash, so that relative links in its page lead below it.
fn to_folder(uri: &Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    // Two slashes would begin the name of another host.
    let location = format!("/{}/{query}", uri.path().trim_start_matches(['/', '\\']));
    match HeaderValue::try_from(location) {
        Ok(location) => (StatusCode::MOVED_PERMANENTLY, [(LOCATION, location)], ()).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The path of a file, if it is one that may be served.
fn below(folder: &Path, path: &str) -> Option<PathBuf> {
    let decoded = decode(path)?;
    let mut place = folder.to_owned();
    for part in decoded.split('/').filter(|part| !part.is_empty()) {
        if (part.starts_with('.') && part != WELL_KNOWN) || part.contains(['\0', '\\']) {
            return None;
        }
        place.push(part);
    }
    Some(place)
}

/// What a path of a URI means; `None` if it is not text.
fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok().filter(|digits| !digits.starts_with('+'))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
        }
    }
    // One that is decoded would be a separator where none was.
    String::from_utf8(bytes).ok().filter(|decoded| decoded.matches('/').count() == path.matches('/').count())
}

/// A file, or its compressed neighbour.
struct Found {
    file: File,
    length: u64,
    modified: SystemTime,
    encoding: Option<&'static str>,
    content_type: String,
    /// It could have been another.
    varies: bool,
}

impl Found {
    fn open(place: &Path, headers: &HeaderMap) -> std::io::Result<Self> {
        let (plain, metadata) = open(place)?;
        let content_type = content_type(place);
        let neighbours: Vec<_> =
            ENCODINGS.iter().filter_map(|(name, end)| Some((*name, open(&beside(place, end)).ok()?))).collect();
        let varies = !neighbours.is_empty();
        // Parts are of the file itself.
        let accepted = if headers.contains_key(RANGE) { None } else { Some(Accepted::of(headers)) };
        let best =
            neighbours.into_iter().filter_map(|(name, found)| Some((accepted.as_ref()?.weight(name)?, name, found)));
        let (encoding, file, metadata) = match best.reduce(|best, other| if other.0 > best.0 { other } else { best }) {
            Some((_, name, (file, metadata))) => (Some(name), file, metadata),
            None => (None, plain, metadata),
        };
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Self { file, length: metadata.len(), modified, encoding, content_type, varies })
    }

    fn answer<B>(self, request: &Request<B>) -> Response {
        let tag = self.tag();
        let mut headers = self.headers(&tag);
        let with = |status: StatusCode, headers: HeaderMap| {
            let mut response = Response::new(Body::empty());
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            response
        };
        let conditions = Conditions { headers: request.headers(), tag: &tag, modified: self.modified };
        match conditions.check() {
            Some(StatusCode::NOT_MODIFIED) => {
                headers.remove(CONTENT_TYPE);
                headers.remove(CONTENT_ENCODING);
                return with(StatusCode::NOT_MODIFIED, headers);
            }
            Some(status) => return status.into_response(),
            None => {}
        }
        let range = match conditions.range(self.length) {
            Ok(range) => range,
            Err(()) => {
                let range = format!("bytes */{}", self.length);
                return (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, range)], ()).into_response();
            }
        };
        let (status, first, length) = match range {
            Some(range) => {
                let (first, last) = range.into_inner();
                insert(&mut headers, CONTENT_RANGE, format!("bytes {first}-{last}/{}", self.length));
                (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
            }
            None => (StatusCode::OK, 0, self.length),
        };
        headers.insert(CONTENT_LENGTH, length.into());
        let mut response = with(status, headers);
        if request.method() == Method::GET {
            *response.body_mut() = part(self.file, first, length);
        }
        response
    }

    /// By the time of the last change and the length.
    fn tag(&self) -> String {
        let time = match self.modified.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(age) => format!("{:x}", age.as_nanos()),
            Err(before) => format!("-{:x}", before.duration().as_nanos()),
        };
        let encoding = self.encoding.map(|name| format!("-{name}")).unwrap_or_default();
        format!("\"{time}-{:x}{encoding}\"", self.length)
    }

    fn headers(&self, tag: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        insert(&mut headers, CONTENT_TYPE, self.content_type.clone());
        insert(&mut headers, ETAG, tag.to_owned());
        insert(&mut headers, LAST_MODIFIED, httpdate::fmt_http_date(self.modified));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(encoding) = self.encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
        } else {
            headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        if self.varies {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        headers
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

fn open(place: &Path) -> std::io::Result<(File, Metadata)> {
    // Before it is opened: that of a pipe would wait for somebody who writes.
    if !std::fs::metadata(place)?.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    let file = File::open(place)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// The file of the same name with a further ending.
fn beside(place: &Path, end: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn content_type(place: &Path) -> String {
    let guessed = mime_guess::from_path(place).first_or_octet_stream();
    let is_text =
        guessed.type_() == "text" || ["javascript", "json", "xml"].iter().any(|kind| guessed.subtype() == *kind);
    if is_text { format!("{guessed}; charset=utf-8") } else { guessed.to_string() }
}

/// So many bytes of a file, read as they are sent.
fn part(mut file: File, first: u64, length: u64) -> Body {
    Body::from_writer(async move |mut out| {
        if first > 0 {
            file.seek(SeekFrom::Start(first))?;
        }
        let mut left = length;
        while left > 0 {
            let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            let read = file.read(&mut chunk)?;
            if read == 0 {
                return Err("the file became shorter while it was sent".into());
            }
            chunk.truncate(read);
            left -= read as u64;
            out.write(Bytes::from(chunk)).await?;
        }
        Ok(())
    })
}

/// Encodings that a client takes, with their weights in thousandths (RFC 9110, section 12.5.3).
struct Accepted(Vec<(String, u16)>);

impl Accepted {
    fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let codings = values.flat_map(|value| value.split(',')).map(|coding| {
            let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
            let weight =
                parameters.trim().strip_prefix("q=").map_or(Some(1.0), |weight| weight.trim().parse::<f32>().ok());
            (name.trim().to_ascii_lowercase(), (weight.unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0) as u16)
        });
        Self(codings.collect())
    }

    /// `None` if it is not taken.
    fn weight(&self, encoding: &str) -> Option<u16> {
        let named = |name: &str| self.0.iter().find(|(coding, _)| coding == name).map(|(_, weight)| *weight);
        named(encoding).or_else(|| named("*")).filter(|weight| *weight > 0)
    }
}

/// What a client says of what it has (RFC 9110, sections 13 and 14).
struct Conditions<'a> {
    headers: &'a HeaderMap,
    tag: &'a str,
    modified: SystemTime,
}

impl Conditions<'_> {
    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn date(&self, name: HeaderName) -> Option<SystemTime> {
        httpdate::parse_http_date(self.text(name)?).ok()
    }

    /// Whether a list of tags has ours. Of a weak one only what it says of is compared, if that will do.
    fn lists(&self, name: HeaderName, weakly: bool) -> Option<bool> {
        let mut tags = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).peekable();
        tags.peek()?;
        let is_ours = |tag: &str| tag == "*" || tag == self.tag || (weakly && tag.strip_prefix("W/") == Some(self.tag));
        Some(tags.flat_map(|value| value.split(',')).any(|tag| is_ours(tag.trim())))
    }

    /// The time of the file, as dates say it.
    fn second(&self) -> u64 {
        second(self.modified)
    }

    /// The status, if the file is not to be sent.
    fn check(&self) -> Option<StatusCode> {
        let is_as_expected = self
            .lists(IF_MATCH, false)
            .or_else(|| self.date(IF_UNMODIFIED_SINCE).map(|date| self.second() <= second(date)));
        if is_as_expected == Some(false) {
            return Some(StatusCode::PRECONDITION_FAILED);
        }
        let is_known = self
            .lists(IF_NONE_MATCH, true)
            .or_else(|| self.date(IF_MODIFIED_SINCE).map(|date| self.second() <= second(date)));
        (is_known == Some(true)).then_some(StatusCode::NOT_MODIFIED)
    }

    /// The one part that is asked for; an error if there is none such. Several are sent as the whole.
    fn range(&self, length: u64) -> Result<Option<RangeInclusive<u64>>, ()> {
        let Some(asked) = self.text(RANGE) else { return Ok(None) };
        let is_same = match (self.text(IF_RANGE), self.date(IF_RANGE)) {
            (None, _) => true,
            (Some(_), Some(date)) => self.second() == second(date),
            (Some(tag), None) => tag == self.tag,
        };
        let Some(parsed) = parse_range_header(asked).ok().filter(|_| is_same) else {
            return Ok(None);
        };
        match parsed.validate(length) {
            Ok(mut ranges) if ranges.len() == 1 => Ok(ranges.pop()),
            Err(RangeUnsatisfiableError::Unsatisfiable) => Err(()),
            _ => Ok(None),
        }
    }
}

fn second(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, call};

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(folder.0.path().join("public/sub/.well-known")).unwrap();
            folder.write("public/a.txt", "0123456789");
            folder.write("public/app.js", "plain");
            folder.write("public/app.js.gz", "gzipped");
            folder.write("public/app.js.br", "brotli");
            folder.write("public/sub/index.html", "<p>");
            folder.write("public/ä b.txt", "odd");
            folder.write("public/.env", "secret");
            folder.write("public/sub/.well-known/x", "known");
            folder.write("secret", "secret");
            folder
        }

        fn write(&self, path: &str, text: &str) {
            std::fs::write(self.0.path().join(path), text).unwrap();
        }

        fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let folder = self.0.path().join("public");
            let handle = move |request: crate::Request| {
                let answer = serve(&folder, request.uri().path(), &request);
                async { answer }
            };
            call(handle, request.body(Body::empty()).unwrap())
        }

        #[track_caller]
        fn check(&self, path: &str, headers: &[(&str, &str)], status: u16, text: &str) -> Answer {
            let answer = self.ask(Method::GET, path, headers);
            assert_eq!((answer.status().as_u16(), answer.text()), (status, text), "{path} {headers:?}");
            answer
        }
    }

    #[test]
    fn files_are_served_and_nothing_else() {
        let folder = Folder::new();
        let answer = folder.check("/a.txt", &[], 200, "0123456789");
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.headers()["content-length"], "10");
        folder.check("/sub/", &[], 200, "<p>");
        folder.check("//sub//index.html", &[], 200, "<p>");
        folder.check("/%C3%A4%20b.txt", &[], 200, "odd");
        folder.check("/sub/.well-known/x", &[], 200, "known");
        for path in [
            "/",
            "/none",
            "/a.txt/",
            "/a.txt/b",
            "/../secret",
            "/%2e%2e/secret",
            "/sub/..%2f..%2fsecret",
            "/..\\secret",
            "/.env",
            "/%2Eenv",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
            "/a.txt%00",
            "/sub/%2e",
            "/a%2ftxt",
        ] {
            let answer = folder.ask(Method::GET, path, &[]);
            assert_eq!(answer.status(), 404, "{path}");
        }
        let moved = folder.ask(Method::GET, "/sub?a", &[]);
        assert_eq!((moved.status().as_u16(), &moved.headers()["location"]), (301, &"/sub/?a".parse().unwrap()));
        let moved = folder.ask(Method::GET, "//sub", &[]);
        assert_eq!(moved.headers()["location"], "/sub/");
        let head = folder.ask(Method::HEAD, "/a.txt", &[]);
        assert_eq!((head.status().as_u16(), head.text(), &head.headers()["content-length"]), (200, "", &10.into()));
        let post = folder.ask(Method::POST, "/a.txt", &[]);
        assert_eq!((post.status().as_u16(), &post.headers()["allow"]), (405, &"GET, HEAD".parse().unwrap()));
    }

    #[test]
    fn what_a_client_has_is_not_sent_again() {
        let folder = Folder::new();
        let first = folder.ask(Method::GET, "/a.txt", &[]);
        let header = |name: &str| first.headers()[name].to_str().unwrap().to_owned();
        let (tag, date) = (header("etag"), header("last-modified"));
        for known in
            [("if-none-match", &*tag), ("if-none-match", &format!("\"x\", W/{tag}")), ("if-modified-since", &date)]
        {
            let answer = folder.check("/a.txt", &[known], 304, "");
            assert_eq!(answer.headers()["etag"], *tag);
        }
        let old = ("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT");
        folder.check("/a.txt", &[old], 200, "0123456789");
        // A tag counts more than a date.
        folder.check("/a.txt", &[("if-none-match", "\"x\""), ("if-modified-since", &date)], 200, "0123456789");
        let status = |headers: &[(&str, &str)]| folder.ask(Method::GET, "/a.txt", headers).status().as_u16();
        assert_eq!(status(&[("if-match", "\"x\"")]), 412);
        assert_eq!(status(&[("if-match", &tag)]), 200);
        assert_eq!(status(&[("if-unmodified-since", old.1)]), 412);
        std::fs::write(folder.0.path().join("public/a.txt"), "012345678").unwrap();
        folder.check("/a.txt", &[("if-none-match", &tag)], 200, "012345678");
    }

    #[test]
    fn a_part_is_sent_alone() {
        let folder = Folder::new();
        for (range, text, part) in [
            ("bytes=0-0", "0", "bytes 0-0/10"),
            ("bytes=2-4", "234", "bytes 2-4/10"),
            ("bytes=7-", "789", "bytes 7-9/10"),
            ("bytes=-2", "89", "bytes 8-9/10"),
            ("bytes=5-99", "56789", "bytes 5-9/10"),
        ] {
            let answer = folder.check("/a.txt", &[("range", range)], 206, text);
            assert_eq!(answer.headers()["content-range"], part);
            assert_eq!(answer.headers()["content-length"], text.len().to_string());
        }
        for whole in ["bytes=0-1,3-4", "bytes=0-5,3-8", "lines=1-2", "bytes=x", "bytes=4-2"] {
            folder.check("/a.txt", &[("range", whole)], 200, "0123456789");
        }
        let none = folder.ask(Method::GET, "/a.txt", &[("range", "bytes=10-")]);
        assert_eq!((none.status().as_u16(), &none.headers()["content-range"]), (416, &"bytes */10".parse().unwrap()));
        let tag = folder.ask(Method::GET, "/a.txt", &[]).headers()["etag"].to_str().unwrap().to_owned();
        folder.check("/a.txt", &[("range", "bytes=0-0"), ("if-range", &tag)], 206, "0");
        folder.check("/a.txt", &[("range", "bytes=0-0"), ("if-range", "\"old\"")], 200, "0123456789");
    }

    #[test]
    fn a_client_gets_the_encoding_that_it_likes() {
        let folder = Folder::new();
        for (accepted, text, encoding) in [
            ("gzip, br", "brotli", Some("br")),
            ("gzip", "gzipped", Some("gzip")),
            ("br;q=0.5, gzip;q=0.8", "gzipped", Some("gzip")),
            ("*", "brotli", Some("br")),
            ("br;q=0, *;q=0.1", "gzipped", Some("gzip")),
            ("zstd", "plain", None),
            ("identity", "plain", None),
            ("", "plain", None),
        ] {
            let answer = folder.check("/app.js", &[("accept-encoding", accepted)], 200, text);
            assert_eq!(answer.headers().get("content-encoding").map(|it| it.to_str().unwrap()), encoding, "{accepted}");
            assert_eq!(answer.headers()["content-type"], "text/javascript; charset=utf-8");
            assert_eq!(answer.headers()["vary"], "accept-encoding");
        }
        let part = folder.check("/app.js", &[("accept-encoding", "br"), ("range", "bytes=0-1")], 206, "pl");
        assert!(!part.headers().contains_key("content-encoding"));
        assert!(!folder.ask(Method::GET, "/a.txt", &[]).headers().contains_key("vary"));
    }
}
