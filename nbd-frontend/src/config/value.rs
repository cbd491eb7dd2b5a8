//! Readers of single values: text to a typed value, or a complaint that says what to write instead.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use toml::de::DeValue;

use super::problem::Located;
use super::section::{Complaint, article, near, text};
use super::units;

/// Longest name of anything in the file.
const NAME_BYTES_MAX: usize = 48;
/// Longest name of a network interface that the kernel takes.
const INTERFACE_BYTES_MAX: usize = 15;
/// Longest name of a unit that systemd takes.
const UNIT_BYTES_MAX: usize = 255;

pub(super) fn name(value: &DeValue) -> Result<String, Complaint> {
    let name = text(value)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
        return Err(Complaint::new(
            format!("{name:?} is no valid name"),
            format!(
                "use up to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', \
                 and begin with a letter or digit"
            ),
        ));
    }
    Ok(name.into())
}

pub(super) fn path(value: &DeValue) -> Result<PathBuf, Complaint> {
    let path = Path::new(text(value)?);
    if !path.is_absolute() {
        return Err(Complaint::new(
            format!("{:?} is a relative path", path.display().to_string()),
            "write the whole path, from / on, so that it means the same wherever the daemon starts",
        ));
    }
    Ok(path.into())
}

pub(super) fn address(text: &str) -> Result<SocketAddr, Complaint> {
    let address: SocketAddr = text.parse().map_err(|_| {
        Complaint::new(
            format!("{text:?} is no IP address with a port"),
            "write one such as \"10.5.0.5:29051\" or \"[fd00::5]:29051\"; \
             host names are not looked up",
        )
    })?;
    if address.port() == 0 {
        return Err(Complaint::new(
            format!("{text:?} has port 0"),
            "choose a port, so that the other side can find it",
        ));
    }
    Ok(address)
}

pub(super) fn choice<T: Copy>(value: &DeValue, choices: &[(&str, T)]) -> Result<T, Complaint> {
    choice_or(value, choices, |_| "write one of these")
}

/// As [`choice`]; `advice` says what to write instead of a word that is like none of them.
pub(super) fn choice_or<T: Copy>(
    value: &DeValue,
    choices: &[(&str, T)],
    advice: impl FnOnce(&str) -> &'static str,
) -> Result<T, Complaint> {
    let text = text(value)?;
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Complaint::new(
                format!("{text:?} is none of {}", names.join(", ")),
                match near(text, &names) {
                    Some(name) => format!("did you mean {name:?}?"),
                    None => advice(text).into(),
                },
            )
        })
}

pub(super) fn duration(
    value: &DeValue,
    [least, most]: [Duration; 2],
) -> Result<Duration, Complaint> {
    let duration = units::parse_duration(text(value)?)?;
    if duration < least || duration > most {
        return Err(Complaint::new(
            format!("{} is out of range", humantime::format_duration(duration)),
            format!(
                "choose between {} and {}",
                humantime::format_duration(least),
                humantime::format_duration(most)
            ),
        ));
    }
    Ok(duration)
}

pub(super) fn value_or<T>(found: Option<Located<T>>, default: T) -> T {
    found.map_or(default, |found| found.value)
}

pub(super) fn integer(value: &DeValue, [least, most]: [u32; 2]) -> Result<u32, Complaint> {
    let Some(written) = value.as_integer() else {
        return Err(Complaint::new(
            format!("this is {}, not a whole number", article(value)),
            "write a whole number without quotes and without a unit",
        ));
    };
    let number = i64::from_str_radix(&written.as_str().replace('_', ""), written.radix());
    match number.ok().and_then(|number| u32::try_from(number).ok()) {
        Some(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(Complaint::new(
            format!("{written} is out of range"),
            format!("choose between {least} and {most}"),
        )),
    }
}

pub(super) fn ip(value: &DeValue) -> Result<IpAddr, Complaint> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        Complaint::new(
            format!("{text:?} is no IP address"),
            "write one such as \"10.5.0.1\" or \"fd00::1\", without a port; host names are not \
             looked up",
        )
    })
}

/// An address with the length of its network's prefix.
pub(super) fn ip_with_prefix(value: &DeValue) -> Result<(IpAddr, u8), Complaint> {
    let text = text(value)?;
    let refused = || {
        Complaint::new(
            format!("{text:?} is no IP address with a prefix length"),
            "write one such as \"10.5.0.100/24\" or \"fd00::100/64\"",
        )
    };
    let (address, prefix) = text.split_once('/').ok_or_else(refused)?;
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let prefix: u8 = prefix.parse().map_err(|_| refused())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > bits {
        return Err(Complaint::new(
            format!("{text:?} has a prefix of {prefix} bits"),
            format!("choose between 1 and {bits}, as the network has it"),
        ));
    }
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(Complaint::new(
            format!("{address} cannot be moved from node to node"),
            "choose a free address of the network that the clients are in",
        ));
    }
    Ok((address, prefix))
}

/// `http://` or `https://`, with a host.
pub(super) fn url(value: &DeValue) -> Result<String, Complaint> {
    let text = text(value)?;
    let refused = |message: String| {
        Complaint::new(
            message,
            "write one such as \"http://10.5.0.9:29004\" or \"https://witness.example/\"",
        )
    };
    let uri: Uri = text
        .parse()
        .map_err(|error| refused(format!("{text:?} is no URL: {error}")))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(refused(format!("{text:?} is no http or https URL"))),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(refused(format!("{text:?} names no host")));
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        // Nor is it shown here.
        return Err(refused(
            "the URL carries a user name, which would end up in logs".into(),
        ));
    }
    Ok(text.into())
}

/// The name of a network interface, as the kernel allows it.
pub(super) fn interface(value: &DeValue) -> Result<String, Complaint> {
    let name = text(value)?;
    if name.len() > INTERFACE_BYTES_MAX
        || name == "."
        || name == ".."
        || name
            .contains(|letter: char| letter == '/' || letter == ':' || !letter.is_ascii_graphic())
    {
        return Err(Complaint::new(
            format!("{name:?} is no name of a network interface"),
            format!(
                "write one as `ip link` shows it, such as \"eth0\", of up to \
                 {INTERFACE_BYTES_MAX} letters"
            ),
        ));
    }
    Ok(name.into())
}

/// A program by its whole path, with its arguments; no shell reads it.
pub(super) fn command(value: &DeValue) -> Result<Vec<String>, Complaint> {
    let remedy = "write a list of the program's whole path and its arguments, such as \
                  [\"/usr/local/bin/app\", \"start\"]; no shell reads it";
    let refused = |message: String| Complaint::new(message, remedy);
    let words = value
        .as_array()
        .ok_or_else(|| refused(format!("this is {}, not a list", article(value))))?;
    let mut command = Vec::new();
    for word in words.iter() {
        let word = word.get_ref();
        match word.as_str() {
            Some(word) if !word.contains('\0') => command.push(word.to_owned()),
            Some(word) => return Err(refused(format!("{word:?} contains a zero byte"))),
            None => return Err(refused(format!("there is {} in the list", article(word)))),
        }
    }
    match command.first() {
        None => Err(refused("the list is empty".into())),
        Some(program) if !Path::new(program).is_absolute() => {
            Err(refused(format!("{program:?} is a relative path")))
        }
        Some(_) => Ok(command),
    }
}

/// A systemd unit by its whole name.
pub(super) fn unit(value: &DeValue) -> Result<String, Complaint> {
    let name = text(value)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let kinds = [
        ".service", ".socket", ".target", ".mount", ".timer", ".path", ".slice", ".scope",
    ];
    let known = kinds
        .iter()
        .any(|kind| name.strip_suffix(kind).is_some_and(|rest| !rest.is_empty()));
    if !known || name.len() > UNIT_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(Complaint::new(
            format!("{name:?} is no name of a systemd unit"),
            "write its whole name, such as \"postgresql.service\"",
        ));
    }
    Ok(name.into())
}

/// The identity of an EC2 instance: `i-` and 8 or 17 hexadecimal digits.
pub(super) fn instance(value: &DeValue) -> Result<String, Complaint> {
    let id = text(value)?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let valid = id
        .strip_prefix("i-")
        .is_some_and(|digits| (8..=17).contains(&digits.len()) && digits.bytes().all(lower_hex));
    if !valid {
        return Err(Complaint::new(
            format!("{id:?} is no instance id"),
            "write it as the EC2 console shows it, such as \"i-0123456789abcdef0\"",
        ));
    }
    Ok(id.into())
}
