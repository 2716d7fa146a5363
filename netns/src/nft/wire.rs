//! Messages as netlink bytes, and the kernel's lists back. Pure.
//!
//! Source of all numbers: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.

use super::{Base, Batch, ChainKind, Expression, Message, Register, SET_SIZE, Set, Type, Verdict};
use crate::netlink::{u16_at, u32_at};

pub(crate) const SUBSYSTEM: u16 = 10;
pub(crate) const NEWTABLE: u16 = 0;
pub(crate) const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
pub(crate) const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
pub(crate) const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
pub(crate) const GETSET: u16 = 10;
const NEWSETELEM: u16 = 12;
pub(crate) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
pub(crate) const GETGEN: u16 = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;

const AF_INET: u8 = 2;
const NESTED: u16 = 0x8000;

/// An attribute's length is 16 bits, so elements are spread over messages of about this size.
const ELEMENT_BYTES_MAX: usize = 50_000;

pub(crate) const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;
const TYPE_INTEGER: u32 = 4;
const TYPE_VERDICT: u32 = 0xffff_ff00;

/// Builds netlink messages with nested attributes.
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(4096) }
    }

    /// One message; `body` adds the attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        header: [u8; 4],
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(header);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start);
        assert!(length.is_ok(), "an attribute of more than 64 kB");
        self.bytes[start..start + 2].copy_from_slice(&length.unwrap_or(0).to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4);
        assert!(length.is_ok(), "an attribute of more than 64 kB");
        self.bytes.extend(length.unwrap_or(0).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize((self.bytes.len() + 3) & !3, 0);
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Integers of nf_tables are big-endian.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }
}

/// A batch as bytes, with what is needed to understand the answers.
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// Sequence number of the begin message; refusals of the whole batch carry it.
    pub(crate) begin: u32,
    /// Sequence number of the message that asks for an acknowledgement.
    pub(crate) last: u32,
    /// Netlink messages.
    pub(crate) count: usize,
    /// (first sequence number, index in the batch), ascending.
    origins: Vec<(u32, usize)>,
}

impl Encoded {
    /// Which message of the batch a sequence number came from.
    pub(crate) fn origin(&self, sequence: u32) -> Option<usize> {
        let after = self.origins.partition_point(|&(first, _)| first <= sequence);
        self.origins.get(after.checked_sub(1)?).map(|&(_, index)| index)
    }
}

/// Header of nfnetlink messages: family, version, resource.
pub(crate) const fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

pub(crate) const IP: [u8; 4] = nfgen(AF_INET, 0);

/// A batch, numbered from `begin`. One acknowledgement is asked for: the last message's.
pub(crate) fn encode(batch: &Batch, begin: u32) -> Encoded {
    let mut writer = Writer::new();
    let mut sequence = begin;
    let mut origins = Vec::with_capacity(batch.messages.len());
    writer.message(BATCH_BEGIN, 0, sequence, nfgen(0, SUBSYSTEM), |_| {});
    let mut last_start = 0;
    let mut set_id = 0;
    for (index, message) in batch.messages.iter().enumerate() {
        origins.push((sequence + 1, index));
        let mut put = |kind: u16, flags: u16, body: &mut dyn FnMut(&mut Writer)| {
            sequence += 1;
            last_start = writer.bytes.len();
            writer.message(SUBSYSTEM << 8 | kind, flags, sequence, IP, |writer| body(writer));
        };
        encode_message(&batch.table, message, &mut set_id, &mut put);
    }
    let last = sequence;
    if last > begin {
        writer.bytes[last_start + 6] |= u8::try_from(ACK).unwrap_or(0);
    }
    writer.message(BATCH_END, 0, sequence + 1, nfgen(0, SUBSYSTEM), |_| {});
    let count = usize::try_from(last - begin).unwrap_or(0) + 2;
    Encoded { bytes: writer.bytes, begin, last, count, origins }
}

type Put<'a> = &'a mut dyn FnMut(u16, u16, &mut dyn FnMut(&mut Writer));

fn encode_message(table: &str, message: &Message, set_id: &mut u32, put: Put<'_>) {
    match message {
        Message::AddTable { comment } => put(NEWTABLE, CREATE, &mut |w| {
            w.string(1, table);
            w.be32(2, 0);
            w.attribute(6, &comment_userdata(comment));
        }),
        Message::DeleteTable => put(DELTABLE, 0, &mut |w| w.string(1, table)),
        Message::AddChain { name, base } => put(NEWCHAIN, CREATE | EXCL, &mut |w| {
            w.string(1, table);
            w.string(3, name);
            if let Some(base) = base {
                encode_base(w, base);
            }
        }),
        Message::AddRule { chain, expressions } => {
            // Anonymous maps come first and are named by an id within the batch.
            let mut maps = Vec::new();
            for expression in expressions {
                if let Expression::GotoRandom { targets } = expression {
                    *set_id += 1;
                    maps.push(*set_id);
                    encode_verdict_map(table, *set_id, targets, put);
                }
            }
            put(NEWRULE, CREATE | APPEND, &mut |w| {
                let mut maps = maps.iter();
                w.string(1, table);
                w.string(2, chain);
                w.nest(4, |w| {
                    for expression in expressions {
                        encode_expression(w, expression, &mut maps);
                    }
                });
            });
        }
        Message::AddSet(set) => put(NEWSET, CREATE | EXCL, &mut |w| {
            *set_id += 1;
            encode_set(w, table, set, *set_id);
        }),
        Message::AddElements { set, elements } => {
            let size = elements
                .first()
                .map_or(1, |(key, value)| 32 + key.len() + value.as_ref().map_or(0, Vec::len));
            for chunk in elements.chunks((ELEMENT_BYTES_MAX / size).max(1)) {
                put(NEWSETELEM, CREATE | EXCL, &mut |w| {
                    encode_elements(
                        w,
                        table,
                        set,
                        chunk.iter().map(|(key, value)| (key.as_slice(), value.as_deref())),
                    );
                });
            }
        }
        Message::DeleteElements { set, keys } => {
            let size = keys.first().map_or(1, |key| 32 + key.len());
            for chunk in keys.chunks((ELEMENT_BYTES_MAX / size).max(1)) {
                put(DELSETELEM, 0, &mut |w| {
                    encode_elements(w, table, set, chunk.iter().map(|key| (key.as_slice(), None)));
                });
            }
        }
    }
}

fn encode_base(w: &mut Writer, base: &Base) {
    w.nest(4, |w| {
        w.be32(1, base.hook as u32);
        w.attribute(2, &base.priority.to_be_bytes());
    });
    w.be32(5, 1); // Policy accept.
    w.string(
        7,
        match base.kind {
            ChainKind::Nat => "nat",
            ChainKind::Filter => "filter",
        },
    );
}

fn encode_set(w: &mut Writer, table: &str, set: &Set, id: u32) {
    let length = |types: &[Type]| types.iter().map(|field| field.length()).sum();
    w.string(1, table);
    w.string(2, &set.name);
    w.be32(3, if set.value.is_empty() { 0 } else { SET_MAP });
    w.be32(4, packed(&set.key));
    w.be32(5, length(&set.key));
    if !set.value.is_empty() {
        w.be32(6, packed(&set.value));
        w.be32(7, length(&set.value));
    }
    w.nest(9, |w| w.be32(1, SET_SIZE));
    w.be32(10, id);
}

/// How nft(8) writes a concatenated type into one number: 6 bits for each field.
fn packed(types: &[Type]) -> u32 {
    types.iter().fold(0, |packed, field| packed << 6 | field.number())
}

fn encode_verdict_map(table: &str, id: u32, targets: &[String], put: Put<'_>) {
    const NAME: &str = "__map%d";
    put(NEWSET, CREATE | EXCL, &mut |w| {
        w.string(1, table);
        w.string(2, NAME);
        w.be32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP);
        w.be32(4, TYPE_INTEGER);
        w.be32(5, 4);
        w.be32(6, TYPE_VERDICT);
        w.be32(7, 0);
        w.nest(9, |w| w.be32(1, u32::try_from(targets.len()).unwrap_or(u32::MAX)));
        w.be32(10, id);
        // NFTNL_UDATA_SET_KEYBYTEORDER = host: else nft(8) prints 16777216 for 1.
        w.attribute(13, &[0, 4, 1, 0, 0, 0]);
    });
    let numbered: Vec<(u32, &String)> = (0..).zip(targets).collect();
    for chunk in numbered.chunks(ELEMENT_BYTES_MAX / 96) {
        put(NEWSETELEM, CREATE, &mut |w| {
            w.string(1, table);
            w.string(2, NAME);
            w.be32(4, id);
            w.nest(3, |w| {
                for (number, target) in chunk {
                    w.nest(1, |w| {
                        w.nest(1, |w| w.attribute(1, &number.to_ne_bytes()));
                        w.nest(2, |w| encode_verdict(w, &Verdict::Goto((*target).clone())));
                    });
                }
            });
        });
    }
}

fn encode_elements<'a>(
    w: &mut Writer,
    table: &str,
    set: &str,
    elements: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) {
    w.string(1, table);
    w.string(2, set);
    w.nest(3, |w| {
        for (key, value) in elements {
            w.nest(1, |w| {
                w.nest(1, |w| w.attribute(1, key));
                if let Some(value) = value {
                    w.nest(2, |w| w.attribute(1, value));
                }
            });
        }
    });
}

fn encode_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain): (i32, Option<&String>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    w.nest(2, |w| {
        w.attribute(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            w.string(2, chain);
        }
    });
}

/// The first 32-bit register goes by its old name, as nft(8) itself does.
fn number(register: Register) -> u32 {
    if register.0 == 0 { 1 } else { 8 + u32::from(register.0) }
}

fn encode_expression(w: &mut Writer, expression: &Expression, maps: &mut std::slice::Iter<'_, u32>) {
    let mut put = |name: &str, body: &mut dyn FnMut(&mut Writer)| {
        w.nest(1, |w| {
            w.string(1, name);
            w.nest(2, |w| body(w));
        });
    };
    let mut payload = |base: u32, offset: u32, length: u32, to: Register| {
        put("payload", &mut |w| {
            w.be32(1, number(to));
            w.be32(2, base);
            w.be32(3, offset);
            w.be32(4, length);
        });
    };
    match expression {
        Expression::Network { offset, length, to } => payload(1, *offset, *length, *to),
        Expression::Transport { offset, length, to } => payload(2, *offset, *length, *to),
        Expression::Protocol { to } => put("meta", &mut |w| {
            w.be32(2, 16); // NFT_META_L4PROTO
            w.be32(1, number(*to));
        }),
        Expression::LinkOut { to } => put("meta", &mut |w| {
            w.be32(2, 5); // NFT_META_OIF
            w.be32(1, number(*to));
        }),
        Expression::Mask { register, mask } => put("bitwise", &mut |w| {
            w.be32(1, number(*register));
            w.be32(2, number(*register));
            w.be32(3, 4);
            w.nest(4, |w| w.attribute(1, mask));
            w.nest(5, |w| w.attribute(1, &[0; 4]));
        }),
        Expression::Equal { register, value } => put("cmp", &mut |w| {
            w.be32(1, number(*register));
            w.be32(2, 0);
            w.nest(3, |w| w.attribute(1, value));
        }),
        Expression::Lookup { set, key, value } => put("lookup", &mut |w| {
            w.string(1, set);
            w.be32(2, number(*key));
            if let Some(value) = value {
                w.be32(3, number(*value));
            }
        }),
        Expression::GotoRandom { targets } => {
            let map = maps.next().copied().unwrap_or(0);
            put("numgen", &mut |w| {
                w.be32(1, number(Register(0)));
                w.be32(2, u32::try_from(targets.len()).unwrap_or(1));
                w.be32(3, 1); // NFT_NG_RANDOM
                w.be32(4, 0);
            });
            put("lookup", &mut |w| {
                w.string(1, "__map%d");
                w.be32(2, number(Register(0)));
                w.be32(3, 0); // The verdict register.
                w.be32(4, map);
            });
        }
        Expression::Verdict(verdict) => put("immediate", &mut |w| {
            w.be32(1, 0);
            w.nest(2, |w| encode_verdict(w, verdict));
        }),
        Expression::Dnat { address, port } => put("nat", &mut |w| {
            w.be32(1, 1);
            w.be32(2, u32::from(AF_INET));
            w.be32(3, number(*address));
            w.be32(5, number(*port));
        }),
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY
        Expression::Masquerade => put("masq", &mut |w| w.be32(1, 1 << 4)),
        Expression::Reject => put("reject", &mut |w| {
            w.be32(1, 0); // NFT_REJECT_ICMP_UNREACH
            w.attribute(2, &[3]); // ICMP_PORT_UNREACH
        }),
    }
}

fn comment_userdata(comment: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend(comment.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment in a table's user data.
pub(crate) fn comment_of(userdata: &[u8]) -> String {
    match userdata {
        [0, length, rest @ ..] => {
            let text = rest.get(..usize::from(*length)).unwrap_or(rest);
            String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
        }
        _ => String::new(),
    }
}

/// Attributes of a message, or of a nest: (kind without flags, value).
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2) & 0x3fff;
        bytes = bytes.get((length + 3) & !3..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(there, _)| *there == kind).map(|(_, value)| value)
}

/// A string attribute.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    find(bytes, kind).map(|value| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
}

/// A number attribute.
pub(crate) fn number_at(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind).map(|value| u32::from_be(u32_at(value, 0)))
}

/// The elements in a list message.
pub(crate) fn elements(bytes: &[u8]) -> impl Iterator<Item = super::Element> {
    let list = find(bytes, 3).unwrap_or(&[]);
    attributes(list).filter_map(|(_, element)| {
        let data = |kind| find(element, kind).and_then(|nest| find(nest, 1)).map(<[u8]>::to_vec);
        Some((data(1)?, data(2)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_hostile_bytes() {
        for bytes in
            [&[][..], &[1], &[0, 0, 1, 0], &[3, 0, 1, 0], &[255, 255, 1, 0, 1], &[8, 0, 1, 0, 1, 2, 3]]
        {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let mut writer = Writer::new();
        writer.nest(3, |w| {
            w.nest(1, |w| w.nest(1, |w| w.attribute(1, &[1, 2, 3])));
            w.nest(1, |w| {
                w.nest(1, |w| w.attribute(1, &[4; 8]));
                w.nest(2, |w| w.attribute(1, &[5; 4]));
            });
        });
        let all: Vec<_> = elements(&writer.bytes).collect();
        assert_eq!(all, [(vec![1, 2, 3], None), (vec![4; 8], Some(vec![5; 4]))]);
        for cut in 0..writer.bytes.len() {
            assert!(elements(&writer.bytes[..cut]).count() <= 2);
        }
    }

    #[test]
    fn a_large_batch_is_split_and_answers_find_their_message() {
        let elements = (0..10_000_u32).map(|key| (key.to_be_bytes().to_vec(), None)).collect();
        let messages = vec![
            Message::AddTable { comment: "x".into() },
            Message::AddElements { set: "s".into(), elements },
            Message::DeleteTable,
        ];
        let encoded = encode(&Batch { table: "t".into(), messages }, 100);
        assert!(encoded.count > 8);
        assert_eq!((encoded.origin(100), encoded.origin(101), encoded.origin(102)), (None, Some(0), Some(1)));
        assert_eq!((encoded.origin(encoded.last - 1), encoded.origin(encoded.last)), (Some(1), Some(2)));
    }

    #[test]
    fn comments_round_trip() {
        for text in ["", "podyard services 1"] {
            assert_eq!(comment_of(&comment_userdata(text)), text);
        }
        assert_eq!(comment_of(&[0, 200, b'x']), "x");
        assert_eq!(comment_of(&[7]), "");
    }
}
