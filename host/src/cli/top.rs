//! `wasmcluster top`: a running cluster on a terminal, once a second, with keys that change it. What is known and asked is in
//! `monitor.rs`, what it looks like in `view.rs`. This file connects both with the terminal (`screen.rs`) and the cluster
//! (`feed.rs`): news of all kinds come over one channel, and one function takes them.

mod feed;
mod keys;
mod monitor;
mod occurrence;
mod screen;
#[cfg(test)]
mod tests;
mod usage;
mod view;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use ratatui::crossterm::event::KeyEvent;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::args::TopArgs;
use super::exit::Failure;
use super::output;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::logging;
use crate::os::signal::divert;
use feed::Feed;
use monitor::{Moment, Monitor, Pressed};
use occurrence::Occurrence;
use screen::TopScreen;
use view::{Palette, draw};

/// News that wait to be taken. Whoever has more waits: events are then counted where they come from.
const MAX_NEWS: usize = 256;
/// How often news are drawn that nobody pressed a key for: a burst of events is drawn as one.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// What ends `top` as `q` does. Left to their usual handling, they would end it without giving the terminal back.
const ENDS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// What `top` hears, from wherever.
enum TopNews {
    Seen(Box<Moment>),
    /// Nobody answers: at what time that was, and why.
    Lost(Duration, String),
    Happened(Occurrence),
    Said(String),
    /// What it is now: it is to be asked for another.
    LogLevel(String),
    Pressed(KeyEvent),
    Resized,
    /// The terminal is gone, or a signal came.
    Over,
}

pub(super) fn top(args: TopArgs) -> Result<(), Failure> {
    screen::check().map_err(Failure::Usage)?;
    let client = client(args.cluster);
    // Before there are threads.
    let signals = divert(ENDS)?;
    Ok(block_on(run(client, signals))?)
}

async fn run(client: Client, signals: SignalFd) -> Result<(), CommandError> {
    let (news, hear) = mpsc::channel(MAX_NEWS);
    let feed = Feed { client: Arc::new(client), news: news.clone(), began: std::time::Instant::now() };
    let mut monitor = Monitor::default();
    // A cluster that is not there is told as other commands do; one that goes away later is waited for.
    monitor.saw(feed.moment(feed.client.status().await?));
    let screen = TopScreen::open()?;
    // Both block, and end with this process.
    let of_keys = news.clone();
    std::thread::spawn(move || screen::read_keys(&of_keys));
    std::thread::spawn(move || wait_for_signal(&signals, &news));
    tokio::spawn(feed.clone().look());
    tokio::spawn(feed.clone().listen());
    show(monitor, screen, &feed, hear).await
}

/// Draws and takes news, until it is over.
async fn show(
    mut monitor: Monitor,
    mut screen: TopScreen,
    feed: &Feed,
    mut hear: mpsc::Receiver<TopNews>,
) -> Result<(), CommandError> {
    let palette = Palette { has_colours: logging::has_colours(&output::screen()) };
    let mut due = Some(Instant::now());
    loop {
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            heard = hear.recv() => heard.unwrap_or(TopNews::Over),
            () = wait => {
                screen.draw(|frame| draw(frame, &mut monitor, palette)).map_err(anyhow::Error::from)?;
                due = None;
                continue;
            }
        };
        let at = match heard {
            TopNews::Pressed(_) | TopNews::Resized => Instant::now(),
            _ => Instant::now() + DRAW_EVERY,
        };
        match take(heard, &mut monitor) {
            Pressed::Quit => return Ok(()),
            Pressed::Suspend => screen.suspend().map_err(anyhow::Error::from)?,
            Pressed::Order(order) => drop(tokio::spawn(feed.clone().carry_out(order))),
            Pressed::Nothing => {}
        }
        // What is due already is not put off.
        due = Some(due.map_or(at, |due| due.min(at)));
    }
}

/// Adds what was heard to what is known, and says what is to be done.
fn take(heard: TopNews, monitor: &mut Monitor) -> Pressed {
    match heard {
        TopNews::Seen(moment) => monitor.saw(*moment),
        TopNews::Lost(at, why) => monitor.lost(at, why),
        TopNews::Happened(event) => monitor.happened(event),
        TopNews::Said(text) => monitor.said(&text),
        TopNews::LogLevel(now) => monitor.ask_level(&now),
        TopNews::Pressed(key) => return monitor.pressed(&key),
        TopNews::Resized => {}
        TopNews::Over => return Pressed::Quit,
    }
    Pressed::Nothing
}

/// Blocks until a signal comes that ends `top`.
fn wait_for_signal(signals: &SignalFd, news: &mpsc::Sender<TopNews>) {
    let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // Nothing but an interruption can go wrong, and then it waits again.
    while poll(&mut ready, PollTimeout::NONE).is_err() {}
    let _ = news.blocking_send(TopNews::Over);
}
