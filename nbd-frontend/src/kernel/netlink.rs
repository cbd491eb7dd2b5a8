//! The kernel's NBD driver, over generic netlink: connect, reconnect, resize, disconnect.
//!
//! The attributes are those of `linux/nbd-netlink.h`. Each call blocks while the kernel works, so callers have a
//! thread for it that may wait. The kernel answers with an error number and little else; what it means for the caller
//! is said here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;

use super::found::DeviceNumber;
use super::plan::Identity;

const FAMILY: &str = "nbd";

mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// Inside of `SOCKETS`.
    pub const SOCKET_ITEM: u16 = 1;
    /// Inside of that.
    pub const SOCKET_FD: u16 = 1;
}

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error(
        "this kernel has no NBD driver: load it with `modprobe nbd`, and name it in /etc/modules-load.d for the next start; the package of the kernel may keep it apart (linux-modules-extra)"
    )]
    NoDriver,
    #[error(
        "the kernel does not let this process attach devices; it needs CAP_SYS_ADMIN (AmbientCapabilities= in its unit)"
    )]
    NotAllowed,
    #[error(
        "{} is in use or still held open from before; see who uses it with `fuser -v {}` and `lsblk {}`",
        .0.path().display(), .0.path().display(), .0.path().display()
    )]
    InUse(DeviceNumber),
    #[error("the kernel refuses to {action} {}: {source}; `dmesg` says why", device.path().display())]
    Refused {
        action: &'static str,
        device: DeviceNumber,
        source: io::Error,
    },
    #[error("cannot talk to the kernel: {0}")]
    Socket(#[from] io::Error),
    #[error("the kernel's answer makes no sense: {0}")]
    Decode(#[from] DecodeError),
}

/// How a device comes to be.
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    pub device: DeviceNumber,
    pub identity: Identity,
    pub size_bytes: u64,
    pub block_bytes: u32,
    /// As an export announces them.
    pub server_flags: u16,
    /// How long requests wait for a daemon that is gone before they fail.
    pub dead_connection_timeout: Duration,
    pub sockets: &'a [BorrowedFd<'a>],
}

/// The kernel's NBD driver.
#[derive(Debug)]
pub struct NbdDriver {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl NbdDriver {
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut driver = Self {
            socket,
            family: 0,
            sequence: 0,
        };
        driver.family = driver.find_family()?;
        Ok(driver)
    }

    pub fn connect(&mut self, connect: &Connect<'_>) -> Result<(), NetlinkError> {
        let device = connect.device;
        let attributes = vec![
            number(attribute::INDEX, device.0.to_ne_bytes()),
            number(attribute::SIZE_BYTES, connect.size_bytes.to_ne_bytes()),
            number(
                attribute::BLOCK_SIZE_BYTES,
                u64::from(connect.block_bytes).to_ne_bytes(),
            ),
            // Never: a mirror may have to hold answers for long, and the kernel must not send a request again
            // while the first copy is under way.
            number(attribute::TIMEOUT, 0u64.to_ne_bytes()),
            number(
                attribute::SERVER_FLAGS,
                u64::from(connect.server_flags).to_ne_bytes(),
            ),
            number(
                attribute::DEAD_CONN_TIMEOUT,
                connect.dead_connection_timeout.as_secs().to_ne_bytes(),
            ),
            sockets(connect.sockets),
            identifier(connect.identity),
        ];
        match self.order(command::CONNECT, attributes) {
            Err(NetlinkError::Socket(error)) if is(&error, Errno::EBUSY) => {
                Err(NetlinkError::InUse(device))
            }
            result => about(result, "attach", device),
        }
    }

    /// Replaces sockets that are dead. The kernel says that it did even where none was: whoever gave a socket has to
    /// look whether it is open.
    pub fn reconnect(
        &mut self,
        device: DeviceNumber,
        identity: Identity,
        new: &[BorrowedFd<'_>],
    ) -> Result<(), NetlinkError> {
        let attributes = vec![
            number(attribute::INDEX, device.0.to_ne_bytes()),
            identifier(identity),
            sockets(new),
        ];
        about(
            self.order(command::RECONFIGURE, attributes),
            "go on with",
            device,
        )
    }

    /// Waits for all requests that are under way: only for a device whose requests are answered.
    pub fn resize(
        &mut self,
        device: DeviceNumber,
        identity: Identity,
        size_bytes: u64,
    ) -> Result<(), NetlinkError> {
        let attributes = vec![
            number(attribute::INDEX, device.0.to_ne_bytes()),
            identifier(identity),
            number(attribute::SIZE_BYTES, size_bytes.to_ne_bytes()),
        ];
        about(
            self.order(command::RECONFIGURE, attributes),
            "resize",
            device,
        )
    }

    /// What waits in it fails. Done where it was not connected.
    pub fn disconnect(&mut self, device: DeviceNumber) -> Result<(), NetlinkError> {
        let attributes = vec![number(attribute::INDEX, device.0.to_ne_bytes())];
        about(
            self.order(command::DISCONNECT, attributes),
            "detach",
            device,
        )
    }

    fn find_family(&mut self) -> Result<u16, NetlinkError> {
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.into())],
        });
        let mut family = None;
        let answered = self.exchange(question, |answer: &GenlMessage<GenlCtrl>| {
            for attribute in &answer.payload.nlas {
                if let GenlCtrlAttrs::FamilyId(id) = attribute {
                    family = Some(*id);
                }
            }
        });
        match answered {
            Err(NetlinkError::Socket(error)) if is(&error, Errno::ENOENT) => {
                Err(NetlinkError::NoDriver)
            }
            result => result.and_then(|()| family.ok_or(NetlinkError::NoDriver)),
        }
    }

    fn order(&mut self, command: u8, attributes: Vec<DefaultNla>) -> Result<(), NetlinkError> {
        let mut message = GenlMessage::from_payload(NbdMessage {
            command,
            attributes,
        });
        message.set_resolved_family_id(self.family);
        self.exchange(message, |_| {})
    }

    /// Sends one message and takes answers until it is acknowledged.
    fn exchange<F>(
        &mut self,
        message: GenlMessage<F>,
        mut on_answer: impl FnMut(&GenlMessage<F>),
    ) -> Result<(), NetlinkError>
    where
        F: GenlFamily
            + Emitable
            + ParseableParametrized<[u8], GenlHeader>
            + Clone
            + std::fmt::Debug
            + PartialEq,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (received, _) = self.socket.recv_from_full()?;
            let mut rest = &received[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(rest)?;
                let length = (answer.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        let error = error.to_io();
                        if is(&error, Errno::EPERM) {
                            return Err(NetlinkError::NotAllowed);
                        }
                        return Err(error.into());
                    }
                    NetlinkPayload::InnerMessage(message) => on_answer(&message),
                    _ => {}
                }
            }
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn about(
    result: Result<(), NetlinkError>,
    action: &'static str,
    device: DeviceNumber,
) -> Result<(), NetlinkError> {
    result.map_err(|error| match error {
        NetlinkError::Socket(source) => NetlinkError::Refused {
            action,
            device,
            source,
        },
        other => other,
    })
}

fn number<const N: usize>(kind: u16, bytes: [u8; N]) -> DefaultNla {
    DefaultNla::new(kind, bytes.to_vec())
}

fn identifier(identity: Identity) -> DefaultNla {
    let mut text = identity.to_string().into_bytes();
    text.push(0);
    DefaultNla::new(attribute::BACKEND_IDENTIFIER, text)
}

fn sockets(sockets: &[BorrowedFd<'_>]) -> DefaultNla {
    let items: Vec<DefaultNla> = sockets
        .iter()
        .map(|socket| {
            let fd = number(attribute::SOCKET_FD, socket.as_raw_fd().to_ne_bytes());
            DefaultNla::new(attribute::SOCKET_ITEM, emitted(&[fd]))
        })
        .collect();
    DefaultNla::new(attribute::SOCKETS, emitted(&items))
}

fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// What the kernel's answers carry is not looked at: an error number says all.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NbdMessage {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for NbdMessage {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for NbdMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for NbdMessage {
    fn parse_with_param(_: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self {
            command: header.cmd,
            attributes: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn sockets_are_listed_as_the_kernel_wants_them() {
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
        let list = sockets(&[socket.as_fd(), socket.as_fd()]);
        let mut bytes = vec![0; list.buffer_len()];
        list.emit(&mut bytes);
        let mut expected: Vec<u8> = Vec::new();
        let mut word = |word: u16| expected.extend(word.to_ne_bytes());
        word(4 + 2 * 12);
        word(7);
        for _ in 0..2 {
            word(12);
            word(1);
            word(8);
            word(1);
            let fd = socket.as_raw_fd() as u32;
            word((fd & 0xffff) as u16);
            word((fd >> 16) as u16);
        }
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn a_kernel_without_the_driver_is_told_apart() {
        // On most machines that tests run on there is none.
        match NbdDriver::open() {
            Ok(driver) => assert_ne!(driver.family, 0),
            Err(error) => assert!(matches!(error, NetlinkError::NoDriver), "{error}"),
        }
    }
}
