//! Loop devices, processes and network namespaces for the tests of the drivers. Each takes itself down when it
//! is dropped, also by a panic.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

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

/// A process that ends with the test.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Killed {
    pub fn spawn(program: &str, arguments: &[&str], folder: &Path) -> Self {
        let child = Command::new(program)
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

/// A file as a block device, and a folder to mount it on.
#[derive(Debug)]
pub struct Image {
    folder: TempDir,
    device: String,
}

impl Image {
    pub fn with_ext4(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        let name = image.to_str().unwrap();
        run("/sbin/mke2fs", &["-q", "-t", "ext4", "-F", name]);
        let device = run("losetup", &["--find", "--show", name]);
        Self { folder, device }
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Overwrites the group descriptors and everything behind them.
    pub fn damage(&self) {
        let device = OpenOptions::new().write(true).open(&self.device).unwrap();
        device.write_all_at(&vec![0x5a; 4 << 20], 2048).unwrap();
        device.sync_all().unwrap();
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        for _ in 0..3 {
            let _ = Command::new("umount")
                .args(["--lazy", "--recursive"])
                .arg(self.point())
                .stderr(Stdio::null())
                .status();
        }
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .stderr(Stdio::null())
            .status();
    }
}
