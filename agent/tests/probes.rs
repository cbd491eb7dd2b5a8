//! Monitors on what they are made for: sockets, programs, processes, disks and interfaces that are in order, and then
//! are not. Disks and interfaces need root.

mod ground;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::io::probe::MonitorProbe;
use local_disks::{FailingDisk, LoopDisk, SmallDisk};
use nbd_frontend::config::agent::{FinalAction, Monitor, MonitorKind};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use ground::{Killed, LIMIT, run, wait_until};

/// For a target that does not answer.
const SHORT: Duration = Duration::from_millis(500);
const NAME: &str = "watch";

fn monitor(kind: MonitorKind, timeout: Duration) -> MonitorProbe {
    let monitor = Monitor {
        name: NAME.into(),
        kind,
        interval: timeout,
        timeout,
        retries: 0,
        group: None,
        resource: None,
        restarts_max: 0,
        failovers_max: 0,
        final_action: FinalAction::None,
        warn_only: true,
    };
    MonitorProbe::new(&monitor, 0)
}

async fn in_order(probe: &MonitorProbe) {
    assert_eq!(probe.probe(&[]).await, Ok(()));
}

/// The fault has all these words.
#[track_caller]
fn says(fault: &str, words: &[&str]) {
    for word in words {
        assert!(fault.contains(word), "{fault:?} lacks {word:?}");
    }
}

async fn fault_of(probe: &MonitorProbe) -> String {
    probe.probe(&[]).await.expect_err("it is not in order")
}

// ---- TCP

/// A socket of its own on loopback; nobody listens yet.
fn bound() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_tcp_monitor_tells_who_listens_from_who_does_not() {
    let (socket, address) = bound();
    let probe = monitor(MonitorKind::Tcp { address }, LIMIT);
    says(
        &fault_of(&probe).await,
        &[&address.to_string(), "cannot be connected to", "refused"],
    );
    socket.listen(8).unwrap();
    in_order(&probe).await;
    drop(socket);
    says(&fault_of(&probe).await, &["refused"]);
}

#[tokio::test]
async fn a_tcp_monitor_notices_a_program_that_accepts_no_more() {
    const BACKLOG: i32 = 4;
    let (socket, address) = bound();
    socket.listen(BACKLOG).unwrap();
    let probe = monitor(MonitorKind::Tcp { address }, SHORT);
    // Nobody takes the connections out of the queue, and it holds one more than it was made for.
    let mut answered = 0;
    let fault = loop {
        match probe.probe(&[]).await {
            Ok(()) => answered += 1,
            Err(fault) => break fault,
        }
        assert!(answered <= BACKLOG + 1, "the queue has no end");
    };
    assert_eq!(answered, BACKLOG + 1);
    says(&fault, &[&address.to_string(), "did not answer in time"]);
    while socket.accept().is_ok() {
        answered -= 1;
        if answered == 0 {
            break;
        }
    }
    in_order(&probe).await;
}

// ---- Programs

fn script(folder: &Path, text: &str) -> MonitorKind {
    let path = folder.join("check");
    // By another process: one that this one had open for writing could not be started while a test forks.
    run(
        "sh",
        &[
            "-c",
            "printf '%s' \"$1\" > \"$0\"",
            path.to_str().unwrap(),
            text,
        ],
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    MonitorKind::Exec {
        command: vec![path.display().to_string()],
    }
}

#[tokio::test]
async fn an_exec_monitor_goes_by_the_exit_code_and_quotes_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let kind = script(
        folder.path(),
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\n[ ! -e broken ] || { echo table 7 is locked >&2; exit 3; }\n",
    );
    let probe = monitor(kind, LIMIT);
    in_order(&probe).await;
    fs::write(folder.path().join("broken"), "").unwrap();
    says(
        &fault_of(&probe).await,
        &["check", "exit code 3", "table 7 is locked"],
    );
    fs::remove_file(folder.path().join("broken")).unwrap();
    in_order(&probe).await;
    fs::remove_file(folder.path().join("check")).unwrap();
    says(
        &fault_of(&probe).await,
        &["cannot start", "may be executed"],
    );
}

#[tokio::test]
async fn an_exec_monitor_that_hangs_is_killed_with_its_children_and_quotes_what_it_had_said() {
    let folder = tempfile::tempdir().unwrap();
    let kind = script(
        folder.path(),
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho asking the database\nsleep 1000 &\necho $! > child\nwait\n",
    );
    let begun = Instant::now();
    let fault = fault_of(&monitor(kind, Duration::from_secs(2))).await;
    assert!(begun.elapsed() < LIMIT);
    says(&fault, &["did not end within", "asking the database"]);
    let child = fs::read_to_string(folder.path().join("child")).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    wait_until(|| fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))).await;
}

#[tokio::test]
async fn a_process_monitor_counts_who_runs_under_a_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("server");
    run("cp", &["/bin/sleep", program.to_str().unwrap()]);
    let program = program.to_str().unwrap();
    let kind = |count_min| MonitorKind::Process {
        command: format!("{program} 1000"),
        count_min,
    };
    let [one, two] = [1, 2].map(|count| monitor(kind(count), LIMIT));
    let start = || Killed::spawn(program, &["1000", "0"], folder.path());
    says(&fault_of(&one).await, &["0 processes", program, "not 1"]);
    let mut first = start();
    let runs = |killed: &Killed| {
        let line = fs::read(format!("/proc/{}/cmdline", killed.0.id())).unwrap_or_default();
        line.starts_with(program.as_bytes())
    };
    wait_until(|| runs(&first)).await;
    in_order(&one).await;
    says(&fault_of(&two).await, &["1 processes", "not 2"]);
    let second = start();
    wait_until(|| runs(&second)).await;
    in_order(&two).await;
    // Dead, and nobody has asked how it ended yet.
    first.0.kill().unwrap();
    wait_until(|| !runs(&first)).await;
    says(&fault_of(&two).await, &["1 processes", "not 2"]);
}

// ---- Disks

fn on_disk(folder: PathBuf, timeout: Duration) -> MonitorProbe {
    monitor(MonitorKind::Disk { folder }, timeout)
}

#[tokio::test]
async fn a_disk_monitor_notices_a_file_system_that_became_read_only() {
    let disk = LoopDisk::with_ext4(16 << 20).unwrap();
    let probe = on_disk(disk.point(), LIMIT);
    disk.mount().unwrap();
    in_order(&probe).await;
    in_order(&probe).await;
    let point = disk.point();
    let point = point.to_str().unwrap();
    run("mount", &["-o", "remount,ro", point]);
    says(&fault_of(&probe).await, &[point, "Read-only file system"]);
    run("mount", &["-o", "remount,rw", point]);
    in_order(&probe).await;
    disk.unmount().unwrap();
    // Its file is where it was made, and nowhere else.
    assert!(fs::read_dir(disk.point()).unwrap().next().is_none());
}

#[tokio::test]
async fn a_disk_monitor_notices_a_full_disk_and_a_folder_that_is_gone() {
    let disk = SmallDisk::mount(1).unwrap();
    let full = disk.data();
    let filled = fs::write(&full, vec![1; 2 << 20]);
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let probe = on_disk(disk.point(), LIMIT);
    says(&fault_of(&probe).await, &["No space left on device"]);
    fs::remove_file(&full).unwrap();
    in_order(&probe).await;
    let gone = disk.point().join("gone");
    let probe = on_disk(gone.clone(), LIMIT);
    says(
        &fault_of(&probe).await,
        &[gone.to_str().unwrap(), "No such file"],
    );
}

/// A disk of which the monitor's own file is made.
fn failing_disk() -> FailingDisk {
    FailingDisk::named(&format!(".mirror-agent-{NAME}"), 1).unwrap()
}

#[tokio::test]
async fn a_disk_monitor_notices_errors_of_the_device() {
    let disk = failing_disk();
    let probe = on_disk(disk.folder(), LIMIT);
    in_order(&probe).await;
    disk.fail().unwrap();
    says(
        &fault_of(&probe).await,
        &[disk.data().to_str().unwrap(), "Input/output error"],
    );
    disk.mend().unwrap();
    in_order(&probe).await;
}

#[tokio::test]
async fn a_disk_monitor_gives_up_a_device_that_hangs_and_makes_no_second_call_beside_the_first() {
    let disk = failing_disk();
    let probe = on_disk(disk.folder(), SHORT);
    in_order(&probe).await;
    disk.hang().unwrap();
    let begun = Instant::now();
    let data = disk.data();
    let data = data.to_str().unwrap();
    says(&fault_of(&probe).await, &[data, "did not return within"]);
    for _ in 0..3 {
        let fault = fault_of(&probe).await;
        says(&fault, &[data, "an earlier call has still not returned"]);
    }
    assert!(begun.elapsed() < LIMIT);
    disk.go_on().unwrap();
    // The first call comes back, and then another one may go.
    let mut last = fault_or_none(&probe).await;
    let until = Instant::now() + LIMIT;
    while let Some(fault) = last {
        assert!(Instant::now() < until, "{fault}");
        last = fault_or_none(&probe).await;
    }
}

async fn fault_or_none(probe: &MonitorProbe) -> Option<String> {
    probe.probe(&[]).await.err()
}

// ---- Interfaces

/// Runs on a thread with interfaces of its own, which go with it.
fn with_interfaces(work: impl Future<Output = ()> + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let follow = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, follow, None::<&str>).unwrap();
            // The one that is there shows the interfaces of who mounted it.
            mount(
                Some("sysfs"),
                "/sys",
                Some("sysfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work);
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_link_monitor_notices_a_pulled_cable_and_an_interface_that_is_down_or_gone() {
    with_interfaces(async {
        let ip = |words: &str| {
            run("ip", &words.split(' ').collect::<Vec<_>>());
        };
        let probe = monitor(
            MonitorKind::NetworkLink {
                interfaces: ["own0".into(), "of-the-other-node".into()],
            },
            LIMIT,
        );
        says(&fault_of(&probe).await, &["no network interface own0"]);
        ip("link add own0 type veth peer name far0");
        says(&fault_of(&probe).await, &["own0 is down"]);
        ip("link set own0 up");
        says(&fault_of(&probe).await, &["own0 has no carrier"]);
        ip("link set far0 up");
        in_order(&probe).await;
        ip("link set far0 down");
        says(&fault_of(&probe).await, &["own0 has no carrier"]);
        ip("link set far0 up");
        in_order(&probe).await;
        ip("link set own0 down");
        says(&fault_of(&probe).await, &["own0 is down"]);
        ip("link delete own0");
        says(&fault_of(&probe).await, &["no network interface own0"]);
        // A device that knows no carrier is in order while it is up.
        let loopback = monitor(
            MonitorKind::NetworkLink {
                interfaces: ["lo".into(), "lo".into()],
            },
            LIMIT,
        );
        says(&fault_of(&loopback).await, &["lo is down"]);
        ip("link set lo up");
        in_order(&loopback).await;
    });
}
