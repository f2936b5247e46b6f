//! `wasmcluster man`: writes the manual as pages for `man`, one for each command, made from what `--help` says.

use std::fs;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{Cli, ManArgs};
use super::exit::Failure;

/// A longer line that ends with a colon begins a paragraph.
const MAX_HEADING: usize = 20;

/// Writes all pages. Files of those names are replaced, and others left alone.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    for (name, page) in pages_of(&program, "wasmcluster")? {
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The page of a command, and those of its own commands; by name, as `wasmcluster-config-get`.
fn pages_of(command: &Command, name: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut found = vec![(name.to_owned(), page(command, name)?)];
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        found.extend(pages_of(inner, &format!("{name}-{}", inner.get_name()))?);
    }
    Ok(found)
}

fn page(command: &Command, name: &str) -> anyhow::Result<Vec<u8>> {
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    // Without a date: it would be that of the build, and no two builds would be the same. What has no date has `""` there, which
    // clap_mangen leaves out, so that all behind it would be taken for something else.
    let title =
        format!(".TH {} 1 \"\" \"wasmcluster {}\" wasmcluster\n", name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    page.extend(title.as_bytes());
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    remarks(&after.unwrap_or_default()).to_writer(&mut page)?;
    if let Some((above, _)) = name.rsplit_once('-') {
        let above = [bold(above), roman("(1)")];
        Roff::new().control("SH", ["SEE ALSO"]).text(above).to_writer(&mut page)?;
    }
    Ok(page)
}

/// What stands at the end of help: headings, paragraphs, and indented lines, which are code or tables and stay as they are.
fn remarks(text: &str) -> Roff {
    let mut roff = Roff::new();
    let is_heading = |line: &str| line.ends_with(':') && line.len() < MAX_HEADING;
    let (mut has_heading, mut is_code, mut is_first) = (false, false, false);
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.starts_with("  ") != is_code {
            is_code = !is_code;
            roff.control(if is_code { "nf" } else { "fi" }, []);
        }
        if is_code {
            roff.text([roman(line.trim())]);
            is_first = false;
            continue;
        }
        if is_heading(line) || !has_heading {
            let heading = if is_heading(line) { line.trim_end_matches(':') } else { "Remarks" };
            roff.control("SH", [heading.to_uppercase().as_str()]);
            (has_heading, is_first) = (true, true);
        }
        if !is_heading(line) {
            if !is_first {
                roff.control("PP", []);
            }
            roff.text([roman(line)]);
            is_first = false;
        }
    }
    if is_code {
        roff.control("fi", []);
    }
    roff
}
