//! ZooKeeper: an ensemble of three that keeps its quorum.
//!
//! Source: ZooKeeper, `zookeeper.jute` (records and their order) and `ZooDefs.OpCode`.

use crate::socket::{Socket, length};
use crate::store::{Store, Workload, checked, other, value};
use integration::harness::{Yard, until};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

pub static WORKLOAD: Workload = Workload {
    name: "zookeeper",
    packages: "zookeeper default-jre-headless",
    programs: &["/usr/share/java/zookeeper.jar", "/usr/bin/java"],
    manifest: include_str!("../../workloads/zookeeper/zookeeper.yaml"),
    service: "zookeeper-client",
    port: 2181,
    replicas: 3,
    has_quorum: true,
    scales: &[2, 3],
    open: |address| Ok(Box::new(ZooKeeper::open(address)?)),
    leader,
    leave,
    joined,
};

/// How long the ensemble keeps a session whose client is gone, in milliseconds.
const SESSION: i32 = 10_000;
/// Children of one node: all their names must fit into one answer.
const PAGE: u64 = 1000;

const CREATE: i32 = 1;
const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const SYNC: i32 = 9;
const NO_NODE: i32 = -101;
const NODE_EXISTS: i32 = -110;

struct ZooKeeper {
    socket: Socket,
    calls: i32,
}

/// The error number of an answer, and what follows it.
struct Answer {
    error: i32,
    body: Vec<u8>,
}

impl ZooKeeper {
    fn open(address: SocketAddr) -> io::Result<ZooKeeper> {
        let mut zookeeper = ZooKeeper { socket: Socket::open(address)?, calls: 0 };
        // Version, last zxid seen, timeout, session id, password, and whether a server without quorum will do.
        let mut hello = [0_i32.to_be_bytes().to_vec(), 0_i64.to_be_bytes().to_vec()].concat();
        hello.extend(SESSION.to_be_bytes());
        hello.extend(0_i64.to_be_bytes());
        hello.extend(16_i32.to_be_bytes());
        hello.extend([0; 17]);
        zookeeper.send(&hello)?;
        zookeeper.receive()?;
        Ok(zookeeper)
    }

    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        let size = i32::try_from(body.len()).map_err(|_| other("a request too long"))?;
        self.socket.send(&[&size.to_be_bytes(), body].concat())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let size = length(self.socket.number()?)?;
        self.socket.take(size)
    }

    fn call(&mut self, operation: i32, body: &[u8]) -> io::Result<Answer> {
        self.calls += 1;
        self.send(&[&self.calls.to_be_bytes(), &operation.to_be_bytes(), body].concat())?;
        let answer = self.receive()?;
        // xid, zxid, error.
        let error = answer.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        Ok(Answer {
            error: error.ok_or_else(|| other("a broken answer"))?,
            body: answer.get(16..).unwrap_or_default().to_vec(),
        })
    }

    fn create(&mut self, path: &str, data: &str) -> io::Result<i32> {
        let mut body = [text(path), text(data)].concat();
        // One entry: everybody may do everything. No flags: a node that stays.
        body.extend(1_i32.to_be_bytes());
        body.extend(31_i32.to_be_bytes());
        body.extend([text("world"), text("anyone")].concat());
        body.extend(0_i32.to_be_bytes());
        Ok(self.call(CREATE, &body)?.error)
    }

    fn made(&mut self, path: &str, data: &str) -> io::Result<()> {
        match self.create(path, data)? {
            0 | NODE_EXISTS => Ok(()),
            error => Err(other(format!("create {path}: error {error}"))),
        }
    }

    /// The answer's texts.
    fn children(&mut self, path: &str) -> io::Result<Vec<String>> {
        let answer = self.call(GET_CHILDREN, &[text(path), vec![0]].concat())?;
        if answer.error != 0 {
            return Err(other(format!("children of {path}: error {}", answer.error)));
        }
        let mut rest = answer.body.get(4..).unwrap_or_default();
        let mut names = Vec::new();
        while !rest.is_empty() {
            let (name, after) = taken(rest)?;
            names.push(name);
            rest = after;
        }
        Ok(names)
    }
}

impl Store for ZooKeeper {
    fn prepare(&mut self) -> io::Result<()> {
        self.made("/written", "")
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        let page = format!("/written/{}", number / PAGE);
        let path = format!("{page}/{number}");
        match self.create(&path, &value(number))? {
            NO_NODE => {
                self.made(&page, "")?;
                self.made(&path, &value(number))
            }
            0 | NODE_EXISTS => Ok(()),
            error => Err(other(format!("create {path}: error {error}"))),
        }
    }

    fn all(&mut self) -> io::Result<BTreeSet<u64>> {
        // Whatever the leader had when it was asked is here once this is answered.
        self.call(SYNC, &text("/written"))?;
        let mut all = BTreeSet::new();
        for page in self.children("/written")? {
            for number in self.children(&format!("/written/{page}"))? {
                let path = format!("/written/{page}/{number}");
                let answer = self.call(GET_DATA, &[text(&path), vec![0]].concat())?;
                if answer.error != 0 {
                    return Err(other(format!("data of {path}: error {}", answer.error)));
                }
                all.insert(checked(&number, &taken(&answer.body)?.0)?);
            }
        }
        Ok(all)
    }
}

fn text(text: &str) -> Vec<u8> {
    let size = i32::try_from(text.len()).unwrap_or(i32::MAX);
    [&size.to_be_bytes(), text.as_bytes()].concat()
}

fn taken(bytes: &[u8]) -> io::Result<(String, &[u8])> {
    let broken = || other("a broken text");
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let (text, rest) = rest.split_at_checked(length(i32::from_be_bytes(*size))?).ok_or_else(broken)?;
    Ok((String::from_utf8_lossy(text).into_owned(), rest))
}

fn leader(yard: &Yard) -> String {
    until("ZooKeeper has a leader", || {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/2181; echo srvr >&3; cat <&3";
        for pod in yard.list(&["pods", "-l", "app=zookeeper"]) {
            let pet = pod["metadata"]["name"].as_str().unwrap_or("").to_owned();
            if yard.podyard(&["exec", &pet, "--", "bash", "-c", ask]).stdout.contains("Mode: leader") {
                return Ok(pet);
            }
        }
        Err("nobody says so")
    })
}

/// Takes the member out of the ensemble's configuration.
fn leave(yard: &Yard, pet: &str) {
    reconfigure(yard, "remove", pet);
}

/// Lets the member vote.
fn joined(yard: &Yard, pet: &str) {
    reconfigure(yard, "add", pet);
}

fn reconfigure(yard: &Yard, what: &str, pet: &str) {
    let ordinal = pet.rsplit('-').next().expect("a pet has an ordinal");
    yard.ok(&["exec", "zookeeper-0", "--", "/tmp/reconfigure", what, ordinal]);
}
