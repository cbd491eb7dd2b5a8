//! What the agent will need on this machine: scripts and programs that can be run, folders, interfaces
//! and addresses. It only looks; what a group has mounted or holds while it runs here is no finding.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_frontend::config::agent::{
    AgentConfig, Attach, Filesystem, ForcedStopKind, Fsck, Group, MirrorDisk, MonitorKind,
    ResourceKind,
};
use nbd_frontend::config::trust;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::findings::Findings;
use super::ports;

/// Socket of the agent in the run directory.
const AGENT_SOCKET: &str = "agent.sock";
/// Searched beside PATH, for a shell of an operator may lack them.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Where systemd finds units, as far as packages and operators put them there.
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What the kernel tells of watchdogs.
const WATCHDOGS: &str = "/sys/class/watchdog";

/// Adds what is missing or in the way for the node at `node`.
pub fn look(agent: &AgentConfig, node: usize, run_dir: &Path, findings: &mut Findings) {
    let agent_runs = UnixStream::connect(run_dir.join(AGENT_SOCKET)).is_ok();
    if let Some(stop) = &agent.forced_stop
        && let ForcedStopKind::Custom { script } = &stop.kind
    {
        look_at_program("forced_stop script", script, findings);
    }
    for group in agent
        .groups
        .iter()
        .filter(|group| group.nodes.contains(&node))
    {
        look_at_group(agent, group, node, agent_runs, findings);
    }
    for monitor in &agent.monitors {
        let key = |key: &str| format!("monitor {:?} {key}", monitor.name);
        match &monitor.kind {
            MonitorKind::Exec { command } => {
                look_at_command(agent, &key("command"), command, findings);
            }
            MonitorKind::NetworkLink { interfaces } => {
                look_at_interface(&key("interface"), &interfaces[node], findings);
            }
            MonitorKind::Disk { folder } if !on_a_mirror(agent, folder) && !folder.is_dir() => {
                findings.problem(
                    key("folder"),
                    format!("{} is no folder on this machine", folder.display()),
                    format!("create it with `mkdir -p {}`", folder.display()),
                );
            }
            MonitorKind::Stall {
                watchdog: Some(device),
            } => look_at_watchdog(
                &key("watchdog"),
                device,
                monitor.interval,
                Path::new(WATCHDOGS),
                findings,
            ),
            _ => {}
        }
    }
    ports::look(agent, node, agent_runs, findings);
    look_at_alert_log(&agent.alert_log, findings);
}

/// The agent makes its folder, but not out of anything.
fn look_at_alert_log(log: &Path, findings: &mut Findings) {
    const KEY: &str = "agent alert_log";
    let Some(folder) = log.parent() else {
        return;
    };
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else {
        return;
    };
    if log.is_dir() {
        return findings.problem(
            KEY,
            format!("{} is a folder", log.display()),
            "write the path of the file itself, such as \"/var/log/mirror/alert.log\"",
        );
    }
    if !there.is_dir() {
        return findings.problem(
            KEY,
            format!("{} is no folder", there.display()),
            "write the path of a file in a folder",
        );
    }
    if access(there, AccessFlags::W_OK) == Err(Errno::EROFS) {
        return findings.problem(
            KEY,
            format!(
                "nothing can be written in {}: it is read-only",
                there.display()
            ),
            "write the path of a file that can be written",
        );
    }
    // A folder of its own for the log is usual; more than that looks like a slip.
    if there != folder && Some(there) != folder.parent() {
        findings.warning(
            KEY,
            format!(
                "there is no {} on this machine: of that path only {} is there",
                folder.display(),
                there.display()
            ),
            format!(
                "mend the path, or create it with `mkdir -p {}`; otherwise the agent does",
                folder.display()
            ),
        );
    }
}

fn look_at_group(
    agent: &AgentConfig,
    group: &Group,
    node: usize,
    agent_runs: bool,
    findings: &mut Findings,
) {
    for resource in &group.resources {
        let key = |key: &str| {
            let title = format!("group {:?} resource {:?} {key}", group.name, resource.name);
            title.trim_end().to_owned()
        };
        match &resource.kind {
            ResourceKind::MirrorDisk(disk) => {
                look_at_attachment(&key("attach"), disk, findings);
                if let Some(mount) = &disk.mount {
                    look_at_mount(&key("mount"), mount, agent_runs, findings);
                    look_at_fsck(&key("fsck"), disk, findings);
                }
            }
            ResourceKind::FloatingIp(ip) => {
                look_at_interface(&key("interface"), &ip.interfaces[node], findings);
            }
            ResourceKind::Exec { start, stop, check } => {
                look_at_command(agent, &key("start"), start, findings);
                look_at_command(agent, &key("stop"), stop, findings);
                if let Some(check) = check {
                    look_at_command(agent, &key("check"), check, findings);
                }
            }
            ResourceKind::Systemd { unit } => look_at_unit(&key("unit"), unit, findings),
            ResourceKind::ProbePort(_) => {}
        }
    }
}

/// What is on a mirror can be seen only where that is mounted.
fn on_a_mirror(agent: &AgentConfig, path: &Path) -> bool {
    let mut resources = agent.groups.iter().flat_map(|group| &group.resources);
    resources.any(|resource| match &resource.kind {
        ResourceKind::MirrorDisk(MirrorDisk {
            mount: Some(mount), ..
        }) => path.starts_with(mount),
        _ => false,
    })
}

fn look_at_command(agent: &AgentConfig, key: &str, command: &[String], findings: &mut Findings) {
    let Some(program) = command.first().map(Path::new) else {
        return;
    };
    if !on_a_mirror(agent, program) {
        look_at_program(key, program, findings);
    }
}

/// Something that the agent runs, mostly as root.
fn look_at_program(key: &str, program: &Path, findings: &mut Findings) {
    let shown = program.display();
    let metadata = match fs::metadata(program) {
        Ok(metadata) => metadata,
        Err(error) => {
            return findings.problem(
                key,
                format!("cannot look at {shown}: {error}"),
                "put it there on this node, or write where it is",
            );
        }
    };
    if !metadata.is_file() {
        return findings.problem(
            key,
            format!("{shown} is not a file"),
            "write the whole path of the program itself",
        );
    }
    if access(program, AccessFlags::X_OK).is_err() {
        findings.problem(
            key,
            format!("{shown} cannot be executed"),
            format!("run `chmod +x {shown}`"),
        );
    }
    if let Err(exposure) = trust::check_unchanged(program, &metadata) {
        findings.problem(
            key,
            format!("{shown} {exposure}, and the agent runs it with its own rights"),
            exposure.remedy(program),
        );
    }
}

fn look_at_interface(key: &str, interface: &str, findings: &mut Findings) {
    if nix::net::if_::if_nametoindex(interface).is_err() {
        findings.problem(
            key,
            format!("this machine has no network interface {interface:?}"),
            "write the name that `ip link` shows; where it differs by node, write interface.on = \
             { NODE = \"…\" } with one for each",
        );
    }
}

/// `watchdogs`: where the kernel tells of them.
fn look_at_watchdog(
    key: &str,
    device: &Path,
    interval: Duration,
    watchdogs: &Path,
    findings: &mut Findings,
) {
    if !device.exists() {
        return findings.problem(
            key,
            format!("{} is not there", device.display()),
            "load the driver of the machine's watchdog (or `modprobe softdog`), or remove the key",
        );
    }
    // The first one has a second name.
    let name = match device.file_name().and_then(|name| name.to_str()) {
        Some("watchdog") => "watchdog0",
        Some(name) => name,
        None => return,
    };
    let seconds = fs::read_to_string(watchdogs.join(name).join("timeout"));
    let Some(seconds) = seconds.ok().and_then(|text| text.trim().parse().ok()) else {
        return;
    };
    let patience = Duration::from_secs(seconds);
    if interval > patience / 2 {
        findings.problem(
            key,
            format!(
                "{} resets the machine after {seconds} s, and this monitor feeds it every {} only",
                device.display(),
                humantime::format_duration(interval)
            ),
            format!(
                "write an interval of {} ms or less",
                patience.as_millis() / 3
            ),
        );
    }
}

fn look_at_mount(key: &str, mount: &Path, agent_runs: bool, findings: &mut Findings) {
    if !mount.is_dir() {
        return findings.problem(
            key,
            format!("{} is no folder on this machine", mount.display()),
            format!("create it with `mkdir -p {}`", mount.display()),
        );
    }
    // While the agent runs, it may be the mirror itself.
    if agent_runs {
        return;
    }
    if is_mounted(mount) {
        findings.warning(
            key,
            format!("something is mounted on {} already", mount.display()),
            "unmount it before the group starts, unless it is this mirror",
        );
    } else if fs::read_dir(mount).is_ok_and(|mut entries| entries.next().is_some()) {
        findings.warning(
            key,
            format!(
                "{} is not empty: what is in it is hidden while the mirror is mounted",
                mount.display()
            ),
            "move it away, or onto the mirror",
        );
    }
}

fn look_at_attachment(key: &str, disk: &MirrorDisk, findings: &mut Findings) {
    match disk.attach {
        Attach::Fuse => {
            if find_tool("nbdfuse").is_none() {
                findings.problem(
                    key,
                    "\"fuse\" needs nbdfuse, which is not there",
                    "install the package libnbd-bin (on Fedora and its relatives: nbdfuse)",
                );
            }
            if !Path::new("/dev/fuse").exists() {
                findings.problem(
                    key,
                    "\"fuse\" needs /dev/fuse, which is not there",
                    "run `modprobe fuse`",
                );
            }
        }
        // The device of its mirror, which is looked at with that.
        Attach::Kernel => {}
    }
}

fn look_at_fsck(key: &str, disk: &MirrorDisk, findings: &mut Findings) {
    let (tool, package) = match (disk.fsck, disk.filesystem) {
        (Fsck::Never, _) => return,
        (_, Filesystem::Ext4) => ("e2fsck", "e2fsprogs"),
        (_, Filesystem::Xfs) => ("xfs_repair", "xfsprogs"),
    };
    if find_tool(tool).is_none() {
        findings.problem(
            key,
            format!("{tool} is not there"),
            format!("install the package {package}, or write fsck = \"never\""),
        );
    }
}

fn look_at_unit(key: &str, unit: &str, findings: &mut Findings) {
    // An instance such as app@one.service is started from its template app@.service.
    let template = unit.split_once('@').and_then(|(name, rest)| {
        let (_, kind) = rest.rsplit_once('.')?;
        Some(format!("{name}@.{kind}"))
    });
    let known = |name: &str| {
        let mut folders = UNIT_FOLDERS.iter();
        folders.any(|folder| Path::new(folder).join(name).exists())
    };
    if !known(unit) && !template.is_some_and(|template| known(&template)) {
        findings.warning(
            key,
            format!("no file of the unit {unit} was found on this machine"),
            "look for it with `systemctl list-unit-files`, and install it or mend the name",
        );
    }
}

fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    let mut candidates = folders.map(|folder| folder.join(name));
    candidates.find(|candidate| access(candidate, AccessFlags::X_OK).is_ok())
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let place = line.split(' ').nth(1);
        place.is_some_and(|place| Path::new(&unescaped(place)) == folder)
    })
}

/// The kernel writes blanks and backslashes of paths as three octal digits.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut text = text.to_owned();
    for (escape, letter) in escapes {
        text = text.replace(escape, letter);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_fed_well_within_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        let found = |interval_ms| {
            let mut findings = Findings::new(Path::new("cluster.toml"));
            let interval = Duration::from_millis(interval_ms);
            look_at_watchdog("key", &device, interval, folder.path(), &mut findings);
            let mut problems = findings.problems.iter().map(ToString::to_string);
            problems.next()
        };
        assert!(found(5_000).unwrap().contains("is not there"));
        fs::write(&device, "").unwrap();
        assert_eq!(found(30_000), None, "the kernel tells nothing");
        fs::create_dir(folder.path().join("watchdog0")).unwrap();
        fs::write(folder.path().join("watchdog0/timeout"), "30\n").unwrap();
        assert_eq!(found(15_000), None);
        let said = found(15_001).unwrap();
        assert!(said.contains("resets the machine after 30 s"), "{said}");
        assert!(said.contains("10000 ms or less"), "{said}");
    }
}
