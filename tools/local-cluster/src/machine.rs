//! A machine of a test: processes in network, process and mount namespaces of their own.
//!
//! Nothing of it has a name outside. When its first process ends, the kernel kills all others and takes
//! mounts and interfaces away, so that a power cut is one signal, and a test that dies leaves nothing. It
//! sees the files of the host, and has a folder `here` of its own among them.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::io::resource::fuse;
use anyhow::{Context, Result, bail};
use local_pair::{Deadline, run_tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TOOL_LIMIT: Duration = Duration::from_secs(20);
/// The first process: adopts and buries what others leave behind.
const INIT: &str = "while :; do sleep 3600 & wait; done";

#[derive(Debug)]
pub struct Machine {
    /// Holds the namespaces open; `init` is its child.
    holder: Child,
    init: Pid,
    /// Mount points of the host's that are its disks.
    disks: Vec<PathBuf>,
}

impl Machine {
    pub fn boot() -> Result<Self> {
        Self::boot_with(Vec::new())
    }

    /// With these files as its disks, which the host has mounted: they outlive its power.
    pub fn boot_with(disks: Vec<PathBuf>) -> Result<Self> {
        let holder = quiet(&mut Command::new("setpriv"))
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--pid"])
            .args(["--mount", "--fork", "--kill-child", "--mount-proc"])
            .args(["--", "sh", "-c", INIT])
            .spawn()
            .context("cannot start unshare")?;
        let mut machine = Self {
            holder,
            init: Pid::from_raw(0),
            disks,
        };
        machine.init = Deadline::after_seconds(20).until("a machine", || {
            let child = child_of(machine.holder.id())?;
            // Only when it runs the shell are all namespaces and /proc set up.
            Ok(child.filter(|pid| command_name(*pid).as_deref() == Some("sh")))
        })?;
        machine.run_in_network(&["ip", "link", "set", "lo", "up"])?;
        machine.forget_mounts_of_others()?;
        Ok(machine)
    }

    /// What another test mounted would stay mounted here when that test unmounts it.
    fn forget_mounts_of_others(&self) -> Result<()> {
        let within = std::env::temp_dir();
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.init))?;
        let points = mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4));
        let is_others = |point: &Path| {
            let is_within = point.parent().is_some_and(|at| at.starts_with(&within));
            is_within && !self.disks.iter().any(|disk| disk == point)
        };
        for point in points.filter(|point| is_others(Path::new(point))) {
            self.run(&["umount", "--lazy", point])?;
        }
        Ok(())
    }

    pub fn init(&self) -> Pid {
        self.init
    }

    /// Runs a tool in it that must succeed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let target = self.init.to_string();
        let mut arguments = vec!["-t", &target, "-n", "-m", "-p", "--"];
        arguments.extend(words);
        run_tool("nsenter", &arguments, TOOL_LIMIT)
    }

    /// The same with a tool of the network, which may name processes as the host does.
    pub fn run_in_network(&self, words: &[&str]) -> Result<String> {
        let target = self.init.to_string();
        let mut arguments = vec!["-t", &target, "-n", "--"];
        arguments.extend(words);
        run_tool("nsenter", &arguments, TOOL_LIMIT)
    }

    /// Starts a program in it. Output is appended to `log`.
    pub fn spawn(&self, words: &[&str], log: &Path) -> Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let entered = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "nsenter", "-t"])
            .arg(self.init.to_string())
            .args(["-n", "-m", "-p", "--", "setpriv", "--pdeathsig", "KILL"])
            .arg("--")
            .args(words)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {words:?}"))?;
        let mut process = Process {
            // Until the program runs. None at all would be everything of this test to `kill`.
            pid: Pid::from_raw(entered.id().cast_signed()),
            entered,
            log: log.to_path_buf(),
        };
        let program = Path::new(words[0]).file_name().unwrap_or_default();
        // The kernel keeps 15 letters of a name.
        let name: String = program.to_string_lossy().chars().take(15).collect();
        process.pid = Deadline::after_seconds(20).until(&format!("the start of {name}"), || {
            if let Some(status) = process.entered.try_wait()? {
                bail!("{words:?} ended with {status}: {}", tail(log));
            }
            let child = child_of(process.entered.id())?;
            Ok(child.filter(|pid| command_name(*pid).as_ref() == Some(&name)))
        })?;
        Ok(process)
    }

    /// Everything in it, from one moment to the next: nothing is flushed, nobody is told.
    pub fn cut_power(&mut self) -> Result<()> {
        let connections = fuse_connections(self.init, &self.disks);
        let space = process_space(self.init);
        // Its end ends the first process, and with that all others.
        self.holder.kill()?;
        // A process that waits inside the kernel for a server that was stopped or is gone cannot be killed, and holds
        // block devices that all machines share.
        for connection in connections {
            fuse::abort(connection)?;
        }
        self.holder.wait()?;
        Deadline::after_seconds(20).until("the end of a machine", || {
            // It goes last, when all others are buried. What stands outside and waits for one of them was stopped along
            // with it by a freeze.
            for pid in all_processes()? {
                if space.is_some() && process_space(pid) == space {
                    signal(pid, Signal::SIGCONT)?;
                }
            }
            Ok(is_gone(self.init).then_some(()))
        })
    }

    /// SIGSTOP for everything in it: it stands still and its connections stay.
    pub fn freeze(&self) -> Result<()> {
        let mut told = HashSet::new();
        Deadline::after_seconds(20).until("a frozen machine", || {
            let mut is_still = true;
            for pid in self.processes()? {
                is_still &= match state(pid) {
                    None | Some('T' | 'Z') => continue,
                    // It waits inside the kernel for what was stopped before it, and stops before it gets out.
                    Some('D') => told.contains(&pid),
                    Some(_) => false,
                };
                signal(pid, Signal::SIGSTOP)?;
                told.insert(pid);
            }
            Ok(is_still.then_some(()))
        })
    }

    pub fn thaw(&self) -> Result<()> {
        for pid in self.processes()? {
            signal(pid, Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Everything in it but the first process and its clock.
    fn processes(&self) -> Result<Vec<Pid>> {
        let space = process_space(self.init).context("the machine is off")?;
        let mut found = all_processes()?;
        found.retain(|pid| {
            let is_inside = std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
            let is_clock = command_name(*pid).as_deref() == Some("sleep");
            *pid != self.init && is_inside.as_ref() == Some(&space) && !is_clock
        });
        Ok(found)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing can be done about a failure here: it is gone already, or the kernel holds it.
        let _ = self.cut_power();
    }
}

/// A program in a machine.
#[derive(Debug)]
pub struct Process {
    /// `nsenter`, which waits for the program.
    entered: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// As this machine counts processes.
    pub fn id(&self) -> Pid {
        self.pid
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.entered.try_wait()?.is_none())
    }

    /// `kill -9`, and it is gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_end()
    }

    /// To the program and to what waits for it, which stops and goes on with it.
    pub fn signal(&self, which: Signal) -> Result<()> {
        signal(self.pid, which)?;
        if which == Signal::SIGCONT {
            signal(Pid::from_raw(self.entered.id().cast_signed()), which)?;
        }
        Ok(())
    }

    pub fn wait_end(&mut self) -> Result<()> {
        let log = self.log.clone();
        Deadline::after_seconds(30)
            .until("the end of a process", || {
                // It may have been stopped along with the program.
                signal(
                    Pid::from_raw(self.entered.id().cast_signed()),
                    Signal::SIGCONT,
                )?;
                Ok(self.entered.try_wait()?.map(|_| ()))
            })
            .with_context(|| tail(&log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = signal(self.pid, Signal::SIGKILL);
        let _ = self.entered.kill();
        let _ = self.entered.wait();
    }
}

/// The end of a log, for an error.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 25;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
    format!("-- {} ends:\n{end}", log.display())
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
}

fn signal(pid: Pid, which: Signal) -> Result<()> {
    match kill(pid, which) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot send {which} to {pid}")),
    }
}

/// Numbers of the FUSE file systems that are mounted where a process is, but for these disks.
fn fuse_connections(pid: Pid, disks: &[PathBuf]) -> Vec<u32> {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let number = |line: &str| line.split(' ').nth(2)?.split_once(':')?.1.parse().ok();
    let is_disk = |line: &str| {
        let point = line.split(' ').nth(4).map(Path::new);
        disks.iter().any(|disk| Some(disk.as_path()) == point)
    };
    // Its kind is "fuse", or "fuse." and a name; "fusectl" is none.
    let lines = mounts
        .lines()
        .filter(|line| line.contains(" - fuse ") || line.contains(" - fuse."));
    lines
        .filter(|line| !is_disk(line))
        .filter_map(number)
        .collect()
}

fn all_processes() -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        found.extend(number.map(Pid::from_raw));
    }
    Ok(found)
}

/// The process namespace that children of a process are in.
fn process_space(pid: Pid) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid_for_children")).ok()
}

fn child_of(pid: u32) -> Result<Option<Pid>> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let Some(first) = children.split_whitespace().next() else {
        return Ok(None);
    };
    Ok(Some(Pid::from_raw(first.parse()?)))
}

fn command_name(pid: Pid) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn is_gone(pid: Pid) -> bool {
    state(pid).is_none_or(|state| state == 'Z')
}

/// The letter that `ps` shows.
fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the name, which is in parentheses.
    stat.rsplit_once(") ")?.1.chars().next()
}
