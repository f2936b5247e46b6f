//! What guests were granted by flags and file: checked, and with the values of this process's environment.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::secrets::Secret;
use crate::grants::{ConnectGrants, DirGrant, Grants, RedisPlace, StoreGrant, StorePlace, check_dirs};
use crate::os::files;

/// Hosts that guests may be granted with each flag: every outbound request or connection looks at all of them.
const MAX_GRANTS: usize = 1024;
/// Key-value stores: those in files have a thread in the keeper, and a mapping in each worker.
const MAX_STORES: usize = 64;
/// The key-value store that is there without a flag.
const DEFAULT_STORE: &str = "default";

/// What guests were granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dirs: Vec<DirGrant>,
    pub(crate) hosts: Grants,
    pub(crate) connections: ConnectGrants,
    /// Key-value stores, by name.
    pub(crate) stores: BTreeMap<String, StorePlace>,
}

impl Granted {
    /// The folders of the key-value stores that are in files, each once. Workers and the keeper number them in this order.
    pub(crate) fn file_stores(&self) -> Vec<&PathBuf> {
        let mut folders: Vec<&PathBuf> = Vec::new();
        for place in self.stores.values() {
            if let StorePlace::File(folder) = place
                && !folders.contains(&folder)
            {
                folders.push(folder);
            }
        }
        folders
    }

    /// With the key-value store that is always there, if it has a place.
    pub(super) fn new(options: &Options, default_store: Option<PathBuf>) -> anyhow::Result<Self> {
        let (dirs, hosts, connections) = (&options.dir, &options.allow_host, &options.allow_connect);
        let mut variables = BTreeMap::new();
        for name in &options.env_inherit {
            if let Some((name, value)) = name.split_once('=') {
                bail!("--env-inherit takes only a name; write --env {name}={value}");
            }
            let value = std::env::var_os(name).ok_or_else(|| {
                anyhow::anyhow!(
                    "--env-inherit {name}: it is not set; set it, or give its value with --env {name}=VALUE"
                )
            })?;
            // Not with the value, as the error of the standard library would be.
            let value = value.into_string().map_err(|_| anyhow::anyhow!("--env-inherit {name}: it is not UTF-8"))?;
            variables.insert(name.clone(), value);
        }
        // What is said outright wins.
        variables.extend(options.env.iter().cloned());
        check_dirs(dirs).map_err(anyhow::Error::msg)?;
        for (flag, times) in [("--allow-host", hosts.len()), ("--allow-connect", connections.len())] {
            ensure!(times <= MAX_GRANTS, "{flag} is given {times} times; the limit is {MAX_GRANTS}");
        }
        let dirs = dirs.iter().map(|dir| {
            let host = files::absolute(&dir.host)?;
            let metadata = std::fs::metadata(&host).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow::anyhow!("--dir {dir}: there is no folder {}", host.display()),
                _ => anyhow::anyhow!("--dir {dir}: {error}"),
            })?;
            ensure!(metadata.is_dir(), "--dir {dir}: {} is not a folder", host.display());
            Ok(DirGrant { host, ..dir.clone() })
        });
        Ok(Self {
            env: variables.into_iter().collect(),
            dirs: dirs.collect::<anyhow::Result<_>>()?,
            hosts: hosts.clone().into(),
            stores: stores(&options.kv, default_store)?,
            connections: connections.clone().into(),
        })
    }

    pub(super) fn has_password_files(&self) -> bool {
        self.stores.values().any(|place| matches!(place, StorePlace::Redis(place) if place.password_file.is_some()))
    }

    /// The stores of both that are somewhere else, with their places.
    pub(super) fn moved_stores<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'a String, &'a StorePlace, &'a StorePlace)> {
        let both = self.stores.iter().filter_map(|(name, place)| Some((name, place, other.stores.get(name)?)));
        both.filter(|(_, before, now)| before.to_string() != now.to_string())
    }

    /// The same, with what is in the files of passwords now.
    pub(super) fn with_fresh_passwords(&self) -> anyhow::Result<Self> {
        let fresh = |(name, place): (&String, &StorePlace)| {
            let place = match place {
                StorePlace::Redis(place) => StorePlace::Redis(with_password(name, place)?),
                place => place.clone(),
            };
            Ok((name.clone(), place))
        };
        let stores = self.stores.iter().map(fresh).collect::<anyhow::Result<_>>()?;
        Ok(Self { stores, ..self.clone() })
    }

    /// The stores that differ by their passwords alone.
    pub(super) fn changed_passwords<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a String> {
        let differs = |(name, place): &(&String, &StorePlace)| match (place, other.stores.get(*name)) {
            (StorePlace::Redis(before), Some(StorePlace::Redis(now))) => {
                before.password != now.password && before.password_file == now.password_file
            }
            _ => false,
        };
        self.stores.iter().filter(differs).map(|(name, _)| name)
    }
}

fn stores(granted: &[StoreGrant], default_store: Option<PathBuf>) -> anyhow::Result<BTreeMap<String, StorePlace>> {
    let mut stores = BTreeMap::new();
    for StoreGrant { name, place } in granted {
        let place = match place {
            // The same folder by another path is the same store.
            StorePlace::File(path) => StorePlace::File(files::canonical(&files::absolute(path)?)),
            StorePlace::Redis(place) => StorePlace::Redis(with_password(name, place)?),
            place => place.clone(),
        };
        ensure!(stores.insert(name.clone(), place).is_none(), "--kv {name}: there are two stores of that name");
    }
    if let Some(path) = default_store {
        stores.entry(DEFAULT_STORE.into()).or_insert(StorePlace::File(path));
    }
    ensure!(stores.len() <= MAX_STORES, "--kv is given {} times; the limit is {}", granted.len(), MAX_STORES - 1);
    Ok(stores)
}

/// With what its file says, without the end of the line.
fn with_password(name: &str, place: &RedisPlace) -> anyhow::Result<RedisPlace> {
    let mut place = place.clone();
    if let Some(path) = &place.password_file {
        let password = Secret::in_file(path).map_err(|error| {
            anyhow::anyhow!("--kv {name}: cannot read the password from {}: {error}", path.display())
        })?;
        place.password = Some(password.reveal().to_owned());
    }
    Ok(place)
}
