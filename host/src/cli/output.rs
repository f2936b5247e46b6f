//! What commands print, and how tables are laid out.

use std::io::{self, Write};

/// Characters in a line of a terminal.
pub(super) const WIDTH: usize = 80;

/// Writes all of it to stdout and flushes.
pub(super) fn print(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

/// Where `top` draws.
pub(super) fn screen() -> io::Stdout {
    io::stdout()
}

/// Lets nothing of a text that comes in pieces, and that others have written, move a terminal's cursor, clear it, or change its
/// title: of control characters, ends of lines and tabs stay, and colours.
#[derive(Debug, Default)]
pub(super) struct Harmless {
    /// A sequence that has begun, or the first byte of a character.
    begun: Vec<u8>,
}

impl Harmless {
    pub(super) fn filter(&mut self, piece: &[u8]) -> Vec<u8> {
        const MAX_SEQUENCE: usize = 32;
        let mut text = Vec::with_capacity(piece.len());
        for &byte in piece {
            match (&self.begun[..], byte) {
                // A control character of the second kind (U+0080 to U+009F) in UTF-8.
                ([0xc2], 0x80..=0x9f) => self.begun.clear(),
                ([0xc2], _) => {
                    text.push(0xc2);
                    self.begun.clear();
                    self.plain(byte, &mut text);
                }
                ([b'\x1b'], b'[') => self.begun.push(byte),
                ([b'\x1b', b'[', ..], b'0'..=b'9' | b';') if self.begun.len() < MAX_SEQUENCE => self.begun.push(byte),
                ([b'\x1b', b'[', ..], b'm') => {
                    text.append(&mut self.begun);
                    text.push(byte);
                }
                // The last byte of a sequence that is none of colours goes with it.
                ([b'\x1b', ..], _) => {
                    self.begun.clear();
                    if matches!(byte, b'\n' | b'\x1b' | 0xc2..) {
                        self.plain(byte, &mut text);
                    }
                }
                _ => self.plain(byte, &mut text),
            }
        }
        text
    }

    fn plain(&mut self, byte: u8, text: &mut Vec<u8>) {
        match byte {
            b'\x1b' | 0xc2 => self.begun.push(byte),
            b'\n' | b'\t' => text.push(byte),
            0..0x20 | 0x7f => {}
            _ => text.push(byte),
        }
    }
}

/// Takes the sequences by which terminals are told colours and the like (ECMA-48, CSI) out of a text that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Uncoloured {
    at: AnsiState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AnsiState {
    #[default]
    Text,
    /// Behind an escape.
    Escape,
    /// In a sequence, up to its last byte.
    Sequence,
}

impl Uncoloured {
    pub(super) fn strip(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(piece.len());
        for &byte in piece {
            match (self.at, byte) {
                (AnsiState::Text | AnsiState::Escape, b'\x1b') => self.at = AnsiState::Escape,
                (AnsiState::Escape, b'[') => self.at = AnsiState::Sequence,
                // A sequence that its line does not finish is none.
                (AnsiState::Sequence, 0x20..=0x3f) => {}
                (AnsiState::Sequence, 0x40..=0x7e) => self.at = AnsiState::Text,
                _ => {
                    self.at = AnsiState::Text;
                    text.push(byte);
                }
            }
        }
        text
    }
}

/// Lays out columns, with two spaces between them if that fits a terminal, else one.
pub(super) fn align<const COLUMNS: usize>(text: &mut String, rows: &[[String; COLUMNS]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let gap = if widths.iter().sum::<usize>() + 2 * (COLUMNS - 1) > WIDTH { " " } else { "  " };
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join(gap).trim_end());
        text.push('\n');
    }
}

/// Writes items separated by commas, broken into lines that fit a terminal.
pub(super) fn wrap(text: &mut String, label: &str, items: &[String]) {
    let mut line = label.to_owned();
    for (index, item) in items.iter().enumerate() {
        let comma = if index + 1 == items.len() { "" } else { "," };
        let is_first = line.len() == label.len();
        if !is_first && line.chars().count() + 1 + item.chars().count() + comma.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = " ".repeat(label.len());
        }
        if !line.trim_end().is_empty() && !line.ends_with(' ') {
            line.push(' ');
        }
        line.push_str(item);
        line.push_str(comma);
    }
    text.push_str(&line);
    text.push('\n');
}

/// Lines of at most `width` characters, as long as no word is longer.
pub(super) fn filled(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The two largest units of a time.
pub(super) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
        (days, hours, ..) => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_wrote_moves_the_cursor() {
        for (text, shown) in [
            ("\x1b[31mred\x1b[0m\tand\n", "\x1b[31mred\x1b[0m\tand\n"),
            ("a\x1b[2Jb\x1b[1;1Hc", "abc"),
            ("\x1b]0;title\x07x\rover", "0;titlexover"),
            ("\u{9b}2J\u{e9}\u{a0}", "2J\u{e9}\u{a0}"),
            ("\x1b\x1b[1mb", "\x1b[1mb"),
        ] {
            for piece in [1, 2, 100] {
                let mut harmless = Harmless::default();
                let pieces = text.as_bytes().chunks(piece).flat_map(|piece| harmless.filter(piece));
                let all: Vec<u8> = pieces.collect();
                assert_eq!(String::from_utf8_lossy(&all), shown, "{text:?}");
            }
        }
    }

    #[test]
    fn colours_are_taken_out_wherever_pieces_end() {
        let text = b"\x1b[2m12:00\x1b[0m \x1b[38;5;1mERROR\x1b[0m a \x1b7 \x1b[3\nb\x1b\x1b[1m[c]\n";
        for size in [1, 2, 3, 5, text.len()] {
            let mut uncoloured = Uncoloured::default();
            let stripped: Vec<u8> = text.chunks(size).flat_map(|piece| uncoloured.strip(piece)).collect();
            assert_eq!(String::from_utf8(stripped).unwrap(), "12:00 ERROR a 7 \nb[c]\n");
        }
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "1d01h")] {
            assert_eq!(duration(seconds * 1000), text);
        }
    }
}
