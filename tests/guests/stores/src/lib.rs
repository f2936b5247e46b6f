//! Key-value stores: `/STORE/KEY`, `/STORE` for all of its keys, and `/` for an answer that asks no store. stores-p3 is the
//! same source for WASI 0.3.
//!
//! Values are JSON. Errors of a store have a status of their own: 504 if the outcome is not known, 403 if there is no such
//! store, 409 else.

use serde::Deserialize;
use serde_json::Value;
use wasmcluster_guest::http::{Method, StatusCode};
use wasmcluster_guest::kv::{self, KvError};
use wasmcluster_guest::{IntoResponse, Json, Query, Request, Response, Result};

/// Bytes of a value that is set.
const MAX_BODY: usize = 32 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct How {
    /// Adds this to the value.
    increment: Option<i64>,
    /// Sets the value if it is this, `none` if there is none.
    from: Option<String>,
    to: Option<String>,
    /// Works on so many keys that begin with the key, as one.
    many: Option<usize>,
}

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    let path = request.uri().path().trim_start_matches('/');
    let (store, key) = path.split_once('/').map_or((path, None), |(store, key)| (store, Some(key)));
    let (store, key) = (store.to_owned(), key.map(str::to_owned));
    Ok(match answer(&store, key.as_deref(), request).await {
        Ok(answer) => answer,
        Err(error) => match error.downcast_ref::<KvError>() {
            Some(KvError::Unknown(_)) => (StatusCode::GATEWAY_TIMEOUT, error.to_string()).into_response(),
            Some(KvError::NoSuchStore) => (StatusCode::FORBIDDEN, error.to_string()).into_response(),
            Some(_) => (StatusCode::CONFLICT, error.to_string()).into_response(),
            None => return Err(error),
        },
    })
}

/// What is no JSON is a text.
fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn in_words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn answer(store: &str, key: Option<&str>, request: Request) -> Result<Response> {
    let Query(how) = Query::<How>::of(&request)?;
    if store.is_empty() {
        return Ok("no store".into_response());
    }
    let store = kv::open(store).await?;
    let Some(key) = key else {
        let (mut pages, mut all) = (store.keys(), Vec::new());
        while let Some(keys) = pages.next().await? {
            all.push(keys);
        }
        return Ok(Json(all).into_response());
    };
    if let Some(by) = how.increment {
        return Ok(store.increment(key, by).await?.to_string().into_response());
    }
    if let (Some(from), Some(to)) = (how.from, how.to) {
        let (from, to) = (Some(from).filter(|from| from != "none").map(|from| value(&from)), value(&to));
        let swapped = store.update(key, |value: Option<Value>| (value == from).then(|| to.clone())).await?;
        return Ok(swapped.is_some().to_string().into_response());
    }
    if let Some(many) = how.many {
        let keys: Vec<String> = (0..many).map(|number| format!("{key}{number:05}")).collect();
        if *request.method() == Method::DELETE {
            store.delete_many(&keys).await?;
        } else if *request.method() == Method::PUT {
            let value = value(&request.into_body().text(MAX_BODY).await?);
            store.set_many(&keys.iter().map(|key| (key, &value)).collect::<Vec<_>>()).await?;
        } else {
            let found: Vec<Option<Value>> = store.get_many(&keys).await?;
            return Ok(found.iter().flatten().count().to_string().into_response());
        }
        return Ok("done".into_response());
    }
    Ok(match *request.method() {
        Method::PUT => {
            store.set(key, &value(&request.into_body().text(MAX_BODY).await?)).await?;
            "set".into_response()
        }
        Method::DELETE => {
            store.delete(key).await?;
            "deleted".into_response()
        }
        _ => match store.get::<Value>(key).await? {
            Some(value) => in_words(&value).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
    })
}
