//! What the hostile guests have in common: the misbehaviour that does not depend on the version of HTTP, and the answers
//! that are wrong in their head or length. WASI 0.2 interfaces serve both guests; what sends an answer or a request is
//! the guests' own.

mod files;
mod memory;
mod metrics;
mod network;
mod query;
mod surroundings;

pub use memory::{Taken, spin, take};
pub use network::{Fetch, Url, summary};
pub use query::{Query, split};

/// An answer to send as it stands, however wrong it is.
#[derive(Debug)]
pub struct Answer {
    /// Any number: the interface may refuse it.
    pub status: u16,
    /// Names and values.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Sent whatever the fields say of its length.
    pub body: Vec<u8>,
}

/// What went well, or the interface's own error as [`debug`] words it.
pub type Outcome = Result<String, String>;

/// The interface's own error, so that a test can see which one it was.
pub fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

impl Answer {
    /// A short text; an error becomes `error: …`. Both are 200: the handler ended well.
    pub fn of(outcome: Outcome) -> Self {
        let body = outcome.unwrap_or_else(|error| format!("error: {error}")).into_bytes();
        let fields = vec![field("content-type", "text/plain"), field("content-length", &body.len().to_string())];
        Self { status: 200, fields, body }
    }

    /// A text without a length said before.
    pub fn with_fields(fields: Vec<(String, Vec<u8>)>, body: &str) -> Self {
        Self { status: 200, fields, body: body.into() }
    }
}

/// One header field.
pub fn field(name: &str, value: &str) -> (String, Vec<u8>) {
    (name.into(), value.into())
}

/// Answers every path that is not the guest's own.
pub fn answer(path: &str, query: &Query) -> Answer {
    Answer::of(match path {
        "/" => Ok("hello".into()),
        "/large" => Ok("x".repeat(query.number("bytes", 1 << 20) as usize)),
        "/spin" => spin(),
        "/trap" => panic!("asked to trap"),
        "/grow-memory" => memory::grow_until_it_fails(),
        "/touch-last" => memory::touch_last(query.number("mib", 1)),
        "/recurse" => memory::recurse(),
        "/secret" => memory::secret(query.text("set")),
        "/leak-pollables" => surroundings::leak_pollables(),
        "/giant-random" => surroundings::giant_random(query.number("mib", 1024)),
        "/giant-write" => surroundings::giant_write(query.number("mib", 64)),
        "/exit" => surroundings::exit(query.number("code", 0)),
        "/env" => surroundings::env(query.text("name").unwrap_or_default()),
        "/env-all" => Ok(surroundings::env_all()),
        "/flood" => surroundings::flood(query.number("lines", 1_000_000)),
        "/flood-partial" => surroundings::flood_partial(query.number("bytes", 1 << 30)),
        "/times" => Ok(times(query)),
        "/read" => files::read(query.text("path").unwrap_or_default()),
        "/read-at" => files::read_at(query.number("dir", 0), query.text("path").unwrap_or_default()),
        "/write" => files::write(query.text("path").unwrap_or_default(), query.text("text").unwrap_or_default()),
        "/list" => files::list(query.text("path").unwrap_or_default()),
        "/link" => files::link(query.text("from").unwrap_or_default(), query.text("to").unwrap_or_default()),
        "/metric" => Ok(metrics::update(query)),
        "/many-metrics" => Ok(metrics::many(query.number("n", 10_000))),
        "/giant-metric" => Ok(metrics::giant(query.number("mib", 8))),
        "/preopens" => Ok(files::preopens()),
        "/tcp" => network::tcp(query.text("addr").unwrap_or_default()),
        "/tcp-then-spin" => network::many_tcp(query.text("addr").unwrap_or_default(), 1).and_then(|_| spin()),
        "/tcp-then-trap" => {
            let _kept = network::many_tcp(query.text("addr").unwrap_or_default(), 1);
            panic!("asked to trap")
        }
        "/many-tcp" => network::many_tcp(query.text("addr").unwrap_or_default(), query.number("n", 1)),
        "/reach" => network::reach(query),
        "/listen" => network::listen(query.text("addr").unwrap_or_default()),
        "/udp" => network::udp(query.text("addr").unwrap_or_default()),
        "/resolve" => network::resolve(query.text("name").unwrap_or_default()),
        _ => return wrong_head(path, query),
    })
}

/// Odd times, asked of the clocks of 0.2, and given to the file at `path=` if that is there. Begins with `ok`.
pub fn times(query: &Query) -> String {
    surroundings::odd_times();
    format!("ok{}", query.text("path").map(files::odd_times).unwrap_or_default())
}

/// Answers with a length that the body does not have, or with fields and a status that should be refused.
fn wrong_head(path: &str, query: &Query) -> Answer {
    match path {
        "/short-body" => {
            // Too much to be looked at before it is sent, if that is asked for.
            let body = "0123456789".repeat(query.number("tens", 1) as usize);
            Answer::with_fields(vec![field("content-length", &(body.len() + 90).to_string())], &body)
        }
        "/long-body" => Answer::with_fields(vec![field("content-length", "5")], "0123456789"),
        "/two-lengths" => {
            Answer::with_fields(vec![field("content-length", "5"), field("content-length", "6")], "01234")
        }
        // What is wrong with these harms nobody.
        "/no-content" => Answer { status: 204, ..Answer::with_fields(vec![field("content-length", "0")], "") },
        "/not-modified" => Answer { status: 304, ..Answer::with_fields(vec![field("etag", "\"1\"")], "") },
        "/same-lengths" => {
            Answer::with_fields(vec![field("content-length", "5"), field("content-length", "5")], "01234")
        }
        "/bad-length" => Answer::with_fields(vec![field("content-length", "abc")], "0123456789"),
        "/status" => {
            let code = query.number("code", 200);
            Answer { status: u16::try_from(code).unwrap_or(u16::MAX), ..Answer::with_fields(vec![], "a status") }
        }
        "/many-fields" => Answer::with_fields(fields(query.number("n", 1000)), "many fields"),
        "/large-field" => {
            let value = "x".repeat(query.number("bytes", 1 << 20) as usize);
            Answer::with_fields(vec![field("x-large", &value)], "a large field")
        }
        "/split-field" => Answer::with_fields(vec![field("x-split", "1\r\nx-injected: 1")], "a split field"),
        "/forbidden-field" => {
            let name = query.text("name").unwrap_or("connection".into());
            Answer::with_fields(vec![field(&name, "close")], "not forbidden")
        }
        _ => Answer { status: 404, ..Answer::of(Ok("no such path".into())) },
    }
}

/// Nearly as much as a set of fields may hold.
pub fn large_field() -> Vec<(String, Vec<u8>)> {
    vec![field("x-large", &"v".repeat(90 * 1024))]
}

/// So many small fields, each with a name of its own.
pub fn fields(count: u64) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|n| field(&format!("x-{n}"), "1")).collect()
}

/// One field with a value of that many MiB.
pub fn giant_field(query: &Query) -> Vec<(String, Vec<u8>)> {
    vec![("x-giant".into(), vec![b'x'; (query.number("mib", 64) as usize) << 20])]
}
