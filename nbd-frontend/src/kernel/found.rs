//! What the kernel says of an NBD device, in files below `/sys/block`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Device, Owner};

/// `/dev/nbdN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber(pub u32);

/// Not a path of a device that this daemon can attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form /dev/nbdN")]
pub struct NotADevice;

impl DeviceNumber {
    pub fn of(path: &Path) -> Result<Self, NotADevice> {
        let number = path.to_str().and_then(|path| path.strip_prefix("/dev/nbd"));
        let number: u32 = number
            .and_then(|text| text.parse().ok())
            .ok_or(NotADevice)?;
        let device = Self(number);
        // One spelling each, so that no two mirrors name the same device.
        (device.path() == path).then_some(device).ok_or(NotADevice)
    }

    pub fn path(self) -> PathBuf {
        format!("/dev/nbd{}", self.0).into()
    }

    fn folder(self) -> PathBuf {
        format!("/sys/block/nbd{}", self.0).into()
    }

    pub fn device(self) -> Device {
        read_device(&self.folder())
    }

    pub fn size_bytes(self) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder().join("size"))?;
        let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
        Ok(sectors * 512)
    }

    /// How long a request may wait before the kernel looks whether its connection was replaced.
    pub fn set_request_timeout_ms(self, timeout_ms: u32) -> io::Result<()> {
        let path = self.folder().join("queue/io_timeout");
        fs::write(path, timeout_ms.to_string())
    }

    /// Major and minor number.
    pub fn numbers(self) -> io::Result<(u32, u32)> {
        let text = fs::read_to_string(self.folder().join("dev"))?;
        let parsed = text
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        parsed.ok_or_else(|| io::Error::other(format!("the kernel says {text:?}")))
    }

    /// Names of block devices that are built on it.
    pub fn holders(self) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join("holders"));
        let names = entries.into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

fn read_device(folder: &Path) -> Device {
    if !folder.exists() {
        return Device::Absent;
    }
    // There while it is connected, by whatever means.
    if !folder.join("pid").exists() {
        return Device::Free;
    }
    let backend = fs::read_to_string(folder.join("backend")).ok();
    Device::Taken(Owner::of(backend.as_deref().map(str::trim_end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_path() {
        assert_eq!(
            DeviceNumber::of(Path::new("/dev/nbd12")),
            Ok(DeviceNumber(12))
        );
        for path in [
            "/dev/nbd",
            "/dev/nbd01",
            "/dev/nbd+1",
            "/dev/nbd0p1",
            "nbd0",
            "/dev/sda",
        ] {
            assert_eq!(DeviceNumber::of(Path::new(path)), Err(NotADevice), "{path}");
        }
    }

    #[test]
    fn what_the_kernel_shows_of_a_device_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("nbd0");
        assert_eq!(read_device(&device), Device::Absent);
        fs::create_dir(&device).unwrap();
        assert_eq!(read_device(&device), Device::Free);
        fs::write(device.join("pid"), "12\n").unwrap();
        assert_eq!(read_device(&device), Device::Taken(Owner::Foreign(None)));
        fs::write(device.join("backend"), "somebody\n").unwrap();
        let somebody = Owner::Foreign(Some("somebody".into()));
        assert_eq!(read_device(&device), Device::Taken(somebody));
    }
}
