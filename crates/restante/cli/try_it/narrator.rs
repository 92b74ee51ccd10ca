//! Tells the story: plain lines for a person, one JSON object a step for a program. Waits for Enter on a terminal, but
//! never for long. Knows nothing of mail.

use super::binary::Run;
use crate::cli::output::Output;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// On a terminal the story goes on by itself after this: long enough to read a step.
const READING_TIME: Duration = Duration::from_secs(3);
/// Lines shown of a command; a person reads no more, and the story's listings are shorter.
const LINES_SHOWN_MAX: usize = 40;
/// Lines typed ahead.
const KEYS_WAITING: usize = 16;
const STEPS: usize = 7;

pub(super) struct Narrator {
    output: Output,
    keys: Option<mpsc::Receiver<String>>,
    steps: usize,
    step: &'static str,
    told: Vec<String>,
    commands: Vec<Value>,
}

impl Narrator {
    pub(super) fn new(output: Output, interactive: bool) -> Self {
        let keys = interactive.then(read_keys);
        Self { output, keys, steps: 0, step: "", told: Vec::new(), commands: Vec::new() }
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.keys.is_some()
    }

    /// A step begins.
    pub(super) fn begin(&mut self, step: &'static str, title: &str) {
        self.step = step;
        self.steps += 1;
        self.told = vec![title.to_owned()];
        self.commands.clear();
        if !self.output.json {
            self.output.line(&format!("{}{}/{STEPS} {title}", if self.steps > 1 { "\n" } else { "" }, self.steps));
        }
    }

    /// What happens, or what it proves.
    pub(super) fn say(&mut self, text: &str) {
        self.told.push(text.to_owned());
        if !self.output.json {
            self.output.line(&format!("    {text}"));
        }
    }

    /// A command and what it printed.
    pub(super) fn show(&mut self, run: &Run) {
        self.show_lines(run, run.stdout.lines());
    }

    /// A command and those lines of what it printed.
    pub(super) fn show_lines<'a>(&mut self, run: &Run, lines: impl Iterator<Item = &'a str>) {
        let lines: Vec<_> = lines.collect();
        if self.output.json {
            self.commands.push(json!({"command": run.command, "exit": run.status.code(), "output": lines}));
            return;
        }
        self.output.line(&format!("    $ {}", run.command));
        for line in lines.iter().take(LINES_SHOWN_MAX) {
            self.output.line(&format!("      {line}"));
        }
        if let Some(more @ 1..) = lines.len().checked_sub(LINES_SHOWN_MAX) {
            self.output.line(&format!("      ({more} more lines)"));
        }
    }

    /// The step is over; a person has a moment to read it.
    pub(super) async fn end(&mut self) {
        if self.output.json {
            let commands = std::mem::take(&mut self.commands);
            let told = std::mem::take(&mut self.told);
            self.output.object(&json!({"type": "try", "step": self.step, "text": told, "commands": commands}));
        }
        if self.is_interactive() {
            self.output.line(&format!("    [Enter, or it goes on by itself in {} s]", READING_TIME.as_secs()));
            let _enter_or_not = timeout(READING_TIME, self.key()).await;
        }
    }

    /// The next line typed; None if there is no terminal, or no more.
    pub(super) async fn key(&mut self) -> Option<String> {
        self.keys.as_mut()?.recv().await
    }
}

/// A thread of its own, and never joined: nothing can interrupt it where it reads, and it must hold up nobody.
fn read_keys() -> mpsc::Receiver<String> {
    let (sender, keys) = mpsc::channel(KEYS_WAITING);
    let read = move || {
        for line in io::stdin().lines() {
            if line.is_ok_and(|line| sender.blocking_send(line).is_ok()) {
                continue;
            }
            return;
        }
    };
    // Without the thread the channel is closed, and the story goes on without waiting.
    let _no_thread = std::thread::Builder::new().name("keys".into()).spawn(read);
    keys
}
