//! The terminal of `top`: taken at the start and given back at every end, also that of a panic, and the keys that come from
//! it.

use std::io::{self, BufWriter, IsTerminal, Stdout};
use std::sync::Once;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, raise};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{Event, KeyEventKind, read};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::{Frame, Terminal};
use tokio::sync::mpsc;

use super::TopNews;
use crate::cli::output;

/// What a terminal has whose screen cannot be written to in any order.
const PLAIN_TERMINAL: &str = "dumb";

/// One write a frame: over a slow line, parts of a frame would be seen.
type Canvas = Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// The terminal, for as long as it is ours.
pub(super) struct TopScreen(Canvas);

impl TopScreen {
    /// Fails where nothing can be drawn.
    pub(super) fn open() -> anyhow::Result<Self> {
        give_back_on_panic();
        take().map(Self).context("cannot use the terminal")
    }

    /// Draws all anew; what is as it was is not written.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(draw).map(drop)
    }

    /// Gives the terminal back, stops this process as Ctrl-Z does, and takes the terminal again when it is continued.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        leave();
        raise(Signal::SIGTSTP)?;
        // Nothing is left of what was drawn. Ratatui would ask the terminal for its cursor first, and the thread that reads
        // keys would get the answer.
        self.0 = take()?;
        Ok(())
    }
}

impl Drop for TopScreen {
    fn drop(&mut self) {
        leave();
    }
}

/// Whether there is a terminal to draw on, or what is wrong.
pub(super) fn check() -> anyhow::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("`top` needs a terminal; `wasmcluster status` prints the state once, with --json for programs");
    }
    match std::env::var_os("TERM") {
        Some(term) if !term.is_empty() && term != PLAIN_TERMINAL => Ok(()),
        _ => bail!(
            "this terminal cannot be drawn on (TERM is dumb or not set); `wasmcluster status` prints the state once"
        ),
    }
}

/// Passes keys on, and changes of the size, until nobody wants them any more. Blocks.
pub(super) fn read_keys(news: &mpsc::Sender<TopNews>) {
    loop {
        let heard = match read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => TopNews::Pressed(key),
            Ok(Event::Resize(..)) => TopNews::Resized,
            Ok(_) => continue,
            Err(_) => TopNews::Over,
        };
        let is_over = matches!(heard, TopNews::Over);
        if news.blocking_send(heard).is_err() || is_over {
            return;
        }
    }
}

/// Takes the terminal, or leaves it as it was.
fn take() -> io::Result<Canvas> {
    let enter = || {
        enable_raw_mode()?;
        execute!(output::screen(), EnterAlternateScreen)?;
        Terminal::new(CrosstermBackend::new(BufWriter::new(output::screen())))
    };
    enter().inspect_err(|_| leave())
}

/// Leaves the terminal as it was found. Can be called twice.
fn leave() {
    // Nothing can be done if the terminal is gone.
    let _ = disable_raw_mode();
    let _ = execute!(output::screen(), LeaveAlternateScreen, Show);
}

/// A panic prints its message before anything is dropped: on the screen that then vanishes.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            usual(panic);
        }));
    });
}
