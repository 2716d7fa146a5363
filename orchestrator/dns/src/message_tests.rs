//! The rules of the wire.

use std::net::Ipv4Addr;

use hickory_proto::op::Edns;
use serde_json::json;

use super::*;
use crate::names::Names;
use crate::zone::Net;

fn names() -> std::sync::Arc<Names> {
    let service = |name: &str, spec: serde_json::Value| {
        api::Object(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "n"}, "spec": spec}))
    };
    let endpoints: Vec<_> = (0..100).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    let slice = api::Object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "many-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "many"}},
        "ports": [{"name": "a", "port": 1}], "endpoints": endpoints,
    }));
    let external = |name: &str| json!({"type": "ExternalName", "externalName": name});
    let services = [
        service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"name": "a", "port": 1}]})),
        service("many", json!({"clusterIP": "None"})),
        service("near", external("web.n.svc.cluster.local")),
        service("far", external("example.com")),
        service("gone", external("nobody.n.svc.cluster.local")),
        service("circle", external("circle.n.svc.cluster.local")),
    ];
    let net = Net { domain: "cluster.local".into(), reverse: vec![], server: Ipv4Addr::new(10, 96, 0, 10) };
    let names = Names::new(net);
    names.sync(&services, [&slice]);
    names
}

fn asked(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn outcome(message: &[u8], transport: Transport) -> Outcome {
    answer(&names().zone(), message, transport, 0)
}

fn reply(message: &Message, transport: Transport) -> Message {
    let Outcome::Reply(bytes) = outcome(&message.to_vec().unwrap(), transport) else { panic!("no reply") };
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 || transport == Transport::Tcp || message.edns.is_some());
    assert_eq!((reply.metadata.id, &reply.queries), (7, &message.queries));
    reply
}

#[test]
fn answers_are_whole() {
    let message = asked("WEB.n.svc.cluster.local.", RecordType::A);
    let answer = reply(&message, Transport::Udp);
    let flags = answer.metadata;
    assert!(flags.authoritative && flags.recursion_desired && flags.recursion_available && !flags.truncation);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    // The case that the client used comes back: some compare it.
    assert_eq!(answer.answers[0].name.to_string(), "WEB.n.svc.cluster.local.");
    assert!(answer.queries[0].name.eq_case(&message.queries[0].name));
    assert!(answer.edns.is_none());
}

#[test]
fn what_is_not_there_carries_the_soa() {
    for (name, code) in [("web", ResponseCode::NoError), ("nobody", ResponseCode::NXDomain)] {
        let answer = reply(&asked(&format!("{name}.n.svc.cluster.local."), RecordType::AAAA), Transport::Udp);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0));
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(answer.authorities[0].ttl, crate::zone::TTL);
    }
}

#[test]
fn long_answers_are_cut_to_what_the_client_takes() {
    let mut message = asked("many.n.svc.cluster.local.", RecordType::A);
    let fits = |message: &Message, transport, count: std::ops::RangeInclusive<usize>, edns| {
        let answer = reply(message, transport);
        // Exactly how many depends on how well names are compressed.
        assert!(count.contains(&answer.answers.len()), "{}", answer.answers.len());
        let cut = answer.answers.len() < 100;
        assert_eq!((answer.metadata.truncation, answer.edns.is_some()), (cut, edns));
    };
    fits(&message, Transport::Udp, 25..=29, false);
    fits(&message, Transport::Tcp, 100..=100, false);
    let with = |payload| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        Some(edns)
    };
    message.edns = with(1);
    fits(&message, Transport::Udp, 25..=28, true);
    message.edns = with(1232);
    fits(&message, Transport::Udp, 60..=73, true);
    // No fragments, whatever the client says.
    message.edns = with(u16::MAX);
    fits(&message, Transport::Udp, 60..=73, true);
    fits(&message, Transport::Tcp, 100..=100, true);
    // Addresses beside SRV records are a courtesy.
    let mut message = asked("_a._tcp.web.n.svc.cluster.local.", RecordType::SRV);
    message.edns = with(1232);
    let answer = reply(&message, Transport::Udp);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (1, 1));
}

#[test]
fn edns_is_answered_with_edns() {
    let mut message = asked("web.n.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.edns = Some(edns.clone());
    let answer = reply(&message, Transport::Udp).edns.unwrap();
    assert_eq!((answer.max_payload(), answer.version(), answer.flags().dnssec_ok), (1232, 0, true));
    edns.set_version(1);
    message.edns = Some(edns);
    // 16 has two names.
    let code = reply(&message, Transport::Udp).metadata.response_code;
    assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
}

#[test]
fn aliases_of_ours_are_resolved_at_once() {
    let check = |name: &str, code: ResponseCode, expect: &[&str]| {
        let answer = reply(&asked(&format!("{name}.n.svc.cluster.local."), RecordType::A), Transport::Udp);
        let told: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(
            (answer.metadata.response_code, told),
            (code, expect.iter().map(|s| s.to_string()).collect())
        );
    };
    check("near", ResponseCode::NoError, &["web.n.svc.cluster.local.", "10.96.0.7"]);
    check("gone", ResponseCode::NXDomain, &["nobody.n.svc.cluster.local."]);
    check("circle", ResponseCode::NoError, &["circle.n.svc.cluster.local."; 2]);
    let far = asked("far.n.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    assert!(
        matches!(outcome(&far, Transport::Udp), Outcome::Chase(_, alias) if alias_target(&alias).is_some())
    );
}

#[test]
fn others_names_are_asked_elsewhere() {
    let bytes = asked("example.com.", RecordType::TXT).to_vec().unwrap();
    let Outcome::Ask(request) = outcome(&bytes, Transport::Udp) else { panic!() };
    assert_eq!((request.id, request.limit, request.dnssec_ok), (7, 512, None));
    assert!(request.recursion_desired);
}

#[test]
fn what_comes_back_fits_the_request() {
    let bytes = asked("ExamPLE.com.", RecordType::A).to_vec().unwrap();
    let Outcome::Ask(request) = outcome(&bytes, Transport::Udp) else { panic!() };
    let mut foreign = asked("example.com.", RecordType::A);
    foreign.metadata.id = 9;
    let relayed = Message::from_vec(&request.relay(&foreign.to_vec().unwrap())).unwrap();
    assert_eq!(relayed.metadata.id, 7);
    assert!(relayed.queries[0].name.eq_case(&request.question.name));
    let long = Message::from_vec(&request.relay(&[0; 513])).unwrap();
    assert!(long.metadata.truncation && long.answers.is_empty());
}

#[test]
fn what_is_no_request_is_not_answered() {
    let mut response = asked("web.n.svc.cluster.local.", RecordType::A).into_response();
    response.metadata.id = 7;
    for bytes in [&b""[..], b"x", &[0; 11], &response.to_vec().unwrap()] {
        assert_eq!(outcome(bytes, Transport::Udp), Outcome::Silence);
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let code = |bytes: &[u8]| {
        let Outcome::Reply(bytes) = outcome(bytes, Transport::Udp) else { panic!("{bytes:?}") };
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.metadata.id, 7);
        reply.metadata.response_code
    };
    let good = asked("web.n.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    assert_eq!(code(&good), ResponseCode::NoError);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(code(&with(2, 5 << 3)), ResponseCode::NotImp, "UPDATE");
    assert_eq!(code(&with(2, 4 << 3)), ResponseCode::NotImp, "NOTIFY");
    assert_eq!(code(&with(5, 0)), ResponseCode::FormErr, "no question");
    assert_eq!(code(&with(5, 2)), ResponseCode::FormErr, "two questions");
    assert_eq!(code(&with(4, 0xff)), ResponseCode::FormErr, "65,281 questions");
    assert_eq!(code(&with(7, 1)), ResponseCode::FormErr, "an answer in a request");
    assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr, "cut");
    assert_eq!(code(&with(12, 0xc0)), ResponseCode::FormErr, "a pointer in a circle");
    assert_eq!(code(&with(good.len() - 1, 3)), ResponseCode::Refused, "CHAOS");
    let transfer = asked("cluster.local.", RecordType::AXFR).to_vec().unwrap();
    assert_eq!(code(&transfer), ResponseCode::Refused);
}

/// Whatever comes, nothing breaks, and nothing longer than allowed goes out.
#[test]
fn noise_is_survived() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    println!("seed {seed}");
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let good = asked("many.n.svc.cluster.local.", RecordType::ANY).to_vec().unwrap();
    let names = names();
    for _ in 0..100_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(random() as usize % (bytes.len() + 1));
        if let Outcome::Reply(reply) = answer(&names.zone(), &bytes, Transport::Udp, 0) {
            assert!((12..=1232).contains(&reply.len()));
        }
    }
}
