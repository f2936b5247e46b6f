//! What `top` knows and shows: the cluster as it was last seen, what came before, and what a person is asked. Pure: times and
//! keys are arguments, and what is to be done is the answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::keys::{self, LEVELS, Wish};
use super::occurrence::Occurrence;
use crate::control::protocol::{Status, WorkerStatus};
use crate::logging::LogLevel;

/// A minute of samples.
pub(super) const MAX_SAMPLES: usize = 60;
/// Samples that latencies are taken over: seconds, of which one alone may have few requests.
pub(super) const LATENCY_SAMPLES: usize = 10;
/// Far more events than a terminal has lines.
const MAX_EVENTS: usize = 500;

/// The cluster at one moment.
#[derive(Debug)]
pub(super) struct Moment {
    /// Since `top` began.
    pub(super) at: Duration,
    pub(super) status: Status,
    /// What each worker has used so far, by its id, as far as it is known.
    pub(super) processor_times: BTreeMap<u64, Duration>,
}

/// What the cluster, or the process, is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopOrder {
    Reload,
    Rollback,
    /// So many workers more, or fewer.
    Scale(i32),
    /// Find out which it is.
    AskLevel,
    Level(LogLevel),
    Stop,
}

/// What comes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    Nothing,
    Order(TopOrder),
    Suspend,
    Quit,
}

/// Which workers are shown first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WorkerOrder {
    #[default]
    Slot,
    Requests,
    Computing,
    Processor,
    Memory,
}

impl WorkerOrder {
    fn next(self) -> Self {
        match self {
            Self::Slot => Self::Requests,
            Self::Requests => Self::Computing,
            Self::Computing => Self::Processor,
            Self::Processor => Self::Memory,
            Self::Memory => Self::Slot,
        }
    }

    /// The title of the column that it goes by.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Slot => "SLOT",
            Self::Requests => "REQ/S",
            Self::Computing => "MS/REQ",
            Self::Processor => "CPU",
            Self::Memory => "MEMORY",
        }
    }
}

/// A second's value; None where nothing is known.
pub(super) type Trend = VecDeque<Option<f64>>;

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// When `moment` was.
    at: Duration,
    /// As it was last seen; None while nobody answers.
    pub(super) status: Option<std::rc::Rc<Status>>,
    /// Since when nobody answers, and why.
    pub(super) lost: Option<(Duration, String)>,
    /// A second's requests, for a minute.
    pub(super) requests: Trend,
    pub(super) errors: Trend,
    /// Of each worker, by its id: requests in a second.
    pub(super) rates: BTreeMap<u64, f64>,
    /// Likewise, in processors.
    pub(super) processors: BTreeMap<u64, f64>,
    processor_times: BTreeMap<u64, Duration>,
    /// Of each worker: milliseconds that its guests computed for a request, in the latest second with any.
    pub(super) costs: BTreeMap<u64, f64>,
    /// How many requests had taken less than so many milliseconds, second by second.
    latencies: VecDeque<Vec<(f64, u64)>>,
    pub(super) events: VecDeque<Occurrence>,
}

/// What `top` knows and shows.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    live: Figures,
    /// What is shown instead, during a pause.
    kept: Option<Figures>,
    pub(super) question: Option<Question>,
    pub(super) message: String,
    pub(super) is_help_shown: bool,
    pub(super) order: WorkerOrder,
    /// The worker that is shown first.
    pub(super) first_worker: usize,
}

/// What is to be answered before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) text: String,
    /// What is done on yes; None if it is a level that is chosen.
    order: Option<TopOrder>,
}

impl Monitor {
    /// What is to be shown.
    pub(super) fn shown(&self) -> &Figures {
        self.kept.as_ref().unwrap_or(&self.live)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.kept.is_some()
    }

    pub(super) fn saw(&mut self, moment: Moment) {
        self.live.add(moment);
    }

    pub(super) fn lost(&mut self, at: Duration, why: String) {
        self.live.lose(at, why);
    }

    pub(super) fn happened(&mut self, event: Occurrence) {
        if self.live.events.len() == MAX_EVENTS {
            self.live.events.pop_front();
        }
        self.live.events.push_back(event);
    }

    /// A message, or the answer to an order: one line, though reasons may have several.
    pub(super) fn said(&mut self, text: &str) {
        self.message = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }

    /// The log level, which is asked for now.
    pub(super) fn ask_level(&mut self, now: &str) {
        let choices: Vec<String> = LEVELS.iter().map(LogLevel::to_string).collect();
        let text = format!("Log level, now {now}: {}? First letter, or n", choices.join(", "));
        self.question = Some(Question { text, order: None });
    }

    pub(super) fn pressed(&mut self, key: &KeyEvent) -> Pressed {
        let wish = keys::wish(key);
        if wish == Some(Wish::Suspend) {
            return Pressed::Suspend;
        }
        if let Some(question) = self.question.take() {
            return self.answered(question, key, wish);
        }
        let was_help_shown = std::mem::take(&mut self.is_help_shown);
        let is_interrupt = key.code == KeyCode::Char('c') && wish == Some(Wish::Quit);
        if was_help_shown && !is_interrupt {
            return Pressed::Nothing;
        }
        wish.map_or(Pressed::Nothing, |wish| self.wished(wish))
    }

    fn answered(&mut self, question: Question, key: &KeyEvent, wish: Option<Wish>) -> Pressed {
        self.message.clear();
        let level = if question.order.is_none() { keys::level(key) } else { None };
        match (key.code, question.order, level) {
            (KeyCode::Char('c'), ..) if wish == Some(Wish::Quit) => Pressed::Quit,
            (KeyCode::Char('n' | 'N') | KeyCode::Esc, ..) => {
                self.message = "nothing was changed".into();
                Pressed::Nothing
            }
            (_, None, Some(level)) => Pressed::Order(TopOrder::Level(level)),
            (KeyCode::Char('y' | 'Y'), Some(order), _) => Pressed::Order(order),
            // Whatever else it was, it is not an answer.
            _ => {
                self.question = Some(question);
                Pressed::Nothing
            }
        }
    }

    fn wished(&mut self, wish: Wish) -> Pressed {
        match wish {
            Wish::Quit => return Pressed::Quit,
            Wish::Suspend => return Pressed::Suspend,
            Wish::LogLevel => return Pressed::Order(TopOrder::AskLevel),
            Wish::Help => self.is_help_shown = true,
            Wish::Pause if self.kept.take().is_none() => self.kept = Some(self.live.clone()),
            Wish::Pause => {}
            Wish::Order => (self.order, self.first_worker) = (self.order.next(), 0),
            Wish::Up => self.first_worker = self.first_worker.saturating_sub(1),
            Wish::Down => {
                let workers = self.shown().status.as_ref().map_or(0, |status| status.workers.len());
                self.first_worker = (self.first_worker + 1).min(workers.saturating_sub(1));
            }
            Wish::Reload | Wish::Rollback | Wish::Grow | Wish::Shrink | Wish::Stop => match self.question_of(wish) {
                Ok((text, order)) => {
                    self.question = Some(Question { text: text + " y/n", order: Some(order) });
                }
                Err(reason) => self.message = reason,
            },
        }
        Pressed::Nothing
    }

    /// What is asked before it is done, or why it cannot be.
    fn question_of(&self, wish: Wish) -> Result<(String, TopOrder), String> {
        // A pause keeps what is shown, not what is true.
        let status = self.live.status.as_ref().ok_or("the cluster does not answer")?;
        let generation = &status.generation;
        let slots = status.workers.iter().filter(|worker| worker.role == "incumbent").map(|worker| worker.slot);
        let slots = slots.collect::<std::collections::BTreeSet<_>>().len();
        match wish {
            Wish::Reload => match &generation.folder {
                Some(folder) => Err(format!("{} is built first: use `wasmcluster reload`", folder.display())),
                None => Ok((format!("Reload {}?", generation.source), TopOrder::Reload)),
            },
            Wish::Rollback => {
                let previous = generation.previous.ok_or("there is no version before this one")?;
                Ok((format!("Roll back to what generation {previous} was?"), TopOrder::Rollback))
            }
            Wish::Grow => Ok((format!("Start one worker more than the {slots} now?"), TopOrder::Scale(1))),
            Wish::Shrink => Ok((format!("Drain one worker of {slots}?"), TopOrder::Scale(-1))),
            _ => Ok((format!("Stop the cluster {}?", status.name), TopOrder::Stop)),
        }
    }
}

impl Figures {
    fn add(&mut self, Moment { at, status, processor_times }: Moment) {
        let before = self.status.take();
        // Another primary counts from 0 again.
        let before = before.filter(|before| before.pid == status.pid && before.uptime_ms <= status.uptime_ms);
        let seconds = at.saturating_sub(self.at).as_secs_f64();
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        if before.is_none() {
            self.latencies.clear();
        }
        let since = before.filter(|_| seconds > 0.0);
        let of_totals = |read: fn(&Status) -> u64| since.as_ref().map(|then| rate(read(&status), read(then)));
        push(&mut self.requests, of_totals(|status| status.totals.requests), MAX_SAMPLES);
        push(&mut self.errors, of_totals(|status| status.totals.errors), MAX_SAMPLES);
        self.rates = match &since {
            Some(then) => rates(&status, then, rate),
            None => BTreeMap::new(),
        };
        self.costs = costs(&status, since.as_deref(), &self.costs);
        let used = processor_times.iter().filter_map(|(id, now)| {
            let then = self.processor_times.get(id).filter(|_| since.is_some())?;
            Some((*id, now.saturating_sub(*then).as_secs_f64() / seconds))
        });
        self.processors = used.collect();
        self.processor_times = processor_times;
        push(&mut self.latencies, status.totals.latency_ms.counts.clone(), LATENCY_SAMPLES + 1);
        self.at = at;
        self.lost = None;
        self.status = Some(status.into());
    }

    fn lose(&mut self, at: Duration, why: String) {
        let since = self.lost.take().map_or(at, |(since, _)| since);
        self.lost = Some((since, why));
        self.at = at;
        self.status = None;
        self.latencies.clear();
        self.rates.clear();
        self.processors.clear();
        self.costs.clear();
        push(&mut self.requests, None, MAX_SAMPLES);
        push(&mut self.errors, None, MAX_SAMPLES);
    }

    /// For how long nobody has answered, if nobody does, and why.
    pub(super) fn lost_for(&self) -> Option<(Duration, &str)> {
        self.lost.as_ref().map(|(since, why)| (self.at.saturating_sub(*since), why.as_str()))
    }

    /// The time in milliseconds that this part of the latest requests, from 0 to 1, was shorter than; None if there were none.
    pub(super) fn latency(&self, part: f64) -> Option<f64> {
        let (first, last) = (self.latencies.front()?, self.latencies.back()?);
        let before = |bound: f64| first.iter().find(|(time, _)| *time == bound).map_or(0, |(_, count)| *count);
        let counts: Vec<(f64, u64)> =
            last.iter().map(|(bound, count)| (*bound, count.saturating_sub(before(*bound)))).collect();
        let total = counts.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        let rank = ((total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0_u64;
        let found = counts.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        found.map(|(bound, _)| *bound)
    }
}

/// A worker's requests in a second, by its id. One that was not there before has begun at 0.
fn rates(status: &Status, then: &Status, rate: impl Fn(u64, u64) -> f64) -> BTreeMap<u64, f64> {
    let before: BTreeMap<u64, u64> =
        then.workers.iter().filter_map(|worker| Some((worker.id?, worker.requests))).collect();
    let now = status.workers.iter().filter_map(|worker| Some((worker.id?, worker.requests)));
    now.map(|(id, requests)| (id, rate(requests, before.get(&id).copied().unwrap_or(0)))).collect()
}

/// What a request cost, by worker. Where there was none, that of the last one stands.
fn costs(status: &Status, then: Option<&Status>, known: &BTreeMap<u64, f64>) -> BTreeMap<u64, f64> {
    let costs = status.workers.iter().filter_map(|worker| {
        let id = worker.id?;
        let then = then.and_then(|then| then.workers.iter().find(|then| then.id == worker.id));
        let since = |read: fn(&WorkerStatus) -> u64| read(worker).saturating_sub(then.map_or(0, read));
        let (requests, computed) = (since(|worker| worker.requests), since(|worker| worker.guest_cpu_ms));
        let cost = if requests > 0 { Some(computed as f64 / requests as f64) } else { known.get(&id).copied() };
        Some((id, cost?))
    });
    costs.collect()
}

fn push<T>(values: &mut VecDeque<T>, value: T, limit: usize) {
    values.push_back(value);
    if values.len() > limit {
        values.pop_front();
    }
}
