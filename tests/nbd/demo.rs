//! The demo itself: where nothing can be mounted, when it is interrupted, and what it leaves behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use local_pair::{Deadline, Programs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest run of a whole demo; the programs under test are not optimised.
const DEMO_SECONDS_MAX: u64 = 180;
/// Longest way from the interruption to the end of the clean-up.
const CLEAN_UP_SECONDS_MAX: u64 = 30;

/// A demo that runs, and what it says.
struct Demo {
    process: Child,
    said: tempfile::TempDir,
}

impl Demo {
    fn start(attach: &str) -> Result<Self> {
        let said = tempfile::tempdir()?;
        let file = |name| std::fs::File::create(said.path().join(name));
        let process = Command::new(Programs::fresh()?.mirrorctl)
            .args(["demo", "--attach", attach])
            .stdin(Stdio::null())
            .stdout(file("stdout")?)
            .stderr(file("stderr")?)
            .spawn()?;
        Ok(Self { process, said })
    }

    fn said(&self, stream: &str) -> String {
        std::fs::read_to_string(self.said.path().join(stream)).unwrap_or_default()
    }

    /// Waits until a step has begun.
    fn wait_step(&mut self, step: &str) -> Result<()> {
        self.wait(step, |demo| Ok(demo.said("stderr").contains(step)))
    }

    /// Waits for a state of a demo that goes on.
    fn wait(&mut self, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        Deadline::after_seconds(DEMO_SECONDS_MAX).until(what, || {
            if self.process.try_wait()?.is_some() {
                bail!("the demo ended early: {}", self.said("stderr"));
            }
            Ok(is_so(self)?.then_some(()))
        })
    }

    fn wait_end(&mut self, seconds: u64) -> Result<Option<i32>> {
        let status = Deadline::after_seconds(seconds)
            .until("the end of the demo", || Ok(self.process.try_wait()?))
            .with_context(|| self.said("stderr"))?;
        Ok(status.code())
    }

    /// Its temporary folder, which it names in its first step.
    fn folder(&self) -> Result<PathBuf> {
        let said = self.said("stderr");
        let named = said
            .lines()
            .find_map(|line| line.trim().strip_prefix("in /"))
            .with_context(|| format!("the demo names no folder: {said}"))?;
        Ok(Path::new("/").join(named))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Only a test that failed gets here with a demo that runs; SIGTERM makes it clean up.
        if let Ok(None) = self.process.try_wait() {
            let _ = kill(
                Pid::from_raw(self.process.id().cast_signed()),
                Signal::SIGTERM,
            );
            let _ = self.wait_end(CLEAN_UP_SECONDS_MAX);
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Command lines of all processes that name this folder.
fn processes_of(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let Ok(words) = std::fs::read(entry?.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        if line.contains(&folder) {
            found.push(line);
        }
    }
    Ok(found)
}

fn assert_nothing_left(folder: &Path) -> Result<()> {
    ensure!(!folder.exists(), "{} is left behind", folder.display());
    let named = folder.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&named), "mounted still:\n{mounts}");
    // The kernel lets go of a loop device when its last user is gone.
    Deadline::after_seconds(CLEAN_UP_SECONDS_MAX).until(
        "the end of loop devices and processes",
        || {
            let loops = crate::client::run("/sbin/losetup", &["--list", "--output", "BACK-FILE"])?;
            Ok((!loops.contains(&named) && processes_of(folder)?.is_empty()).then_some(()))
        },
    )
}

#[test]
fn the_demo_tells_its_story_where_nothing_can_be_mounted() -> Result<()> {
    let mut demo = Demo::start("image")?;
    let code = demo.wait_end(DEMO_SECONDS_MAX)?;
    ensure!(code == Some(0), "{code:?}: {}", demo.said("stderr"));
    let summary = demo.said("stdout");
    for part in [
        "an ext4 image, copied with nbdcopy; nothing is mounted",
        "were written alone",
        "the same byte for byte",
        "No answered write was lost",
    ] {
        ensure!(summary.contains(part), "no {part:?} in:\n{summary}");
    }
    assert_nothing_left(&demo.folder()?)
}

#[test]
fn an_interrupted_demo_takes_everything_down_and_fails() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a file system; run it as root"
    );
    let mut demo = Demo::start("nbdfuse")?;
    demo.wait_step("a file system with files")?;
    let folder = demo.folder()?;
    let named = folder.display().to_string();
    // Here, because the step under load is over in a moment.
    demo.wait("something mounted to take down", |_| {
        Ok(std::fs::read_to_string("/proc/self/mounts")?.contains(&named))
    })?;
    demo.wait_step("server1 is killed under load")?;
    kill(
        Pid::from_raw(demo.process.id().cast_signed()),
        Signal::SIGINT,
    )?;
    let code = demo.wait_end(CLEAN_UP_SECONDS_MAX)?;
    ensure!(code == Some(1), "{code:?}: {}", demo.said("stderr"));
    ensure!(
        demo.said("stderr").contains("interrupted"),
        "{}",
        demo.said("stderr")
    );
    ensure!(demo.said("stdout").contains("FAILED"));
    assert_nothing_left(&folder)
}

#[test]
fn a_way_that_this_machine_lacks_is_refused_with_the_reason() -> Result<()> {
    if Path::new("/sys/block/nbd0").exists() {
        // Nothing is lacking here; the demo would use the device.
        return Ok(());
    }
    let mut demo = Demo::start("nbd-client")?;
    let code = demo.wait_end(DEMO_SECONDS_MAX)?;
    ensure!(code == Some(1), "{code:?}");
    let said = demo.said("stderr");
    ensure!(
        said.contains("no free /dev/nbdN") && said.contains("modprobe nbd"),
        "{said}"
    );
    assert_nothing_left(&demo.folder()?)
}
