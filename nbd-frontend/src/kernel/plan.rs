//! What to do with a device, given what the kernel says of it. Pure, and enumerated in its tests.
//!
//! The one dangerous step is to go on with a device that is there already: its page cache and the requests that wait
//! in it are of the past. That is right only for the very mirror and epoch that they came from, so the kernel keeps
//! both as the device's identifier. Whether this node may be primary again in that epoch, the mirror itself decides.

use std::fmt;
use std::str::FromStr;

use mirror_core::units::Uuid;

/// Whose device it is: kept by the kernel as its `backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub mirror: Uuid,
    pub epoch: u64,
}

const PREFIX: &str = "mirror";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:")?;
        for byte in self.mirror.0 {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ":{}", self.epoch)
    }
}

/// It is the identifier of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the identifier of a mirror's device")]
pub struct Foreign;

impl FromStr for Identity {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let mut words = text.split(':');
        let (Some(PREFIX), Some(mirror), Some(epoch), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Foreign);
        };
        if mirror.len() != 32 || !mirror.is_ascii() {
            return Err(Foreign);
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(mirror.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| Foreign)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| Foreign)?;
        }
        let identity = Self {
            mirror: Uuid(bytes),
            epoch: epoch.parse().map_err(|_| Foreign)?,
        };
        // Not a different spelling of it either.
        (identity.to_string() == text)
            .then_some(identity)
            .ok_or(Foreign)
    }
}

/// A device number, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// Nobody made it yet; the kernel does when it is connected.
    Absent,
    Free,
    Taken(Owner),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Mirror(Identity),
    /// Another program's: its own identifier, if it has one.
    Foreign(Option<String>),
}

impl Owner {
    pub fn of(backend: Option<&str>) -> Self {
        match backend.map(Identity::from_str) {
            Some(Ok(identity)) => Self::Mirror(identity),
            _ => Self::Foreign(backend.filter(|text| !text.is_empty()).map(str::to_owned)),
        }
    }
}

/// At the start of the daemon, with a mirror that is not primary yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtStart {
    /// Nothing of this mirror is there.
    Nothing,
    /// It waits for this very mirror in the epoch that is on record here. It is gone on with if the mirror is primary
    /// again in that epoch, and released otherwise.
    GoOn,
    /// It is this mirror's, of an epoch that is over: nothing may be read from it or written to it any more.
    Release,
}

pub fn at_start(device: &Device, own: Identity) -> AtStart {
    match device {
        Device::Taken(Owner::Mirror(found)) if *found == own => AtStart::GoOn,
        Device::Taken(Owner::Mirror(found)) if found.mirror == own.mirror => AtStart::Release,
        Device::Absent | Device::Free | Device::Taken(_) => AtStart::Nothing,
    }
}

/// When the mirror is primary and no device of this process serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAttach {
    Connect,
    /// It is this mirror's and nobody's here: what waits in it is of the past.
    ReleaseAndConnect,
    Refuse(Owner),
}

pub fn to_attach(device: &Device, own: Identity) -> ToAttach {
    match device {
        Device::Absent | Device::Free => ToAttach::Connect,
        Device::Taken(Owner::Mirror(found)) if found.mirror == own.mirror => {
            ToAttach::ReleaseAndConnect
        }
        Device::Taken(owner) => ToAttach::Refuse(owner.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Identity = Identity {
        mirror: Uuid([0xab; 16]),
        epoch: 7,
    };

    fn devices() -> Vec<(&'static str, Device)> {
        let mirror = |mirror, epoch| {
            Device::Taken(Owner::Mirror(Identity {
                mirror: Uuid(mirror),
                epoch,
            }))
        };
        vec![
            ("absent", Device::Absent),
            ("free", Device::Free),
            ("ours", mirror([0xab; 16], 7)),
            ("ours, earlier", mirror([0xab; 16], 6)),
            ("ours, later", mirror([0xab; 16], 8)),
            ("another mirror's", mirror([0xcd; 16], 7)),
            ("a stranger's", Device::Taken(Owner::Foreign(None))),
            (
                "a stranger's with a name",
                Device::Taken(Owner::Foreign(Some("x".into()))),
            ),
        ]
    }

    #[test]
    fn a_device_found_at_the_start_is_gone_on_with_in_its_own_epoch_alone() {
        let found: Vec<_> = devices()
            .iter()
            .map(|(name, device)| (*name, at_start(device, OWN)))
            .collect();
        use AtStart::{GoOn, Nothing, Release};
        assert_eq!(
            found,
            [
                ("absent", Nothing),
                ("free", Nothing),
                ("ours", GoOn),
                ("ours, earlier", Release),
                ("ours, later", Release),
                ("another mirror's", Nothing),
                ("a stranger's", Nothing),
                ("a stranger's with a name", Nothing),
            ]
        );
    }

    #[test]
    fn a_device_of_somebody_else_is_never_touched() {
        for (name, device) in devices() {
            let expected = match name {
                "absent" | "free" => ToAttach::Connect,
                "ours" | "ours, earlier" | "ours, later" => ToAttach::ReleaseAndConnect,
                _ => match &device {
                    Device::Taken(owner) => ToAttach::Refuse(owner.clone()),
                    _ => unreachable!("{name} is taken"),
                },
            };
            assert_eq!(to_attach(&device, OWN), expected, "{name}");
        }
    }

    #[test]
    fn an_identifier_is_read_back_and_no_other_text_is_one() {
        assert_eq!(OWN.to_string().parse(), Ok(OWN));
        assert_eq!(Owner::of(Some(&OWN.to_string())), Owner::Mirror(OWN));
        for text in [
            "",
            "mirror",
            "mirror:abababababababababababababababab",
            "mirror:abababababababababababababababab:",
            "mirror:abababababababababababababababab:7:8",
            "mirror:abababababababababababababababab:+7",
            "mirror:ABababababababababababababababab:7",
            "mirror:+babababababababababababababababab:7",
            "mirror:ababababababababababababababab€:7",
            "other:abababababababababababababababab:7",
        ] {
            assert_eq!(text.parse::<Identity>(), Err(Foreign), "{text}");
        }
        assert_eq!(Owner::of(None), Owner::Foreign(None));
        assert_eq!(Owner::of(Some("")), Owner::Foreign(None));
    }
}
