//! `wasmcluster config`: the live configuration of a running cluster, and the schema of the file.

use anyhow::anyhow;

use super::args::{ConfigArgs, ConfigCommand};
use super::exit::Failure;
use super::output::print;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::settings::{Changes, schema};

pub(super) fn config(args: ConfigArgs) -> Result<(), Failure> {
    match args.command {
        ConfigCommand::Get { key, cluster } => Ok(block_on(get(&client(cluster), key.as_deref()))?),
        ConfigCommand::Set { entries, cluster } => {
            let changes = entries.into_iter().map(|(key, value)| (key, Some(value)));
            Ok(block_on(change(&client(cluster), changes.collect()))?)
        }
        ConfigCommand::Unset { keys, cluster } => {
            Ok(block_on(change(&client(cluster), keys.into_iter().map(|key| (key, None)).collect()))?)
        }
        ConfigCommand::Schema => {
            let text = serde_json::to_string_pretty(&schema()).map_err(anyhow::Error::from)?;
            Ok(print(format!("{text}\n").as_bytes())?)
        }
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
                return Err(anyhow!("{key:?} is not set; `wasmcluster config get` lists what is").into());
            }
        },
    };
    Ok(print(text.as_bytes()).map_err(anyhow::Error::from)?)
}

/// Changes values, and waits until every worker has confirmed them.
async fn change(client: &Client, changes: Changes) -> Result<(), CommandError> {
    client.configure(&changes).await?;
    let said: String = changes
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}\n"),
            None => format!("{key} is not set any more\n"),
        })
        .collect();
    let _ = print(said.as_bytes());
    Ok(())
}
