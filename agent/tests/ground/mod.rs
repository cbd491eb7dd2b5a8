//! Processes and network namespaces for the tests of the drivers. Each takes itself down when it is dropped, also by
//! a panic.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Longest wait for anything that is bound to happen.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a state.
pub async fn wait_until(mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .expect("the state comes in time");
}

/// Runs a tool that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A program that the kernel kills when the thread ends that started it.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A process that ends with the test.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Killed {
    pub fn spawn(program: &str, arguments: &[&str], folder: &Path) -> Self {
        let child = mortal(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        Self(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Three network namespaces, two nodes and a client, each with an `eth0` on one bridge.
#[derive(Debug)]
pub struct Namespaces {
    names: [String; 4],
}

impl Namespaces {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!(
            "mirror-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let made = Self {
            names: ["one", "two", "client", "switch"].map(|part| format!("{own}-{part}")),
        };
        for name in &made.names {
            run("ip", &["netns", "add", name]);
        }
        let switch = &made.names[3];
        run(
            "ip",
            &["-n", switch, "link", "add", "br0", "type", "bridge"],
        );
        run("ip", &["-n", switch, "link", "set", "br0", "up"]);
        for (index, name) in made.names[..3].iter().enumerate() {
            let port = format!("port{index}");
            run(
                "ip",
                &[
                    "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", &port,
                    "netns", switch,
                ],
            );
            run(
                "ip",
                &["-n", switch, "link", "set", &port, "master", "br0", "up"],
            );
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
            let host = index + 1;
            for address in [format!("192.0.2.{host}/24"), format!("2001:db8::{host}/64")] {
                let words = ["-n", name, "address", "add", &address, "dev", "eth0"];
                if address.contains("::") {
                    run("ip", &[&words[..], &["nodad"]].concat());
                } else {
                    run("ip", &words);
                }
            }
            // Else the address that neighbours are asked from is not there for a second.
            let script = "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad";
            run("ip", &["netns", "exec", name, "sh", "-c", script]);
            run("ip", &["-n", name, "link", "set", "eth0", "up"]);
        }
        made
    }

    /// Runs `work` on a thread that lives in the namespace.
    pub fn within<T: Send>(&self, index: usize, work: impl Future<Output = T> + Send) -> T {
        let path = format!("/run/netns/{}", self.names[index]);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(&path).unwrap();
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(work)
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn hardware(&self, index: usize) -> String {
        let text = run(
            "ip",
            &["-n", &self.names[index], "-o", "link", "show", "eth0"],
        );
        word_after(&text, "link/ether")
    }

    /// The host that the client takes for the holder of an address.
    pub fn neighbour(&self, address: &str) -> String {
        let text = run("ip", &["-n", &self.names[2], "neighbour", "show", address]);
        word_after(&text, "lladdr")
    }

    pub fn wait_for_neighbour(&self, address: &str, hardware: &str) {
        let until = std::time::Instant::now() + LIMIT;
        while self.neighbour(address) != hardware {
            assert!(
                std::time::Instant::now() < until,
                "{address} is still at {}",
                self.neighbour(address)
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip")
                .args(["netns", "delete", name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn word_after(text: &str, word: &str) -> String {
    let mut words = text.split_whitespace().skip_while(|found| *found != word);
    words.nth(1).unwrap_or_default().to_owned()
}
