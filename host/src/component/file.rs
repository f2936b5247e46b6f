//! Reads the file of a component.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{bail, ensure};
use bytesize::ByteSize;
use nix::fcntl::OFlag;

use crate::settings::looks_like_image;

/// Largest component that is read, in bytes.
pub(crate) const MAX_COMPONENT: u64 = 512 * 1024 * 1024;

/// The bytes of the file at one moment: a file that changes while it is read is refused, not half-read.
pub(super) fn read(source: &Path) -> anyhow::Result<Vec<u8>> {
    // Without waiting for whoever may write to it, should it be a pipe.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(source).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::NotFound if looks_like_image(source) => {
                anyhow::anyhow!("no such file; a component in a registry is named as oci://ghcr.io/acme/shop:1.2 is")
            }
            io::ErrorKind::NotFound => anyhow::anyhow!("no such file"),
            _ => error.into(),
        })?;
    let before = file.metadata()?;
    if before.is_dir() {
        bail!("it is a folder; pass the component that `wasmcluster build` makes of it");
    }
    ensure!(before.is_file(), "it is not a regular file");
    let [length, limit] = [before.len(), MAX_COMPONENT].map(|bytes| ByteSize(bytes).display().iec());
    ensure!(before.len() <= MAX_COMPONENT, "its size is {length}; the limit is {limit}");
    let mut bytes = Vec::new();
    (&file).take(MAX_COMPONENT + 1).read_to_end(&mut bytes)?;
    let after = file.metadata()?;
    let unchanged = bytes.len() as u64 == before.len() && modified(&before) == modified(&after);
    ensure!(unchanged, "the file changed while it was read; try again when it is complete");
    Ok(bytes)
}

fn modified(metadata: &fs::Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}
