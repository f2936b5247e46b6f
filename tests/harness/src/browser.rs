//! A page in a headless Chromium, which a test clicks on and types into, over the browser's debugging protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tools::Tool;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Chromium takes commands from descriptor 3 and answers at 4, each message with a zero byte at its end.
const WITH_PIPES: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2";
/// It asks nobody but the servers of the test.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
];

/// A browser with one page; dropped, it is gone.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    last: u64,
    session: Option<Value>,
    _profile: TempDir,
}

impl Browser {
    /// Opens a page. It may not be loaded yet.
    pub fn open(chromium: &Tool, url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("sh");
        command.args(["-c", WITH_PIPES]).arg(chromium.path()).args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // Killed, it leaves nothing elsewhere; and its processes end with it, as a group.
        command.env("HOME", profile.path()).env("TMPDIR", profile.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("Chromium starts");
        let commands = process.stdin.take().expect("stdin is piped");
        let messages = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let (answered, answers) = channel();
        std::thread::spawn(move || {
            let messages = messages.split(0).map_while(Result::ok);
            for message in messages.filter_map(|message| serde_json::from_slice(&message).ok()) {
                // A browser that is dropped listens no more.
                let _ = answered.send(message);
            }
        });
        let mut browser = Self { process, commands, answers, last: 0, session: None, _profile: profile };
        let target = browser.command("Target.createTarget", json!({"url": url}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = Some(browser.command("Target.attachToTarget", attach)["sessionId"].clone());
        browser
    }

    #[track_caller]
    fn command(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("Chromium lives");
        loop {
            let mut answer = self.answers.recv_timeout(PATIENCE).expect("Chromium answers");
            // Others are events.
            if answer["id"] == self.last {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    /// What an expression of JavaScript is in the page: null if it fails, as while the page is loaded.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        self.command("Runtime.evaluate", params)["result"]["value"].take()
    }

    /// Loads the page again.
    #[track_caller]
    pub fn reload(&mut self) {
        self.command("Page.reload", json!({}));
    }

    /// Clicks with the mouse into the middle of an element.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let selector = Value::from(selector);
        let place = self.value(&format!(
            "(() => {{ const it = document.querySelector({selector}); it.scrollIntoView({{ block: 'center' }}); \
             const {{ x, y, width, height }} = it.getBoundingClientRect(); return [x + width / 2, y + height / 2]; }})()"
        ));
        assert!(place.is_array(), "there is no {selector}");
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.command("Input.dispatchMouseEvent", params);
        }
    }

    /// Presses a key, which goes to the element that has the focus: Tab or Enter.
    #[track_caller]
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => panic!("{other} is not known here"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = text.into();
            }
            self.command("Input.dispatchKeyEvent", params);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All of its processes, which keep the folder busy otherwise.
        let _ = killpg(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}
