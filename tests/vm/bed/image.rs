//! What a machine starts from: a kernel, an initial file system with busybox and modules, and a disk with programs.
//!
//! The programs, ours and Debian's, lie on a disk that is only read and that all machines share, so that they take no
//! memory of a small machine and nothing of the time in which it starts. Kernel and busybox come from packages that
//! `cargo xtask` unpacks; tools are those of this system, with the libraries that they need, and so is what a machine
//! compiles ([`compiler`]) and the service manager that it may have ([`systemd`]).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use local_pair::{Programs, run_bounded, run_tool};
use nix::fcntl::{Flock, FlockArg};

use super::PATIENCE;
use super::cpio::Cpio;
use super::{compiler, modules, systemd};

/// Names the folder of unpacked packages. `cargo xtask` sets it.
const SYSTEM_VARIABLE: &str = "MIRROR_VM_SYSTEM";

const INIT: &str = include_str!("init.sh");

/// Loaded at the start of each machine, in this order.
const ALWAYS: [&str; 2] = ["virtio_blk", "virtio_net"];
/// For scripts that need them: `insmod` takes half of the time of a start.
const ON_DEMAND: [&str; 6] = [
    "nbd",
    "xfs",
    "softdog",
    "loop",
    "dm_log_writes",
    "sch_netem",
];

/// Of this system. The names behind the first are links to it.
const TOOLS: [&[&str]; 11] = [
    &["fio"],
    &["flock"],
    &["mke2fs", "mkfs.ext4"],
    &["e2fsck"],
    &["resize2fs"],
    &["mkfs.xfs"],
    &["xfs_repair"],
    &["xfs_io"],
    &["sqlite3"],
    &["systemctl"],
    &["tcc"],
];
/// Not in a user's search path as a rule.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone)]
pub struct Image {
    pub kernel: PathBuf,
    pub initial: PathBuf,
    pub tools: PathBuf,
}

impl Image {
    /// Built where anything in it has changed, once a process.
    pub fn fresh() -> Result<&'static Self> {
        static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
        match IMAGE.get_or_init(|| prepare().map_err(|error| format!("{error:#}"))) {
            Ok(image) => Ok(image),
            Err(reason) => bail!("cannot build what the machines start from: {reason}"),
        }
    }
}

fn prepare() -> Result<Image> {
    let system = std::env::var_os(SYSTEM_VARIABLE).map(PathBuf::from);
    let system = system.with_context(|| {
        format!("{SYSTEM_VARIABLE} is not set; run `cargo xtask test vm`, which provides a kernel")
    })?;
    let programs = Programs::fresh()?;
    let sources = Sources::collect(&programs)?;
    let folder = system.join("images");
    fs::create_dir_all(&folder)?;
    // Another run of the tests may be about to build the same.
    let lock = File::create(folder.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock the images")?;
    let image = Image {
        kernel: only_file(&system.join("boot"), "vmlinuz-")?,
        initial: folder.join("initial.cpio"),
        tools: folder.join("tools.ext4"),
    };
    let stamp = folder.join("stamp");
    let wanted = sources.stamp(&image.kernel)?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(image);
    }
    let _ = fs::remove_file(&stamp);
    replace(&image.initial, |path| {
        Ok(fs::write(path, initial(&system)?)?)
    })?;
    replace(&image.tools, |path| sources.write_disk(path))?;
    fs::write(&stamp, wanted)?;
    Ok(image)
}

/// A machine that runs keeps what it has open.
fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = path.with_extension("new");
    write(&new)?;
    fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn initial(system: &Path) -> Result<Vec<u8>> {
    let kernel_modules = only_file(&system.join("lib/modules"), "")?.join("kernel");
    let mut cpio = Cpio::default();
    for folder in [
        "bin", "dev", "etc", "lib", "modules", "mnt", "proc", "root", "run", "sys", "tmp", "tools",
        "usr", "usr/lib", "var",
    ] {
        cpio.folder(folder);
    }
    // Where programs look for the loader and for libraries.
    for path in ["lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        cpio.link(path, "/tools/lib");
    }
    cpio.link("lib/systemd", "/tools/systemd");
    for path in ["sbin", "usr/bin", "usr/sbin"] {
        cpio.link(path, "/bin");
    }
    cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    cpio.file("etc/group", b"root:x:0:\n");
    let busybox = system.join("bin/busybox");
    let busybox =
        fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    cpio.program("bin/busybox", &busybox);
    cpio.program("init", INIT.as_bytes());
    let always = modules::collect(&kernel_modules, &ALWAYS)?;
    let load: Vec<&str> = always.iter().map(|module| &*module.name).collect();
    cpio.file("modules/load", (load.join("\n") + "\n").as_bytes());
    let wanted: Vec<&str> = ALWAYS.iter().chain(&ON_DEMAND).copied().collect();
    for module in modules::collect(&kernel_modules, &wanted)? {
        cpio.file(&format!("modules/{}.ko", module.name), &module.bytes);
    }
    for name in ON_DEMAND {
        let order = modules::collect(&kernel_modules, &[name])?;
        let lines: Vec<String> = order
            .iter()
            .map(|module| {
                let parameters = if module.name == name { "\"$@\"" } else { "" };
                format!(
                    "[ -e /sys/module/{0} ] || insmod /modules/{0}.ko {parameters}\n",
                    module.name
                )
            })
            .collect();
        let script = format!("#!/bin/sh -e\n{}", lines.concat());
        cpio.program(
            &format!("bin/load-{}", name.replace('_', "-")),
            script.as_bytes(),
        );
    }
    Ok(cpio.finish())
}

/// Files of this system that go onto the disk of programs.
struct Sources {
    ours: Vec<PathBuf>,
    /// With the names that it has there.
    tools: Vec<(PathBuf, &'static [&'static str])>,
    libraries: BTreeSet<PathBuf>,
    /// With where they go.
    others: Vec<(PathBuf, PathBuf)>,
}

impl Sources {
    fn collect(programs: &Programs) -> Result<Self> {
        let ours = vec![
            programs.mirrord.clone(),
            programs.mirrorctl.clone(),
            programs.mirror_inspect.clone(),
            programs.mirror_agent.clone(),
        ];
        let mut tools = Vec::new();
        for names in TOOLS {
            let mut folders = FOLDERS
                .split(':')
                .map(|folder| Path::new(folder).join(names[0]));
            let found = folders.find(|path| path.is_file());
            let found = found.with_context(|| format!("this system has no {}", names[0]))?;
            tools.push((found, names));
        }
        let mut libraries = BTreeSet::new();
        let managers = systemd::programs();
        let found = tools.iter().map(|(path, _)| path);
        for program in ours.iter().chain(found).chain(&managers) {
            let listed = run_tool("ldd", &[&program.display().to_string()], PATIENCE)?;
            let paths = listed
                .split_whitespace()
                .filter(|word| word.starts_with('/'));
            libraries.extend(paths.map(PathBuf::from));
        }
        Ok(Self {
            ours,
            tools,
            libraries,
            others: [compiler::files()?, systemd::files()?].concat(),
        })
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tools = self.tools.iter().map(|(path, _)| path);
        let programs = self.ours.iter().chain(tools).chain(&self.libraries);
        programs.chain(self.others.iter().map(|(path, _)| path))
    }

    /// Differs when any of them does, or what is made of them.
    fn stamp(&self, kernel: &Path) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        (INIT, ALWAYS, ON_DEMAND, TOOLS).hash(&mut hasher);
        compiler::sources().hash(&mut hasher);
        for path in self.files().chain([&kernel.to_path_buf()]) {
            let found =
                fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
            (path, found.len(), found.modified()?).hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }

    fn write_disk(&self, image: &Path) -> Result<()> {
        let parent = image.parent().context("an image lies in a folder")?;
        let folder = tempfile::tempdir_in(parent)?;
        let [bin, lib] = ["bin", "lib"].map(|name| folder.path().join(name));
        fs::create_dir(&bin)?;
        fs::create_dir(&lib)?;
        for path in &self.ours {
            // Most of them is for a debugger.
            let to = bin.join(name_of(path)?);
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&to).arg(path);
            let ended = run_bounded(&mut strip, PATIENCE)?;
            anyhow::ensure!(
                ended.status.success(),
                "strip cannot read {}",
                path.display()
            );
        }
        for (path, names) in &self.tools {
            fs::copy(path, bin.join(names[0]))?;
            for name in &names[1..] {
                std::os::unix::fs::symlink(names[0], bin.join(name))?;
            }
        }
        for path in &self.libraries {
            fs::copy(path, lib.join(name_of(path)?))?;
        }
        for (path, to) in &self.others {
            let to = place_of(folder.path(), to)?;
            fs::copy(path, to).with_context(|| format!("cannot copy {}", path.display()))?;
        }
        for (to, text) in compiler::sources() {
            fs::write(place_of(folder.path(), &to)?, text)?;
        }
        let bytes: u64 = self
            .files()
            .map(|path| fs::metadata(path).map_or(0, |found| found.len()))
            .sum();
        let kibibytes = (bytes + bytes / 8) / 1024 + (16 << 10);
        let _ = fs::remove_file(image);
        run_tool(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-d",
                &folder.path().display().to_string(),
                &image.display().to_string(),
                &format!("{kibibytes}k"),
            ],
            PATIENCE,
        )?;
        Ok(())
    }
}

/// The place of a file below the root, in a folder that is there.
fn place_of(root: &Path, file: &Path) -> Result<PathBuf> {
    let path = root.join(file);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(path)
}

fn name_of(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name()
        .with_context(|| format!("{} names no file", path.display()))
}

fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut found = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| name_of(path).is_ok_and(|name| name.to_string_lossy().starts_with(prefix)));
    found
        .next()
        .with_context(|| format!("{} has no {prefix}*", folder.display()))
}
