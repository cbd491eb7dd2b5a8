//! What a link's other hosts are asked and told about an address: does one of them have it (an ARP probe, or a
//! neighbour solicitation), and that it is here now (gratuitous ARP, or an unsolicited neighbour advertisement).
//!
//! Formats: RFC 826, RFC 5227 and RFC 4861. Everything here blocks for a short, stated time; callers put it on a
//! thread of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::LinkAddr;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub type HardwareAddress = [u8; 6];

/// How long an answer is waited for after each question.
const ANSWER_WAIT: Duration = Duration::from_millis(100);
/// Questions before an address counts as free.
const QUESTIONS: u32 = 3;
const BROADCAST: HardwareAddress = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Ethernet header and ARP for IPv4.
const ARP_FRAME_BYTES: usize = 42;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const FLAG_OVERRIDE: u8 = 0x20;
const NEIGHBOUR_MESSAGE_BYTES: usize = 32;
/// Neighbour messages with another hop limit came through a router and are not believed.
const HOP_LIMIT: u32 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// This node's end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub hardware: HardwareAddress,
    /// As the kernel itself writes it.
    address: LinkAddr,
}

impl Link {
    /// None where there is no hardware to speak to.
    pub fn new(address: &LinkAddr) -> Option<Self> {
        Some(Self {
            index: u32::try_from(address.ifindex()).ok()?,
            hardware: address.addr()?,
            address: *address,
        })
    }
}

/// The host that answers for an address, if one does. Takes up to 300 ms.
pub fn holder(link: Link, address: IpAddr) -> io::Result<Option<HardwareAddress>> {
    match address {
        IpAddr::V4(address) => holder_v4(link, address),
        IpAddr::V6(address) => holder_v6(link, address),
    }
}

/// Tells all hosts on the link that the address is here.
pub fn announce(link: Link, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(address) => {
            let socket = arp_socket(link)?;
            // Some hosts believe only the one, some only the other.
            for operation in [ARP_REQUEST, ARP_REPLY] {
                socket.send(&arp_frame(link.hardware, operation, address, address))?;
            }
        }
        IpAddr::V6(address) => {
            let socket = neighbour_socket(link)?;
            // Advertised from the address itself, so that no other one of this node is learnt by the way.
            socket.bind(&SocketAddrV6::new(address, 0, 0, link.index).into())?;
            let message = neighbour_message(
                NEIGHBOUR_ADVERTISEMENT,
                FLAG_OVERRIDE,
                address,
                OPTION_TARGET,
                link.hardware,
            );
            socket.send_to(&message, &to(ALL_NODES, link))?;
        }
    }
    Ok(())
}

fn holder_v4(link: Link, address: Ipv4Addr) -> io::Result<Option<HardwareAddress>> {
    let socket = arp_socket(link)?;
    let question = arp_frame(link.hardware, ARP_REQUEST, Ipv4Addr::UNSPECIFIED, address);
    ask(
        &socket,
        || socket.send(&question),
        |frame| arp_sender(frame, address).filter(|sender| *sender != link.hardware),
    )
}

fn holder_v6(link: Link, address: Ipv6Addr) -> io::Result<Option<HardwareAddress>> {
    let socket = neighbour_socket(link)?;
    let question = neighbour_message(
        NEIGHBOUR_SOLICITATION,
        0,
        address,
        OPTION_SOURCE,
        link.hardware,
    );
    let group = to(solicited_node(address), link);
    ask(
        &socket,
        || socket.send_to(&question, &group),
        |message| advertised(message, address).filter(|sender| *sender != link.hardware),
    )
}

fn ask(
    socket: &Socket,
    send: impl Fn() -> io::Result<usize>,
    answer: impl Fn(&[u8]) -> Option<HardwareAddress>,
) -> io::Result<Option<HardwareAddress>> {
    let mut buffer = [0; 1514];
    for _ in 0..QUESTIONS {
        send()?;
        let until = Instant::now() + ANSWER_WAIT;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match receive(socket, &mut buffer) {
                Ok(bytes) => {
                    if let Some(holder) = answer(bytes) {
                        return Ok(Some(holder));
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

fn receive<'b>(socket: &Socket, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let count = io::Read::read(&mut &*socket, buffer)?;
    Ok(&buffer[..count])
}

/// Sends and receives whole Ethernet frames with ARP in them, on one link.
fn arp_socket(link: Link) -> io::Result<Socket> {
    let ethertype = ETHERTYPE_ARP.to_be();
    let socket = Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(ethertype))),
    )?;
    // The address names the link and no protocol: that stays what the socket was made with.
    nix::sys::socket::bind(socket.as_raw_fd(), &link.address)?;
    Ok(socket)
}

/// The kernel fills in the checksum of ICMPv6.
fn neighbour_socket(link: Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_if_v6(link.index)?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    socket.set_multicast_loop_v6(false)?;
    Ok(socket)
}

fn to(address: Ipv6Addr, link: Link) -> SockAddr {
    SocketAddrV6::new(address, 0, 0, link.index).into()
}

/// RFC 4291, 2.7.1: the group that the holder of an address has joined.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&[x, y, z]);
    group.into()
}

fn arp_frame(
    hardware: HardwareAddress,
    operation: u16,
    sender: Ipv4Addr,
    target: Ipv4Addr,
) -> [u8; ARP_FRAME_BYTES] {
    let mut frame = [0; ARP_FRAME_BYTES];
    frame[0..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&hardware);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    // Ethernet and IPv4, with addresses of 6 and 4 bytes.
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&hardware);
    frame[28..32].copy_from_slice(&sender.octets());
    if operation == ARP_REPLY {
        frame[32..38].copy_from_slice(&BROADCAST);
    }
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// Who says in this frame that the address is its own.
fn arp_sender(frame: &[u8], address: Ipv4Addr) -> Option<HardwareAddress> {
    let frame = frame.get(..ARP_FRAME_BYTES)?;
    let is_arp = frame[12..20] == [8, 6, 0, 1, 8, 0, 6, 4];
    (is_arp && frame[28..32] == address.octets())
        .then(|| frame[22..28].try_into().ok())
        .flatten()
}

fn neighbour_message(
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: u8,
    hardware: HardwareAddress,
) -> [u8; NEIGHBOUR_MESSAGE_BYTES] {
    let mut message = [0; NEIGHBOUR_MESSAGE_BYTES];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    // Options count in units of 8 bytes.
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..32].copy_from_slice(&hardware);
    message
}

/// Who advertises the address in this message; one without its hardware address is a holder as well.
fn advertised(message: &[u8], address: Ipv6Addr) -> Option<HardwareAddress> {
    let is_advertisement = *message.first()? == NEIGHBOUR_ADVERTISEMENT;
    if !is_advertisement || message.get(8..24)? != address.octets() {
        return None;
    }
    let option = message.get(24..32);
    let hardware = option
        .filter(|option| option[..2] == [OPTION_TARGET, 1])
        .and_then(|option| option[2..].try_into().ok());
    Some(hardware.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HardwareAddress = [2, 0, 0, 0, 0, 1];
    const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    #[test]
    fn a_gratuitous_arp_says_whose_the_address_is() {
        let frame = arp_frame(HERE, ARP_REPLY, FLOATING, FLOATING);
        assert_eq!(arp_sender(&frame, FLOATING), Some(HERE));
        assert_eq!(arp_sender(&frame, Ipv4Addr::LOCALHOST), None);
        assert_eq!(arp_sender(&frame[..41], FLOATING), None);
    }

    #[test]
    fn a_probe_claims_nothing() {
        let frame = arp_frame(HERE, ARP_REQUEST, Ipv4Addr::UNSPECIFIED, FLOATING);
        assert_eq!(arp_sender(&frame, FLOATING), None);
        assert_eq!(frame[38..], FLOATING.octets());
    }

    #[test]
    fn an_advertisement_names_address_and_holder() {
        let address: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        let message = neighbour_message(
            NEIGHBOUR_ADVERTISEMENT,
            FLAG_OVERRIDE,
            address,
            OPTION_TARGET,
            HERE,
        );
        assert_eq!(advertised(&message, address), Some(HERE));
        assert_eq!(advertised(&message[..24], address), Some([0; 6]));
        assert_eq!(advertised(&message[..23], address), None);
        assert_eq!(advertised(&message, Ipv6Addr::LOCALHOST), None);
        assert_eq!(
            solicited_node(address),
            "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap()
        );
    }
}
