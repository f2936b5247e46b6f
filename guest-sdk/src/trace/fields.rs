//! The values of spans and events, as JSON.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};

use super::{Kind, Pairs, Status};

/// Fields that say what a span is.
const NAME: &str = "otel.name";
const KIND: &str = "otel.kind";
const STATUS: &str = "otel.status_code";
const DESCRIPTION: &str = "otel.status_description";
/// What an event says.
const MESSAGE: &str = "message";

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) attributes: Pairs,
    pub(super) message: Option<String>,
    pub(super) name: Option<String>,
    pub(super) kind: Option<Kind>,
    pub(super) status: Option<Status>,
}

impl Fields {
    /// As people read them: `message key=value`.
    pub(super) fn line(&self) -> String {
        let mut line = self.message.clone().unwrap_or_default();
        for (key, value) in &self.attributes {
            let space = if line.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(line, "{space}{key}={value}");
        }
        line
    }

    fn text(&mut self, field: &Field, value: String) {
        match field.name() {
            MESSAGE => self.message = Some(value),
            NAME => self.name = Some(value),
            KIND => self.kind = Some(kind(&value)),
            STATUS if value.eq_ignore_ascii_case("ok") => self.status = Some(Status::Ok),
            STATUS if value.eq_ignore_ascii_case("error") => {
                self.status.get_or_insert(Status::Error(String::new()));
            }
            // What is well needs no reason.
            DESCRIPTION if self.status == Some(Status::Ok) => {}
            DESCRIPTION => self.status = Some(Status::Error(value)),
            name => self.attributes.push((name.into(), serde_json::Value::from(value).to_string())),
        }
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.attributes.push((field.name().into(), value.to_string()));
    }
}

fn kind(text: &str) -> Kind {
    match text.to_ascii_lowercase().as_str() {
        "client" => Kind::Client,
        "server" => Kind::Server,
        "producer" => Kind::Producer,
        "consumer" => Kind::Consumer,
        _ => Kind::Internal,
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.plain(field, number),
            // There is no such number in JSON.
            None => self.text(field, value.to_string()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
}
