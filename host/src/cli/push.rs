//! `wasmcluster push`: puts a component into a registry.

use bytesize::ByteSize;
use serde::Serialize;

use super::args::PushArgs;
use super::component::{Component, converse, made};
use super::exit::Failure;
use super::output::print;
use super::serve::app_or_project;
use crate::component::surface::Surface;
use crate::registry::{self, Pushed};
use crate::settings::{App, Cluster, Options};
use crate::wire::version::WasiHttp;

/// Prints under which digest it can be had.
pub(super) fn push(args: PushArgs) -> Result<(), Failure> {
    let PushArgs { app, to, registry, json } = args;
    if to.digest().is_some() {
        let error = anyhow::anyhow!("cannot push to {to}: the digest follows from the component; name a tag");
        return Err(Failure::Usage(error));
    }
    let app = app_or_project(app).map_err(Failure::Usage)?;
    if let Some(image) = app.image() {
        let error =
            anyhow::anyhow!("cannot push {image}: it is in a registry already; `skopeo copy` copies it to another");
        return Err(Failure::Usage(error));
    }
    let said = Options::from_default_file(&app).and_then(|options| Cluster::new(&options)).map_err(Failure::Usage)?;
    let registries = registry.or(said.registries).map_err(Failure::Usage)?;
    let component = Component::obtain(app, &registries, "push")?;
    let surface = Surface::read(&component.bytes).map_err(|error| {
        Failure::Refused(anyhow::Error::from(error).context(format!("cannot push {}", component.source)))
    })?;
    let target = surface.handler().ok().map(WasiHttp::world);
    let created = humantime::format_rfc3339_seconds(made(component.path())?).to_string();
    let size = component.bytes.len() as u64;
    let doing = format!("pushing {} to {}", ByteSize(size).display().iec(), to.host());
    let pushing = registry::push(&to, &registries, (component.bytes, &surface, target), &created);
    let Pushed { manifest, component } = converse(&doing, pushing)?;
    let reference = App::Image(to.pinned(&manifest)).to_string();
    let report = Report { schema: 1, reference, manifest, component, size };
    let text =
        if json { serde_json::to_string(&report).map_err(anyhow::Error::from)? + "\n" } else { for_people(&report) };
    Ok(print(text.as_bytes())?)
}

/// What `push --json` prints. Its shape is a contract: fields are added, none is removed.
#[derive(Serialize)]
struct Report {
    schema: u32,
    /// The name that pins what was pushed.
    reference: String,
    /// The digest of the manifest.
    manifest: String,
    /// The digest of the component.
    component: String,
    /// Of the component, in bytes.
    size: u64,
}

fn for_people(report: &Report) -> String {
    let Report { reference, component, size, .. } = report;
    format!("{reference}\ncomponent {component}, {}\n", ByteSize(*size).display().iec())
}
