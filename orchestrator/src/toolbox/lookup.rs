//! The applet that asks DNS, as dig does it.

use super::Outcome;
use dns::{Resolv, client};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Prints the records of a name, one a line; 1 if there are none.
pub(super) fn lookup(args: &[String]) -> Outcome {
    let mut resolv = resolv()?;
    let (mut name, mut kind) = (None, None);
    for arg in args {
        match (arg.strip_prefix('@'), &name) {
            (Some(server), _) => resolv.nameservers = vec![address(server)?],
            (None, None) => name = Some(arg.clone()),
            (None, Some(_)) if kind.is_none() => {
                kind = Some(
                    arg.to_ascii_uppercase().parse().map_err(|_| format!("{arg:?} is no type of record"))?,
                );
            }
            _ => return Err(format!("unknown argument {arg:?}")),
        }
    }
    let mut name = name.ok_or("takes NAME [TYPE] [@SERVER]")?;
    // An address means its name.
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        let [a, b, c, d] = address.octets();
        name = format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
        kind = kind.or(Some(RecordType::PTR));
    }
    let answer = client::search(&name, kind.unwrap_or(RecordType::A), &resolv)
        .map_err(|error| format!("{name}: {error}"))?;
    print!("{}", text(&answer));
    match (answer.metadata.response_code, answer.answers.is_empty()) {
        (ResponseCode::NoError, false) => Ok(ExitCode::SUCCESS),
        (ResponseCode::NoError, true) => {
            Err(format!("{name}: NODATA: the name exists, but not with this type"))
        }
        (ResponseCode::NXDomain, _) => Err(format!("{name}: NXDOMAIN: no such name")),
        (code, _) => Err(format!("{name}: {code}")),
    }
}

/// The addresses of a host in a URL.
pub(super) fn host(name: &str) -> Result<Ipv4Addr, String> {
    let addresses = client::addresses(name, &resolv()?).map_err(|error| error.to_string())?;
    addresses.first().copied().ok_or_else(|| format!("{name}: no address"))
}

fn resolv() -> Result<Resolv, String> {
    Resolv::read(Path::new(RESOLV_CONF)).map_err(|error| format!("{RESOLV_CONF}: {error}"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let plain = || text.parse().map(|ip| SocketAddr::new(ip, dns::PORT));
    text.parse().or_else(|_| plain()).map_err(|_| format!("@{text}: no address"))
}

fn text(answer: &Message) -> String {
    let lines = answer
        .answers
        .iter()
        .map(|record| format!("{} {} {} {}\n", record.name, record.ttl, record.record_type(), record.data));
    lines.collect()
}
