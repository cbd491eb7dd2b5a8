//! `mirrord` at work on one node: readiness, what it shows, how it stops. Real process, real files.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use local_pair::loopback_addresses;
use mirror_core::control::{CommandRequest, Connection, NodeStatus, Role};
use mirror_core::io::init::{InitSettings, init_mirror};
use nbd_frontend::config::{Config, key};
use nbd_frontend::control::client::{Client, ClientError};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(30);

/// One node with the mirrors `md1` (initialised) and, if asked for, `md2` (without metadata).
struct Site {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    /// What the service manager hears of the daemon that was started last.
    manager: Option<UnixDatagram>,
    /// Words in front of its command line.
    wrapper: &'static [&'static str],
}

impl Site {
    fn new(with_broken: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self {
            folder,
            daemon: None,
            manager: None,
            wrapper: &[],
        };
        key::generate(&site.path("key")).unwrap();
        let mut text = format!(
            "[cluster]\nname = \"test\"\nkey_file = {:?}\n[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n",
            site.path("key")
        );
        for name in ["md1", "md2"]
            .into_iter()
            .take(1 + usize::from(with_broken))
        {
            let [here, there] = loopback_addresses().unwrap();
            text += &format!(
                "[[mirror]]\nname = {name:?}\nstop_timeout = \"5s\"\n\
                 [mirror.on.a]\ndata = {:?}\nmetadata = \"internal\"\nreplication = {here:?}\n\
                 [mirror.on.b]\ndata = \"/nonexistent/{name}\"\nmetadata = \"internal\"\nreplication = {there:?}\n",
                site.path(name),
            );
            let file = fs::File::create(site.path(name)).unwrap();
            file.set_len(64 << 20).unwrap();
        }
        fs::write(site.path("cluster.toml"), text).unwrap();
        let config = Config::load(&site.path("cluster.toml")).unwrap();
        let mirror = config.mirror("md1").unwrap();
        init_mirror(&InitSettings {
            cluster: config.cluster_id(),
            mirror: config.mirror_id(mirror),
            node: config.node_id(0),
            peer: config.node_id(1),
            data: mirror.sides[0].data.clone(),
            metadata: mirror.sides[0].metadata.clone(),
            adopt: false,
            force: false,
        })
        .unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Starts the daemon and returns when it has told its manager that it is ready.
    fn start(&mut self) {
        let manager = self.path("notify");
        let _ = fs::remove_file(&manager);
        let listener = UnixDatagram::bind(&manager).unwrap();
        listener.set_read_timeout(Some(LIMIT)).unwrap();
        let log = fs::File::create(self.path("log")).unwrap();
        let mut words = self.wrapper.iter().chain(&[env!("CARGO_BIN_EXE_mirrord")]);
        let daemon = Command::new(words.next().unwrap())
            .args(words)
            .arg("--config")
            .arg(self.path("cluster.toml"))
            .args(["--node", "a", "--log-format", "json", "--run-dir"])
            .arg(self.run_dir())
            .env("NOTIFY_SOCKET", &manager)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        self.manager = Some(listener);
        assert_eq!(self.told(), "READY=1");
    }

    /// The next thing that the daemon tells its manager.
    fn told(&self) -> String {
        let mut words = [0; 256];
        let listener = self.manager.as_ref().unwrap();
        let length = listener.recv(&mut words).unwrap_or_else(|error| {
            panic!("nothing was told: {error}; its log:\n{}", self.log());
        });
        String::from_utf8_lossy(&words[..length]).into_owned()
    }

    fn signal(&self, signal: Signal) {
        let id = self.daemon.as_ref().unwrap().id();
        kill(Pid::from_raw(id.cast_signed()), signal).unwrap();
    }

    /// Exit code of a daemon that ends by itself or was told to.
    fn wait_end(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "no end; its log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn client(&self) -> Client {
        Client::new(&self.run_dir(), LIMIT)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Gone already is as good.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn status(site: &Site) -> NodeStatus {
    block_on(site.client().status()).unwrap()
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn a_mirror_runs_from_ready_to_a_clean_stop() {
    let mut site = Site::new(false);
    site.start();
    let found = status(&site);
    assert_eq!((found.node.as_str(), found.mirrors.len()), ("a", 1));
    let mirror = &found.mirrors[0];
    assert_eq!(mirror.role, Role::Secondary);
    assert_eq!(mirror.connection, Connection::Connecting);
    let socket = site.run_dir().join("md1.nbd");
    assert_eq!(
        mirror.exports,
        [format!("nbd+unix:///md1?socket={}", socket.display())]
    );
    assert!(exists(&socket));

    site.signal(Signal::SIGTERM);
    // As long as its stop_timeout of 5 s, and a margin, whatever TimeoutStopSec= says.
    assert_eq!(site.told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=8000000");
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
    assert!(!exists(&socket) && !exists(&site.run_dir().join("mirrord.sock")));
    assert!(
        site.log().contains("\"kind\":\"stopped\""),
        "{}",
        site.log()
    );
}

#[test]
fn a_primary_that_stopped_or_died_comes_back_as_a_secondary() {
    let mut site = Site::new(false);
    site.start();
    let force = CommandRequest::Promote {
        peer_down: false,
        force: true,
        grant: None,
    };
    block_on(site.client().command("md1", &force)).unwrap();
    assert_eq!(status(&site).mirrors[0].role, Role::Primary);

    site.signal(Signal::SIGINT);
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
    site.start();
    assert_eq!(status(&site).mirrors[0].role, Role::Secondary);

    site.signal(Signal::SIGHUP);
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
    site.start();

    block_on(site.client().command("md1", &force)).unwrap();
    site.signal(Signal::SIGKILL);
    site.wait_end();
    site.start();
    let found = status(&site);
    assert_eq!(found.mirrors[0].role, Role::Secondary);
    assert_ne!(found.mirrors[0].generation, "0000000000000000");
    let plain = CommandRequest::Promote {
        peer_down: false,
        force: false,
        grant: None,
    };
    let refused = block_on(site.client().command("md1", &plain)).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
    site.signal(Signal::SIGTERM);
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
}

#[test]
fn a_mirror_that_cannot_be_opened_does_not_stop_the_others() {
    let mut site = Site::new(true);
    site.start();
    let found = status(&site);
    assert_eq!(found.mirrors[0].name, "md1");
    assert_eq!(found.down[0].name, "md2");
    assert!(
        found.down[0].reason.contains("mirrorctl init"),
        "{:?}",
        found.down
    );
    let page = block_on(site.client().events(0, Duration::ZERO)).unwrap();
    assert!(
        page.events
            .iter()
            .any(|event| event.notice.kind == "open-failed")
    );
    site.signal(Signal::SIGTERM);
    assert_eq!(site.wait_end(), Some(1));
    assert!(site.log().contains("md2: "), "{}", site.log());
}

#[test]
fn signals_that_the_parent_blocked_stop_it_all_the_same() {
    let mut site = Site::new(false);
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    let before = blocked
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
        .unwrap();
    site.start();
    before.thread_set_mask().unwrap();
    site.signal(Signal::SIGTERM);
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
}

const UNLIMITED: [&str; 2] = ["prlimit", "--memlock=unlimited:unlimited"];
const LIMITED: [&str; 2] = ["prlimit", "--memlock=8388608:8388608"];

fn locked_kib(wrapper: &'static [&'static str]) -> u64 {
    let mut site = Site::new(false);
    site.wrapper = wrapper;
    site.start();
    let id = site.daemon.as_ref().unwrap().id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmLck:")).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    site.signal(Signal::SIGTERM);
    assert_eq!(site.wait_end(), Some(0), "{}", site.log());
    kib
}

#[test]
fn memory_is_locked_unless_there_is_a_limit() {
    // A limit must not make later allocations fail.
    assert_eq!(locked_kib(&LIMITED), 0);
    // Not everyone may lift it, not even root in a container.
    let [program, limit] = UNLIMITED;
    let may_lift = Command::new(program)
        .args([limit, "true"])
        .output()
        .unwrap();
    if may_lift.status.success() {
        assert!(locked_kib(&UNLIMITED) > 0);
    } else {
        eprintln!("not tried without a limit: {may_lift:?}");
    }
}
