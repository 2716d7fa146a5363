//! nf_tables in memory: refuses what the kernel refuses, and a refused batch changes nothing (it works on a copy and swaps).
//!
//! One suite (`tests/nft.rs`) runs over this and over the kernel.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{Batch, Committed, Contents, Element, Expression, Message, SET_SIZE, Set, Tables, Type, Verdict};
use crate::error::{Error, Result};

/// Tables of one pretended namespace.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    tables: BTreeMap<String, Table>,
    /// Messages still accepted before the next refusal; `None` accepts all.
    fuse: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    comment: String,
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Stored>,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    base: bool,
    rules: Vec<Vec<Expression>>,
}

#[derive(Clone, Debug)]
struct Stored {
    set: Set,
    elements: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Fake {
    /// An empty namespace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses the message after `messages` more, once, with `ENOMEM`: for fault injection.
    pub fn fail_after(&mut self, messages: usize) {
        self.fuse = Some(messages);
    }

    fn burn(&mut self) -> std::result::Result<(), Errno> {
        match &mut self.fuse {
            None => Ok(()),
            Some(0) => {
                self.fuse = None;
                Err(Errno::ENOMEM)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl Tables for Fake {
    fn commit(&mut self, batch: &Batch) -> Result<Committed> {
        let mut next = self.tables.clone();
        let mut elements = 0;
        for message in &batch.messages {
            let done = self.burn().and_then(|()| perform(&mut next, &batch.table, message));
            done.map_err(|errno| Error::sys(message.name(), errno))?;
            elements += message.elements();
        }
        self.tables = next;
        Ok(Committed { messages: batch.messages.len() + 2, elements, bytes: 0 })
    }

    fn read(&mut self, table: &str) -> Result<Option<Contents>> {
        Ok(self.tables.get(table).map(|table| Contents {
            comment: table.comment.clone(),
            chains: table.chains.iter().map(|(name, chain)| (name.clone(), chain.rules.len())).collect(),
            sets: table.sets.iter().map(|(name, stored)| (name.clone(), stored.elements.clone())).collect(),
        }))
    }
}

fn perform(
    tables: &mut BTreeMap<String, Table>,
    name: &str,
    message: &Message,
) -> std::result::Result<(), Errno> {
    match message {
        Message::AddTable { comment } => {
            tables
                .entry(name.into())
                .or_insert_with(|| Table { comment: comment.clone(), ..Table::default() });
            return Ok(());
        }
        Message::DeleteTable => return tables.remove(name).map(drop).ok_or(Errno::ENOENT),
        _ => {}
    }
    let table = tables.get_mut(name).ok_or(Errno::ENOENT)?;
    match message {
        Message::AddTable { .. } | Message::DeleteTable => Ok(()),
        Message::AddChain { name, base } => {
            if table.chains.contains_key(name) {
                return Err(Errno::EEXIST);
            }
            table.chains.insert(name.clone(), Chain { base: base.is_some(), rules: Vec::new() });
            Ok(())
        }
        Message::AddSet(set) => {
            if table.sets.contains_key(&set.name) {
                return Err(Errno::EEXIST);
            }
            if set.key.is_empty() {
                return Err(Errno::EINVAL);
            }
            table.sets.insert(set.name.clone(), Stored { set: set.clone(), elements: BTreeMap::new() });
            Ok(())
        }
        Message::AddRule { chain, expressions } => {
            check_rule(table, expressions)?;
            table.chains.get_mut(chain).ok_or(Errno::ENOENT)?.rules.push(expressions.clone());
            check_loops(table)
        }
        Message::AddElements { set, elements } => {
            let stored = table.sets.get_mut(set).ok_or(Errno::ENOENT)?;
            elements.iter().try_for_each(|element| add_element(stored, element))
        }
        Message::DeleteElements { set, keys } => {
            let stored = table.sets.get_mut(set).ok_or(Errno::ENOENT)?;
            for key in keys {
                check_length(key, &stored.set.key)?;
                stored.elements.remove(key).ok_or(Errno::ENOENT)?;
            }
            Ok(())
        }
    }
}

fn add_element(stored: &mut Stored, (key, value): &Element) -> std::result::Result<(), Errno> {
    check_length(key, &stored.set.key)?;
    match value {
        None if !stored.set.value.is_empty() => return Err(Errno::EINVAL),
        Some(_) if stored.set.value.is_empty() => return Err(Errno::EINVAL),
        Some(value) => check_length(value, &stored.set.value)?,
        None => {}
    }
    if stored.elements.contains_key(key) {
        return Err(Errno::EEXIST);
    }
    if stored.elements.len() >= SET_SIZE as usize {
        return Err(Errno::ENFILE);
    }
    stored.elements.insert(key.clone(), value.clone());
    Ok(())
}

fn check_length(bytes: &[u8], fields: &[Type]) -> std::result::Result<(), Errno> {
    let length: usize = fields.iter().map(|field| field.length() as usize).sum();
    if bytes.len() == length { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Registers must be written before they are read; sets and chains must exist and fit.
fn check_rule(table: &Table, expressions: &[Expression]) -> std::result::Result<(), Errno> {
    let mut loaded: BTreeSet<u8> = BTreeSet::new();
    let read = |loaded: &BTreeSet<u8>, first: u8, count: usize| {
        let all = (first..).take(count).all(|register| loaded.contains(&register));
        if all { Ok(()) } else { Err(Errno::EINVAL) }
    };
    let target = |chain: &str| match table.chains.get(chain) {
        None => Err(Errno::ENOENT),
        Some(chain) if chain.base => Err(Errno::EOPNOTSUPP),
        Some(_) => Ok(()),
    };
    for expression in expressions {
        match expression {
            Expression::Network { to, .. }
            | Expression::Transport { to, .. }
            | Expression::Protocol { to }
            | Expression::LinkOut { to } => {
                loaded.insert(to.0);
            }
            Expression::Mask { register, .. } | Expression::Equal { register, .. } => {
                read(&loaded, register.0, 1)?
            }
            Expression::Lookup { set, key, value } => {
                let set = &table.sets.get(set).ok_or(Errno::ENOENT)?.set;
                read(&loaded, key.0, set.key.len())?;
                match value {
                    Some(_) if set.value.is_empty() => return Err(Errno::EINVAL),
                    None if !set.value.is_empty() => return Err(Errno::EINVAL),
                    Some(value) => loaded.extend((value.0..).take(set.value.len())),
                    None => {}
                }
            }
            Expression::GotoRandom { targets } => {
                if targets.is_empty() {
                    return Err(Errno::ERANGE);
                }
                targets.iter().try_for_each(|chain| target(chain))?;
            }
            Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => target(chain)?,
            Expression::Dnat { address, port } => {
                read(&loaded, address.0, 1)?;
                read(&loaded, port.0, 1)?;
            }
            Expression::Verdict(Verdict::Drop | Verdict::Accept)
            | Expression::Masquerade
            | Expression::Reject => {}
        }
    }
    Ok(())
}

/// Chains may not lead back to themselves.
fn check_loops(table: &Table) -> std::result::Result<(), Errno> {
    fn visit(
        table: &Table,
        chain: &str,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> std::result::Result<(), Errno> {
        if path.iter().any(|above| above == chain) {
            return Err(Errno::ELOOP);
        }
        if !done.insert(chain.into()) {
            return Ok(());
        }
        path.push(chain.into());
        for expression in table.chains.get(chain).iter().flat_map(|chain| chain.rules.iter().flatten()) {
            match expression {
                Expression::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => visit(table, to, path, done)?,
                Expression::GotoRandom { targets } => {
                    targets.iter().try_for_each(|to| visit(table, to, path, done))?;
                }
                _ => {}
            }
        }
        path.pop();
        Ok(())
    }
    let mut done = BTreeSet::new();
    table.chains.keys().try_for_each(|chain| visit(table, chain, &mut Vec::new(), &mut done))
}
