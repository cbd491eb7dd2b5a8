//! A client that sends exactly the bytes it is told to.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nbd_frontend::nbd::protocol::*;

use crate::server::{PATIENCE, TestServer};

pub struct RawClient<S = UnixStream> {
    pub stream: S,
}

impl RawClient<TcpStream> {
    /// Connects over TCP and reads the greeting.
    pub fn connect_tcp(server: &TestServer) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.tcp_port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("time limit");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("time limit");
        Self { stream }.greeted()
    }
}

impl RawClient {
    /// Connects and reads the greeting.
    pub fn connect(server: &TestServer) -> Self {
        let stream = UnixStream::connect(server.socket()).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("time limit");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("time limit");
        Self { stream }.greeted()
    }

    /// Connects and starts transmission the oldest way, without structured replies.
    pub fn simple(server: &TestServer) -> Self {
        let mut client = Self::connect(server);
        client.send(&3u32.to_be_bytes());
        client.send(&option(OPT_EXPORT_NAME, b"disk"));
        client.receive(10);
        client
    }
}

impl<S: Read + Write> RawClient<S> {
    fn greeted(mut self) -> Self {
        let greeting = self.receive(18);
        assert_eq!(greeting[..8], GREETING_MAGIC.to_be_bytes());
        self
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    pub fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32) {
        self.send(&request(command, flags, offset, length));
    }

    pub fn receive(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).expect("receive");
        bytes
    }

    /// Kind and data of the option reply that comes next.
    pub fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let head = self.receive(20);
        assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let field =
            |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let data = self.receive(field(16) as usize);
        (field(12), data)
    }

    /// The error number of the simple reply that comes next.
    pub fn reply(&mut self) -> u32 {
        let reply = self.receive(16);
        assert_eq!(reply[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().expect("four bytes"))
    }

    /// Fails unless the server hangs up, whatever it sends before.
    pub fn expect_end(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the server did not hang up: {error}"),
            }
        }
    }
}

pub fn request(command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let header = RequestHeader {
        flags,
        command,
        cookie: offset ^ u64::from(length),
        offset,
        length,
    };
    header.encode().to_vec()
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}
