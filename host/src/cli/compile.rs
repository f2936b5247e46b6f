//! `wasmcluster compile`: compiles a component into a store ahead of time.

use std::time::Instant;

use bytesize::ByteSize;

use super::args::CompileArgs;
use super::component::Component;
use super::exit::Failure;
use super::output::print;
use super::serve::app_or_project;
use crate::component::compiler::{self, Prepared, Unprepared};
use crate::component::store::Readers;
use crate::settings::{Cluster, Options};
use crate::wire::version::{SnapshotStart, WasiHttp};
use crate::worker;

/// Prints the component's digest, where its native code is, and how large it is.
pub(super) fn compile(args: CompileArgs) -> Result<(), Failure> {
    let CompileArgs { app, store, no_snapshot, registry } = args;
    let app = app_or_project(app).map_err(Failure::Usage)?;
    let options = Options::from_default_file(&app).map_err(Failure::Usage)?;
    let said = Cluster::new(&options).map_err(Failure::Usage)?;
    // What is there for all can be as large as anywhere: `serve` takes it only if it fits.
    let snapshot = (!(no_snapshot || options.no_snapshot)).then_some(u64::MAX);
    let (store, readers) = match store {
        Some(store) => (store, Readers::Everybody),
        None => (said.store, Readers::Owner),
    };
    let registries = registry.or(said.registries).map_err(Failure::Usage)?;
    let Component { bytes, source, .. } = Component::obtain(app, &registries, "compile")?;
    let begun = Instant::now();
    let prepared = compiler::prepare(&bytes, &source, snapshot, &store, readers, worker::check_links);
    let prepared = prepared.map_err(|error| match error {
        Unprepared::Refused(error) => Failure::Refused(error.context(format!("cannot compile {source}"))),
        Unprepared::Store(error) => Failure::Error(error),
    })?;
    Ok(print(summary(&prepared, begun).as_bytes())?)
}

fn summary(prepared: &Prepared, begun: Instant) -> String {
    let Prepared { digest, http, place, size, snapshot, cached } = prepared;
    let wasi = match http {
        WasiHttp::V0_2 => "0.2",
        WasiHttp::V0_3 => "0.3",
    };
    let how = match cached {
        true => "already in the store".into(),
        false => format!("compiled in {:.1} s", begun.elapsed().as_secs_f64()),
    };
    let (place, size) = (place.display(), ByteSize(*size).display().iec());
    let snapshot = match snapshot {
        None => String::new(),
        Some(SnapshotStart::Taken { .. }) => "Instances start from a snapshot\n".into(),
        Some(SnapshotStart::Refused(reason)) => format!("Instances do not start from a snapshot: {reason}\n"),
    };
    format!("{digest}, WASI {wasi}\n{place}\n{size} of native code, {how}\n{snapshot}")
}
