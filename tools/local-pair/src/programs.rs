//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Set by `cargo xtask`, which has just built what lies there.
pub const PROGRAM_DIR_VARIABLE: &str = "MIRROR_BIN_DIR";

/// The first two are there; whoever starts another one finds out.
#[derive(Debug, Clone)]
pub struct Programs {
    pub mirrord: PathBuf,
    pub mirrorctl: PathBuf,
    pub mirror_inspect: PathBuf,
    pub mirror_agent: PathBuf,
    pub mirror_witness: PathBuf,
}

impl Programs {
    /// Programs that lie together in one folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let found = |name: &str| {
            let path = folder.join(name);
            if !path.is_file() {
                bail!(
                    "{} is missing; build it with `cargo build --workspace --bins`",
                    path.display()
                );
            }
            Ok(path)
        };
        Ok(Self {
            mirrord: found("mirrord")?,
            mirrorctl: found("mirrorctl")?,
            mirror_inspect: folder.join("mirror-inspect"),
            mirror_agent: folder.join("mirror-agent"),
            mirror_witness: folder.join("mirror-witness"),
        })
    }

    /// The folder that `cargo xtask` names; without it they are built first, once a process, so that a test
    /// never runs against stale programs.
    pub fn fresh() -> Result<Self> {
        static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        if let Some(folder) = std::env::var_os(PROGRAM_DIR_VARIABLE) {
            return Self::in_folder(Path::new(&folder));
        }
        match FOLDER.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
            Ok(folder) => Self::in_folder(folder),
            Err(reason) => bail!("cannot build the programs: {reason}"),
        }
    }
}

fn build() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot tell where this program is")?;
    // A test binary lies in target/<profile>/deps, any other program in target/<profile>.
    let folder = executable
        .ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_some_and(|name| name != "deps"))
        .context("this program lies outside of a cargo target folder")?
        .to_path_buf();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--bins"])
        .args([
            "-p",
            "nbd-frontend",
            "-p",
            "mirrorctl",
            "-p",
            "mirror-inspect",
            "-p",
            "agent",
        ]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo build` ended with {status}");
    }
    Ok(folder)
}
