use super::*;
use crate::nft::{Fake, ruleset};

fn cidr() -> Cidr {
    "10.96.0.0/16".parse().unwrap()
}

fn port(index: u32) -> VirtualPort {
    VirtualPort { address: cidr().nth(index + 1).unwrap(), protocol: Protocol::Tcp, port: 80 }
}

fn endpoint(index: u32) -> Endpoint {
    Endpoint { address: Ipv4Addr::from_bits(0x0a58_0000 + index), port: 8080 }
}

fn services(list: &[(u32, &[u32])]) -> Services {
    Services(
        list.iter()
            .map(|(index, endpoints)| (port(*index), endpoints.iter().map(|&e| endpoint(e)).collect()))
            .collect(),
    )
}

#[test]
fn keys_and_values_round_trip() {
    let port = VirtualPort { address: [10, 96, 1, 2].into(), protocol: Protocol::Udp, port: 0x1234 };
    assert_eq!(port.key(), [10, 96, 1, 2, 17, 0, 0, 0, 0x12, 0x34, 0, 0]);
    assert_eq!(VirtualPort::parse(&port.key()), Some(port));
    assert_eq!(Endpoint::parse(&endpoint(5).value()), Some(endpoint(5)));
    assert_eq!(
        (VirtualPort::parse(&[0; 12]), VirtualPort::parse(&[0; 8]), Endpoint::parse(&[])),
        (None, None, None)
    );
}

#[test]
fn what_is_committed_reads_back_and_nothing_differs_then() {
    let wish = services(&[(0, &[1, 2, 3]), (1, &[4]), (2, &[])]);
    let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
    assert!(table.apply(&wish).unwrap().rebuilt.is_some());
    assert_eq!(table.apply(&wish).unwrap().outcome, Outcome::Unchanged);
    assert_eq!(table.verify().unwrap(), Outcome::Unchanged);
    let state = table.dump().unwrap();
    assert_eq!(state.ports.len(), 2);
    assert_eq!(state.addresses.len(), 3);
    let mut again = ServiceTable::open(table.tables, "yard", cidr()).unwrap();
    assert_eq!(again.apply(&wish).unwrap().outcome, Outcome::Unchanged, "a restart starts from the kernel");
}

#[test]
fn work_per_added_service_is_the_same_at_10_100_1000() {
    let mut works = Vec::new();
    for size in [10_u32, 100, 1000] {
        let mut wish = Services(
            (0..size).map(|index| (port(index), [endpoint(index), endpoint(index + 9000)].into())).collect(),
        );
        let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
        table.apply(&wish).unwrap();
        wish.0.insert(port(60_000), [endpoint(60_001), endpoint(60_002)].into());
        works.push(table.apply(&wish).unwrap().work);
    }
    println!("{:?}", works[0]);
    assert!(works.iter().all(|work| *work == works[0]), "{works:?}");
    assert_eq!(works[0].elements, 7, "svc-2, served, virtual, 2 slots, 2 hairpins");
}

/// Any sequence of wishes, with refusals and restarts: the table always equals the last wish that was accepted.
#[test]
fn random_wishes_agree_with_a_model() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    println!("seed {seed}");
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        u32::try_from(seed % below).unwrap()
    };
    let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
    let mut wish = Services::default();
    for _ in 0..2000 {
        for _ in 0..=random(3) {
            let port = port(random(12));
            if random(4) == 0 {
                wish.0.remove(&port);
            } else {
                let count = random(6);
                wish.0.insert(port, (0..count).map(|_| endpoint(random(30))).collect());
            }
        }
        if random(5) == 0 {
            table.tables.fail_after(random(12) as usize);
        }
        // `Busy` is tried again with a fresh look, so a lone fault never gets here.
        table.apply(&wish).unwrap();
        if random(10) == 0 {
            table = ServiceTable::open(table.tables, "yard", cidr()).unwrap();
        }
        let state = table.dump().unwrap();
        let served: BTreeMap<_, BTreeSet<_>> =
            state.ports.iter().map(|(port, slots)| (*port, slots.iter().copied().collect())).collect();
        let mut expect = wish.0.clone();
        let addresses: BTreeSet<_> = expect.keys().map(|port| port.address).collect();
        expect.retain(|_, endpoints| !endpoints.is_empty());
        assert_eq!((served, state.addresses), (expect, addresses));
    }
}

#[test]
fn a_meddled_table_is_made_anew() {
    let wish = services(&[(0, &[1, 2])]);
    let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
    table.apply(&wish).unwrap();
    let meddle = vec![Message::DeleteElements { set: ruleset::slot(1), keys: vec![port(0).key()] }];
    table.tables.commit(&Batch { table: "yard".into(), messages: meddle }).unwrap();
    assert_eq!(table.dump().unwrap_err().kind(), Kind::Conflict);
    let applied = table.apply(&services(&[(0, &[1])])).unwrap();
    assert!(applied.rebuilt.is_some());
    assert_eq!(table.dump().unwrap().ports[&port(0)], [endpoint(1)]);
    // Or gone altogether.
    table.tables.commit(&Batch { table: "yard".into(), messages: vec![Message::DeleteTable] }).unwrap();
    assert!(table.apply(&wish).unwrap().rebuilt.is_some());
}

#[test]
fn wishes_outside_the_cidr_are_refused() {
    let mut wish = Services::default();
    wish.0.insert(VirtualPort { address: [10, 88, 0, 1].into(), ..port(0) }, [endpoint(1)].into());
    let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
    assert_eq!(table.apply(&wish).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(ServiceTable::open(Fake::new(), "a b", cidr()).err().unwrap().kind(), Kind::Invalid);
}
