//! Addresses to listen on that nobody else of this machine takes meanwhile.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

/// Some `ADDRESS:PORT` that all differ. Every call has a loopback address of its own, so that a port found free here
/// cannot be taken by another caller before a node binds it.
pub fn loopback_addresses<const N: usize>() -> Result<[String; N]> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [low, high] = (std::process::id() as u16).to_le_bytes();
    let [call, _] = number.to_le_bytes();
    let address = Ipv4Addr::new(127, 64 | (high & 0x3f), low, call.max(1));
    // All listeners are held until the last port is known, so that no two are the same.
    let listeners = (0..N)
        .map(|_| TcpListener::bind((IpAddr::V4(address), 0)))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot listen on {address}"))?;
    let mut addresses = [const { String::new() }; N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?.to_string();
    }
    Ok(addresses)
}
