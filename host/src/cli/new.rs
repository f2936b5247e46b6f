//! `wasmcluster new`: writes a project that builds and passes its own test. What it writes is in `templates/` of the
//! repository, where it can be read; the binary has a copy (`new/files.rs`).

mod files;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, bail};

use super::args::{NewArgs, SdkOrigin, Template};
use super::exit::Failure;
use super::output::print;
use files::Part;

/// Writes the project, and prints the next steps.
pub(super) fn new(args: &NewArgs) -> Result<(), Failure> {
    let NewArgs { folder, template, sdk } = args;
    let sdk = sdk.unwrap_or(SdkOrigin::USUAL);
    let of = || format!("cannot create a project in {}", folder.display());
    expect_nothing(folder).with_context(of)?;
    let name = std::path::absolute(folder)?;
    let name = name_of(name.file_name().and_then(OsStr::to_str).unwrap_or_default());
    for (path, text) in template.part().files() {
        write(&folder.join(path), &fill_in(text, &name, sdk)).with_context(of)?;
    }
    for (path, text) in template.additions(sdk).with_context(of)?.iter().flat_map(Part::files) {
        write(&folder.join(path), text).with_context(of)?;
    }
    let test = template.test();
    let said = format!(
        "Created {name} in {}. Next steps:\n\n  cd {}\n  {test}\n  wasmcluster serve --watch .\n",
        folder.display(),
        for_a_shell(folder)
    );
    Ok(print(said.as_bytes())?)
}

impl SdkOrigin {
    /// From where projects have the SDK unless it is said. Sources are in the binaries that may be newer than any release.
    const USUAL: Self = if cfg!(sdk_sources) { Self::Sources } else { Self::Registry };

    /// The dependency on it, in a manifest.
    fn dependency(self) -> &'static str {
        match self {
            Self::Sources => "path = \"wasmcluster-guest\"",
            Self::Registry => concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""),
        }
    }

    /// What the manifest says of that.
    fn about(self) -> &'static str {
        match self {
            Self::Sources => {
                "The SDK's sources, beside this file. To have a release instead, name its version for the path."
            }
            Self::Registry => "The SDK. Its documentation: https://docs.rs/wasmcluster-guest",
        }
    }

    /// Where the guide is.
    fn guide(self) -> &'static str {
        match self {
            Self::Sources => "in `wasmcluster-guest/guests.md`",
            Self::Registry => "at <https://docs.rs/wasmcluster-guest/latest/wasmcluster_guest/guide/>",
        }
    }

    /// What a project gets of it.
    #[cfg(sdk_sources)]
    fn parts(self) -> anyhow::Result<&'static [Part]> {
        Ok(if self == Self::Sources { &[files::SDK] } else { &[] })
    }

    #[cfg(not(sdk_sources))]
    fn parts(self) -> anyhow::Result<&'static [Part]> {
        match self {
            Self::Registry => Ok(&[]),
            Self::Sources => bail!("this wasmcluster was built without the SDK's sources; leave out --sdk sources"),
        }
    }
}

impl Template {
    /// What is filled in.
    fn part(self) -> &'static Part {
        match self {
            Self::Hello => &files::HELLO,
            Self::Axum => &files::AXUM,
            Self::Api => &files::API,
            Self::Stream => &files::STREAM,
            Self::Js => &files::JS,
            Self::Python => &files::PYTHON,
        }
    }

    /// What is copied.
    fn additions(self, sdk: SdkOrigin) -> anyhow::Result<&'static [Part]> {
        match self {
            Self::Hello | Self::Axum | Self::Api | Self::Stream => sdk.parts(),
            Self::Js | Self::Python => Ok(&[files::WIT]),
        }
    }

    /// The command that runs the project's test.
    fn test(self) -> &'static str {
        match self {
            Self::Hello | Self::Axum | Self::Api | Self::Stream => "cargo test",
            Self::Js => "npm test",
            Self::Python => "python3 -m unittest",
        }
    }
}

/// The path, quoted for a shell where needed.
fn for_a_shell(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    // `cd` takes `-x` for a flag and `-` for the previous folder.
    let path = if path.starts_with('-') { format!("./{path}") } else { path };
    if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

/// Fails unless the folder is empty or does not exist, so that nothing is overwritten.
fn expect_nothing(folder: &Path) -> anyhow::Result<()> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the folder is not empty; name an empty one, or one that does not exist yet"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => bail!("a file of that name exists"),
        Err(error) => Err(error.into()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, text)
}

/// The text of a template's file, for a project of this name.
fn fill_in(text: &str, name: &str, sdk: SdkOrigin) -> String {
    let text = text.replace("{{name}}", name).replace("{{sdk}}", sdk.dependency());
    text.replace("{{about-sdk}}", sdk.about()).replace("{{guide}}", sdk.guide())
}

/// Names that cargo refuses for a package, and those that every project already has.
const TAKEN: [&str; 12] = [
    "alloc",
    "build",
    "core",
    "deps",
    "examples",
    "incremental",
    "proc-macro",
    "proc_macro",
    "std",
    "test",
    "wasmcluster-guest",
    "wasmcluster-guest-macros",
];

/// The package's name, made from the folder's: lower case, and valid for cargo, npm and pip.
fn name_of(folder: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name: String = folder.chars().map(plain).collect();
    let name = name.trim_matches(['-', '_']);
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase());
    match name {
        "" => "app".into(),
        name if !is_name => format!("app-{name}"),
        name if TAKEN.contains(&name) || is_keyword(name) => format!("{name}-app"),
        name => name.into(),
    }
}

/// Whether it is a keyword of Rust, which cargo refuses.
fn is_keyword(word: &str) -> bool {
    const KEYWORDS: &str = "abstract as async await become box break const continue crate do dyn else enum extern false \
                            final fn for gen if impl in let loop macro match mod move mut override priv pub ref return \
                            self static struct super trait true try type typeof unsafe unsized use virtual where while \
                            yield";
    KEYWORDS.split(' ').any(|keyword| keyword == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_can_be_pasted() {
        for (path, pasted) in [
            ("shop", "shop"),
            ("../läden/shop-2", "../läden/shop-2"),
            ("My Shop!", "'My Shop!'"),
            ("it's", "'it'\\''s'"),
            ("$(reboot)", "'$(reboot)'"),
            ("-x", "./-x"),
            ("~", "'~'"),
        ] {
            assert_eq!(for_a_shell(Path::new(path)), pasted);
        }
    }

    #[test]
    fn a_folder_s_name_becomes_a_package_s() {
        for (folder, name) in [
            ("shop", "shop"),
            ("My Shop", "my-shop"),
            ("shop_2", "shop_2"),
            ("shop.example.com", "shop-example-com"),
            ("2048", "app-2048"),
            ("_shop_", "shop"),
            ("läden", "l-den"),
            ("日本", "app"),
            ("", "app"),
            ("match", "match-app"),
            ("test", "test-app"),
            ("wasmcluster-guest", "wasmcluster-guest-app"),
        ] {
            assert_eq!(name_of(folder), name, "{folder:?}");
        }
    }

    #[test]
    fn templates_with_a_router_say_how_long_state_lives() {
        for part in [files::AXUM, files::API] {
            let files: Vec<_> = part.files().map(|(_, text)| text).collect();
            assert_eq!(files.iter().filter(|text| text.contains("`State`")).count(), 2, "source and README");
            assert!(files.iter().any(|text| text.contains("--max-instance-reuse-count")));
        }
    }

    fn templates_and_origins() -> impl Iterator<Item = (Template, SdkOrigin)> {
        let origins = [SdkOrigin::Sources, SdkOrigin::Registry];
        let templates = <Template as clap::ValueEnum>::value_variants();
        templates.iter().flat_map(move |&template| origins.map(|origin| (template, origin)))
    }

    #[test]
    fn templates_have_nothing_left_to_fill_in() {
        for (template, sdk) in templates_and_origins() {
            for (path, text) in template.part().files() {
                let filled = fill_in(text, "shop", sdk);
                assert!(!filled.contains("{{"), "{path} of {template:?}: {filled}");
                assert!(!path.ends_with(".in"), "{path}");
            }
            // What is copied has nothing to fill in.
            for (path, text) in template.additions(sdk).unwrap().iter().flat_map(Part::files) {
                assert!(!text.contains("{{name"), "{path} of {template:?}");
            }
        }
        assert_eq!(fill_in("a {{name}} b {{name}}", "shop", SdkOrigin::Registry), "a shop b shop");
    }
}
