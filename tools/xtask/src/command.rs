//! Runs one program at the root of the repository and turns its failure into an error that names it.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::tail::Tail;

/// Whether [`run`] keeps the end of what commands say, for [`Failed`].
static KEEPS_TAILS: AtomicBool = AtomicBool::new(false);

/// From now on. Commands are no longer on a terminal then, and their two outputs become one.
pub fn keep_tails() {
    KEEPS_TAILS.store(true, Ordering::Relaxed);
}

/// A command that ended with anything but success.
#[derive(Debug)]
pub struct Failed {
    shown: String,
    status: ExitStatus,
    /// What it said last; empty unless that is kept.
    pub tail: String,
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.shown, self.status)
    }
}

impl std::error::Error for Failed {}

/// The root of the repository, where every task runs.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two folders below the root")
        .to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this task, so that the pinned toolchain stays the same throughout.
pub fn cargo() -> Command {
    let mut command = program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set by the cargo that started xtask; they would describe the wrong package to its children, and to build scripts
    // that look at them, which would run again after each plain `cargo build`.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_MANIFEST_", "CARGO_PKG_"]
            .iter()
            .any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
        {
            command.env_remove(name);
        }
    }
    command
}

pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// Runs a command to its end; anything but success is an error, [`Failed`] where it ran.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let mut tail = String::new();
    let status = if KEEPS_TAILS.load(Ordering::Relaxed) {
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn();
        // The command has the other end as well, and would keep it open.
        command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let follower = Tail::follow(reader, std::io::stdout());
        let status = child.and_then(|mut child| child.wait());
        match follower.finish() {
            Some(said) => tail = said,
            None => bail!("something that `{shown}` started is still there and holds its output"),
        }
        status
    } else {
        command.status()
    };
    let status = status.with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!(Failed {
            shown,
            status,
            tail
        });
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let mut words = vec![
        Path::new(command.get_program())
            .file_name()
            .unwrap_or(command.get_program())
            .to_string_lossy()
            .into_owned(),
    ];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}
