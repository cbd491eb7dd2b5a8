//! Starts witnesses, and clients that ask them. Nothing is left behind.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::arbiter::call::{Claim, Holding, Reply, Request};
use agent::io::arbiter::WitnessClient;
use mirror_core::link::preface::ClusterKey;
use mirror_core::units::Epoch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for anything that must happen.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The files of a witness, and the witness while it runs.
pub struct Witness {
    pub folder: TempDir,
    pub config: PathBuf,
    pub state: PathBuf,
    pub address: SocketAddr,
    log: Option<PathBuf>,
    child: Option<Child>,
}

pub fn key(secret: u8) -> ClusterKey {
    ClusterKey::new(&[secret; 32]).unwrap()
}

impl Witness {
    /// Clusters are given as name and secret.
    pub fn start(clusters: &[(&str, u8)]) -> Self {
        let mut witness = Self::prepare(clusters, None);
        witness.restart();
        witness
    }

    /// Writes the files only. `state`: where the state goes, if not beside the others.
    pub fn prepare(clusters: &[(&str, u8)], state: Option<PathBuf>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = state.unwrap_or_else(|| folder.path().join("state"));
        let witness = Self {
            config: folder.path().join("witness.toml"),
            state,
            folder,
            address: "127.0.0.1:0".parse().unwrap(),
            log: None,
            child: None,
        };
        witness.configure(clusters);
        witness
    }

    pub fn configure(&self, clusters: &[(&str, u8)]) {
        let mut text = format!("state_file = \"{}\"\n", self.state.display());
        for (name, secret) in clusters {
            let key_file = self.folder.path().join(format!("{name}.key"));
            fs::write(&key_file, format!("{secret:02x}").repeat(32)).unwrap();
            fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
            text += &format!(
                "[[cluster]]\nname = \"{name}\"\nkey_file = \"{}\"\n",
                key_file.display()
            );
        }
        fs::write(&self.config, text).unwrap();
    }

    /// From its next start on, all that it has to say goes there.
    pub fn log_to(&mut self, path: &Path) {
        self.log = Some(path.into());
    }

    /// Starts it where it listened before, if it did.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let socket_path = self.folder.path().join("notify");
        let _ = fs::remove_file(&socket_path);
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut command = self.command(&["--listen", &self.address.to_string()]);
        if let Some(log) = &self.log {
            let log = fs::File::create(log).unwrap();
            command.stderr(log).env("RUST_LOG", "trace");
        }
        let child = command
            .env("NOTIFY_SOCKET", &socket_path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("it says that it is ready");
        let said = std::str::from_utf8(&bytes[..length]).unwrap();
        let address = said.strip_prefix("READY=1\nSTATUS=listening on ").unwrap();
        self.address = address.parse().unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mirror-witness"));
        command
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .env("RUST_LOG", "warn");
        command
    }

    /// Runs it where it must end by itself.
    pub fn output(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(arguments).output().unwrap();
        let said = [stdout, stderr].concat();
        (status.code(), String::from_utf8(said).unwrap())
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to stop, and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < LIMIT, "it does not stop");
            std::thread::yield_now();
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn client(&self, cluster: &str, secret: u8, node: &str) -> WitnessClient {
        client(&self.url(), cluster, secret, node)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// With a lease far longer than any test.
pub const LEASE_MS: u64 = 600_000;

pub fn client(url: &str, cluster: &str, secret: u8, node: &str) -> WitnessClient {
    WitnessClient::new(
        url,
        cluster,
        node,
        &key(secret),
        Duration::from_secs(20),
        LEASE_MS,
    )
    .unwrap()
}

pub fn acquire(mirror: &str) -> Request {
    Request::Acquire {
        mirror: mirror.into(),
        force: false,
    }
}

pub fn holding(mirror: &str, epoch: u64) -> Holding {
    Holding {
        mirror: mirror.into(),
        epoch: Epoch(epoch),
    }
}

pub fn release(mirror: &str, epoch: u64) -> Request {
    Request::Release {
        holding: holding(mirror, epoch),
    }
}

pub fn beat(mirror: &str, epoch: u64) -> Request {
    Request::Beat {
        renew: vec![holding(mirror, epoch)],
    }
}

pub fn enrol(mirror: &str, epoch: u64) -> Request {
    Request::Enrol {
        mirror: mirror.into(),
        claim: Claim {
            epoch: Epoch(epoch),
            current: true,
            peer_outdated: false,
            primary: false,
        },
    }
}

pub fn granted(epoch: u64) -> Reply {
    Reply::Granted {
        epoch: Epoch(epoch),
    }
}

pub async fn ask(client: &WitnessClient, request: Request) -> Reply {
    client.call(request).await.unwrap().reply
}

/// Both nodes of a cluster, with the mirror `md1` enrolled at epoch 0.
pub async fn enrolled(witness: &Witness, cluster: &str, secret: u8) -> [WitnessClient; 2] {
    let nodes = ["a", "b"].map(|node| witness.client(cluster, secret, node));
    ask(&nodes[0], enrol("md1", 0)).await;
    let done = ask(&nodes[1], enrol("md1", 0)).await;
    assert_eq!(done, Reply::Enrolled { complete: true });
    nodes
}
