//! The host's end of the port through which a machine is told what to run.
//!
//! Each script has a number. What comes back is kept until it is asked for, in any order; a thread takes it in, so
//! that a machine never waits for the test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use local_pair::Deadline;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a script came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub code: i32,
    /// Both of its outputs.
    pub said: String,
}

impl Ran {
    /// What a script said that must have worked.
    pub fn done(self) -> Result<String> {
        ensure!(self.code == 0, "it ended with {}: {}", self.code, self.said);
        Ok(self.said)
    }

    /// What a script said that must have failed, with these words.
    pub fn refused(self, words: &[&str]) -> Result<String> {
        ensure!(self.code != 0, "it worked: {}", self.said);
        let said = self.said.to_lowercase();
        for word in words {
            let wanted = word.to_lowercase();
            ensure!(
                said.contains(&wanted),
                "it does not say {word:?}: {}",
                self.said
            );
        }
        Ok(self.said)
    }
}

/// A script that was sent and may still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Job(u64);

/// The machine says so of itself.
const READY: Job = Job(0);

#[derive(Debug)]
pub struct Port {
    stream: Mutex<UnixStream>,
    next: AtomicU64,
    came: Arc<Mutex<Came>>,
}

#[derive(Debug, Default)]
struct Came {
    answers: HashMap<u64, Ran>,
    /// Why nothing more comes.
    ended: Option<String>,
}

impl Port {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let came = Arc::<Mutex<Came>>::default();
        let (reading, keeping) = (stream.try_clone()?, Arc::clone(&came));
        // Ends with the connection, which ends with the machine.
        std::thread::Builder::new()
            .name("port".into())
            .spawn(move || {
                let why = take_in(reading, &keeping).err();
                let why = why.map_or("the machine is off".into(), |error| format!("{error:#}"));
                lock(&keeping).ended = Some(why);
            })?;
        Ok(Self {
            stream: Mutex::new(stream),
            next: AtomicU64::new(1),
            came,
        })
    }

    pub fn wait_ready(&self, deadline: Deadline) -> Result<()> {
        self.wait(READY, "the machine", deadline).map(drop)
    }

    pub fn send(&self, script: &str) -> Result<Job> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let line = format!("{number} {}\n", STANDARD.encode(script));
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream
            .write_all(line.as_bytes())
            .context("the machine takes no orders any more")?;
        Ok(Job(number))
    }

    pub fn wait(&self, job: Job, what: &str, deadline: Deadline) -> Result<Ran> {
        deadline.until(what, || self.look(job))
    }

    /// What it came to, if it has ended.
    fn look(&self, job: Job) -> Result<Option<Ran>> {
        let mut came = lock(&self.came);
        match (came.answers.remove(&job.0), &came.ended) {
            (Some(ran), _) => Ok(Some(ran)),
            (None, Some(why)) => bail!("no answer comes any more: {why}"),
            (None, None) => Ok(None),
        }
    }
}

fn lock(came: &Mutex<Came>) -> std::sync::MutexGuard<'_, Came> {
    came.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_in(stream: UnixStream, came: &Mutex<Came>) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let mut words = line.split(' ');
        let parsed = (|| {
            let number: u64 = words.next()?.parse().ok()?;
            let code: i32 = words.next()?.parse().ok()?;
            let said = STANDARD.decode(words.next().unwrap_or_default()).ok()?;
            Some((number, code, String::from_utf8_lossy(&said).into_owned()))
        })();
        let Some((number, code, said)) = parsed else {
            bail!("the machine sent {line:?}");
        };
        lock(came).answers.insert(number, Ran { code, said });
    }
    Ok(())
}
