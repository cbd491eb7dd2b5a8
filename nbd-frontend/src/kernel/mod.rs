//! A primary mirror as `/dev/nbdN` of this machine: the kernel is a client like any other, on one end of a socket
//! pair, and finds out over generic netlink which socket belongs to which device.
//!
//! [`found`] is what the kernel says of a device, [`plan`] the pure table of what follows from that, [`netlink`] tells
//! the kernel, [`keeper`] drives all of it for one mirror. `docs/kernel-attach.md` has the argument why a device may
//! be taken over after a restart, and when not. Nothing here knows volumes or requests: sockets are handed to the
//! mirror's thread, which serves them as it serves any client.

pub mod found;
pub mod keeper;
pub mod netlink;
pub mod plan;
mod users;
