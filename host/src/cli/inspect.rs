//! `wasmcluster inspect`: shows what a component imports and exports, the flags that grant it, and the limits it would run
//! with.

use serde::Serialize;

use super::args::InspectArgs;
use super::component::Component;
use super::exit::Failure;
use super::output::print;
use super::serve::sources;
use crate::component::compiler::{self, Inspected};
use crate::component::surface::{Grant, grant};
use crate::settings::{App, InForce, Settings};
use crate::wire::version::{SnapshotStart, WasiHttp};
use crate::worker;

/// Prints the report. Fails if `serve` would refuse the component.
pub(super) fn inspect(args: InspectArgs) -> Result<(), Failure> {
    let InspectArgs { serve, json } = args;
    let settings = sources(serve).and_then(|sources| sources.inspect()).map_err(Failure::Usage)?;
    let component = Component::obtain(settings.app.clone(), &settings.cluster.registries, "serve");
    // It is no more than a look.
    let component = component.map_err(|failure| match failure {
        Failure::Refused(error) => Failure::Error(error),
        other => other,
    })?;
    Ok(report(&component, &settings, json)?)
}

fn report(component: &Component, settings: &Settings, json: bool) -> anyhow::Result<()> {
    let Component { bytes, source: app, manifest, .. } = component;
    let failed = |error: &dyn std::fmt::Display| anyhow::anyhow!("cannot serve {app}: {error:#}");
    let inspected = compiler::inspect(bytes, settings.application.snapshot_memory(), worker::check_links);
    let Inspected { digest, surface, handler, snapshot } = inspected.map_err(|error| failed(&error))?;
    // A component without a handler is checked against what either version may import; 0.3 provides both.
    let http = surface.exported_handler().unwrap_or(WasiHttp::V0_3);
    let imports: Vec<Import> =
        surface.imports.iter().map(|name| Import { name: name.clone(), needs: grant(name, http).into() }).collect();
    let mut grants: Vec<&str> = imports.iter().flat_map(|import| import.needs.flags).copied().collect();
    grants.sort_unstable();
    grants.dedup();
    let wasi = handler.as_ref().ok().copied();
    let world = wasi.map(WasiHttp::world);
    let refusal = handler.err();
    let report = Report {
        schema: 1,
        source: app,
        manifest: manifest.as_deref(),
        digest,
        wasi,
        world,
        refusal: refusal.as_ref().map(|refusal| format!("{refusal:#}")),
        snapshot: snapshot.as_ref().map(|snapshot| matches!(snapshot, SnapshotStart::Taken { .. })),
        snapshot_refusal: snapshot
            .and_then(|snapshot| if let SnapshotStart::Refused(why) = snapshot { Some(why) } else { None }),
        imports,
        exports: surface.exports,
        grants,
        limits: settings.application.limits.in_force(),
    };
    let text = if json { format!("{}\n", serde_json::to_string(&report)?) } else { for_people(&report) };
    print(text.as_bytes())?;
    refusal.map_or(Ok(()), |refusal| Err(failed(&refusal)))
}

/// What `inspect --json` prints. Its shape is a contract: fields are added, none is removed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    source: &'a App,
    /// Of a component from a registry, the digest of its manifest.
    manifest: Option<&'a str>,
    digest: String,
    /// The version of WASI that it answers HTTP with; `null` if it cannot be served.
    wasi: Option<WasiHttp>,
    world: Option<&'static str>,
    /// Why it cannot be served.
    refusal: Option<String>,
    /// Whether its instances start from a snapshot; `null` if it has nothing to initialize, or with `--no-snapshot`.
    snapshot: Option<bool>,
    /// Why they do not.
    snapshot_refusal: Option<String>,
    imports: Vec<Import>,
    exports: Vec<String>,
    /// Flags that grant what it imports.
    grants: Vec<&'static str>,
    limits: InForce,
}

#[derive(Debug, Serialize)]
struct Import {
    name: String,
    #[serde(flatten)]
    needs: Needs,
}

/// A [`Grant`] as JSON has it.
#[derive(Debug, Serialize)]
struct Needs {
    /// `given`, `flag`, `denied` or `unknown`.
    access: &'static str,
    /// Each of them grants it. Empty unless `access` is `flag`.
    flags: &'static [&'static str],
}

impl From<Grant> for Needs {
    fn from(grant: Grant) -> Self {
        let (access, flags): (_, &[_]) = match grant {
            Grant::Given => ("given", &[]),
            Grant::Flags(flags) => ("flag", flags),
            Grant::Denied => ("denied", &[]),
            Grant::Unknown => ("unknown", &[]),
        };
        Self { access, flags }
    }
}

fn for_people(report: &Report<'_>) -> String {
    let Report { source, manifest, digest, wasi, world, snapshot, snapshot_refusal, imports, exports, limits, .. } =
        report;
    let version = match wasi {
        Some(WasiHttp::V0_2) => "WASI 0.2",
        Some(WasiHttp::V0_3) => "WASI 0.3",
        None => "it cannot be served",
    };
    let mut text = format!("{}: a component, {version}", source.with_manifest(*manifest));
    if let Some(world) = world {
        text.push_str(&format!(", world {world}"));
    }
    text.push_str(&format!("\n{digest}\n"));
    if let Some(is_taken) = snapshot {
        let why = snapshot_refusal.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        text.push_str(&format!(
            "its instances {} from a snapshot{why}\n",
            if *is_taken { "start" } else { "do not start" }
        ));
    }
    text.push_str("\nExports\n");
    for export in exports {
        text.push_str(&format!("  {}\n", export.escape_debug()));
    }
    text.push_str("\nImports\n");
    let width = imports.iter().map(|import| import.name.len()).max().unwrap_or(0);
    for Import { name, needs } in imports {
        let note = match needs.access {
            "flag" => format!("denied unless granted by {}", needs.flags.join(", ")),
            "denied" => "denied; no flag grants it".into(),
            "unknown" => "not provided".into(),
            _ => String::new(),
        };
        text.push_str(format!("  {name:width$}  {note}").trim_end());
        text.push('\n');
    }
    text.push_str("\nLimits, by flag\n");
    list(&mut text, &limits.by_flag);
    text.push_str("\nFixed limits (of an instance, unless the name says otherwise)\n");
    list(&mut text, &limits.fixed);
    text
}

fn list(text: &mut String, limits: &std::collections::BTreeMap<String, String>) {
    for (name, value) in limits {
        text.push_str(&format!("  {name:20}  {value}\n"));
    }
}
