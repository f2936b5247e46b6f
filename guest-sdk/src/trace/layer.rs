//! From spans of `tracing` to those of the host.

use std::time::SystemTime;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context as At, Layer};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::fields::Fields;
use super::{Context, Ended, Moment, Status};
use crate::host;
use crate::log::{print, wanted};

/// Events and attributes of a span that are kept; those beyond are counted. The server has the same bounds.
pub(super) const MAX_EVENTS: usize = 128;
const MAX_ATTRIBUTES: usize = 128;

/// A layer for a subscriber of the crate `tracing-subscriber`: see [`layer`](super::layer).
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanLayer {
    _private: (),
}

/// Kept with each span whose trace is recorded.
struct Open {
    context: Context,
    parent: String,
    from: SystemTime,
    fields: Fields,
    events: Vec<Moment>,
    dropped: [u32; 2],
}

impl Open {
    /// Takes further fields, as far as there is place.
    fn record(&mut self, read: impl FnOnce(&mut Fields)) {
        read(&mut self.fields);
        let attributes = &mut self.fields.attributes;
        self.dropped[0] += attributes.len().saturating_sub(MAX_ATTRIBUTES) as u32;
        attributes.truncate(MAX_ATTRIBUTES);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: At<'_, S>) -> bool {
        *metadata.level() <= level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, at: At<'_, S>) {
        let Some(span) = at.span(id) else { return };
        // Below no span of the guest's own lies that of the request.
        let parent = match span.parent() {
            Some(parent) => context_of(&parent),
            None => Some(host::outer_span()).filter(|outer| outer.is_sampled),
        };
        let Some(parent) = parent else { return };
        let context = Context { span: format!("{:016x}", host::random().max(1)), ..parent.clone() };
        host::span_begins(&context);
        let mut open = Open {
            context,
            parent: parent.span,
            from: SystemTime::now(),
            fields: Fields::default(),
            events: Vec::new(),
            dropped: [0; 2],
        };
        open.record(|fields| attributes.record(fields));
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, at: At<'_, S>) {
        if let Some(span) = at.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.record(|fields| values.record(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, at: At<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        print(metadata.level().as_str(), metadata.target(), &fields.line());
        if let Some(span) = at.event_span(event)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            let name = fields.message.unwrap_or_else(|| metadata.name().into());
            if *metadata.level() == Level::ERROR {
                open.fields.status.get_or_insert(Status::Error(name.clone()));
            }
            if open.events.len() == MAX_EVENTS {
                open.dropped[1] += 1;
                return;
            }
            let mut attributes = fields.attributes;
            attributes.push(("level".into(), format!("\"{}\"", metadata.level())));
            open.events.push(Moment { name, at: SystemTime::now(), attributes });
        }
    }

    fn on_close(&self, id: Id, at: At<'_, S>) {
        let Some(span) = at.span(&id) else { return };
        let Some(Open { context, parent, from, fields, events, dropped }) = span.extensions_mut().remove() else {
            return;
        };
        host::span_ends(Ended {
            context,
            parent,
            kind: fields.kind.unwrap_or_default(),
            name: fields.name.unwrap_or_else(|| span.name().into()),
            from,
            to: SystemTime::now(),
            attributes: fields.attributes,
            events,
            status: fields.status.unwrap_or_default(),
            scope: span.metadata().target(),
            dropped,
        });
    }
}

fn level() -> LevelFilter {
    match wanted() {
        log::LevelFilter::Off => LevelFilter::OFF,
        log::LevelFilter::Error => LevelFilter::ERROR,
        log::LevelFilter::Warn => LevelFilter::WARN,
        log::LevelFilter::Info => LevelFilter::INFO,
        log::LevelFilter::Debug => LevelFilter::DEBUG,
        log::LevelFilter::Trace => LevelFilter::TRACE,
    }
}

fn context_of<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>) -> Option<Context> {
    span.extensions().get::<Open>().map(|open| open.context.clone())
}

/// That of the innermost span, if there is one whose trace is recorded.
pub(super) fn current() -> Option<Context> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry: &Registry = dispatch.downcast_ref()?;
        let current = dispatch.current_span();
        context_of(&registry.span(current.id()?)?)
    })
}
