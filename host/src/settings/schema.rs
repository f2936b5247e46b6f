//! The configuration file as a JSON Schema (2020-12), which editors check a file against while it is written. All of it comes
//! from the flags: which keys there are, their form by the type of their value, and what their help says.
//!
//! Every file that is right satisfies the schema. The reverse does not hold: a schema cannot tell whether a host name or a path
//! is one, so such values are only strings to it.

use std::any::TypeId;
use std::num::{NonZeroU32, NonZeroU64};

use clap::{Arg, ArgAction, Args};
use serde_json::{Map, Value, json};

use super::secrets::SecretPlace;
use super::values::{HealthPath, OWN, Percent, Size, Span};
use super::{DEFAULT_FILE, Options, file};
use crate::grants::{AllowConnect, AllowHost, DirGrant, StoreGrant};

/// Flags whose key in the file has another name.
const RENAMED: [(&str, &str); 2] = [("set", "config"), ("set-secret", "secrets")];
/// The largest number that a TOML file can say.
const MAX_NUMBER: u64 = i64::MAX as u64;

/// As `humantime` reads it: `500ms`, `1h 30m`, or 0 without a unit.
const TIME: &str = r"^\s*(0|(\d[\d\s]*(\.\d+)?\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y)\s*)+)\s*$";
/// As `bytesize` reads it: `64KiB`, `1.5 GiB`, or bytes without a unit.
const SIZE: &str = r"^\+?(\d+|[\d.]+\s*([kKmMgGtTpPeE]([iI]?[bB]?)|[bB]))$";
const PERCENT: &str = r"^\+?[\d.eE+-]+\s*%?$";
const SECRET: &str = "^(file|env|credential):.";

/// The schema of the whole file.
pub(crate) fn schema() -> Value {
    let flags = Options::augment_args(clap::Command::new("serve"));
    let mut keys: Map<String, Value> = flags.get_arguments().filter_map(key).collect();
    keys.insert("build".into(), recipe());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": DEFAULT_FILE,
        "description": format!("The configuration file of `wasmcluster serve`, version {}.", env!("CARGO_PKG_VERSION")),
        "type": "object",
        "additionalProperties": false,
        "properties": keys,
    })
}

/// A flag as a key of the file, with its schema.
fn key(flag: &Arg) -> Option<(String, Value)> {
    let long = flag.get_long()?;
    let name = RENAMED.iter().find(|(flag, _)| *flag == long).map_or(long, |(_, key)| key);
    let mut schema = match (flag.get_action(), name) {
        (_, "env") => table(json!({ "pattern": "^[^=\\u0000]+$" }), json!({ "type": "string" })),
        (_, "config") => table(names_of_values(), json!({ "type": "string" })),
        (_, "secrets") => table(names_of_values(), json!({ "type": "string", "pattern": SECRET })),
        (ArgAction::Append, _) => json!({ "type": "array", "items": value(flag) }),
        (ArgAction::SetTrue, _) => json!({ "type": "boolean" }),
        _ => value(flag),
    };
    let help = flag.get_long_help().or(flag.get_help()).map(ToString::to_string).unwrap_or_default();
    let (description, default) = without_default(name, &help);
    schema["description"] = description.replace("; can be repeated", "").into();
    if let Some(default) = default {
        schema["default"] = default;
    }
    Some((name.to_owned(), schema))
}

/// What a single value must be, by its type on the command line.
fn value(flag: &Arg) -> Value {
    let names = flag.get_possible_values();
    if !names.is_empty() {
        return json!({ "enum": names.iter().map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>() });
    }
    let of_type = flag.get_value_parser().type_id();
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let number = |max: u64| json!({ "type": "integer", "minimum": 1, "maximum": max });
    let forms = [
        (TypeId::of::<NonZeroU32>(), number(u32::MAX.into())),
        (TypeId::of::<NonZeroU64>(), number(MAX_NUMBER)),
        (TypeId::of::<Span>(), text(TIME)),
        (TypeId::of::<Size>(), text(SIZE)),
        (
            TypeId::of::<Percent>(),
            json!({ "anyOf": [{ "type": "number", "minimum": 0, "maximum": 100 }, text(PERCENT)] }),
        ),
        (TypeId::of::<HealthPath>(), text("^/")),
        (TypeId::of::<DirGrant>(), text("^.+::/")),
        (TypeId::of::<AllowHost>(), text("^[^\\s]+$")),
        (TypeId::of::<AllowConnect>(), text("^[^\\s]+:(\\*|\\d+)(/\\d+)?$")),
        (TypeId::of::<StoreGrant>(), text("^[A-Za-z0-9._-]+=(file|redis|rediss|unix|memory):")),
        (TypeId::of::<SecretPlace>(), text("^[^=]+=(file|env|credential):.")),
    ];
    let known = forms.into_iter().find(|(id, _)| of_type == *id);
    known.map_or_else(|| json!({ "type": "string" }), |(_, form)| form)
}

fn table(names: Value, values: Value) -> Value {
    json!({ "type": "object", "propertyNames": names, "additionalProperties": values })
}

/// As `check_key` wants those of values for guests.
fn names_of_values() -> Value {
    let own = OWN.replace('.', "\\.");
    json!({ "maxLength": super::values::MAX_KEY, "pattern": format!("^(?!{own})[^=\\u0000-\\u001f\\u007f-\\u009f]+$") })
}

/// What help says of a key, and the default that it names, if that is a value; if it is described, it stays where it is.
fn without_default(key: &str, help: &str) -> (String, Option<Value>) {
    let Some((before, rest)) = help.split_once(" [default: ") else { return (help.into(), None) };
    let Some((said, after)) = rest.split_once(']') else { return (help.into(), None) };
    let plain = [said.parse::<u64>().ok().map(Value::from), Some(Value::from(said)), Some(json!([said]))];
    let is_right =
        |value: &Value| !said.contains(char::is_whitespace) && file::parse(&format!("{key} = {value}")).is_ok();
    match plain.into_iter().flatten().find(is_right) {
        Some(default) => (format!("{before}{after}"), Some(default)),
        None => (help.into(), None),
    }
}

/// The table that is no flag: `Recipe`.
fn recipe() -> Value {
    json!({
        "type": "object",
        "description": "How the component of the folder that the file is in is built, by other means than cargo.",
        "additionalProperties": false,
        "required": ["command", "component"],
        "properties": {
            "command": { "type": "string", "description": "For `sh`, in the folder." },
            "component": { "type": "string", "description": "What the command makes, as a path in the folder." },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::super::otlp::OtlpUrl;
    use super::*;
    use crate::os::listener::ListenAddr;
    use crate::settings::TrustedProxy;

    #[test]
    fn the_schema_has_the_keys_of_the_file_and_no_others() {
        let told =
            file::parse("").and_then(|_| toml::from_str::<Options>("zzz = 1").map_err(|error| error.to_string()));
        let told = told.unwrap_err();
        let (_, known) = told.split_once("expected one of ").unwrap();
        let known: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        let schema = schema();
        let keys: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, known);
    }

    #[test]
    fn each_type_of_value_has_its_form() {
        let flags = Options::augment_args(clap::Command::new("serve"));
        // Of these nothing can be said in general.
        let texts = [
            TypeId::of::<String>(),
            TypeId::of::<PathBuf>(),
            TypeId::of::<ListenAddr>(),
            TypeId::of::<TrustedProxy>(),
            TypeId::of::<OtlpUrl>(),
            TypeId::of::<(String, String)>(),
        ];
        for flag in flags.get_arguments().filter(|flag| !matches!(flag.get_action(), ArgAction::SetTrue)) {
            let is_text = texts.iter().any(|id| flag.get_value_parser().type_id() == *id);
            let has_no_form = value(flag) == json!({ "type": "string" });
            assert_eq!(has_no_form, is_text, "--{}", flag.get_long().unwrap());
        }
    }

    #[test]
    fn defaults_of_the_schema_are_values() {
        let schema = schema();
        let default = |key: &str| schema["properties"][key]["default"].clone();
        assert_eq!(default("request-timeout"), "30s");
        assert_eq!(default("max-in-flight"), 256);
        assert_eq!(default("max-body"), "64MiB");
        assert_eq!(default("max-error-increase"), 5);
        assert_eq!(default("log-level"), "info");
        assert_eq!(default("name"), "default");
        // Described, and not said.
        assert_eq!(default("workers"), Value::Null);
        assert_eq!(default("control"), Value::Null);
        let described = &schema["properties"]["max-body"]["description"];
        assert_eq!(described, "Largest body of a request; a larger one gets 413");
        let described = schema["properties"]["workers"]["description"].as_str().unwrap();
        assert!(described.contains("[default: the CPUs"), "{described}");
    }
}
