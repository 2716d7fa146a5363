//! MariaDB: a primary that is a pet, and replicas that follow it by GTID.
//!
//! Source: MariaDB documentation, "Clientserver Protocol": connection, COM_QUERY, OK and ERR packets, text resultsets.

use crate::socket::Socket;
use crate::store::{Store, Workload, checked, nothing, other, value};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

pub static WORKLOAD: Workload = Workload {
    name: "mariadb",
    packages: "mariadb-server",
    programs: &["/usr/sbin/mariadbd", "/usr/bin/mariadb-install-db"],
    manifest: include_str!("../../workloads/mariadb/mariadb.yaml"),
    service: "mariadb-primary",
    port: 3306,
    replicas: 3,
    has_quorum: false,
    scales: &[2, 3],
    open: |address| Ok(Box::new(MariaDb::open(address)?)),
    leader: |_| "mariadb-0".into(),
    leave: nothing,
    joined: nothing,
};

/// CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION | CLIENT_PLUGIN_AUTH.
const CAPABILITIES: u32 = 0x0200 | 0x8000 | 0x0008_0000;
/// The largest packet we take, in bytes.
const PACKET_MAX: u32 = 16 << 20;
const UTF8: u8 = 33;

struct MariaDb {
    socket: Socket,
}

impl MariaDb {
    fn open(address: SocketAddr) -> io::Result<MariaDb> {
        let mut mariadb = MariaDb { socket: Socket::open(address)? };
        let greeting = mariadb.packet()?;
        if greeting.first() == Some(&0xff) {
            return Err(refusal(&greeting));
        }
        let mut answer = [CAPABILITIES.to_le_bytes(), PACKET_MAX.to_le_bytes()].concat();
        answer.push(UTF8);
        answer.extend_from_slice(&[0; 23]);
        // No password: an empty answer to the challenge.
        answer.extend_from_slice(b"root\0\0mysql_native_password\0");
        mariadb.send(1, &answer)?;
        match mariadb.packet()? {
            ok if ok.first() == Some(&0) => Ok(mariadb),
            no => Err(refusal(&no)),
        }
    }

    fn send(&mut self, sequence: u8, body: &[u8]) -> io::Result<()> {
        let size = u32::try_from(body.len()).map_err(|_| other("a packet too long"))?.to_le_bytes();
        self.socket.send(&[&[size[0], size[1], size[2], sequence], body].concat())
    }

    fn packet(&mut self) -> io::Result<Vec<u8>> {
        let head = self.socket.take(4)?;
        let size = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        self.socket.take(size as usize)
    }

    fn query(&mut self, sql: &str, mut row: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.send(0, &[b"\x03", sql.as_bytes()].concat())?;
        let first = self.packet()?;
        match first.first() {
            Some(0) => return Ok(()),
            Some(0xff) | None => return Err(refusal(&first)),
            // The number of columns: so many definitions, and an end.
            Some(_) => {}
        }
        let is_end = |packet: &[u8]| packet.first() == Some(&0xfe) && packet.len() < 9;
        while !is_end(&self.packet()?) {}
        let mut outcome = Ok(());
        loop {
            let packet = self.packet()?;
            match packet.first() {
                Some(0xff) => return Err(refusal(&packet)),
                _ if is_end(&packet) => return outcome,
                _ => outcome = outcome.and_then(|()| row(&packet)),
            }
        }
    }
}

impl Store for MariaDb {
    fn prepare(&mut self) -> io::Result<()> {
        self.query("CREATE DATABASE IF NOT EXISTS workload", |_| Ok(()))?;
        let table = "CREATE TABLE IF NOT EXISTS workload.written (number bigint PRIMARY KEY, value text)";
        self.query(table, |_| Ok(()))
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        let sql = format!("INSERT IGNORE INTO workload.written VALUES ({number}, '{}')", value(number));
        self.query(&sql, |_| Ok(()))
    }

    fn all(&mut self) -> io::Result<BTreeSet<u64>> {
        let mut all = BTreeSet::new();
        self.query("SELECT number, value FROM workload.written", |row| {
            // Short texts: one byte of length each.
            let (number, rest) = short(row)?;
            all.insert(checked(&number, &short(rest)?.0)?);
            Ok(())
        })?;
        Ok(all)
    }
}

fn short(bytes: &[u8]) -> io::Result<(String, &[u8])> {
    let broken = || other("a broken row");
    let (size, rest) = bytes.split_first().filter(|(size, _)| **size < 0xfb).ok_or_else(broken)?;
    let (text, rest) = rest.split_at_checked(usize::from(*size)).ok_or_else(broken)?;
    Ok((String::from_utf8_lossy(text).into_owned(), rest))
}

fn refusal(packet: &[u8]) -> io::Error {
    other(String::from_utf8_lossy(packet.get(3..).unwrap_or_default()))
}
