//! A TCP connection on which nothing waits for long: a server that is gone must be noticed.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);

/// A connection with a buffer.
pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
}

impl Socket {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Socket { stream, buffer: Vec::new(), taken: 0 })
    }

    /// Sends everything.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() - self.taken < count {
            self.fill()?;
        }
        let taken = self.buffer[self.taken..self.taken + count].to_vec();
        self.taken += count;
        Ok(taken)
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer[self.taken..].iter().position(|byte| *byte == b'\n') {
                let line = self.take(at + 1)?;
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.fill()?;
        }
    }

    /// A big-endian number, as most protocols send them.
    pub fn number(&mut self) -> io::Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }
}

/// A length from the wire; never one that a broken server could fill the memory with.
pub fn length(count: i32) -> io::Result<usize> {
    usize::try_from(count)
        .ok()
        .filter(|count| *count <= 64 << 20)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("a length of {count}")))
}
