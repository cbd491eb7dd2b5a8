//! What a machine starts from: a kernel, an initial file system with busybox and modules, and a disk with programs.
//!
//! The programs, ours and Debian's, lie on a disk that is only read and that all machines share, so that they take no
//! memory of a small machine and nothing of the time in which it starts. Kernel and busybox come from packages that
//! `cargo xtask` unpacks; tools are those of this system, with the libraries that they need, and so is whatever else the
//! caller wants in there ([`Equipment`]).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use local_pair::{Programs, run_bounded, run_tool};
use nix::fcntl::{Flock, FlockArg};

use crate::PATIENCE;
use crate::cpio::Cpio;
use crate::modules;

/// Names the folder of unpacked packages. `cargo xtask` sets it.
const SYSTEM_VARIABLE: &str = "MIRROR_VM_SYSTEM";

const INIT: &str = include_str!("init.sh");

/// Loaded at the start of each machine, in this order.
const ALWAYS: [&str; 2] = ["virtio_blk", "virtio_net"];
/// Not in a user's search path as a rule.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Libraries of what was unpacked.
const LIBRARY_FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// What is in a machine beside a kernel, busybox and our own programs.
#[derive(Debug, Clone)]
pub struct Equipment {
    /// Of the files that are made of it.
    pub name: &'static str,
    /// For scripts that need them, with `load-NAME`: `insmod` takes half of the time of a start.
    pub modules: &'static [&'static str],
    /// Programs of this system, by name or path. The names behind the first are links to it.
    pub tools: &'static [&'static [&'static str]],
    /// A folder with packages that are unpacked and not installed: tools with paths below it, and their libraries.
    pub unpacked: Option<PathBuf>,
    /// Other files of this system, and where they go on the disk of programs.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Those of them whose libraries go along.
    pub linked: Vec<PathBuf>,
    /// What is written by us, and where it goes.
    pub texts: Vec<(PathBuf, String)>,
}

#[derive(Debug, Clone)]
pub struct Image {
    pub kernel: PathBuf,
    pub initial: PathBuf,
    pub tools: PathBuf,
}

/// The witness has a user of its own, as `packaging/mirror-witness.sysusers` makes it.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\n\
                     mirror-witness:x:990:990::/var/lib/mirror-witness:/bin/false\n";

impl Image {
    /// Built where anything in it has changed.
    pub fn fresh(equipment: &Equipment) -> Result<Self> {
        build(equipment).context("cannot build what the machines start from")
    }
}

fn build(equipment: &Equipment) -> Result<Image> {
    let system = std::env::var_os(SYSTEM_VARIABLE).map(PathBuf::from);
    let system = system.with_context(|| {
        format!("{SYSTEM_VARIABLE} is not set; `cargo xtask` provides a kernel, for `test vm` and `bench --drbd`")
    })?;
    let programs = Programs::fresh()?;
    let sources = Sources::collect(&programs, equipment)?;
    let folder = system.join("images").join(equipment.name);
    fs::create_dir_all(&folder)?;
    // Another run may be about to build the same.
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
        Ok(fs::write(path, initial(&system, equipment.modules)?)?)
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

fn initial(system: &Path, on_demand: &[&str]) -> Result<Vec<u8>> {
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
    cpio.file("etc/passwd", USERS.as_bytes());
    cpio.file("etc/group", b"root:x:0:\nmirror-witness:x:990:\n");
    let busybox = system.join("bin/busybox");
    let busybox =
        fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    cpio.program("bin/busybox", &busybox);
    cpio.program("init", INIT.as_bytes());
    let always = modules::collect(&kernel_modules, &ALWAYS)?;
    let load: Vec<&str> = always.iter().map(|module| &*module.name).collect();
    cpio.file("modules/load", (load.join("\n") + "\n").as_bytes());
    let wanted: Vec<&str> = ALWAYS.iter().chain(on_demand).copied().collect();
    for module in modules::collect(&kernel_modules, &wanted)? {
        cpio.file(&format!("modules/{}.ko", module.name), &module.bytes);
    }
    for name in on_demand.iter().copied() {
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
struct Sources<'a> {
    equipment: &'a Equipment,
    ours: Vec<PathBuf>,
    /// With the names that it has there.
    tools: Vec<(PathBuf, &'static [&'static str])>,
    libraries: BTreeSet<PathBuf>,
}

impl<'a> Sources<'a> {
    fn collect(programs: &Programs, equipment: &'a Equipment) -> Result<Self> {
        let ours = vec![
            programs.mirrord.clone(),
            programs.mirrorctl.clone(),
            programs.mirror_inspect.clone(),
            programs.mirror_agent.clone(),
            programs.mirror_witness.clone(),
        ];
        let unpacked = equipment.unpacked.as_deref();
        let mut tools = Vec::new();
        for names in equipment.tools {
            let found = find(names[0], unpacked);
            tools.push((
                found.with_context(|| format!("this system has no {}", names[0]))?,
                *names,
            ));
        }
        let libraries_unpacked: Vec<String> = unpacked
            .iter()
            .flat_map(|folder| LIBRARY_FOLDERS.map(|path| folder.join(path).display().to_string()))
            .collect();
        let mut libraries = BTreeSet::new();
        let found = tools.iter().map(|(path, _)| path);
        for program in ours.iter().chain(found).chain(&equipment.linked) {
            let mut ldd = Command::new("ldd");
            ldd.arg(program)
                .env("LD_LIBRARY_PATH", libraries_unpacked.join(":"));
            let listed = run_bounded(&mut ldd, PATIENCE)?;
            anyhow::ensure!(
                listed.status.success(),
                "ldd cannot read {}: {}",
                program.display(),
                String::from_utf8_lossy(&listed.stderr)
            );
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            anyhow::ensure!(
                !listed.contains("not found"),
                "{} lacks a library: {listed}",
                program.display()
            );
            let paths = listed
                .split_whitespace()
                .filter(|word| word.starts_with('/'));
            libraries.extend(paths.map(PathBuf::from));
        }
        Ok(Self {
            equipment,
            ours,
            tools,
            libraries,
        })
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tools = self.tools.iter().map(|(path, _)| path);
        let programs = self.ours.iter().chain(tools).chain(&self.libraries);
        programs.chain(self.equipment.files.iter().map(|(path, _)| path))
    }

    /// Differs when any of them does, or what is made of them.
    fn stamp(&self, kernel: &Path) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        (INIT, ALWAYS, self.equipment.modules, self.equipment.tools).hash(&mut hasher);
        (&self.equipment.files, &self.equipment.texts).hash(&mut hasher);
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
            let name = name_of(path)?;
            fs::copy(path, bin.join(name))?;
            for link in &names[1..] {
                std::os::unix::fs::symlink(name, bin.join(link))?;
            }
        }
        for path in &self.libraries {
            fs::copy(path, lib.join(name_of(path)?))?;
        }
        for (path, to) in &self.equipment.files {
            let to = place_of(folder.path(), to)?;
            fs::copy(path, to).with_context(|| format!("cannot copy {}", path.display()))?;
        }
        for (to, text) in &self.equipment.texts {
            fs::write(place_of(folder.path(), to)?, text)?;
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

/// By name, in the folders of this system, or by a path below one of its roots.
fn find(name: &str, unpacked: Option<&Path>) -> Option<PathBuf> {
    if let Some(below) = name.strip_prefix('/') {
        let mut roots = unpacked.into_iter().chain([Path::new("/")]);
        return roots.find_map(|root| Some(root.join(below)).filter(|path| path.is_file()));
    }
    let mut folders = FOLDERS
        .split(':')
        .map(|folder| Path::new(folder).join(name));
    folders.find(|path| path.is_file())
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
