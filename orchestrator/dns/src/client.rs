//! A small client, for programs that link no resolver of their own: one question, and names as resolv.conf(5) tries them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::message::PAYLOAD_MAX;
use crate::resolv::Resolv;

/// How long one server may take, as the C libraries have it.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Asks one server; by TCP if it cuts its answer. Blocks.
///
/// # Errors
/// `TimedOut`, or the sockets'.
pub fn ask(server: SocketAddr, name: &Name, asked: RecordType) -> io::Result<Message> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), asked));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_MAX);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        "[::]:0".parse().map_err(io::Error::other)?
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(ATTEMPT))?;
    socket.connect(server)?;
    socket.send(&bytes)?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).map_err(timed_out)?;
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        if answer.metadata.id != message.metadata.id || answer.metadata.message_type != MessageType::Response
        {
            continue;
        }
        return if answer.metadata.truncation { ask_by_tcp(server, &bytes) } else { Ok(answer) };
    }
}

fn ask_by_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Message> {
    use io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&server, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).map_err(timed_out)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).map_err(timed_out)?;
    Message::from_vec(&answer).map_err(io::Error::other)
}

/// What the kernel says of a read that came to its deadline.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

/// The names to try for one that somebody wrote, in order. Source: resolv.conf(5), `search` and `ndots`.
pub fn candidates(written: &str, resolv: &Resolv) -> Vec<Name> {
    let whole = Name::from_ascii(format!("{}.", written.trim_end_matches('.'))).ok();
    if written.ends_with('.') {
        return whole.into_iter().collect();
    }
    let search = resolv.search.iter();
    let mut names: Vec<Name> =
        search.filter_map(|domain| Name::from_ascii(format!("{written}.{domain}.")).ok()).collect();
    let dots = written.matches('.').count();
    let at = if dots >= resolv.ndots { 0 } else { names.len() };
    names.splice(at..at, whole);
    names
}

/// The first name that has what is asked, asked of the first server that answers. Blocks.
///
/// # Errors
/// That nobody answers. A name that does not exist is an answer.
pub fn search(written: &str, asked: RecordType, resolv: &Resolv) -> io::Result<Message> {
    let mut last = None;
    for name in candidates(written, resolv) {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "no nameserver to ask");
        let mut answer = None;
        for server in &resolv.nameservers {
            match ask(*server, &name, asked) {
                Ok(message) => {
                    let helps = matches!(
                        message.metadata.response_code,
                        ResponseCode::NoError | ResponseCode::NXDomain
                    );
                    answer = Some(message);
                    if helps {
                        break;
                    }
                }
                Err(error) => failure = error,
            }
        }
        let answer = answer.ok_or(failure)?;
        if !answer.answers.is_empty() {
            return Ok(answer);
        }
        last = Some(answer);
    }
    last.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{written:?} is no name")))
}

/// The addresses of a name, as the resolv.conf of this place finds them. Blocks.
///
/// # Errors
/// `NotFound` if there are none; as [`search`].
pub fn addresses(written: &str, resolv: &Resolv) -> io::Result<Vec<Ipv4Addr>> {
    let answer = search(written, RecordType::A, resolv)?;
    let addresses: Vec<Ipv4Addr> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
        .collect();
    if addresses.is_empty() {
        let code = answer.metadata.response_code;
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{written}: no address ({code})")));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_as_the_c_libraries_do() {
        let resolv = Resolv::parse("search n.svc.cluster.local svc.cluster.local\noptions ndots:2");
        let check = |written: &str, expect: &[&str]| {
            let names: Vec<_> = candidates(written, &resolv).iter().map(Name::to_string).collect();
            assert_eq!(names, expect);
        };
        check("web", &["web.n.svc.cluster.local.", "web.svc.cluster.local.", "web."]);
        check("web.n", &["web.n.n.svc.cluster.local.", "web.n.svc.cluster.local.", "web.n."]);
        check("a.b.c", &["a.b.c.", "a.b.c.n.svc.cluster.local.", "a.b.c.svc.cluster.local."]);
        check("a.b.", &["a.b."]);
    }
}
