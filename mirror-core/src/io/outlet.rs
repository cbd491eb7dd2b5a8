//! A socket as rustls writes its records to it.

use std::io::{self, IoSlice, Write};

use tokio::net::TcpStream;

/// Writes at once or, with [`io::ErrorKind::WouldBlock`], not at all.
#[derive(Debug)]
pub struct Outlet<'a>(pub &'a TcpStream);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
