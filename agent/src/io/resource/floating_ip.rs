//! An address that clients know, on the node where the group is online.
//!
//! Start: look whether another host answers for it → add it → tell the link. An address that is taken is refused,
//! unless the arbiter granted this node the right to be active: then the other host is one that was told to stop
//! and could not (its processes are frozen while its kernel answers on), and clients must find the new place.

use std::net::IpAddr;
use std::time::Duration;

use nbd_frontend::config::agent::FloatingIp as Config;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::neighbours::{self, HardwareAddress, Link};
use super::{Permit, Presence};
use crate::io::blocking::{Slot, Stuck};

/// Longest question and announcement, with the time that they wait on purpose.
const LINK_LIMIT: Duration = Duration::from_secs(3);
/// When the address is announced again, after the first time; a switch may just be learning its ports.
const ANNOUNCE_AGAIN: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(750),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

#[derive(Debug)]
pub struct FloatingIp {
    address: IpAddr,
    prefix: u8,
    interface: String,
    kernel: Slot,
    /// Says again that the address is here.
    announcing: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum FloatingIpError {
    #[error("this node has no interface {interface} for the address {address}; there are {there}")]
    NoInterface {
        interface: String,
        address: IpAddr,
        there: String,
    },
    #[error(
        "the interface {interface} is down, so {address} cannot be reached on it; see `ip link show {interface}`"
    )]
    InterfaceDown { interface: String, address: IpAddr },
    #[error(
        "the address {address} is on {other} of this node and should be on {interface}; remove it with `ip address delete {address} dev {other}`"
    )]
    Elsewhere {
        address: IpAddr,
        other: String,
        interface: String,
    },
    #[error("the address {address} is in use: the host {} answers for it on {interface}; take it away there, or choose another address", hardware_text(*holder))]
    InUse {
        address: IpAddr,
        interface: String,
        holder: HardwareAddress,
    },
    #[error(
        "cannot ask on {interface} for {address}: {source}; the agent needs the right CAP_NET_RAW"
    )]
    Ask {
        interface: String,
        address: IpAddr,
        source: std::io::Error,
    },
    #[error(
        "the kernel did not {verb} {address} on {interface}: {source}; the agent needs the right CAP_NET_ADMIN"
    )]
    Netlink {
        verb: &'static str,
        address: IpAddr,
        interface: String,
        source: Box<rtnetlink::Error>,
    },
    #[error("cannot speak to the kernel about addresses: {0}")]
    Socket(std::io::Error),
    #[error("the address {address} is not on {interface} any more; something removed it")]
    Gone { address: IpAddr, interface: String },
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

type Result<T> = std::result::Result<T, FloatingIpError>;

/// Who else has the address, as a check finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This node has it, or nobody.
    NobodyElse,
    /// The other node: the group runs there.
    OtherNode,
    Somebody(HardwareAddress),
}

pub fn hardware_text(address: HardwareAddress) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// What the kernel says of one interface.
#[derive(Debug)]
struct Interface {
    index: u32,
    is_up: bool,
    /// None where there is no link to speak to, as on a loopback.
    link: Option<Link>,
}

impl FloatingIp {
    pub fn new(config: &Config, node: usize) -> Self {
        Self {
            address: config.address,
            prefix: config.prefix,
            interface: config.interfaces[node].clone(),
            kernel: Slot::default(),
            announcing: Mutex::default(),
        }
    }

    pub async fn start(&self, permit: &Permit) -> Result<()> {
        let interface = self.look()?;
        if !interface.is_up {
            return Err(FloatingIpError::InterfaceDown {
                interface: self.interface.clone(),
                address: self.address,
            });
        }
        match self.place()? {
            Some(place) if place == self.interface => {}
            Some(other) => {
                return Err(FloatingIpError::Elsewhere {
                    address: self.address,
                    other,
                    interface: self.interface.clone(),
                });
            }
            None => {
                if let Some(link) = interface.link {
                    self.refuse_if_taken(link, permit).await?;
                }
                self.add(interface.index).await?;
            }
        }
        if let Some(link) = interface.link {
            self.announce(link).await;
        }
        Ok(())
    }

    pub async fn stop(&self) -> Result<()> {
        if let Some(task) = self.announcing.lock().await.take() {
            task.abort();
        }
        if self.place()?.as_ref() != Some(&self.interface) {
            return Ok(());
        }
        let index = self.look()?.index;
        self.remove(index).await
    }

    pub fn check(&self) -> Result<()> {
        if !self.look()?.is_up {
            return Err(FloatingIpError::InterfaceDown {
                interface: self.interface.clone(),
                address: self.address,
            });
        }
        match self.place()? {
            Some(place) if place == self.interface => Ok(()),
            _ => Err(FloatingIpError::Gone {
                address: self.address,
                interface: self.interface.clone(),
            }),
        }
    }

    /// Asks the link, and changes nothing. `other_node`: its addresses, by which it is told from a stranger where
    /// it is on the same link.
    pub async fn holder(&self, other_node: &[IpAddr]) -> Result<Holder> {
        let interface = self.look()?;
        let Some(link) = interface.link.filter(|_| interface.is_up) else {
            return Ok(Holder::NobodyElse);
        };
        if self.place()?.is_some() {
            return Ok(Holder::NobodyElse);
        }
        let Some(holder) = self.ask(link, self.address).await? else {
            return Ok(Holder::NobodyElse);
        };
        for address in other_node {
            if address.is_ipv4() == self.address.is_ipv4()
                && self.ask(link, *address).await? == Some(holder)
            {
                return Ok(Holder::OtherNode);
            }
        }
        Ok(Holder::Somebody(holder))
    }

    pub fn probe_state(&self) -> Result<Presence> {
        Ok(match self.place()? {
            Some(place) if place == self.interface => Presence::Online,
            _ => Presence::Offline,
        })
    }

    /// Who answers for an address.
    async fn ask(&self, link: Link, address: IpAddr) -> Result<Option<HardwareAddress>> {
        self.kernel
            .run(
                "a look for other holders of an address",
                LINK_LIMIT,
                move || neighbours::holder(link, address),
            )
            .await?
            .map_err(|source| FloatingIpError::Ask {
                interface: self.interface.clone(),
                address,
                source,
            })
    }

    async fn refuse_if_taken(&self, link: Link, permit: &Permit) -> Result<()> {
        let Some(holder) = self.ask(link, self.address).await? else {
            return Ok(());
        };
        let error = FloatingIpError::InUse {
            address: self.address,
            interface: self.interface.clone(),
            holder,
        };
        if permit.grant.is_some() {
            tracing::warn!(
                "{error}; taken over all the same, for this node was granted the right to be active"
            );
            return Ok(());
        }
        Err(error)
    }

    async fn announce(&self, link: Link) {
        let (address, interface) = (self.address, self.interface.clone());
        let kernel = self.kernel.clone();
        let once = move || {
            let (kernel, interface) = (kernel.clone(), interface.clone());
            async move {
                let done = kernel
                    .run("an announcement", LINK_LIMIT, move || {
                        neighbours::announce(link, address)
                    })
                    .await;
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!("{address} on {interface}: {error}"),
                    Err(error) => tracing::warn!("{address} on {interface}: {error}"),
                }
            }
        };
        once().await;
        let again = tokio::spawn(async move {
            for pause in ANNOUNCE_AGAIN {
                tokio::time::sleep(pause).await;
                once().await;
            }
        });
        if let Some(earlier) = self.announcing.lock().await.replace(again) {
            earlier.abort();
        }
    }

    async fn add(&self, index: u32) -> Result<()> {
        let (handle, _connection) = self.netlink()?;
        let mut request = handle.address().add(index, self.address, self.prefix);
        if self.address.is_ipv6() {
            // Whether it is free was asked already; a second wait would cost a second of service.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .map_err(|source| self.refused("add", source))
    }

    async fn remove(&self, index: u32) -> Result<()> {
        let (handle, _connection) = self.netlink()?;
        let mut request = handle.address().add(index, self.address, self.prefix);
        let message = request.message_mut().clone();
        handle
            .address()
            .del(message)
            .execute()
            .await
            .map_err(|source| self.refused("remove", source))
    }

    fn refused(&self, verb: &'static str, source: rtnetlink::Error) -> FloatingIpError {
        FloatingIpError::Netlink {
            verb,
            address: self.address,
            interface: self.interface.clone(),
            source: Box::new(source),
        }
    }

    /// A way to ask the kernel, as long as the second part is kept.
    fn netlink(&self) -> Result<(rtnetlink::Handle, Connection)> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(FloatingIpError::Socket)?;
        Ok((handle, Connection(tokio::spawn(connection))))
    }

    fn look(&self) -> Result<Interface> {
        let all = interface_addresses()?;
        let Ok(index) = if_nametoindex(self.interface.as_str()) else {
            let mut there: Vec<_> = all.into_iter().map(|found| found.interface_name).collect();
            there.sort();
            there.dedup();
            return Err(FloatingIpError::NoInterface {
                interface: self.interface.clone(),
                address: self.address,
                there: there.join(", "),
            });
        };
        let own = || {
            all.iter()
                .filter(|found| found.interface_name == self.interface)
        };
        let flags = own().fold(InterfaceFlags::empty(), |flags, found| flags | found.flags);
        let link = own()
            .filter_map(|found| Link::new(found.address.as_ref()?.as_link_addr()?))
            .next();
        let is_mute = flags.intersects(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP);
        Ok(Interface {
            index,
            is_up: flags.contains(InterfaceFlags::IFF_UP),
            link: link.filter(|_| !is_mute),
        })
    }

    /// The interface that has the address now.
    fn place(&self) -> Result<Option<String>> {
        Ok(interface_addresses()?
            .into_iter()
            .filter(|found| found.address.as_ref().and_then(ip) == Some(self.address))
            .map(|found| found.interface_name)
            .next())
    }
}

struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn interface_addresses() -> Result<Vec<InterfaceAddress>> {
    Ok(getifaddrs()
        .map_err(|errno| FloatingIpError::Socket(errno.into()))?
        .collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|found| IpAddr::V4(found.ip()))
        .or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|found| IpAddr::V6(found.ip()))
        })
}
