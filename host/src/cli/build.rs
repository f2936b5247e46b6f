//! `wasmcluster build`: builds the component of a folder, once or on every change.

use std::path::{Path, PathBuf};

use super::args::BuildArgs;
use super::exit::Failure;
use crate::build::{self, Plan, Sources};

pub(super) fn build(args: BuildArgs) -> Result<(), Failure> {
    let BuildArgs { folder, watch } = args;
    if !watch {
        return build_folder(&folder).map(drop);
    }
    let sources = Sources::of(&Plan::read(&folder)?);
    match build::watch(&folder, sources, None)? {}
}

/// Builds a folder, and says where its component is.
pub(super) fn build_folder(folder: &Path) -> Result<PathBuf, Failure> {
    let component = Plan::read(folder)?.carry_out().component?;
    build::tell(&component);
    Ok(component)
}
