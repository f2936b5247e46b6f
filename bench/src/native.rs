//! What a store costs without a guest: hyper on a current-thread runtime answers as the guest `stores` does, with a client of
//! Redis, or with LMDB in the same process.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use heed::types::{Bytes as Raw, Str};
use heed::{Database, Env, EnvOpenOptions};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use redis::aio::MultiplexedConnection;
use tokio::net::TcpStream;

use crate::bare;

/// The argument that makes this program the server. The next one is the store's URL, in the form that `--kv` has.
pub(crate) const COMMAND: &str = "native-stores";

pub(crate) fn serve(url: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(url).await?;
        bare::connections("http", |stream| drop(tokio::spawn(connection(stream, store.clone())))).await
    })
}

async fn connection(stream: TcpStream, store: Store) {
    let answer = service_fn(move |request| answer(store.clone(), request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(mut store: Store, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match store.answer(request).await {
        Ok(body) => Response::new(body.into()),
        Err(error) => {
            let mut response = Response::new(format!("{error:#}").into());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    })
}

#[derive(Clone)]
enum Store {
    /// One connection for all requests, none of which waits for another's answer.
    Redis(MultiplexedConnection),
    Lmdb(Lmdb),
}

impl Store {
    async fn open(url: &str) -> Result<Self> {
        match url.split_once(':') {
            Some(("unix", path)) => {
                let client = redis::Client::open(format!("redis+unix://{path}"))?;
                Ok(Self::Redis(client.get_multiplexed_async_connection().await.context("connecting to Redis")?))
            }
            Some(("file", path)) => Ok(Self::Lmdb(Lmdb::open(Path::new(path))?)),
            _ => bail!("there is no store {url}"),
        }
    }

    async fn answer(&mut self, request: Request<Incoming>) -> Result<Bytes> {
        let key = request.uri().path().to_owned();
        if let Some(by) = request.uri().query().and_then(|query| query.strip_prefix("increment=")) {
            return Ok(self.increment(&key, by.parse()?).await?.to_string().into());
        }
        if *request.method() == Method::PUT {
            let value = request.into_body().collect().await?.to_bytes();
            self.set(&key, &value).await?;
            return Ok("set".into());
        }
        let value = self.get(&key).await?;
        Ok(value.with_context(|| format!("there is no {key}"))?.into())
    }

    async fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Redis(connection) => Ok(redis::cmd("GET").arg(key).query_async(connection).await?),
            Self::Lmdb(lmdb) => lmdb.get(key),
        }
    }

    async fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        match self {
            Self::Redis(connection) => Ok(redis::cmd("SET").arg(key).arg(value).exec_async(connection).await?),
            Self::Lmdb(lmdb) => lmdb.set(key, value),
        }
    }

    async fn increment(&mut self, key: &str, by: i64) -> Result<i64> {
        match self {
            Self::Redis(connection) => Ok(redis::cmd("INCRBY").arg(key).arg(by).query_async(connection).await?),
            Self::Lmdb(lmdb) => lmdb.increment(key, by),
        }
    }
}

/// Every write is a commit of its own. It blocks the only thread until it is on the disk, which costs no writes: LMDB has one
/// writer at a time anyway.
#[derive(Clone)]
struct Lmdb {
    env: Env,
    pairs: Database<Str, Raw>,
}

impl Lmdb {
    fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        // SAFETY: the folder is that of one measurement, and nothing else touches its files.
        let env = unsafe { EnvOpenOptions::new().open(folder) }?;
        let mut txn = env.write_txn()?;
        let pairs = env.create_database(&mut txn, None)?;
        txn.commit()?;
        Ok(Self { env, pairs })
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let txn = self.env.read_txn()?;
        Ok(self.pairs.get(&txn, key)?.map(<[u8]>::to_vec))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.pairs.put(&mut txn, key, value)?;
        Ok(txn.commit()?)
    }

    fn increment(&self, key: &str, by: i64) -> Result<i64> {
        let mut txn = self.env.write_txn()?;
        let old: i64 = match self.pairs.get(&txn, key)? {
            Some(value) => str::from_utf8(value)?.parse()?,
            None => 0,
        };
        let new = old.checked_add(by).context("the sum does not fit into 64 bits")?;
        self.pairs.put(&mut txn, key, new.to_string().as_bytes())?;
        txn.commit()?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lmdb_keeps_values_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let lmdb = Lmdb::open(&folder.path().join("store")).unwrap();
        assert_eq!(lmdb.get("k").unwrap(), None);
        lmdb.set("k", b"v").unwrap();
        assert_eq!(lmdb.get("k").unwrap(), Some(b"v".to_vec()));
        assert_eq!([1, 2].map(|by| lmdb.increment("n", by).unwrap()), [1, 3]);
        lmdb.increment("k", 1).unwrap_err();
    }
}
