//! What guests were granted by flags and file: checked, and with the values of this process's environment.

use std::collections::BTreeMap;
use std::io;

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use crate::grants::{AllowHost, DirGrant, Grants, check_dirs};
use crate::os::files;

/// Hosts that guests may be granted: each outbound request looks at all of them.
const MAX_GRANTS: usize = 1024;

/// What guests were granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dirs: Vec<DirGrant>,
    pub(crate) hosts: Grants,
}

impl Granted {
    pub(super) fn new(
        env: Vec<(String, String)>,
        inherited: Vec<String>,
        dirs: Vec<DirGrant>,
        hosts: Vec<AllowHost>,
    ) -> anyhow::Result<Self> {
        let mut variables = BTreeMap::new();
        for name in inherited {
            if let Some((name, value)) = name.split_once('=') {
                bail!("--env-inherit takes only a name; write --env {name}={value}");
            }
            let value = std::env::var(&name).map_err(|error| {
                anyhow::anyhow!("--env-inherit {name}: {error}; set it, or say its value with --env {name}=VALUE")
            })?;
            variables.insert(name, value);
        }
        // What is said outright wins.
        variables.extend(env);
        check_dirs(&dirs).map_err(anyhow::Error::msg)?;
        ensure!(hosts.len() <= MAX_GRANTS, "--allow-host is given {} times; the limit is {MAX_GRANTS}", hosts.len());
        let dirs = dirs.into_iter().map(|dir| {
            let host = files::absolute(&dir.host)?;
            let metadata = std::fs::metadata(&host).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow::anyhow!("--dir {dir}: there is no folder {}", host.display()),
                _ => anyhow::anyhow!("--dir {dir}: {error}"),
            })?;
            ensure!(metadata.is_dir(), "--dir {dir}: {} is not a folder", host.display());
            Ok(DirGrant { host, ..dir })
        });
        Ok(Self {
            env: variables.into_iter().collect(),
            dirs: dirs.collect::<anyhow::Result<_>>()?,
            hosts: hosts.into(),
        })
    }
}
