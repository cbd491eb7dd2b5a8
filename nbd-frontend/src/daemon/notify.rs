//! Tells the service manager how the daemon is doing: one datagram to the socket that systemd names
//! in `NOTIFY_SOCKET` (see sd_notify(3)). Without that variable nobody asked, and nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, for example `READY=1`. A failure is logged: it changes nothing for what the daemon does.
pub fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&address, state) {
        tracing::warn!("cannot tell the service manager {state}: {error}");
    }
}

fn send(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn check(listener: UnixDatagram, address: &OsStr) {
        listener
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        send(address, "READY=1").unwrap();
        let mut bytes = [0; 32];
        let length = listener.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");
    }

    #[test]
    fn a_path_is_notified() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        check(UnixDatagram::bind(&path).unwrap(), path.as_os_str());
    }

    #[test]
    fn an_abstract_address_is_notified() {
        let name = format!("mirrord-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        check(listener, OsStr::new(&format!("@{name}")));
    }

    #[test]
    fn a_missing_manager_is_an_error_and_no_panic() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
    }
}
