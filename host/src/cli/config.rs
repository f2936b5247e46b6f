//! `wasmcluster config`: the live configuration of a running cluster.

use anyhow::anyhow;

use super::args::{ConfigArgs, ConfigCommand};
use super::exit::Failure;
use super::output::print;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};

pub(super) fn config(args: ConfigArgs) -> Result<(), Failure> {
    match args.command {
        ConfigCommand::Get { key, cluster } => Ok(block_on(get(&client(cluster), key.as_deref()))?),
        ConfigCommand::Set { entries, cluster } => Ok(block_on(set(&client(cluster), entries))?),
    }
}

/// Prints every key with its value, or the value of `key`.
async fn get(client: &Client, key: Option<&str>) -> Result<(), CommandError> {
    let entries = client.config().await?;
    let text = match key {
        None => entries.iter().map(|(key, value)| format!("{key}={value}\n")).collect(),
        Some(key) => match entries.get(key) {
            Some(value) => format!("{value}\n"),
            None => {
                let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
                return Err(anyhow!("unknown key {key:?}; the keys are {}", keys.join(", ")).into());
            }
        },
    };
    Ok(print(text.as_bytes()).map_err(anyhow::Error::from)?)
}

/// Changes values, and waits until every worker has confirmed them.
async fn set(client: &Client, entries: Vec<(String, String)>) -> Result<(), CommandError> {
    let entries = entries.into_iter().collect();
    client.configure(&entries).await?;
    let said: String = entries.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    let _ = print(said.as_bytes());
    Ok(())
}
