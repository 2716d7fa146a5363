//! nf_tables: the vocabulary, and two places that understand it.
//!
//! ```text
//!  ruleset.rs  chains, sets and rules of the service layout     (pure)
//!  wire.rs     Message → netlink bytes and back                 (pure)
//!  kernel.rs   Tables over NETLINK_NETFILTER
//!  fake.rs     Tables in memory, as strict and as transactional
//! ```
//!
//! A [`Batch`] is all or nothing. Only the table named in it is read or written.
//!
//! Source: linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c, nft(8).

pub mod fake;
pub mod kernel;
pub mod ruleset;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};

pub use fake::Fake;
pub use kernel::Kernel;

use crate::error::Result;

/// Elements that a set may hold: generous, because the kernel reserves nothing, and refuses more in mid-batch.
pub const SET_SIZE: u32 = 1 << 20;

/// What can hold a ruleset.
pub trait Tables {
    /// Performs all messages of the batch, or none.
    ///
    /// # Errors
    /// The first refusal, naming the message.
    fn commit(&mut self, batch: &Batch) -> Result<Committed>;

    /// The table's chains, sets and elements, of one generation; `None` when there is no such table.
    ///
    /// # Errors
    /// The socket's.
    fn read(&mut self, table: &str) -> Result<Option<Contents>>;
}

/// The work a batch meant for the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Netlink messages, begin and end included.
    pub messages: usize,
    /// Set elements added or deleted.
    pub elements: usize,
    /// Bytes sent.
    pub bytes: usize,
}

/// A transaction on one table of family `ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The table.
    pub table: String,
    /// In order.
    pub messages: Vec<Message>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Adds the table, unless it is there.
    AddTable {
        /// Shown by `nft list`; how we recognise our layout.
        comment: String,
    },
    /// Deletes the table with all that is in it.
    DeleteTable,
    /// Adds a chain; `EEXIST` when there is one.
    AddChain {
        /// Its name.
        name: String,
        /// Where packets enter, for base chains.
        base: Option<Base>,
    },
    /// Appends a rule.
    AddRule {
        /// The chain.
        chain: String,
        /// In order.
        expressions: Vec<Expression>,
    },
    /// Adds a set or map; `EEXIST` when there is one.
    AddSet(Set),
    /// Adds elements; `EEXIST` when one is there, whatever its value (`EBUSY` on older kernels).
    AddElements {
        /// The set.
        set: String,
        /// Key and, for maps, value.
        elements: Vec<Element>,
    },
    /// Deletes elements; `ENOENT` when one is missing.
    DeleteElements {
        /// The set.
        set: String,
        /// Keys.
        keys: Vec<Vec<u8>>,
    },
}

/// A set's element: key, and value if the set is a map. Each field of a concatenation takes a multiple of 4 bytes.
pub type Element = (Vec<u8>, Option<Vec<u8>>);

/// A set, or a map if it has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Fields of the key.
    pub key: Vec<Type>,
    /// Fields of the value; empty for plain sets.
    pub value: Vec<Type>,
}

/// A field of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `ipv4_addr`
    Address,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// `nat` chains see the first packet of a connection only.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Lower runs earlier.
    pub priority: i32,
}

/// Kind of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Translates addresses.
    Nat,
    /// Accepts, drops, rejects.
    Filter,
}

/// Netfilter hooks, by the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing, for packets from a link.
    Prerouting = 0,
    /// Routed through.
    Forward = 2,
    /// Made here.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// 32-bit registers, by number: 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads bytes of the IPv4 header.
    Network {
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        length: u32,
        /// To.
        to: Register,
    },
    /// Loads bytes of the transport header.
    Transport {
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        length: u32,
        /// To.
        to: Register,
    },
    /// Loads the transport protocol's number.
    Protocol {
        /// To.
        to: Register,
    },
    /// Loads the index of the link that the packet leaves by, in the machine's byte order.
    LinkOut {
        /// To.
        to: Register,
    },
    /// Keeps the masked bits of a register.
    Mask {
        /// In place.
        register: Register,
        /// One bit for each bit kept.
        mask: [u8; 4],
    },
    /// Goes on if the register is equal.
    Equal {
        /// What.
        register: Register,
        /// To what.
        value: [u8; 4],
    },
    /// Goes on if the set has the key; a map also yields the value.
    Lookup {
        /// Set or map of the same table.
        set: String,
        /// Register of the key's first field.
        key: Register,
        /// Register of the value's first field, for maps.
        value: Option<Register>,
    },
    /// `numgen random mod N vmap { 0 : goto A, 1 : goto B, … }` over an anonymous map.
    GotoRandom {
        /// Chains, by number; at least one.
        targets: Vec<String>,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Translates the destination.
    Dnat {
        /// Register of the address.
        address: Register,
        /// Register of the port.
        port: Register,
    },
    /// Translates the source to the address of the outgoing link, with an unpredictable port.
    Masquerade,
    /// Answers "port unreachable".
    Reject,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on; no further rule of the base chain sees it.
    Accept,
    /// Vanishes.
    Drop,
    /// Goes through another chain and comes back.
    Jump(String),
    /// Goes through another chain and does not come back.
    Goto(String),
}

/// What a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// As given when the table was added.
    pub comment: String,
    /// Chains, with the number of rules in each.
    pub chains: BTreeMap<String, usize>,
    /// Named sets and maps.
    pub sets: BTreeMap<String, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl Contents {
    /// Keys of a set; empty when there is no such set.
    pub fn keys(&self, set: &str) -> BTreeSet<&[u8]> {
        self.sets.get(set).into_iter().flatten().map(|(key, _)| key.as_slice()).collect()
    }
}

impl Type {
    /// Bytes a field takes, padded as a concatenation pads it.
    pub const fn length(self) -> u32 {
        4
    }

    /// What nft(8) calls this type, by number. Source: nftables include/datatype.h.
    const fn number(self) -> u32 {
        match self {
            Self::Address => 7,
            Self::Protocol => 12,
            Self::Port => 13,
        }
    }
}

impl Message {
    /// Like strace would show it.
    pub fn name(&self) -> String {
        match self {
            Self::AddTable { .. } => "NEWTABLE".into(),
            Self::DeleteTable => "DELTABLE".into(),
            Self::AddChain { name, .. } => format!("NEWCHAIN({name})"),
            Self::AddRule { chain, .. } => format!("NEWRULE({chain})"),
            Self::AddSet(set) => format!("NEWSET({})", set.name),
            Self::AddElements { set, elements } => format!("NEWSETELEM({set}, {} elements)", elements.len()),
            Self::DeleteElements { set, keys } => format!("DELSETELEM({set}, {} elements)", keys.len()),
        }
    }

    /// Elements added or deleted.
    pub fn elements(&self) -> usize {
        match self {
            Self::AddElements { elements, .. } => elements.len(),
            Self::DeleteElements { keys, .. } => keys.len(),
            Self::AddRule { expressions, .. } => expressions
                .iter()
                .map(
                    |expression| {
                        if let Expression::GotoRandom { targets } = expression { targets.len() } else { 0 }
                    },
                )
                .sum(),
            _ => 0,
        }
    }
}
