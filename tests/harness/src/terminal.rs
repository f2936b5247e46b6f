//! A terminal of tmux, in which a test types and reads.

#![expect(clippy::print_stdout, reason = "tests tell what they skipped, and what a terminal showed that failed one")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Pid;

use crate::tools::Tool;
use crate::{binary, is_gone, until};

/// The screen of a shell, in a tmux of its own; dropped, it is gone.
pub struct Pane {
    tmux: Tool,
    socket: PathBuf,
    /// The shell in it.
    pub shell: Pid,
}

impl Pane {
    /// None where there is no tmux: says so.
    pub fn open(runtime: &Path, width: u16, height: u16) -> Option<Self> {
        let Some(tmux) = Tool::find("tmux") else {
            println!("skipped: tmux is not installed");
            return None;
        };
        let socket = runtime.join("tmux");
        let mut command = tmux.command();
        command.arg("-u").arg("-S").arg(&socket).args(["-f", "/dev/null", "new-session", "-d"]);
        command.args(["-x", &width.to_string(), "-y", &height.to_string(), "sh"]);
        command.env("XDG_RUNTIME_DIR", runtime).env("LC_ALL", "C.UTF-8");
        for name in ["WASMCLUSTER_CONTROL", "RUNTIME_DIRECTORY", "NO_COLOR", "TMUX", "ENV"] {
            command.env_remove(name);
        }
        assert!(command.status().unwrap().success());
        let mut pane = Self { tmux, socket, shell: Pid::this() };
        pane.shell = Pid::from_raw(pane.ask(&["display-message", "-p", "#{pane_pid}"]).trim().parse().unwrap());
        // Some shells take no prompt from their surroundings.
        pane.run("PS1='shell''> '; clear");
        pane.shows("shell>");
        Some(pane)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.tmux.command();
        command.arg("-S").arg(&self.socket).args(args);
        command
    }

    /// Runs a command of tmux, and returns what it printed.
    pub fn ask(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Presses keys, by tmux's names.
    pub fn press(&self, keys: &[&str]) {
        self.ask(&[&["send-keys"], keys].concat());
    }

    /// Runs a command line in the shell.
    pub fn run(&self, line: &str) {
        self.ask(&["send-keys", "-l", line]);
        self.press(&["Enter"]);
    }

    /// Starts `top` with these variables and waits until it shows a worker.
    pub fn top(&self, variables: &str) {
        self.run(&format!("{variables} {} top", binary().display()));
        self.shows("q quit");
    }

    /// What it shows, without colours.
    pub fn screen(&self) -> String {
        self.ask(&["capture-pane", "-p"])
    }

    /// Waits for this text.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        until(&format!("{text:?} is shown"), || self.screen().contains(text).then_some(()));
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    pub fn shows_what(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        until(what, || is_so(&self.screen()).then_some(()));
    }

    /// The first line that has `text`.
    pub fn line(&self, text: &str) -> Option<String> {
        self.screen().lines().find(|line| line.contains(text)).map(str::to_owned)
    }

    /// Waits for the shell, and checks that the terminal is as it was.
    #[track_caller]
    pub fn is_given_back(&self) {
        let flags = || self.ask(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        until("the shell's screen is back", || (flags().trim() == "0 1").then_some(()));
        self.run("stty -a | tr ' ;' '\\n\\n' | grep -x -e icanon -e echo -e isig | sort | tr '\\n' ' '");
        self.shows("echo icanon isig");
        self.run("clear");
    }
}

impl Drop for Pane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- the terminal\n{}\n---", self.screen());
        }
        // It may have ended with its shell.
        let _ = self.command(&["kill-server"]).output();
        if !std::thread::panicking() {
            until("the shell is gone", || is_gone(self.shell).then_some(()));
        }
    }
}
