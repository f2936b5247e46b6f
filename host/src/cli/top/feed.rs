//! What `top` hears of the cluster, and has it do: the status once a second, the events as they happen, and orders with their
//! answers. Whatever fails is tried again: a cluster may come back.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::TopNews;
use super::monitor::{Moment, TopOrder};
use super::occurrence::Occurrence;
use super::usage::processor_times;
use crate::cli::exit::Failure;
use crate::cli::reload::{Told, describe, gone, what_came_of_it};
use crate::cli::running::AnswerLines;
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{ReloadRequest, Scale, Scaled, Status, Stop};
use crate::control::query::{EventsRequest, Since};
use crate::settings::{Changes, LOG_LEVEL};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events from before `top` that it shows: not so old that their time of day would be another day's.
const LOOK_BACK: Duration = Duration::from_secs(24 * 60 * 60);

/// Where news come from. Each of its functions is a task, which ends when nobody wants news any more.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) client: Arc<Client>,
    pub(super) news: mpsc::Sender<TopNews>,
    pub(super) began: Instant,
}

impl Feed {
    /// How the cluster is, once a second, or why that is not known.
    pub(super) async fn look(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        // After an answer that took long, another at once would say nothing new.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let news = match self.client.status().await {
                Ok(status) => TopNews::Seen(Box::new(self.moment(status))),
                Err(error) => TopNews::Lost(self.began.elapsed(), format!("{error:#}")),
            };
            if self.news.send(news).await.is_err() {
                return;
            }
        }
    }

    pub(super) fn moment(&self, status: Status) -> Moment {
        let processor_times = processor_times(&status);
        Moment { at: self.began.elapsed(), status, processor_times }
    }

    /// What happened lately, and what happens, as it happens.
    pub(super) async fn listen(self) {
        let mut since = Since::Ago(LOOK_BACK);
        loop {
            match self.client.events(&EventsRequest { since: Some(since), follow: true }).await {
                Ok(body) => {
                    let mut lines = AnswerLines::new(body);
                    while let Some(line) = lines.next().await {
                        let Some(occurrence) = Occurrence::read(&line) else { continue };
                        if self.news.send(TopNews::Happened(occurrence)).await.is_err() {
                            return;
                        }
                    }
                    // What happens until it is back, or another is there, is not missed.
                    since = Since::At(SystemTime::now());
                }
                // There are too many readers.
                Err(CommandError::Refused(reason)) => self.say(format!("no events: {reason}")).await,
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
            if self.news.is_closed() {
                return;
            }
        }
    }

    /// Has the cluster do it, and tells what came of it.
    pub(super) async fn carry_out(self, order: TopOrder) {
        let said = match self.answer(order).await {
            Ok(Some(said)) => said,
            Ok(None) => return,
            Err(failure) => failure.report().0,
        };
        self.say(said).await;
    }

    /// What the cluster answered, in words, unless it was news of another kind.
    async fn answer(&self, order: TopOrder) -> Result<Option<String>, Failure> {
        let Self { client, news, .. } = self;
        match order {
            TopOrder::Reload => self.follow(AnswerLines::new(client.reload(&ReloadRequest::default()).await?)).await,
            TopOrder::Rollback => {
                self.follow(AnswerLines::new(client.rollback(&ReloadRequest::default()).await?)).await
            }
            TopOrder::Scale(by) => {
                let Scaled { from, to } = client.scale(Scale::By(by)).await?;
                Ok(Some(format!("scaling: {from} → {to} workers")))
            }
            TopOrder::AskLevel => {
                let level = client.config().await?.remove(LOG_LEVEL);
                // Nobody is told if `top` ends.
                let _ = news.send(TopNews::LogLevel(level.unwrap_or_default())).await;
                Ok(None)
            }
            TopOrder::Level(level) => {
                client.configure(&Changes::from([(LOG_LEVEL.into(), Some(level.to_string()))])).await?;
                Ok(Some(format!("every worker has the log level {level}")))
            }
            TopOrder::Stop => {
                client.stop(Stop { now: false }).await?;
                Ok(Some("the cluster is stopping".into()))
            }
        }
    }

    /// Tells each step of a reload, and how it ended.
    async fn follow(&self, mut lines: AnswerLines) -> Result<Option<String>, Failure> {
        while let Some(line) = lines.next().await {
            match Told::read(&line)? {
                Told::Reload(phase) => self.say(describe(&phase)).await,
                Told::Note { text } => self.say(format!("note: {text}")).await,
                // Events tell it too.
                Told::Change(_) => {}
                Told::ReloadEnded(ended) => return what_came_of_it(ended).map(Some),
            }
        }
        Err(gone().into())
    }

    async fn say(&self, text: String) {
        // Nobody is told if `top` ends.
        let _ = self.news.send(TopNews::Said(text)).await;
    }
}
