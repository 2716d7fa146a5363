//! Between the wire and the zone: bytes in, bytes out. Pure.

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::zone::{Answer, Zone};

/// The smallest a message may be: its header.
const HEADER_LEN: usize = 12;

/// What fits into one datagram without EDNS.
const PLAIN_MAX: u16 = 512;

/// What we send and take in one datagram: no fragments on any link. DNS flag day 2020.
pub const PAYLOAD_MAX: u16 = 1232;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers may be cut.
    Udp,
    /// Answers may be as long as 65,535 bytes.
    Tcp,
}

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub id: u16,
    /// The one question, as it was written.
    pub question: Query,
    /// RD
    pub recursion_desired: bool,
    /// CD
    pub checking_disabled: bool,
    /// Whether EDNS was used, and its DO bit.
    pub dnssec_ok: Option<bool>,
    /// Bytes that the answer may have.
    pub limit: u16,
}

/// What is to be done about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To be sent.
    Reply(Vec<u8>),
    /// Not to be answered: no request at all.
    Silence,
    /// To be asked elsewhere.
    Ask(Request),
    /// Answered with this alias, and what its target is elsewhere.
    Chase(Request, Box<Record>),
}

/// Reads a message and answers it if the zone can.
pub fn answer(zone: &Zone, message: &[u8], transport: Transport, turn: usize) -> Outcome {
    let request = match read(message, transport) {
        Ok(request) => request,
        Err(Some(reply)) => return Outcome::Reply(reply),
        Err(None) => return Outcome::Silence,
    };
    let question = &request.question;
    match zone.lookup(&question.name, question.query_type, turn) {
        Answer::Elsewhere => Outcome::Ask(request),
        Answer::NotYet => Outcome::Reply(request.refuse(ResponseCode::ServFail)),
        Answer::Records { answers, additionals, soa } => {
            let mut reply = request.reply(ResponseCode::NoError);
            reply.metadata.authoritative = true;
            if answers.is_empty() {
                reply.authorities = vec![*soa];
            }
            reply.answers = answers;
            reply.additionals = additionals;
            Outcome::Reply(request.write(reply))
        }
        Answer::Missing { soa } => {
            let mut reply = request.reply(ResponseCode::NXDomain);
            reply.metadata.authoritative = true;
            reply.authorities = vec![*soa];
            Outcome::Reply(request.write(reply))
        }
        Answer::Alias(alias) => chase(zone, request, alias, turn),
    }
}

/// An alias to a name of ours is resolved at once; one step only, so that aliases in a circle end.
fn chase(zone: &Zone, request: Request, alias: Box<Record>, turn: usize) -> Outcome {
    let Some(target) = alias_target(&alias) else {
        return Outcome::Reply(request.refuse(ResponseCode::ServFail));
    };
    let (code, more) = match zone.lookup(target, request.question.query_type, turn) {
        Answer::Elsewhere => return Outcome::Chase(request, alias),
        Answer::NotYet => (ResponseCode::ServFail, Vec::new()),
        Answer::Records { answers, .. } => (ResponseCode::NoError, answers),
        Answer::Alias(second) => (ResponseCode::NoError, vec![*second]),
        Answer::Missing { .. } => (ResponseCode::NXDomain, Vec::new()),
    };
    let mut reply = request.reply(code);
    reply.metadata.authoritative = true;
    reply.answers = std::iter::once(*alias).chain(more).collect();
    Outcome::Reply(request.write(reply))
}

/// What an alias stands for.
pub fn alias_target(alias: &Record) -> Option<&Name> {
    match &alias.data {
        RData::CNAME(name) => Some(&name.0),
        _ => None,
    }
}

/// A request, or the refusal to send, or nothing to send.
fn read(message: &[u8], transport: Transport) -> Result<Request, Option<Vec<u8>>> {
    // An answer must never be answered, nor noise: two servers would talk for ever.
    if message.len() < HEADER_LEN || message[2] & 0x80 != 0 {
        return Err(None);
    }
    let id = u16::from_be_bytes([message[0], message[1]]);
    let op_code = OpCode::from_u8(message[2] >> 3 & 0x0f);
    let refuse = |code| Err(Some(encode(&Message::error_msg(id, op_code, code), PLAIN_MAX)));
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    // Before memory is taken for as many as the header says.
    if message[4..6] != [0, 1] || message[6..8] != [0, 0] {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(mut parsed) = Message::from_vec(message) else { return refuse(ResponseCode::FormErr) };
    let Some(question) = parsed.queries.pop() else { return refuse(ResponseCode::FormErr) };
    let edns = parsed.edns.as_ref();
    let limit = match (transport, edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_MAX, PAYLOAD_MAX),
        (Transport::Udp, None) => PLAIN_MAX,
    };
    let request = Request {
        id,
        question,
        recursion_desired: parsed.metadata.recursion_desired,
        checking_disabled: parsed.metadata.checking_disabled,
        dnssec_ok: edns.map(|edns| edns.flags().dnssec_ok),
        limit,
    };
    if edns.is_some_and(|edns| edns.version() > 0) {
        return Err(Some(request.refuse(ResponseCode::BADVERS)));
    }
    if request.question.query_class != DNSClass::IN
        || matches!(request.question.query_type, RecordType::AXFR | RecordType::IXFR)
    {
        return Err(Some(request.refuse(ResponseCode::Refused)));
    }
    Ok(request)
}

impl Request {
    /// An answer without records.
    pub fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = Message::response(self.id, OpCode::Query);
        reply.metadata.recursion_desired = self.recursion_desired;
        reply.metadata.checking_disabled = self.checking_disabled;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.queries = vec![self.question.clone()];
        reply
    }

    /// A reply that says only why there is none.
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.write(self.reply(code))
    }

    /// The bytes of a reply, cut to what the client takes: as many records as fit, because some clients never ask again
    /// by TCP.
    pub fn write(&self, mut reply: Message) -> Vec<u8> {
        let code = reply.metadata.response_code;
        reply.metadata.response_code = ResponseCode::from(0, code.low());
        // Put at the end by hand, so that records that fill the message never push it out.
        let opt = self.dnssec_ok.map(|dnssec_ok| opt(code.high(), dnssec_ok)).unwrap_or_default();
        let limit = self.limit - opt.len() as u16;
        let mut bytes = encode(&reply, limit);
        // Additional records are a courtesy: without them nothing is missing, so their lack is no truncation.
        if !reply.additionals.is_empty() && is_truncated(&bytes) {
            reply.additionals.clear();
            bytes = encode(&reply, limit);
        }
        if !opt.is_empty() && bytes.len() >= HEADER_LEN {
            let additionals = u16::from_be_bytes([bytes[10], bytes[11]]) + 1;
            bytes[10..12].copy_from_slice(&additionals.to_be_bytes());
            bytes.extend(opt);
        }
        bytes
    }

    /// Another server's answer to our question, as an answer to this request.
    pub fn relay(&self, answer: &[u8]) -> Vec<u8> {
        if answer.len() > usize::from(self.limit) {
            let mut reply = self.reply(ResponseCode::NoError);
            reply.metadata.truncation = true;
            return self.write(reply);
        }
        let mut bytes = answer.to_vec();
        bytes[..2].copy_from_slice(&self.id.to_be_bytes());
        // The client finds its question as it wrote it: some compare the case.
        if let Ok(name) = self.question.name.to_bytes()
            && let Some(place) = bytes.get_mut(HEADER_LEN..HEADER_LEN + name.len())
            && place.eq_ignore_ascii_case(&name)
        {
            place.copy_from_slice(&name);
        }
        bytes
    }
}

fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Our OPT record. Source: RFC 6891, 6.1.2 and 6.1.3.
fn opt(code_high: u8, dnssec_ok: bool) -> Vec<u8> {
    let [high, low] = PAYLOAD_MAX.to_be_bytes();
    vec![0, 0, 41, high, low, code_high, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]
}

/// Encodes what fits; hickory sets the sign of truncation if something did not.
fn encode(message: &Message, limit: u16) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(PLAIN_MAX.into());
    let mut encoder = BinEncoder::new(&mut buffer);
    encoder.set_max_size(limit);
    let emitted = message.emit(&mut encoder);
    // What was taken back is still in the buffer.
    encoder.trim();
    match emitted {
        Ok(()) => buffer,
        // Names come from the wire or from valid objects: they can be written.
        Err(error) => {
            tracing::warn!(%error, "encode an answer");
            Vec::new()
        }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
