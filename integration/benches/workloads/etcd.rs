//! etcd: three members that keep their quorum.
//!
//! Source: etcd documentation, "gRPC gateway": POST /v3/kv/put and /v3/kv/range with base64 keys and values.

use crate::socket::{Socket, length};
use crate::store::{Store, Workload, checked, nothing, other, value};
use integration::harness::{Yard, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

pub static WORKLOAD: Workload = Workload {
    name: "etcd",
    packages: "etcd-server etcd-client",
    programs: &["/usr/bin/etcd", "/usr/bin/etcdctl"],
    manifest: include_str!("../../workloads/etcd/etcd.yaml"),
    service: "etcd-client",
    port: 2379,
    replicas: 3,
    has_quorum: true,
    scales: &[2, 3],
    open: |address| Ok(Box::new(Etcd { socket: Socket::open(address)?, address })),
    leader,
    leave,
    joined: nothing,
};

/// Keys of one page of [`Etcd::all`].
const PAGE: usize = 1000;

struct Etcd {
    socket: Socket,
    address: SocketAddr,
}

impl Etcd {
    fn call(&mut self, path: &str, body: &Value) -> io::Result<Value> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.socket.send(request.as_bytes())?;
        let status = self.socket.line()?;
        let mut size = None;
        loop {
            let header = self.socket.line()?.to_ascii_lowercase();
            match header.split_once(": ") {
                Some(("content-length", text)) => size = text.parse().ok(),
                _ if header.is_empty() => break,
                _ => {}
            }
        }
        let bytes = match size {
            Some(size) => self.socket.take(length(size)?)?,
            None => self.chunks()?,
        };
        if !status.contains(" 200 ") {
            return Err(other(format!("{status}: {}", String::from_utf8_lossy(&bytes))));
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let line = self.socket.line()?;
            let size = i32::from_str_radix(&line, 16).map_err(|_| other(format!("a chunk of {line:?}")))?;
            all.extend(self.socket.take(length(size)?)?);
            self.socket.line()?;
            if size == 0 {
                return Ok(all);
            }
        }
    }
}

impl Store for Etcd {
    fn prepare(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        let pair = json!({ "key": encode(&key(number)), "value": encode(&value(number)) });
        self.call("/v3/kv/put", &pair).map(|_| ())
    }

    fn all(&mut self) -> io::Result<BTreeSet<u64>> {
        let (mut all, mut from) = (BTreeSet::new(), "written/".to_owned());
        loop {
            // What this member has, whatever the others say.
            let range = json!({ "key": encode(&from), "range_end": encode("written0"), "limit": PAGE, "serializable": true });
            let answer = self.call("/v3/kv/range", &range)?;
            let pairs = answer["kvs"].as_array().cloned().unwrap_or_default();
            for pair in &pairs {
                let key = decode(pair["key"].as_str().unwrap_or(""))?;
                let number = key.trim_start_matches("written/").trim_start_matches('0');
                all.insert(checked(number, &decode(pair["value"].as_str().unwrap_or(""))?)?);
                from = format!("{key}\0");
            }
            if pairs.len() < PAGE {
                return Ok(all);
            }
        }
    }
}

/// In the order of numbers.
fn key(number: u64) -> String {
    format!("written/{number:020}")
}

/// Runs etcdctl in a member's pod; what it prints.
fn etcdctl(yard: &Yard, pet: &str, args: &[&str]) -> Option<String> {
    let ran = yard.podyard(&[&["exec", pet, "--", "etcdctl"], args].concat());
    (ran.code == 0).then_some(ran.stdout)
}

fn leader(yard: &Yard) -> String {
    until("etcd has a leader", || {
        for pod in yard.list(&["pods", "-l", "app=etcd"]) {
            let pet = pod["metadata"]["name"].as_str().unwrap_or("").to_owned();
            let text = etcdctl(yard, &pet, &["endpoint", "status", "-w", "json"]).unwrap_or_default();
            let status: Value = serde_json::from_str(&text).unwrap_or_default();
            let status = &status[0]["Status"];
            if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
                return Ok(pet);
            }
        }
        Err("nobody says so")
    })
}

fn leave(yard: &Yard, pet: &str) {
    let list = etcdctl(yard, "etcd-0", &["member", "list"]).expect("etcdctl member list");
    let line = list.lines().find(|line| line.contains(&format!(", {pet}, "))).expect("the member is listed");
    let id = line.split(',').next().expect("it has an id");
    // Refused for five seconds after a member came back: it might be needed.
    until("etcd lets the member go", || {
        let ran = yard.podyard(&["exec", "etcd-0", "--", "etcdctl", "member", "remove", id]);
        if ran.code == 0 { Ok(()) } else { Err(ran) }
    });
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(text: &str) -> String {
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

fn decode(text: &str) -> io::Result<String> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let place = LETTERS.iter().position(|known| *known == letter);
        let place = place.ok_or_else(|| other(format!("{text:?} is not base64")))?;
        bits = bits << 6 | place as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8(bytes).map_err(|_| other(format!("{text:?} is not text")))
}
