//! Writes the SDK's bindings of `wit/`, and of drafts of WASI, for `scripts/generate-bindings`. Its test fails when a file that is checked in is
//! not the one that would be written today.

use std::path::Path;

use wit_bindgen_core::wit_parser::{Resolve, WorldItem};
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::{Opts, WithOption};

/// The bindings of some interfaces.
struct Bindings {
    /// Where they are checked in, from the repository's root.
    file: &'static str,
    /// The packages, the one that has the interfaces last.
    packages: &'static [(&'static str, &'static str)],
    /// All that the bindings' world imports. What it exports is not named here.
    interfaces: &'static [&'static str],
    /// Types that other bindings have already.
    with: &'static [(&'static str, &'static str)],
    /// The path of these bindings, if their world exports something.
    exported_at: Option<&'static str>,
    /// The name of that world. A component may have the bindings of several, which then must not have the same name.
    world: &'static str,
}

const WORKER: (&str, &str) = ("wit/worker.wit", include_str!("../../../wit/worker.wit"));
const WORKER_P2: (&str, &str) = ("wit/p2/worker.wit", include_str!("../../../wit/p2/worker.wit"));
const WORKER_P3: (&str, &str) = ("wit/p3/worker.wit", include_str!("../../../wit/p3/worker.wit"));
const CONFIG: (&str, &str) = ("tests/bindings/wit/config.wit", include_str!("../wit/config.wit"));
const KEYVALUE: (&str, &str) = ("tests/bindings/wit/keyvalue.wit", include_str!("../wit/keyvalue.wit"));
const INIT: (&str, &str) = ("tests/bindings/wit/init.wit", include_str!("../wit/init.wit"));
const CLOCKS: (&str, &str) = ("wit/otel/deps/clocks.wit", include_str!("../../../wit/otel/deps/clocks.wit"));
const OTEL: (&str, &str) = ("wit/otel/otel.wit", include_str!("../../../wit/otel/otel.wit"));
const IO: (&str, &str) = ("wit/p2/deps/io.wit", include_str!("../../../wit/p2/deps/io.wit"));

/// WebSocket stands apart, as its interface is another for each version of WASI.
const ALL: [Bindings; 7] = [
    Bindings {
        file: "guest-sdk/src/host/bindings.rs",
        packages: &[WORKER],
        interfaces: &["identity", "metrics"],
        with: &[],
        exported_at: None,
        world: "imports",
    },
    Bindings {
        file: "guest-sdk/src/host/config_bindings.rs",
        packages: &[CONFIG],
        interfaces: &["store"],
        with: &[],
        exported_at: None,
        world: "imports-config",
    },
    Bindings {
        file: "guest-sdk/src/host/keyvalue_bindings.rs",
        packages: &[KEYVALUE],
        interfaces: &["store", "atomics", "batch"],
        with: &[],
        exported_at: None,
        world: "imports-keyvalue",
    },
    Bindings {
        file: "guest-sdk/src/host/otel_bindings.rs",
        packages: &[CLOCKS, OTEL],
        interfaces: &["wall-clock", "types", "tracing"],
        with: &[],
        exported_at: None,
        world: "imports-otel",
    },
    Bindings {
        file: "guest-sdk/src/host/init_bindings.rs",
        packages: &[INIT],
        interfaces: &[],
        with: &[],
        exported_at: Some("$crate::__private::init"),
        world: "init",
    },
    Bindings {
        file: "guest-sdk/src/host/p2/bindings.rs",
        packages: &[IO, WORKER_P2],
        interfaces: &["poll", "websocket"],
        with: &[("wasi:io/poll@0.2.12", "wasip2::io::poll")],
        exported_at: None,
        world: "imports-websocket",
    },
    Bindings {
        file: "guest-sdk/src/host/p3/bindings.rs",
        packages: &[WORKER_P3],
        interfaces: &["websocket"],
        with: &[],
        exported_at: None,
        world: "imports",
    },
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for bindings in ALL {
        std::fs::write(root.join(bindings.file), bindings.generate()).expect("the SDK's folder can be written");
    }
}

impl Bindings {
    /// As a file of Rust.
    fn generate(&self) -> Vec<u8> {
        let mut resolve = Resolve::default();
        let packages = self.packages.iter().map(|(path, text)| resolve.push_str(path, text).expect("a valid package"));
        let package = packages.last().expect("one has the interfaces");
        let world = resolve.select_world(&[package], Some("imports")).expect("it has this world");
        let name_of = |item: &WorldItem| match item {
            WorldItem::Interface { id, .. } => resolve.interfaces[*id].name.as_deref(),
            _ => None,
        };
        resolve.worlds[world]
            .imports
            .retain(|_, item| name_of(item).is_some_and(|name| self.interfaces.contains(&name)));
        let worlds = &mut resolve.packages[package].worlds;
        worlds.clear();
        worlds.insert(self.world.into(), world);
        resolve.worlds[world].name = self.world.into();
        let with = |(name, path): &(&str, &str)| ((*name).into(), WithOption::Path((*path).into()));
        let options = Opts {
            format: true,
            // These bindings serve WASI 0.2 and 0.3, whose crates bring two versions of the generator's runtime.
            runtime_path: Some("crate::host::cluster::runtime".into()),
            with: self.with.iter().map(with).collect(),
            generate_all: true,
            pub_export_macro: self.exported_at.is_some(),
            default_bindings_module: self.exported_at.map(Into::into),
            ..Opts::default()
        };
        let mut files = Files::default();
        options.build().generate(&mut resolve, world, &mut files).expect("the world has bindings");
        let (_, contents) = files.iter().next().expect("it makes one file");
        contents.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_has_the_bindings_that_are_generated_today() {
        for bindings in ALL {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(bindings.file);
            let checked_in = std::fs::read(&file).expect("the SDK has the file");
            let same = bindings.generate() == checked_in;
            assert!(same, "{}: wit/ or the generator has changed: run scripts/generate-bindings", bindings.file);
        }
    }
}
