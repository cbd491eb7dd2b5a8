//! One virtual machine: a process of QEMU with its disks, its two network cards and the port to tell it what to do.
//!
//! Nothing of it outlives the test. When the process of the test ends, the kernel kills QEMU.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use local_pair::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::PATIENCE;
use crate::disk::{Disk, Loss};
use crate::image::Image;
use crate::port::{Job, Port, Ran};
use crate::qmp::Qmp;

/// Lines of the console that an error carries.
const CONSOLE_LINES_SHOWN: usize = 80;

/// The two cards of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    /// `eth0`: a cable to the other machine.
    Link,
    /// `eth1`: the world, which is this host at 10.0.2.2.
    Outside,
}

impl Card {
    fn id(self) -> &'static str {
        match self {
            Self::Link => "link-card",
            Self::Outside => "outside-card",
        }
    }
}

/// What a machine is made of, and stays when it is off.
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    /// On the cable.
    pub address: String,
    /// Of its own.
    folder: PathBuf,
    /// The other machine's end of the cable.
    far_end: PathBuf,
    memory_mib: u32,
    systemd: bool,
    parallel: bool,
    disks: Vec<Box<dyn Disk>>,
    image: Image,
    running: Option<Running>,
    starts: u32,
}

#[derive(Debug)]
struct Running {
    process: Child,
    qmp: Mutex<Qmp>,
    port: Port,
}

/// How to make one.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Kernel and initial file system are in it, too.
    pub memory_mib: u32,
    /// Is its first process, if the image has it.
    pub systemd: bool,
    /// Its two processors are two threads of QEMU, which is quicker, and not safe before QEMU 8.1: it may translate code
    /// for one while the other writes it. Where the kernel patches itself, that one runs into a breakpoint of which
    /// nobody knows any more, and the kernel panics; mostly at boot, and the more often the busier the host is.
    /// Otherwise the two take turns.
    pub parallel: bool,
    pub image: Image,
}

impl Machine {
    /// Off. `number` is 1 or 2; the disks are `/dev/vdb` and on.
    pub(super) fn new(folder: PathBuf, number: u8, spec: &Spec, disks: Vec<Box<dyn Disk>>) -> Self {
        let other = (3 - number).to_string();
        Self {
            name: format!("server{number}"),
            address: format!("10.77.0.{number}"),
            far_end: folder.with_file_name(other).join("link"),
            folder,
            memory_mib: spec.memory_mib,
            systemd: spec.systemd,
            parallel: spec.parallel,
            disks,
            image: spec.image.clone(),
            running: None,
            starts: 0,
        }
    }

    /// Switches it on and waits until it takes scripts.
    pub fn boot(&mut self) -> Result<()> {
        let started = self.switch_on()?;
        self.wait_ready(started)
    }

    /// Without waiting, so that another one can start beside it.
    pub(super) fn switch_on(&mut self) -> Result<Started> {
        ensure!(self.running.is_none(), "{} is on", self.name);
        self.starts += 1;
        for socket in self.sockets() {
            let _ = std::fs::remove_file(socket);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("qemu.log"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(self.command_line())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        Ok(Started(Some(process)))
    }

    pub(super) fn wait_ready(&mut self, mut started: Started) -> Result<()> {
        let [qmp, port] = self.sockets();
        let deadline = Deadline::after(PATIENCE);
        let what = format!("{}'s QEMU", self.name);
        let (qmp, port) = deadline
            .until(&what, || {
                started.check()?;
                if !port.exists() {
                    return Ok(None);
                }
                // The sockets are bound one after the other, each before it listens.
                let connected = Qmp::connect(&qmp).and_then(|qmp| Ok((qmp, Port::connect(&port)?)));
                Ok(connected.ok())
            })
            .with_context(|| self.story())?;
        port.wait_ready(deadline).with_context(|| self.story())?;
        self.running = Some(Running {
            process: started.0.take().context("it was started")?,
            qmp: Mutex::new(qmp),
            port,
        });
        Ok(())
    }

    /// Of QEMU itself, and of the port to the machine.
    fn sockets(&self) -> [PathBuf; 2] {
        ["qmp", "port"].map(|name| self.folder.join(name))
    }

    fn command_line(&self) -> Vec<String> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut words: Vec<String> = Vec::new();
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        let threads = if self.parallel { "multi" } else { "single" };
        add("-accel", format!("tcg,thread={threads}"));
        add("-cpu", "max".into());
        add("-smp", "2".into());
        add("-m", self.memory_mib.to_string());
        add("-kernel", self.image.kernel.display().to_string());
        add("-initrd", self.image.initial.display().to_string());
        // A panic ends it at once, as does every other restart: the test is told by its end. At boot the kernel would
        // count the ticks of its timer in a busy loop, and panic where too few come: on a host with more to do than
        // its processors can, they do not come in time.
        add(
            "-append",
            format!(
                "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off bed.name={} bed.link={} bed.outside=10.0.2.15 {}",
                self.name,
                self.address,
                if self.systemd { "bed.systemd" } else { "" },
            ),
        );
        add("-display", "none".into());
        add(
            "-serial",
            format!("file:{}", at(&format!("console{}", self.starts))),
        );
        add("-qmp", format!("unix:{},server=on,wait=off", at("qmp")));
        add("-device", "virtio-serial-pci".into());
        add(
            "-chardev",
            format!("socket,id=port,path={},server=on,wait=off", at("port")),
        );
        add("-device", "virtserialport,chardev=port,name=port".into());
        let tools = json!({
            "driver": "file", "node-name": "tools", "read-only": true,
            "filename": self.image.tools, "locking": "off",
        });
        add("-blockdev", tools.to_string());
        add("-device", "virtio-blk-pci,drive=tools".into());
        for (index, disk) in self.disks.iter().enumerate() {
            let mut node = disk.node();
            node["node-name"] = format!("disk{index}").into();
            add("-blockdev", node.to_string());
            add("-device", format!("virtio-blk-pci,drive=disk{index}"));
        }
        let cable = json!({
            "type": "dgram", "id": "link",
            "local": {"type": "unix", "path": at("link")},
            "remote": {"type": "unix", "path": self.far_end},
        });
        add("-netdev", cable.to_string());
        let last = self.address.rsplit('.').next().unwrap_or_default();
        for (card, netdev, kind) in [(Card::Link, "link", 1), (Card::Outside, "outside", 2)] {
            if card == Card::Outside {
                add("-netdev", "user,id=outside".into());
            }
            add(
                "-device",
                format!(
                    "virtio-net-pci,netdev={netdev},id={},mac=52:54:00:00:0{kind}:0{last},romfile=",
                    card.id()
                ),
            );
        }
        let mut all: Vec<String> = [
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]
        .map(String::from)
        .into();
        all.extend(words);
        all
    }

    fn running(&self) -> Result<&Running> {
        let running = self.running.as_ref();
        running.with_context(|| format!("{} is off", self.name))
    }

    // ---- Scripts

    /// Runs a script that must work, and gives all that it says.
    pub fn run(&self, script: &str) -> Result<String> {
        let ran = self.try_run(script)?;
        ran.done()
            .with_context(|| format!("on {}: {script}", self.name))
            .with_context(|| self.story())
    }

    pub fn try_run(&self, script: &str) -> Result<Ran> {
        let job = self.start(script)?;
        self.wait(job, script)
    }

    /// Runs a script beside others.
    pub fn start(&self, script: &str) -> Result<Job> {
        self.running()?.port.send(script)
    }

    pub fn wait(&self, job: Job, what: &str) -> Result<Ran> {
        let first: String = what.lines().take(3).collect::<Vec<_>>().join("; ");
        let what = format!("{first:?} on {}", self.name);
        let port = &self.running()?.port;
        let ran = port.wait(job, &what, Deadline::after(PATIENCE));
        ran.with_context(|| self.story())
    }

    /// Runs a script again and again until it works, and gives what it said then.
    pub fn until(&self, what: &str, script: &str) -> Result<String> {
        let mut last = String::new();
        let deadline = Deadline::after(PATIENCE);
        let found = deadline.until(what, || {
            let ran = self.try_run(script)?;
            last = ran.said.clone();
            Ok((ran.code == 0).then_some(ran.said))
        });
        found.with_context(|| format!("on {}, {script} said last: {last}", self.name))
    }

    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        // No line of the text is this one.
        let end = "end-of-the-file-that-the-test-writes";
        let script = format!("cat >{path} <<'{end}'\n{text}\n{end}\n");
        self.run(&script).map(drop)
    }

    /// What `/dev/vdb`, the first of them, or one behind it holds.
    pub fn disk_contents(&self, index: usize) -> Result<Vec<u8>> {
        self.disks[index].contents()
    }

    // ---- What happens to it

    /// The power goes, from one moment to the next; the disks keep what was flushed.
    pub fn cut_power(&mut self, seed: u64) -> Result<Loss> {
        self.end_process()?;
        let mut all = Loss::default();
        for (disk, number) in self.disks.iter().zip(0..) {
            let loss = disk.cut_power(seed ^ number)?;
            all.sectors_at_risk += loss.sectors_at_risk;
            all.sectors_lost += loss.sectors_lost;
        }
        Ok(all)
    }

    /// The power goes at a moment at which a disk has something to lose.
    pub fn cut_power_at_work(&mut self, seed: u64) -> Result<Loss> {
        let process = Pid::from_raw(i32::try_from(self.running()?.process.id())?);
        Deadline::after(PATIENCE).until("writes that are not flushed", || {
            // QEMU's own pause would flush its disks.
            kill(process, Signal::SIGSTOP)?;
            if self.disks.iter().any(|disk| disk.is_at_risk()) {
                return Ok(Some(()));
            }
            kill(process, Signal::SIGCONT)?;
            Ok(None)
        })?;
        self.cut_power(seed)
    }

    fn end_process(&mut self) -> Result<()> {
        let mut running = self
            .running
            .take()
            .with_context(|| format!("{} is off", self.name))?;
        running.process.kill()?;
        running.process.wait()?;
        Ok(())
    }

    /// Pauses it from outside: it does not know.
    pub fn pause(&self) -> Result<()> {
        self.order("stop", &json!({}))
    }

    pub fn go_on(&self) -> Result<()> {
        self.order("cont", &json!({}))
    }

    pub fn set_link(&self, card: Card, up: bool) -> Result<()> {
        self.order("set_link", &json!({"name": card.id(), "up": up}))
    }

    fn order(&self, command: &str, arguments: &serde_json::Value) -> Result<()> {
        let mut qmp = self
            .running()?
            .qmp
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        qmp.order(command, arguments).map(drop)
    }

    /// Waits until it has ended by itself, by a panic or a restart or a command, and cuts its power then: a restart
    /// flushes nothing.
    pub fn wait_end(&mut self, seed: u64) -> Result<Loss> {
        let what = format!("the end of {}", self.name);
        let deadline = Deadline::after(PATIENCE);
        let running = self.running.as_mut().context("it is off")?;
        let ended = deadline.until(&what, || Ok(running.process.try_wait()?));
        ended.with_context(|| self.story())?;
        self.cut_power(seed)
    }

    /// What the kernel said since the last start.
    pub fn console(&self) -> String {
        let path = self.folder.join(format!("console{}", self.starts));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// What a person would look at first.
    pub fn story(&self) -> String {
        let console = self.console();
        let log = std::fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        let lines: Vec<&str> = console.lines().chain(log.lines()).collect();
        let end = lines[lines.len().saturating_sub(CONSOLE_LINES_SHOWN)..].join("\n");
        format!("-- {}'s console ends:\n{end}\n", self.name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing can be done about a failure here: it is gone already.
        let _ = self.end_process();
    }
}

/// A machine that was switched on and has not said anything yet. It is killed unless [`Machine::wait_ready`] takes it
/// over.
pub(super) struct Started(Option<Child>);

impl Started {
    fn check(&mut self) -> Result<()> {
        let child = self.0.as_mut().context("it was started")?;
        match child.try_wait()? {
            Some(status) => bail!("it ended with {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
