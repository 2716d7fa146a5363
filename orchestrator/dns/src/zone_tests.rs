//! The rules of the specification, one after the other.

use super::*;
use crate::memory::Memory;
use api::Object;
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Object {
    Object(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec}))
}

fn slice(name: &str, of: &str, ports: Value, endpoints: Value) -> Object {
    Object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "ports": ports, "endpoints": endpoints,
    }))
}

/// Web: a virtual address. Db: headless, two pets and one without a name. Idle: headless, nobody ready.
fn objects() -> Vec<Object> {
    let http =
        json!([{"name": "http", "port": 80}, {"name": "DNS", "port": 53, "protocol": "UDP"}, {"port": 9}]);
    vec![
        service("web", json!({"clusterIP": "10.96.0.7", "ports": http})),
        service("new", json!({"clusterIP": "", "ports": []})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        slice(
            "db-1",
            "db",
            json!([{"name": "sql", "port": 5433}]),
            json!([
                {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.3"], "hostname": "Db-1", "conditions": {}},
                {"addresses": ["10.244.0.9"]},
                {"addresses": ["10.244.0.8"], "hostname": "db-2", "conditions": {"ready": false}},
            ]),
        ),
        service("idle", json!({"clusterIP": "None", "ports": [{"name": "a", "port": 1}]})),
        slice(
            "idle-1",
            "idle",
            json!([{"name": "a", "port": 1}]),
            json!([{"addresses": ["10.244.0.7"], "hostname": "i-0", "conditions": {"ready": false}}]),
        ),
        service("all", json!({"clusterIP": "None", "publishNotReadyAddresses": true})),
        slice(
            "all-1",
            "all",
            json!([]),
            json!([{"addresses": ["10.244.0.7"], "hostname": "i-0", "conditions": {"ready": false}}]),
        ),
        service("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        slice(
            "web-1",
            "web",
            json!([{"name": "http", "port": 8080}]),
            json!([{"addresses": ["10.244.0.4"], "hostname": "w-0"}, {"addresses": ["10.244.0.5"]}]),
        ),
        slice("stray-1", "stray", json!([]), json!([{"addresses": ["10.244.0.6"], "hostname": "s"}])),
    ]
}

fn net() -> Net {
    Net {
        domain: "cluster.local".into(),
        reverse: vec!["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()],
        server: Ipv4Addr::new(10, 96, 0, 10),
    }
}

fn zone(objects: &[Object]) -> Zone {
    let (mut memory, mut zone) = (Memory::default(), Zone::new(net()));
    for object in objects {
        for name in memory.put(object) {
            zone.set(&name, memory.service(&name).map(Arc::new));
        }
    }
    zone.set_known();
    zone
}

/// `A 10.96.0.7`, `+` before what is additional; or what there is instead.
fn told(zone: &Zone, name: &str, asked: RecordType) -> Vec<String> {
    let name = Name::from_ascii(name).unwrap();
    let text = |record: &Record| format!("{} {}", record.record_type(), record.data);
    match zone.lookup(&name, asked, 0) {
        Answer::Elsewhere => vec!["elsewhere".into()],
        Answer::NotYet => vec!["not yet".into()],
        Answer::Missing { soa } => vec![format!("NXDOMAIN {}", soa.name)],
        Answer::Alias(record) => vec![text(&record)],
        Answer::Records { answers, soa, .. } if answers.is_empty() => vec![format!("NODATA {}", soa.name)],
        Answer::Records { answers, additionals, .. } => {
            assert!(answers.iter().all(|record| record.name == name && record.ttl == TTL));
            let more = additionals.iter().map(|record| format!("+{} {}", record.name, text(record)));
            answers.iter().map(text).chain(more).collect()
        }
    }
}

const NX: &[&str] = &["NXDOMAIN cluster.local."];
const NODATA: &[&str] = &["NODATA cluster.local."];

fn check(name: &str, asked: RecordType, expect: &[&str]) {
    assert_eq!(told(&zone(&objects()), name, asked), expect, "{name} {asked}");
}

#[test]
fn a_virtual_address_has_its_name() {
    check("web.default.svc.cluster.local.", RecordType::A, &["A 10.96.0.7"]);
    check("WEB.Default.SVC.Cluster.LOCAL.", RecordType::A, &["A 10.96.0.7"]);
    check("web.default.svc.cluster.local.", RecordType::AAAA, NODATA);
    check("web.default.svc.cluster.local.", RecordType::TXT, NODATA);
    check("web.default.svc.cluster.local.", RecordType::ANY, &["A 10.96.0.7"]);
    check("new.default.svc.cluster.local.", RecordType::A, NX);
    check("web.other.svc.cluster.local.", RecordType::A, NX);
    check("a.b.web.default.svc.cluster.local.", RecordType::A, NX);
}

#[test]
fn a_headless_service_stands_for_its_ready_endpoints() {
    let all = ["A 10.244.0.2", "A 10.244.1.3", "A 10.244.0.9"];
    check("db.default.svc.cluster.local.", RecordType::A, &all);
    check("db.default.svc.cluster.local.", RecordType::AAAA, NODATA);
    check("idle.default.svc.cluster.local.", RecordType::A, NX);
    check("idle.default.svc.cluster.local.", RecordType::AAAA, NX);
    check("_a._tcp.idle.default.svc.cluster.local.", RecordType::SRV, NX);
    check("all.default.svc.cluster.local.", RecordType::A, &["A 10.244.0.7"]);
    check("i-0.all.default.svc.cluster.local.", RecordType::A, &["A 10.244.0.7"]);
    check("stray.default.svc.cluster.local.", RecordType::A, NX);
}

#[test]
fn answers_take_turns() {
    let zone = zone(&objects());
    let name = Name::from_ascii("db.default.svc.cluster.local.").unwrap();
    let first = |turn| match zone.lookup(&name, RecordType::A, turn) {
        Answer::Records { answers, .. } => answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        [first(0), first(1), first(2), first(3)],
        ["10.244.0.2", "10.244.1.3", "10.244.0.9", "10.244.0.2"]
    );
}

#[test]
fn every_endpoint_has_a_name() {
    check("db-0.db.default.svc.cluster.local.", RecordType::A, &["A 10.244.0.2"]);
    check("db-1.db.default.svc.cluster.local.", RecordType::A, &["A 10.244.1.3"]);
    check("10-244-0-9.db.default.svc.cluster.local.", RecordType::A, &["A 10.244.0.9"]);
    check("10-244-0-2.db.default.svc.cluster.local.", RecordType::A, NX);
    check("db-2.db.default.svc.cluster.local.", RecordType::A, NX);
    check("db-0.db.default.svc.cluster.local.", RecordType::AAAA, NODATA);
    // Also where the Service has an address of its own: a pet's governing Service may.
    check("w-0.web.default.svc.cluster.local.", RecordType::A, &["A 10.244.0.4"]);
}

#[test]
fn named_ports_have_srv_records() {
    let web = "web.default.svc.cluster.local.";
    let at_web = "+web.default.svc.cluster.local. A 10.96.0.7";
    check(&format!("_http._tcp.{web}"), RecordType::SRV, &[&format!("SRV 0 1 80 {web}"), at_web]);
    check(&format!("_dns._udp.{web}"), RecordType::SRV, &[&format!("SRV 0 1 53 {web}"), at_web]);
    check(&format!("_dns._tcp.{web}"), RecordType::SRV, NX);
    check(&format!("_._tcp.{web}"), RecordType::SRV, NX);
    check(&format!("_http._tcp.{web}"), RecordType::A, NODATA);
    // The endpoint's own port, not the Service's.
    let db = "db.default.svc.cluster.local.";
    let expect = [
        format!("SRV 0 1 5433 db-0.{db}"),
        format!("SRV 0 1 5433 db-1.{db}"),
        format!("SRV 0 1 5433 10-244-0-9.{db}"),
        format!("+db-0.{db} A 10.244.0.2"),
        format!("+db-1.{db} A 10.244.1.3"),
        format!("+10-244-0-9.{db} A 10.244.0.9"),
    ];
    let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
    check(&format!("_sql._tcp.{db}"), RecordType::SRV, &expect);
    // What the peer finders of old PetSets ask: every port, without naming one.
    check(db, RecordType::SRV, &expect);
    check(&format!("db-0.{db}"), RecordType::SRV, &[expect[0], expect[3]]);
}

#[test]
fn addresses_point_back() {
    let check = |name: &str, expect: &[&str]| check(name, RecordType::PTR, expect);
    check("7.0.96.10.in-addr.arpa.", &["PTR web.default.svc.cluster.local."]);
    check("2.0.244.10.in-addr.arpa.", &["PTR db-0.db.default.svc.cluster.local."]);
    check("4.0.244.10.IN-ADDR.arpa.", &["PTR w-0.web.default.svc.cluster.local."]);
    // Without a hostname nobody can say which of its names a pod has.
    check("9.0.244.10.in-addr.arpa.", &["NXDOMAIN 244.10.in-addr.arpa."]);
    check("8.0.96.10.in-addr.arpa.", &["NXDOMAIN 96.10.in-addr.arpa."]);
    check("0.96.10.in-addr.arpa.", &["NODATA 96.10.in-addr.arpa."]);
    check("9.96.10.in-addr.arpa.", &["NXDOMAIN 96.10.in-addr.arpa."]);
    check("96.10.in-addr.arpa.", &["NODATA 96.10.in-addr.arpa."]);
    check("x.7.0.96.10.in-addr.arpa.", &["NXDOMAIN 96.10.in-addr.arpa."]);
    check("007.0.96.10.in-addr.arpa.", &["NXDOMAIN 96.10.in-addr.arpa."]);
    check("10.in-addr.arpa.", &["elsewhere"]);
    check("1.1.1.1.in-addr.arpa.", &["elsewhere"]);
    check("in-addr.arpa.", &["elsewhere"]);
    super::tests::check("7.0.96.10.in-addr.arpa.", RecordType::A, &["NODATA 96.10.in-addr.arpa."]);
}

#[test]
fn a_pointer_outside_of_our_blocks_is_told_while_it_is_there() {
    let mut objects = objects();
    let name = "5.0.99.10.in-addr.arpa.";
    check(name, RecordType::PTR, &["elsewhere"]);
    objects.push(slice("far", "db", json!([]), json!([{"addresses": ["10.99.0.5"], "hostname": "far"}])));
    let expect = ["PTR far.db.default.svc.cluster.local."];
    assert_eq!(told(&zone(&objects), name, RecordType::PTR), expect);
}

#[test]
fn an_external_name_is_an_alias() {
    check("out.default.svc.cluster.local.", RecordType::A, &["CNAME www.example.com."]);
    check("out.default.svc.cluster.local.", RecordType::AAAA, &["CNAME www.example.com."]);
    check("out.default.svc.cluster.local.", RecordType::CNAME, &["CNAME www.example.com."]);
    check("a.out.default.svc.cluster.local.", RecordType::A, NX);
}

#[test]
fn the_zone_tells_of_itself() {
    check("dns-version.cluster.local.", RecordType::TXT, &["TXT 1.1.0"]);
    check("cluster.local.", RecordType::NS, &["NS ns.dns.cluster.local."]);
    check("ns.dns.cluster.local.", RecordType::A, &["A 10.96.0.10"]);
    let soa = told(&zone(&objects()), "cluster.local.", RecordType::SOA);
    assert!(soa[0].starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local. "), "{soa:?}");
    check("web.default.svc.cluster.local.", RecordType::SOA, NODATA);
}

#[test]
fn what_has_names_below_it_exists() {
    for name in [
        "",
        "svc.",
        "default.svc.",
        "dns.",
        "pod.",
        "x.pod.",
        "_tcp.web.default.svc.",
        "_tcp.db.default.svc.",
    ] {
        check(&format!("{name}cluster.local."), RecordType::A, NODATA);
    }
    for name in
        ["nothing.", "other.svc.", "_sctp.web.default.svc.", "_udp.db.default.svc.", "_x.db.default.svc."]
    {
        check(&format!("{name}cluster.local."), RecordType::A, NX);
    }
}

#[test]
fn a_pods_address_is_a_name() {
    check("10-244-0-3.default.pod.cluster.local.", RecordType::A, &["A 10.244.0.3"]);
    check("10-244-0.default.pod.cluster.local.", RecordType::A, NX);
    check("a.default.pod.cluster.local.", RecordType::A, NX);
}

#[test]
fn the_rest_of_the_world_is_elsewhere() {
    for name in
        ["example.com.", "local.", ".", "cluster.", "xcluster.local.", "cluster.local.example.", "ip6.arpa."]
    {
        check(name, RecordType::A, &["elsewhere"]);
    }
}

#[test]
fn before_the_first_list_nothing_is_denied() {
    let zone = Zone::new(net());
    assert_eq!(told(&zone, "web.default.svc.cluster.local.", RecordType::A), ["not yet"]);
    assert_eq!(told(&zone, "example.com.", RecordType::A), ["elsewhere"]);
}

#[test]
fn blocks_need_not_end_between_octets() {
    let mut zone = zone(&objects());
    zone.net.reverse = vec!["10.96.0.0/12".parse().unwrap()];
    assert_eq!(
        told(&zone, "7.0.96.10.in-addr.arpa.", RecordType::PTR),
        ["PTR web.default.svc.cluster.local."]
    );
    assert_eq!(told(&zone, "7.0.111.10.in-addr.arpa.", RecordType::PTR), ["NXDOMAIN 111.10.in-addr.arpa."]);
    assert_eq!(told(&zone, "7.0.112.10.in-addr.arpa.", RecordType::PTR), ["elsewhere"]);
}

/// Whatever came, changed and went, the zone is that of the objects of now.
#[test]
fn a_history_leaves_no_trace() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    println!("seed {seed}");
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut memory, mut zone) = (Memory::default(), Zone::new(net()));
    let mut objects = BTreeMap::new();
    for _ in 0..3000 {
        let (name, of) = (format!("s{}", random(5)), format!("s{}", random(5)));
        let object = if random(2) == 0 {
            let ip = [json!("None"), json!("10.96.0.1"), json!("10.96.0.2"), Value::Null][random(4) as usize]
                .clone();
            service(&name, json!({"clusterIP": ip, "ports": [{"name": "a", "port": random(3)}]}))
        } else {
            let address = format!("10.244.0.{}", random(4));
            let endpoint = match random(3) {
                0 => json!({"addresses": [address]}),
                1 => json!({"addresses": [address], "hostname": "h"}),
                _ => json!({"addresses": [address], "conditions": {"ready": false}}),
            };
            slice(&name, &of, json!([{"name": "a", "port": random(3)}]), json!([endpoint]))
        };
        let key = object.key();
        let touched = if random(3) == 0 {
            objects.remove(&key);
            memory.remove(&key)
        } else {
            objects.insert(key, object.clone());
            memory.put(&object)
        };
        for name in touched {
            zone.set(&name, memory.service(&name).map(Arc::new));
        }
        let (mut fresh, mut expect) = (Memory::default(), Zone::new(net()));
        objects.values().for_each(|object| drop(fresh.put(object)));
        for name in fresh.names() {
            expect.set(name, fresh.service(name).map(Arc::new));
        }
        assert_eq!((&zone.services, &zone.pointers), (&expect.services, &expect.pointers));
    }
    objects.into_keys().for_each(|key| {
        for name in memory.remove(&key) {
            zone.set(&name, memory.service(&name).map(Arc::new));
        }
    });
    assert!(zone.services.is_empty() && zone.pointers.is_empty());
}
