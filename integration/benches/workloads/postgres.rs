//! PostgreSQL: a primary that is a pet, and a replica that streams from it by name.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol", message formats of protocol 3.0.

use crate::socket::{Socket, length};
use crate::store::{Store, Workload, checked, nothing, other, value};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

pub static WORKLOAD: Workload = Workload {
    name: "postgres",
    packages: "postgresql",
    programs: &["/usr/lib/postgresql/15/bin/postgres"],
    manifest: include_str!("../../workloads/postgres/postgres.yaml"),
    service: "postgres-primary",
    port: 5432,
    replicas: 2,
    has_quorum: false,
    scales: &[1, 3, 2],
    open: |address| Ok(Box::new(Postgres::open(address)?)),
    leader: |_| "postgres-0".into(),
    leave: nothing,
    joined: nothing,
};

struct Postgres {
    socket: Socket,
}

impl Postgres {
    fn open(address: SocketAddr) -> io::Result<Postgres> {
        let mut socket = Socket::open(address)?;
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        socket.send(&framed(&body))?;
        let mut postgres = Postgres { socket };
        postgres.answer(|_| Ok(()))?;
        Ok(postgres)
    }

    fn query(&mut self, sql: &str, row: impl FnMut(Vec<String>) -> io::Result<()>) -> io::Result<()> {
        let message = [b"Q".to_vec(), framed(format!("{sql}\0").as_bytes())].concat();
        self.socket.send(&message)?;
        self.answer(row)
    }

    /// Reads until the server waits for the next query.
    fn answer(&mut self, mut row: impl FnMut(Vec<String>) -> io::Result<()>) -> io::Result<()> {
        let mut outcome = Ok(());
        loop {
            let kind = self.socket.take(1)?[0];
            let size = length(self.socket.number()? - 4)?;
            let body = self.socket.take(size)?;
            match kind {
                b'Z' => return outcome,
                b'E' => return Err(other(String::from_utf8_lossy(&body).replace('\0', " "))),
                b'R' if body != [0; 4] => return Err(other("the server wants a password")),
                b'D' => outcome = outcome.and(columns(&body).and_then(&mut row)),
                _ => {}
            }
        }
    }
}

impl Store for Postgres {
    fn prepare(&mut self) -> io::Result<()> {
        self.query("CREATE TABLE IF NOT EXISTS written (number bigint PRIMARY KEY, value text)", |_| Ok(()))
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        let sql =
            format!("INSERT INTO written VALUES ({number}, '{}') ON CONFLICT DO NOTHING", value(number));
        self.query(&sql, |_| Ok(()))
    }

    fn all(&mut self) -> io::Result<BTreeSet<u64>> {
        let mut all = BTreeSet::new();
        self.query("SELECT number, value FROM written", |row| match &row[..] {
            [number, value] => checked(number, value).map(|number| {
                all.insert(number);
            }),
            _ => Err(other(format!("{row:?}"))),
        })?;
        Ok(all)
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    let size = i32::try_from(body.len() + 4).unwrap_or(i32::MAX);
    [size.to_be_bytes().to_vec(), body.to_vec()].concat()
}

/// The texts of a DataRow.
fn columns(body: &[u8]) -> io::Result<Vec<String>> {
    let broken = || other("a broken row");
    let mut rest = body.get(2..).ok_or_else(broken)?;
    let mut columns = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = length(i32::from_be_bytes(*size))?;
        columns.push(String::from_utf8_lossy(after.get(..size).ok_or_else(broken)?).into_owned());
        rest = &after[size..];
    }
    Ok(columns)
}
