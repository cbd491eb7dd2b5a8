//! Kernel modules, in an order in which each finds what it needs. The package brings no list of dependencies, but
//! every module names its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use local_pair::run_bounded;

use super::PATIENCE;

#[derive(Debug)]
pub struct Module {
    /// With underscores, as the kernel calls it.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The modules with all that they need, those first that others need.
pub fn collect(kernel_modules: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(kernel_modules, &mut files)?;
    let mut found = Vec::new();
    for name in wanted {
        add(name, &files, &mut found)?;
    }
    Ok(found)
}

fn index(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some(name) = name.strip_suffix(".ko.xz")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(name: &str, files: &HashMap<String, PathBuf>, found: &mut Vec<Module>) -> Result<()> {
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = unpack(path)?;
    for needed in dependencies(&bytes) {
        add(&needed, files, found)?;
    }
    found.push(Module {
        name: name.into(),
        bytes,
    });
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let mut xz = std::process::Command::new("xz");
    xz.arg("--decompress").arg("--stdout").arg(path);
    let output = run_bounded(&mut xz, PATIENCE)?;
    anyhow::ensure!(
        output.status.success(),
        "xz cannot unpack {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// A module carries strings of the form `key=value`; one of them lists what it needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    let list = module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .unwrap_or_default();
    let names = list.split(|byte| *byte == b',');
    names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let module = b"\x7fELF\0license=GPL\0depends=libcrc32c,net-failover\0name=x\0";
        assert_eq!(dependencies(module), ["libcrc32c", "net_failover"]);
        assert!(dependencies(b"depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
