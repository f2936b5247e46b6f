//! The commands of a page in Markdown: found, run in a [`Shell`], and what they print compared with what the page says.
//!
//! Every block in `sh` and `console` is run as it is. In `console`, lines after `$ ` are commands and all others what is printed:
//! each line must come, in this order, and no other but progress. `…` stands for any text in a line, and alone for any lines. Numbers that
//! differ from run to run (times, sizes, process ids: all with a unit, a fraction or three digits) and digests count as equal.
//!
//! What a reader would have in another terminal goes on beside the rest: `serve`, and commands that follow. A new `serve` ends
//! that of the same name. In a comment before a block, as HTML has them, stands what is not plain:
//!
//! - `<!-- not run: REASON -->`
//! - `<!-- before: COMMANDS -->`: what the reader has done already, or has
//! - `<!-- numbers vary: REASON -->`: all numbers count as equal
//! - `<!-- fails: REASON -->`: the last command of the block is to fail
//! - `<!-- tried: COMMANDS -->`, before a table: the commands of ours in its last column are run, after these

use std::process::Command;

use crate::shell::{Background, Shell};
use crate::wait::{COMPILE_PATIENCE, until_within};

/// A block of code, and what the comment before it says.
#[derive(Debug)]
pub struct Block {
    /// Where the code begins, from 1.
    pub line: usize,
    /// What stands after the three backquotes.
    pub language: String,
    /// The code.
    pub text: String,
    /// What the comment says, as `KEY: TEXT`, if there is one.
    pub mark: Option<(String, String)>,
}

/// The language of a block that is the commands of a table.
const TRIED: &str = "tried";

const MARKS: [&str; 4] = ["not run", "before", "numbers vary", "fails"];

/// All blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let lines: Vec<&str> = page.lines().collect();
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < lines.len() {
        // Blocks in lists are further in.
        let fence = lines[at].trim_start();
        let indent = lines[at].len() - fence.len();
        if let Some(language) = fence.strip_prefix("```") {
            let code = lines[at + 1..].iter().take_while(|line| line.trim() != "```");
            let code: Vec<&str> = code.map(|line| line.get(indent..).unwrap_or_default()).collect();
            let mark = mark_before(&lines[..at]);
            blocks.push(Block { line: at + 2, language: language.into(), text: code.join("\n"), mark });
            at += code.len() + 1;
        }
        if lines[at].starts_with("<!-- tried") {
            blocks.push(tried(at, &lines));
        }
        at += 1;
    }
    blocks
}

/// The commands of the table below such a comment.
fn tried(at: usize, lines: &[&str]) -> Block {
    let rows = lines[at + 1..].iter().take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit(" | ").next());
    let commands =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|it| it.starts_with("wasmcluster "));
    let text = commands.collect::<Vec<_>>().join("\n");
    let before = lines[at].split_once(':').map(|(_, commands)| commands.trim_end_matches("-->").trim());
    let mark = before.map(|commands| ("before".to_owned(), commands.to_owned()));
    Block { line: at + 1, language: TRIED.into(), text, mark }
}

/// The mark in the comment that ends right before a block.
fn mark_before(lines: &[&str]) -> Option<(String, String)> {
    let end = lines.len() - lines.iter().rev().take_while(|line| line.trim().is_empty()).count();
    let is_comment = lines[..end].last()?.trim_end().ends_with("-->");
    let begin = is_comment.then(|| lines[..end].iter().rposition(|line| line.trim_start().starts_with("<!--")))??;
    let comment = lines[begin..end].join("\n");
    let (key, text) = comment.trim().strip_prefix("<!--")?.strip_suffix("-->")?.split_once(':')?;
    MARKS.contains(&key.trim()).then(|| (key.trim().to_owned(), text.trim().to_owned()))
}

impl Block {
    /// Whether it has commands.
    pub fn is_commands(&self) -> bool {
        ["sh", "bash", "shell", "console", TRIED].contains(&self.language.as_str())
    }

    fn marked(&self, key: &str) -> Option<&str> {
        self.mark.as_ref().filter(|(of, _)| of == key).map(|(_, text)| text.as_str())
    }

    /// Why it is not run, if so.
    pub fn is_not_run(&self) -> Option<&str> {
        self.marked("not run")
    }

    /// The commands, each with the lines that it should print if the page says that.
    fn commands(&self) -> Vec<(String, Option<Vec<String>>)> {
        if self.language != "console" {
            return whole_commands(&self.text).into_iter().map(|command| (command, None)).collect();
        }
        let mut commands: Vec<(String, Option<Vec<String>>)> = Vec::new();
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.into(), Some(Vec::new()))),
                (None, Some((command, Some(printed)))) if printed.is_empty() && command.ends_with('\\') => {
                    *command += "\n";
                    *command += line.strip_prefix("> ").unwrap_or(line);
                }
                (None, Some((_, Some(printed)))) => printed.push(line.into()),
                (None, _) => panic!("what is printed follows a command after `$ `: {line}"),
            }
        }
        commands
    }
}

/// Lines that are whole to a shell: `case … esac` is one command.
fn whole_commands(text: &str) -> Vec<String> {
    let (mut commands, mut begun) = (Vec::new(), String::new());
    for line in text.lines() {
        begun += line;
        if begun.trim().is_empty() || begun.trim_start().starts_with('#') {
            begun.clear();
            continue;
        }
        let parsed = Command::new("bash").args(["-n", "-c", &begun]).output().expect("bash is there");
        // It takes a document without its end, and only warns.
        if parsed.status.success() && parsed.stderr.is_empty() && !begun.ends_with('\\') {
            commands.push(std::mem::take(&mut begun));
        } else {
            begun += "\n";
        }
    }
    assert!(begun.is_empty(), "no whole command: {begun}");
    commands
}

/// Runs a page, block by block. Panics, with its place, where the page is wrong.
pub struct Player<'a> {
    shell: Shell,
    page: &'a str,
    /// Where it comes from, for messages.
    name: &'a str,
    beside: Vec<(String, Background)>,
}

impl<'a> Player<'a> {
    /// None if the machine lacks what it takes.
    pub fn new(name: &'a str, page: &'a str) -> Option<Self> {
        let programs = ["curl", "jq", "tmux", "openssl"];
        let used = programs.into_iter().filter(|program| page.contains(program));
        Some(Self { shell: Shell::open(&used.collect::<Vec<_>>())?, page, name, beside: Vec::new() })
    }

    /// Plays all blocks with commands. Returns how many commands were run.
    pub fn play(mut self) -> usize {
        let blocks = blocks(self.page).into_iter().filter(|block| block.is_commands() && block.is_not_run().is_none());
        let played = blocks.map(|block| self.play_block(&block)).sum();
        for (command, background) in std::mem::take(&mut self.beside) {
            let said = self.shell.said_by(&background);
            // It may have ended because its cluster was stopped.
            let is_well = self.shell.goes_on(&background) || !said.contains("error: ");
            assert!(is_well, "{}: {command} ended: {said}", self.name);
        }
        played
    }

    fn play_block(&mut self, block: &Block) -> usize {
        let place = format!("{}:{}", self.name, block.line);
        for command in block.marked("before").map(whole_commands).unwrap_or_default() {
            if goes_on(&command) {
                self.start(&command, None, &place);
            } else {
                let (status, said) = self.shell.run(&command);
                assert_eq!(status, 0, "{place}: before it, {command}\n{said}");
            }
        }
        let commands = block.commands();
        for (at, (command, printed)) in commands.iter().enumerate() {
            let expected =
                printed.as_deref().map(|lines| Expected { lines, is_loose: block.marked("numbers vary").is_some() });
            let asks_status = commands.get(at + 1).is_some_and(|(next, _)| next.contains("$?"));
            let is_to_fail = at + 1 == commands.len() && block.marked("fails").is_some();
            if goes_on(command) {
                self.start(command, expected, &place);
            } else if command.starts_with("wasmcluster top") {
                self.look(command, expected, &place);
            } else {
                let (status, said) = self.shell.run(command);
                let is_as_it_should = asks_status || (status == 0) != is_to_fail;
                assert!(is_as_it_should, "{place}: {command}\nexit status {status}\n{said}{}", self.said_beside());
                if let Some(expected) = expected {
                    let is_equal = expected.is(&said);
                    assert!(
                        is_equal,
                        "{place}: {command}\n--- the page says\n{}\n--- it printed\n{said}",
                        expected.lines.join("\n")
                    );
                }
            }
        }
        commands.len()
    }

    /// Starts what goes on, and waits until it serves, or has printed what the page says.
    fn start(&mut self, command: &str, expected: Option<Expected>, place: &str) {
        let serves = is_server(command);
        if serves {
            self.end_servers(name_of(command));
        }
        let background = self.shell.start(command);
        self.beside.push((command.to_owned(), background.clone()));
        let and_more = expected.as_ref().map(|expected| [expected.lines, &["…".to_owned()]].concat());
        until_within(COMPILE_PATIENCE, &format!("{place}: {command}"), || {
            let said = self.shell.said_by(&background);
            let is_ready = !serves || said.contains("Serving HTTP on ");
            let is_said = and_more.as_ref().is_none_or(|lines| Expected { lines, is_loose: false }.is(&said));
            let goes_on = self.shell.goes_on(&background);
            assert!(goes_on || !serves, "{place}: {command} ended\n{said}");
            (is_ready && is_said).then_some(())
        });
    }

    fn end_servers(&mut self, name: &str) {
        let is_one = |command: &str| is_server(command) && name_of(command) == name;
        let (servers, others) = std::mem::take(&mut self.beside).into_iter().partition(|(command, _)| is_one(command));
        self.beside = others;
        let servers: Vec<(String, Background)> = servers;
        servers.iter().for_each(|(_, server)| self.shell.end(server));
    }

    /// Looks at a command's screen on a terminal, and quits it.
    fn look(&mut self, command: &str, expected: Option<Expected>, place: &str) {
        let tmux = "tmux -u -S /srv/.tmux -f /dev/null";
        let (status, said) = self.shell.run(&format!("{tmux} new-session -d -x 80 -y 24 '{command}'"));
        assert_eq!(status, 0, "{place}: {said}");
        let mut screen = String::new();
        until_within(COMPILE_PATIENCE, &format!("{place}: the screen of {command}"), || {
            screen = self.shell.run(&format!("{tmux} capture-pane -p")).1;
            expected
                .as_ref()
                .is_none_or(|expected| expected.is(&screen))
                .then_some(())
                .filter(|()| screen.contains("quit"))
        });
        self.shell.run(&format!("{tmux} send-keys q"));
        until_within(COMPILE_PATIENCE, &format!("{place}: {command} ends"), || {
            (self.shell.run(&format!("{tmux} has-session")).0 != 0).then_some(())
        });
    }

    fn said_beside(&self) -> String {
        let all = self.beside.iter().map(|(command, it)| format!("--- {command}\n{}", self.shell.said_by(it)));
        all.collect()
    }
}

/// The words of a command after its variables.
fn words(command: &str) -> impl Iterator<Item = &str> {
    command.split_whitespace().skip_while(|word| word.contains('=') && !word.starts_with('-'))
}

fn is_server(command: &str) -> bool {
    let mut words = words(command);
    let is_ours = words.next() == Some("wasmcluster");
    is_ours && words.next().is_some_and(|word| word == "serve" || word == "start")
}

/// The cluster that a command is about.
fn name_of(command: &str) -> &str {
    words(command).skip_while(|word| *word != "--name").nth(1).unwrap_or("default")
}

/// Whether a command does not end by itself.
fn goes_on(command: &str) -> bool {
    let follows = command.starts_with("wasmcluster events") && !command.contains("--no-follow");
    let flags = ["--follow", "build --watch", "follow=true", "localhost/events"];
    is_server(command)
        || follows
        || flags.iter().any(|flag| command.contains(flag) && !command.contains("follow=false"))
}

/// What a command should print.
struct Expected<'a> {
    lines: &'a [String],
    is_loose: bool,
}

impl Expected<'_> {
    fn is(&self, said: &str) -> bool {
        let said = said.lines().filter(|line| !is_progress(line));
        let said: Vec<String> = said.map(|line| shape(line, self.is_loose)).collect();
        let lines: Vec<String> = self.lines.iter().map(|line| shape(line, self.is_loose)).collect();
        is_match(&lines, &said)
    }
}

/// What is printed where something takes longer than one would wait for in silence, and not where it is done before.
fn is_progress(line: &str) -> bool {
    ["Building ", "Compiling ", "Pulling "].iter().any(|begin| line.starts_with(begin)) && line.ends_with('…')
}

fn is_match(expected: &[String], said: &[String]) -> bool {
    let Some((first, rest)) = expected.split_first() else { return said.is_empty() };
    if first == "…" {
        return (0..=said.len()).any(|skipped| is_match(rest, &said[skipped..]));
    }
    said.split_first().is_some_and(|(line, others)| is_line(first, line) && is_match(rest, others))
}

/// Whether a line is as it should be; `…` is any text.
fn is_line(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// A line without what differs from run to run: one space between words, 0 for such numbers, `#` for digests and times of day.
fn shape(line: &str, is_loose: bool) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_time = word.len() >= 20 && word.starts_with("20") && word.ends_with('Z') && word.contains('T');
        if is_time { "#".to_owned() } else { shape_of_word(word, is_loose) }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shape_of_word(word: &str, is_loose: bool) -> String {
    let (mut shape, mut rest) = (String::new(), word);
    while let Some(first) = rest.chars().next() {
        let end_of = |is_part: fn(&char) -> bool| rest.chars().take_while(is_part).map(char::len_utf8).sum::<usize>();
        let hex = end_of(|c| c.is_ascii_hexdigit());
        if hex >= 12 {
            shape.push('#');
            rest = &rest[hex..];
        } else if first.is_ascii_digit() {
            let number = rest[..end_of(|c| c.is_ascii_digit() || ".,".contains(*c))].trim_end_matches(['.', ',']);
            rest = &rest[number.len()..];
            let has_unit = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '%');
            let varies = is_loose || has_unit || number.len() > 2;
            shape += if varies { "0" } else { number };
        } else {
            shape.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    shape
}
