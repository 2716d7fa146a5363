//! The layout that serves virtual IPs: chains and rules that never change, sets and maps that do. Pure.
//!
//! ```text
//! prerouting, output (nat)   ip daddr SERVICE_CIDR jump services
//! services                   ip daddr . meta l4proto . th dport @svc-K  goto lb-K          one rule per K in use
//! lb-K                       numgen random mod K vmap { 0 : goto ep-0, …, K-1 : goto ep-(K-1) }
//! ep-J                       dnat ip to ip daddr . meta l4proto . th dport map @ep-J
//! postrouting (nat)          ip saddr . ip daddr @hairpin masquerade fully-random
//! local (filter)             oif lo accept
//! forward, local (filter)    ip daddr SERVICE_CIDR jump unserved
//! unserved                   ip daddr . meta l4proto . th dport @served  drop
//!                            ip daddr @virtual  reject
//!                            drop
//! ```
//!
//! `svc-K` holds the virtual ports that have K endpoints, `ep-J` the J-th endpoint of each. So a service is elements only:
//! one in `svc-K`, one in `served`, K in the `ep` maps. Verdicts are in no element, because the kernel would then check the whole
//! graph of chains on every change.
//!
//! *prerouting* sees pods and the host (which comes in by its veth), *output* the node itself. What no rule translated is
//! still addressed to a virtual IP when it reaches *forward* (or *local*): an unknown port, a service without endpoints, or a
//! packet that met a change half-way. The last is dropped, so that TCP tries again; the others are refused at once. An
//! address of the CIDR that is the node's own (the name servers') is reached by its loopback, from the node itself too.

use super::{Base, ChainKind, Expression, Hook, Message, Register, Set, Type, Verdict};
use crate::ipam::Cidr;

/// Virtual ports with at least one endpoint.
pub const SERVED: &str = "served";
/// Virtual IPs.
pub const VIRTUAL: &str = "virtual";
/// Endpoint addresses, each paired with itself.
pub const HAIRPIN: &str = "hairpin";

const KEY: [Type; 3] = [Type::Address, Type::Protocol, Type::Port];

/// The fixed part's version: an adopted table must have been made by the same layout for the same CIDR.
pub fn comment(service_cidr: Cidr) -> String {
    format!("virtual IPs of {service_cidr}, layout 2")
}

/// Set of the virtual ports with `endpoints` endpoints.
pub fn service_set(endpoints: usize) -> String {
    format!("svc-{endpoints}")
}

/// Map from virtual port to its `slot`-th endpoint, and the chain that uses it.
pub fn slot(slot: usize) -> String {
    format!("ep-{slot}")
}

/// Chain that picks one of `endpoints` slots.
pub fn balance_chain(endpoints: usize) -> String {
    format!("lb-{endpoints}")
}

/// Everything that is there before the first service.
pub fn fixed(service_cidr: Cidr) -> Vec<Message> {
    let base = |kind, hook, priority| Some(Base { kind, hook, priority });
    let chain = |name: &str, base| Message::AddChain { name: name.into(), base };
    let set = |name: &str, key: &[Type]| {
        Message::AddSet(Set { name: name.into(), key: key.to_vec(), value: Vec::new() })
    };
    let rule = |chain: &str, expressions| Message::AddRule { chain: chain.into(), expressions };
    let jump = |to: &str| {
        let mut expressions = to_cidr(service_cidr);
        expressions.push(Expression::Verdict(Verdict::Jump(to.into())));
        expressions
    };
    let (nat, filter) = (ChainKind::Nat, ChainKind::Filter);
    vec![
        Message::AddTable { comment: comment(service_cidr) },
        set(SERVED, &KEY),
        set(VIRTUAL, &[Type::Address]),
        set(HAIRPIN, &[Type::Address, Type::Address]),
        chain("services", None),
        chain("unserved", None),
        chain("prerouting", base(nat, Hook::Prerouting, -100)),
        chain("output", base(nat, Hook::Output, -100)),
        chain("postrouting", base(nat, Hook::Postrouting, 100)),
        chain("forward", base(filter, Hook::Forward, 0)),
        chain("local", base(filter, Hook::Output, 0)),
        rule("prerouting", jump("services")),
        rule("output", jump("services")),
        rule("forward", jump("unserved")),
        rule("local", by_loopback()),
        rule("local", jump("unserved")),
        rule("postrouting", hairpin()),
        rule(
            "unserved",
            [load_key(), vec![lookup(SERVED, None), Expression::Verdict(Verdict::Drop)]].concat(),
        ),
        rule("unserved", vec![destination(Register(0)), lookup(VIRTUAL, None), Expression::Reject]),
        rule("unserved", vec![Expression::Verdict(Verdict::Drop)]),
    ]
}

/// The map and chain of one more slot.
pub fn add_slot(index: usize) -> Vec<Message> {
    let name = slot(index);
    let mut expressions = load_key();
    expressions.push(lookup(&name, Some(Register(0))));
    expressions.push(Expression::Dnat { address: Register(0), port: Register(1) });
    vec![
        Message::AddSet(Set {
            name: name.clone(),
            key: KEY.to_vec(),
            value: vec![Type::Address, Type::Port],
        }),
        Message::AddChain { name: name.clone(), base: None },
        Message::AddRule { chain: name, expressions },
    ]
}

/// Set, chain and rule for virtual ports with `endpoints` endpoints; the slots below that must be there.
pub fn add_balance(endpoints: usize) -> Vec<Message> {
    let (set, chain) = (service_set(endpoints), balance_chain(endpoints));
    let pick = match endpoints {
        1 => Expression::Verdict(Verdict::Goto(slot(0))),
        _ => Expression::GotoRandom { targets: (0..endpoints).map(slot).collect() },
    };
    let mut dispatch = load_key();
    dispatch.push(lookup(&set, None));
    dispatch.push(Expression::Verdict(Verdict::Goto(chain.clone())));
    vec![
        Message::AddSet(Set { name: set, key: KEY.to_vec(), value: Vec::new() }),
        Message::AddChain { name: chain.clone(), base: None },
        Message::AddRule { chain, expressions: vec![pick] },
        Message::AddRule { chain: "services".into(), expressions: dispatch },
    ]
}

/// `ip daddr . meta l4proto . th dport`, in the first three registers.
fn load_key() -> Vec<Expression> {
    vec![
        destination(Register(0)),
        Expression::Protocol { to: Register(1) },
        Expression::Transport { offset: 2, length: 2, to: Register(2) },
    ]
}

fn destination(to: Register) -> Expression {
    Expression::Network { offset: 16, length: 4, to }
}

fn lookup(set: &str, value: Option<Register>) -> Expression {
    Expression::Lookup { set: set.into(), key: Register(0), value }
}

/// `ip daddr CIDR`
fn to_cidr(cidr: Cidr) -> Vec<Expression> {
    let mut expressions = vec![destination(Register(0))];
    if cidr.prefix() < 32 {
        expressions.push(Expression::Mask { register: Register(0), mask: cidr.mask().octets() });
    }
    expressions.push(Expression::Equal { register: Register(0), value: cidr.network().octets() });
    expressions
}

/// `oif lo accept`
fn by_loopback() -> Vec<Expression> {
    // The first link of every network namespace. Source: net/core/dev.c, `LOOPBACK_IFINDEX`.
    const LOOPBACK: u32 = 1;
    vec![
        Expression::LinkOut { to: Register(0) },
        Expression::Equal { register: Register(0), value: LOOPBACK.to_ne_bytes() },
        Expression::Verdict(Verdict::Accept),
    ]
}

/// A pod that reached itself through a virtual IP must not see its own address as the source: it would answer by its own
/// loopback, around the translation.
fn hairpin() -> Vec<Expression> {
    vec![
        Expression::Network { offset: 12, length: 4, to: Register(0) },
        destination(Register(1)),
        lookup(HAIRPIN, None),
        Expression::Masquerade,
    ]
}
