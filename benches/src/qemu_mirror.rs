//! QEMU's `blockdev-mirror` with `copy-mode=write-blocking`: the peer to measure against. A storage daemon serves
//! the primary file and copies each write to a `qemu-nbd` on the secondary file before it answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use local_pair::Deadline;
use serde_json::{Value, json};

const START_SECONDS_MAX: u64 = 10;

#[derive(Debug)]
pub struct QemuMirror {
    programs: Vec<Child>,
    export: PathBuf,
}

impl QemuMirror {
    pub fn start(folder: &Path, primary: &Path, secondary: &Path) -> Result<Self> {
        let target = folder.join("target.sock");
        let export = folder.join("export.sock");
        let monitor = folder.join("monitor.sock");
        let mut mirror = Self {
            programs: Vec::new(),
            export,
        };
        mirror.spawn(
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", "qemu-nbd", "--persistent"])
                .args(["--format=raw", "--cache=none", "--aio=io_uring"])
                .arg(format!("--socket={}", target.display()))
                .arg(secondary),
        )?;
        wait_listening(&target)?;
        mirror.spawn(
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", "qemu-storage-daemon"])
                .arg("--blockdev")
                .arg(format!(
                    "driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring",
                    primary.display()
                ))
                .args(["--blockdev", "driver=raw,node-name=disk,file=file"])
                .arg("--blockdev")
                .arg(format!(
                    "driver=nbd,node-name=target,server.type=unix,server.path={}",
                    target.display()
                ))
                .arg("--nbd-server")
                .arg(format!(
                    "addr.type=unix,addr.path={},max-connections=0",
                    mirror.export.display()
                ))
                .args([
                    "--export",
                    "type=nbd,id=export,node-name=disk,writable=on,name=",
                ])
                .arg("--chardev")
                .arg(format!(
                    "socket,id=control,path={},server=on,wait=off",
                    monitor.display()
                ))
                .args(["--monitor", "chardev=control"]),
        )?;
        wait_listening(&mirror.export)?;
        let mut monitor = Monitor::connect(&monitor)?;
        monitor.call("qmp_capabilities", json!({}))?;
        monitor.call(
            "blockdev-mirror",
            json!({
                "job-id": "mirror",
                "device": "disk",
                "target": "target",
                "sync": "none",
                "copy-mode": "write-blocking",
            }),
        )?;
        Deadline::after_seconds(START_SECONDS_MAX).until("QEMU's mirror", || {
            let jobs = monitor.call("query-jobs", json!({}))?;
            Ok((jobs[0]["status"] == "ready").then_some(()))
        })?;
        Ok(mirror)
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.export.display())
    }

    pub fn process_ids(&self) -> impl Iterator<Item = u32> {
        self.programs.iter().map(Child::id)
    }

    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start QEMU's programs; they are in the package qemu-utils")?;
        self.programs.push(child);
        Ok(())
    }
}

impl Drop for QemuMirror {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Waits until a server answers on its socket.
pub fn wait_listening(socket: &Path) -> Result<()> {
    Deadline::after_seconds(START_SECONDS_MAX).until(&format!("{}", socket.display()), || {
        Ok(UnixStream::connect(socket).ok().map(|_| ()))
    })
}

/// QEMU's control protocol: one JSON object a line.
struct Monitor {
    from: BufReader<UnixStream>,
    to: UnixStream,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        wait_listening(path)?;
        let to = UnixStream::connect(path)?;
        let mut from = BufReader::new(to.try_clone()?);
        let mut greeting = String::new();
        from.read_line(&mut greeting)?;
        Ok(Self { from, to })
    }

    fn call(&mut self, name: &str, arguments: Value) -> Result<Value> {
        writeln!(
            self.to,
            "{}",
            json!({ "execute": name, "arguments": arguments })
        )?;
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line)? == 0 {
                bail!("QEMU hung up at {name}");
            }
            let mut reply: Value = serde_json::from_str(&line)?;
            if let Some(error) = reply.get("error") {
                bail!("QEMU refused {name}: {error}");
            }
            if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}
