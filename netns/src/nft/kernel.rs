//! The kernel's nf_tables, over one netlink socket.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::wire::{self, ACK, DUMP, SUBSYSTEM, Writer};
use super::{Batch, Committed, Contents, Tables};
use crate::error::{Error, Kind, Result};
use crate::namespace::Namespace;
use crate::netlink::{Channel, refused};

const READ_ATTEMPTS: usize = 10;

/// nf_tables of one namespace.
pub struct Kernel {
    channel: Channel,
}

impl Kernel {
    /// Opens a socket that belongs to `namespace` for its whole life.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the kernel lacks nfnetlink.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { channel: Channel::open(namespace, NETLINK_NETFILTER)? })
    }

    fn list(
        &mut self,
        message: u16,
        flags: u16,
        body: impl FnOnce(&mut Writer),
        mut each: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut writer = Writer::new();
        let sequence = self.channel.next_sequence();
        writer.message(SUBSYSTEM << 8 | message, flags, sequence, wire::IP, body);
        let name = match message {
            wire::GETTABLE => "GETTABLE",
            wire::GETCHAIN => "GETCHAIN",
            wire::GETRULE => "GETRULE",
            wire::GETSET => "GETSET",
            wire::GETSETELEM => "GETSETELEM",
            _ => "GETGEN",
        };
        // Past the nfgenmsg header.
        self.channel.dump(name, &writer.bytes, |_, payload| each(payload.get(4..).unwrap_or(&[])))
    }

    fn generation(&mut self) -> Result<u32> {
        let mut generation = 0;
        self.list(
            wire::GETGEN,
            ACK,
            |_| {},
            |payload| generation = wire::number_at(payload, 1).unwrap_or(0),
        )?;
        Ok(generation)
    }

    fn read_once(&mut self, table: &str) -> Result<Option<Contents>> {
        let mut contents = Contents::default();
        let found = self.list(
            wire::GETTABLE,
            ACK,
            |w| w.string(1, table),
            |payload| {
                contents.comment = wire::find(payload, 6).map(wire::comment_of).unwrap_or_default();
            },
        );
        match found {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            other => other?,
        }
        let chains = &mut contents.chains;
        self.list(
            wire::GETCHAIN,
            DUMP,
            |w| w.string(1, table),
            |payload| {
                if wire::text(payload, 1).as_deref() == Some(table)
                    && let Some(name) = wire::text(payload, 3)
                {
                    chains.insert(name, 0);
                }
            },
        )?;
        self.list(
            wire::GETRULE,
            DUMP,
            |w| w.string(1, table),
            |payload| {
                if wire::text(payload, 1).as_deref() == Some(table)
                    && let Some(rules) = wire::text(payload, 2).and_then(|chain| chains.get_mut(&chain))
                {
                    *rules += 1;
                }
            },
        )?;
        let mut names = Vec::new();
        self.list(
            wire::GETSET,
            DUMP,
            |w| w.string(1, table),
            |payload| {
                let named = wire::number_at(payload, 3).unwrap_or(0) & wire::SET_ANONYMOUS == 0;
                if named && wire::text(payload, 1).as_deref() == Some(table) {
                    names.extend(wire::text(payload, 2));
                }
            },
        )?;
        for name in names {
            let elements = contents.sets.entry(name.clone()).or_default();
            let body = |w: &mut Writer| {
                w.string(1, table);
                w.string(2, &name);
            };
            self.list(wire::GETSETELEM, DUMP, body, |payload| elements.extend(wire::elements(payload)))?;
        }
        Ok(Some(contents))
    }
}

impl Tables for Kernel {
    fn commit(&mut self, batch: &Batch) -> Result<Committed> {
        if batch.messages.is_empty() {
            return Ok(Committed::default());
        }
        let begin = self.channel.next_sequence();
        let encoded = wire::encode(batch, begin);
        self.channel.skip_to(encoded.last + 1);
        self.channel.reserve(encoded.bytes.len())?;
        let call = format!("nf_tables batch on {}", batch.table);
        let refusals = self.channel.exchange(&call, &encoded.bytes, encoded.begin, encoded.last)?;
        if let Some(refusal) = refusals.first() {
            let message = encoded.origin(refusal.sequence).and_then(|index| batch.messages.get(index));
            return Err(refused(message.map_or(call, super::Message::name), refusal));
        }
        let elements = batch.messages.iter().map(super::Message::elements).sum();
        Ok(Committed { messages: encoded.count, elements, bytes: encoded.bytes.len() })
    }

    fn read(&mut self, table: &str) -> Result<Option<Contents>> {
        // Lists of one generation belong together.
        for _ in 0..READ_ATTEMPTS {
            let before = self.generation()?;
            match self.read_once(table) {
                Ok(contents) if self.generation()? == before => return Ok(contents),
                Err(error) if ![Kind::Busy, Kind::NotFound].contains(&error.kind()) => return Err(error),
                _ => {}
            }
        }
        Err(Error::new(Kind::Busy, format!("read nf_tables {table}: it changes all the time")))
    }
}
