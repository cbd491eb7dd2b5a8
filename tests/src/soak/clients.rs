//! The load: clients that write, read and verify all the time, each in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use local_pair::{PYTHON, Pair, Side};

const SCRIPT: &str = include_str!("client.py");
const CLIENTS: usize = 4;
/// The first 32 MiB of the mirror.
const BLOCKS: u64 = 8192;

#[derive(Debug)]
pub struct Clients {
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What all clients did since the last time.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    pub writes: u64,
    pub reads: u64,
    pub verified_bytes: u64,
    pub lost_connections: u64,
    /// Errors on connections that lived on.
    pub errors: Vec<String>,
    /// Longest wait of one client from an answer to its next.
    pub longest_stall_ms: u64,
    /// Blocks that held neither what was answered nor what was sent since. Kept from the beginning on.
    pub wrong: Vec<String>,
    /// Different blocks that were written so far.
    pub blocks: u64,
}

impl Clients {
    pub fn start(pair: &Pair) -> Result<Self> {
        let script = pair.folder().join("client.py");
        std::fs::write(&script, SCRIPT)?;
        let uris = Side::BOTH.map(|side| pair.uri(side));
        let start = |index: usize| {
            let mut child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", PYTHON])
                .arg(&script)
                .args([index, CLIENTS].map(|number| number.to_string()))
                .arg(BLOCKS.to_string())
                .args(&uris)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {PYTHON}"))?;
            let commands = child.stdin.take().context("its input is a pipe")?;
            let answers = child.stdout.take().context("its output is a pipe")?;
            Ok(Client {
                child,
                commands,
                answers: BufReader::new(answers),
            })
        };
        let clients = (0..CLIENTS).map(start).collect::<Result<_>>()?;
        Ok(Self { clients })
    }

    pub fn figures(&mut self) -> Result<Figures> {
        self.ask("figures")
    }

    /// Reads every block that was ever written. The mirror must be served.
    pub fn check(&mut self) -> Result<Figures> {
        self.ask("check")
    }

    fn ask(&mut self, command: &str) -> Result<Figures> {
        for client in &mut self.clients {
            writeln!(client.commands, "{command}").context("a client has ended")?;
        }
        let mut all = Figures::default();
        for client in &mut self.clients {
            let mut line = String::new();
            client.answers.read_line(&mut line)?;
            let told: serde_json::Value = serde_json::from_str(&line)
                .with_context(|| format!("a client answered {line:?} to {command}"))?;
            all.add(&told);
        }
        Ok(all)
    }
}

impl Figures {
    fn add(&mut self, told: &serde_json::Value) {
        let number = |key: &str| told[key].as_u64().unwrap_or(0);
        let texts = |key: &str| {
            let list = told[key].as_array().cloned().unwrap_or_default();
            list.into_iter()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        self.writes += number("writes");
        self.reads += number("reads");
        self.verified_bytes += number("verified_bytes");
        self.lost_connections += number("lost_connections");
        self.blocks += number("blocks");
        self.longest_stall_ms = self.longest_stall_ms.max(number("longest_stall_ms"));
        self.errors.extend(texts("errors"));
        self.wrong.extend(texts("wrong"));
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.child.kill();
            let _ = client.child.wait();
        }
    }
}
