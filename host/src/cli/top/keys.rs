//! The keys of `top`: which there are, what they ask for, and how they are explained.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::logging::LogLevel;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Reload,
    Rollback,
    /// One worker more.
    Grow,
    /// One worker fewer.
    Shrink,
    LogLevel,
    Stop,
    Pause,
    /// Workers in another order.
    Order,
    /// To the workers above those that are shown.
    Up,
    Down,
    Help,
    /// Back to the shell, until `fg`.
    Suspend,
}

/// A key, how it is written, and what for.
pub(super) struct KeyRow {
    codes: &'static [KeyCode],
    pub(super) shown: &'static str,
    /// One or two words, for the last line; None if it is only in the help.
    pub(super) short: Option<&'static str>,
    pub(super) long: &'static str,
    wish: Wish,
}

macro_rules! keys {
    ($($shown:literal $short:expr, $long:literal => $wish:ident: $($code:expr),+;)*) => {
        &[$(KeyRow { codes: &[$($code),+], shown: $shown, short: $short, long: $long, wish: Wish::$wish }),*]
    };
}

/// All keys, the most important first: a narrow terminal shows no others in its last line.
pub(super) const KEYS: &[KeyRow] = keys! {
    "q" Some("quit"), "quit, as Esc and Ctrl-C do; the cluster goes on" => Quit: KeyCode::Char('q'), KeyCode::Esc;
    "?" Some("help"), "this help" => Help: KeyCode::Char('?'), KeyCode::Char('h'), KeyCode::F(1);
    "r" Some("reload"), "reload: component and settings are read again" => Reload: KeyCode::Char('r');
    "b" Some("rollback"), "roll back to the version before" => Rollback: KeyCode::Char('b');
    "+" Some("more"), "start one worker more; - drains one" => Grow: KeyCode::Char('+'), KeyCode::Char('=');
    "-" Some("fewer"), "" => Shrink: KeyCode::Char('-'), KeyCode::Char('_');
    "l" Some("log"), "choose another log level" => LogLevel: KeyCode::Char('l');
    "s" Some("stop"), "drain and stop the cluster" => Stop: KeyCode::Char('s');
    "p" Some("pause"), "keep what is shown, or go on" => Pause: KeyCode::Char('p'), KeyCode::Char(' ');
    "o" None, "order workers by slot, REQ/S, MS/REQ, CPU, MEMORY" => Order: KeyCode::Char('o');
    "↑ ↓" None, "show other workers, where not all have room" => Up: KeyCode::Up, KeyCode::Char('k'), KeyCode::PageUp;
    "↑ ↓" None, "" => Down: KeyCode::Down, KeyCode::Char('j'), KeyCode::PageDown;
    "Ctrl-Z" None, "back to the shell; `fg` comes back here" => Suspend: KeyCode::Null;
};

/// What the key asks for, if anything.
pub(super) fn wish(key: &KeyEvent) -> Option<Wish> {
    if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
        return match key.code {
            KeyCode::Char('c') if !key.modifiers.contains(KeyModifiers::ALT) => Some(Wish::Quit),
            KeyCode::Char('z') if !key.modifiers.contains(KeyModifiers::ALT) => Some(Wish::Suspend),
            _ => None,
        };
    }
    let code = match key.code {
        KeyCode::Char(letter) => KeyCode::Char(letter.to_ascii_lowercase()),
        other => other,
    };
    KEYS.iter().find(|row| row.codes.contains(&code)).map(|row| row.wish)
}

/// The log level that a key chooses: each begins with a letter of its own.
pub(super) fn level(key: &KeyEvent) -> Option<LogLevel> {
    let KeyCode::Char(letter) = key.code else { return None };
    LEVELS.into_iter().find(|level| level.to_string().starts_with(letter.to_ascii_lowercase()))
}

pub(super) const LEVELS: [LogLevel; 6] =
    [LogLevel::Off, LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_rows_of_the_table_have_a_key_in_common() {
        let codes: Vec<_> = KEYS.iter().flat_map(|row| row.codes).collect();
        let different: BTreeSet<String> = codes.iter().map(|code| format!("{code:?}")).collect();
        assert_eq!(codes.len(), different.len());
    }

    #[test]
    fn what_keys_ask_for() {
        let plain = |code| wish(&KeyEvent::new(code, KeyModifiers::NONE));
        let with = |letter, modifiers| wish(&KeyEvent::new(KeyCode::Char(letter), modifiers));
        assert_eq!(plain(KeyCode::Char('r')), Some(Wish::Reload));
        assert_eq!(with('R', KeyModifiers::SHIFT), Some(Wish::Reload));
        assert_eq!(plain(KeyCode::Esc), Some(Wish::Quit));
        assert_eq!(plain(KeyCode::Char('x')), None);
        assert_eq!(with('c', KeyModifiers::CONTROL), Some(Wish::Quit));
        assert_eq!(with('z', KeyModifiers::CONTROL), Some(Wish::Suspend));
        // Not what somebody meant who held another key.
        assert_eq!(with('s', KeyModifiers::CONTROL), None);
        assert_eq!(with('r', KeyModifiers::ALT), None);
    }

    #[test]
    fn each_level_has_its_letter() {
        for expected in LEVELS {
            let letter = expected.to_string().chars().next().unwrap();
            assert_eq!(level(&KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE)), Some(expected));
        }
    }
}
