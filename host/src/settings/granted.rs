//! What guests were granted by flags and file: checked, and with the values of this process's environment.

use std::collections::BTreeMap;
use std::io;

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use super::options::Options;
use crate::grants::{ConnectGrants, DirGrant, Grants, check_dirs};
use crate::os::files;

/// Hosts that guests may be granted with each flag: every outbound request or connection looks at all of them.
const MAX_GRANTS: usize = 1024;

/// What guests were granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dirs: Vec<DirGrant>,
    pub(crate) hosts: Grants,
    pub(crate) connections: ConnectGrants,
}

impl Granted {
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        let (dirs, hosts, connections) = (&options.dir, &options.allow_host, &options.allow_connect);
        let mut variables = BTreeMap::new();
        for name in &options.env_inherit {
            if let Some((name, value)) = name.split_once('=') {
                bail!("--env-inherit takes only a name; write --env {name}={value}");
            }
            let value = std::env::var(name).map_err(|error| {
                anyhow::anyhow!("--env-inherit {name}: {error}; set it, or give its value with --env {name}=VALUE")
            })?;
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
            connections: connections.clone().into(),
        })
    }
}
