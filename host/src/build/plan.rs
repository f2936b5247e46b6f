//! How a folder is built: decided from what is in it, before anything is started.

use std::path::{Path, PathBuf};

use crate::settings::{DEFAULT_FILE, Options, Recipe};

/// How a folder becomes a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Cargo {
        folder: PathBuf,
    },
    /// By what `[build]` in the folder's `wasmcluster.toml` says.
    Recipe {
        folder: PathBuf,
        recipe: Recipe,
    },
}

/// Why there is no telling.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPlan {
    #[error("cannot build {0}: {1}")]
    Folder(PathBuf, String),
    #[error(
        "cannot build {0}: it has neither a Cargo.toml nor a wasmcluster.toml with a [build] section. `wasmcluster new DIR` \
         makes a project; for other languages, [build] looks like this: command = \"npm run build\", component = \
         \"dist/app.wasm\""
    )]
    Nothing(PathBuf),
    #[error(transparent)]
    File(anyhow::Error),
}

impl Plan {
    pub(crate) fn read(folder: &Path) -> Result<Self, NoPlan> {
        match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(NoPlan::Folder(folder.into(), "it is not a folder".into())),
            Err(error) => return Err(NoPlan::Folder(folder.into(), error.to_string())),
        }
        let file = folder.join(DEFAULT_FILE);
        let options = if file.exists() { Options::from_file(&file) } else { Ok(Options::default()) };
        let recipe = options.map_err(NoPlan::File)?.build;
        Self::decide(folder, recipe, folder.join("Cargo.toml").exists()).ok_or_else(|| NoPlan::Nothing(folder.into()))
    }

    /// What somebody wrote down for this very purpose comes first.
    fn decide(folder: &Path, recipe: Option<Recipe>, has_manifest: bool) -> Option<Self> {
        let folder = folder.to_owned();
        match (recipe, has_manifest) {
            (Some(recipe), _) => Some(Self::Recipe { folder, recipe }),
            (None, true) => Some(Self::Cargo { folder }),
            (None, false) => None,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Cargo { folder } | Self::Recipe { folder, .. } => folder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_folder_says_how_it_is_built() {
        let recipe = || Recipe { command: "make".into(), component: "app.wasm".into() };
        let folder = PathBuf::from("app");
        let by_recipe = || Some(Plan::Recipe { folder: folder.clone(), recipe: recipe() });
        for (recipe, has_manifest, expected) in [
            (None, true, Some(Plan::Cargo { folder: folder.clone() })),
            (Some(recipe()), false, by_recipe()),
            (Some(recipe()), true, by_recipe()),
            (None, false, None),
        ] {
            assert_eq!(Plan::decide(&folder, recipe, has_manifest), expected);
        }
    }
}
