//! A guest that talks to PostgreSQL and Redis by ordinary crates, over `std::net::TcpStream`. One source for WASI 0.2 and 0.3.

mod postgres;

use std::cell::RefCell;
use std::time::Duration;

use redis::Commands;
use serde::Deserialize;
use wasmcluster_guest::{Query, Request, Result};

use postgres::{Login, Postgres};

thread_local! {
    /// For the next request, if that comes to the same instance.
    static KEPT: RefCell<Option<Postgres>> = const { RefCell::new(None) };
}

#[derive(Deserialize)]
struct Key {
    at: String,
    key: String,
    by: i64,
}

#[derive(Deserialize)]
struct Sql {
    #[serde(default)]
    sql: String,
}

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<String> {
    match request.uri().path() {
        "/redis" => {
            let Query(Key { at, key, by }) = Query::of(&request)?;
            let mut connection = redis::Client::open(format!("redis://{at}/"))?.get_connection()?;
            let count: i64 = connection.incr(&key, by)?;
            let text: String = connection.get(&key)?;
            Ok(format!("{count} {text}"))
        }
        // The query's and the body's. The answer begins with the process that serves the connection.
        "/postgres" => {
            let Query(login): Query<Login> = Query::of(&request)?;
            let Query(Sql { mut sql }) = Query::of(&request)?;
            sql += &request.into_body().text(64 * 1024).await?;
            let kept = KEPT.take().filter(|kept| kept.login() == &login);
            let mut connection = kept.map_or_else(|| Postgres::connect(login, Duration::from_secs(20)), Ok)?;
            let rows = connection.query(&sql)?;
            let said = format!("{}\n{}", connection.process(), rows.join("\n"));
            // What failed is not kept.
            KEPT.set(Some(connection));
            Ok(said)
        }
        path => Err(format!("no such path: {path}").into()),
    }
}
