//! Sign-in state: a cookie with a random number, and behind that number what is known of the visitor, in a key-value store.
//!
//! Who it is, is believed here. A real application asks for a password, or sends visitors to whoever knows them (OpenID
//! Connect), and then does the same.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use wasmcluster_guest::http::{Method, StatusCode, header};
use wasmcluster_guest::kv::{self, Store};
use wasmcluster_guest::{Html, IntoResponse, Request, Response, Result, random};

const COOKIE: &str = "session";
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of the form.
const MAX_FORM: usize = 4096;

#[derive(Debug, Deserialize, Serialize)]
struct Session {
    name: String,
    /// Seconds since 1970.
    ends: u64,
    visits: u64,
}

#[derive(Deserialize)]
struct SignIn {
    name: String,
}

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    let store = kv::open("default").await?;
    let token = token(&request).map(str::to_owned);
    Ok(match (request.method().clone(), request.uri().path()) {
        (Method::GET, "/") => page(&store, token.as_deref()).await?,
        (Method::POST, "/sign-in") => sign_in(&store, request).await?,
        (Method::POST, "/sign-out") => {
            if let Some(token) = token {
                store.delete(&key(&token)).await?;
            }
            back(&format!("{COOKIE}=; Path=/; Max-Age=0"))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Whoever knows the key of a session has it: it is a random number, which only the visitor's browser is told.
fn key(token: &str) -> String {
    format!("session:{token}")
}

/// What the browser says, if it is a number as ours are.
fn token(request: &Request) -> Option<&str> {
    let cookies = request.headers().get_all(header::COOKIE).into_iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, token) = pairs.find(|(name, _)| *name == COOKIE)?;
    (token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(token)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn page(store: &Store, token: Option<&str>) -> Result<Response> {
    let session = match token {
        // Nobody else's visit is lost, whichever worker counts it.
        Some(token) => {
            let visit = |session: Option<Session>| {
                let session = session.filter(|session| session.ends > now())?;
                Some(Session { visits: session.visits + 1, ..session })
            };
            store.update(&key(token), visit).await?
        }
        None => None,
    };
    let body = match session {
        Some(Session { name, visits, .. }) => format!(
            "<p>Hello, {}. This is your visit number {visits}.</p>\
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escaped(&name)
        ),
        None => "<form method=post action=/sign-in><input name=name placeholder=Name required>\
                 <button>Sign in</button></form>"
            .into(),
    };
    Ok(Html(format!("<!doctype html><meta charset=utf-8><title>Sessions</title>{body}\n")).into_response())
}

async fn sign_in(store: &Store, request: Request) -> Result<Response> {
    let form = request.into_body().text(MAX_FORM).await?;
    let Ok(SignIn { name }) = serde_urlencoded::from_str(&form) else {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, "the name is missing\n").into_response());
    };
    let mut number = [0; 32];
    random::fill(&mut number);
    let token = number.iter().fold(String::new(), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    });
    store.set(&key(&token), &Session { name, ends: now() + LIFETIME.as_secs(), visits: 0 }).await?;
    let age = LIFETIME.as_secs();
    Ok(back(&format!("{COOKIE}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax")))
}

/// Sends the browser to the page, with a cookie.
fn back(cookie: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/"), (header::SET_COOKIE, cookie)], ()).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::testing::{Answer, Host};

    use super::*;

    fn ask(host: &Host, method: &str, path: &str, cookie: &str, body: &'static str) -> Answer {
        let request = Request::builder().method(method).uri(path).header(header::COOKIE, cookie);
        host.call(handle, request.body(body.into()).expect("a request"))
    }

    #[test]
    fn a_visitor_is_known_until_signed_out() {
        let host = Host::new();
        assert!(ask(&host, "GET", "/", "", "").text().contains("Sign in"));
        let signed_in = ask(&host, "POST", "/sign-in", "", "name=Ada+%3Cb%3E");
        assert_eq!(signed_in.status(), 303);
        let cookie =
            signed_in.headers()["set-cookie"].to_str().expect("text").split(';').next().expect("one").to_owned();
        for visit in 1..=3 {
            let page = ask(&host, "GET", "/", &format!("other=1; {cookie}"), "");
            assert!(page.text().contains(&format!("Hello, Ada &lt;b>. This is your visit number {visit}.")));
        }
        assert_eq!(ask(&host, "POST", "/sign-out", &cookie, "").status(), 303);
        assert!(ask(&host, "GET", "/", &cookie, "").text().contains("Sign in"));
    }

    #[test]
    fn what_is_no_session_of_ours_is_none() {
        let host = Host::new();
        for cookie in ["session=", "session=x", &format!("session={}", "0".repeat(64)), "session=../last-id"] {
            assert!(ask(&host, "GET", "/", cookie, "").text().contains("Sign in"), "{cookie}");
        }
        assert_eq!(ask(&host, "POST", "/sign-in", "", "x=1").status(), 422);
        assert_eq!(ask(&host, "GET", "/other", "", "").status(), 404);
    }
}
