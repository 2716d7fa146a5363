//! The server in namespaces of its own, with upstreams that the tests play.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dns::{Forwarder, Names, Net, Place, Server, Sockets};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use netns::Namespace;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Whether to go on; says so when not.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

/// A host of one loopback link.
struct Host {
    namespace: Namespace,
    names: Arc<Names>,
    forwarder: Arc<Forwarder>,
    address: SocketAddr,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Host {
    /// A server at 127.0.0.1:53.
    async fn new() -> Host {
        let namespace = Namespace::create().unwrap();
        let up = async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            let connection = tokio::spawn(connection);
            let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
            handle.link().set(up).execute().await.unwrap();
            connection.abort();
        };
        let inside =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(up);
        namespace.run(inside).unwrap();
        let address: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let place = Place::of(namespace.try_clone().unwrap()).unwrap();
        assert!(matches!(place, Place::Inside(_)));
        let net =
            Net { domain: "cluster.local".into(), reverse: vec![], server: "127.0.0.1".parse().unwrap() };
        let names = Names::new(net);
        let service = |name: &str, spec: serde_json::Value| {
            api::Object(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "n"}, "spec": spec}))
        };
        let far = json!({"type": "ExternalName", "externalName": "far.example"});
        names.sync(&[service("web", json!({"clusterIP": "10.96.0.7"})), service("far", far)], &[]);
        let forwarder = Forwarder::new(place, vec![address]);
        let server = Server { names: Arc::clone(&names), forwarder: Arc::clone(&forwarder) };
        let sockets = Sockets::bind(&namespace, address).unwrap();
        tokio::spawn(dns::serve(server, vec![sockets]));
        Host { namespace, names, forwarder, address }
    }

    fn udp(&self, address: &str) -> tokio::net::UdpSocket {
        let socket = self.namespace.udp(address.parse().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    }

    /// A nameserver at `address`; counts what it is asked.
    fn upstream(
        &self,
        address: &str,
        answer: impl Fn(Message) -> Option<Message> + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let socket = self.udp(address);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                let request = Message::from_vec(&buffer[..length]).unwrap();
                // Probes are answered, and not counted.
                if request.queries[0].query_type == RecordType::HINFO {
                    let bytes = reply(request, ResponseCode::NXDomain).to_vec().unwrap();
                    socket.send_to(&bytes, client).await.unwrap();
                    continue;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = answer(request) {
                    socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        count
    }

    async fn ask(&self, name: &str, edns: bool) -> Message {
        let socket = self.udp("127.0.0.1:0");
        socket.connect(self.address).await.unwrap();
        socket.send(&query(name, edns)).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
            .await
            .expect(name)
            .unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_by_tcp(&self, names: &[&str]) -> Vec<Message> {
        let mut stream = self.namespace.connect(self.address).await.unwrap();
        let mut replies = Vec::new();
        for name in names {
            let message = query(name, false);
            stream.write_u16(message.len() as u16).await.unwrap();
            stream.write_all(&message).await.unwrap();
            let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut reply).await.unwrap();
            replies.push(Message::from_vec(&reply).unwrap());
        }
        replies
    }
}

fn query(name: &str, edns: bool) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

fn reply(request: Message, code: ResponseCode) -> Message {
    let mut reply = request.into_response();
    reply.metadata.response_code = code;
    reply
}

/// `count` addresses.
fn addresses(request: Message, count: u8) -> Message {
    let name = request.queries[0].name.clone();
    let mut reply = reply(request, ResponseCode::NoError);
    reply.answers = (0..count)
        .map(|n| Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, n].into()))))
        .collect();
    reply
}

fn told(message: &Message) -> (ResponseCode, Vec<String>) {
    (message.metadata.response_code, message.answers.iter().map(|it| it.data.to_string()).collect())
}

fn found(answers: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, answers.iter().map(|it| it.to_string()).collect())
}

fn failed() -> (ResponseCode, Vec<String>) {
    (ResponseCode::ServFail, vec![])
}

#[test]
fn root_names_of_ours_are_answered_by_udp_and_tcp_and_change_at_once() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        let web = "web.n.svc.cluster.local.";
        assert_eq!(told(&host.ask(web, false).await), found(&["10.96.0.7"]));
        let both = host.ask_by_tcp(&[web, "nobody.n.svc.cluster.local."]).await;
        assert_eq!(told(&both[0]), found(&["10.96.0.7"]));
        assert_eq!(told(&both[1]).0, ResponseCode::NXDomain);
        let gone = api::Key::new(api::resource_by_any_name("services").unwrap(), "n", "web");
        host.names.update([], [&gone]);
        assert_eq!(told(&host.ask(web, false).await).0, ResponseCode::NXDomain);
        // Nobody to ask: said at once, not after a timeout.
        let begun = Instant::now();
        assert_eq!(told(&host.ask("example.com.", false).await), failed());
        assert!(begun.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn root_others_names_are_asked_of_the_first_upstream_that_answers() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        let silent = host.upstream("127.0.0.2:53", |_| None);
        let helpless = host.upstream("127.0.0.3:53", |request| Some(reply(request, ResponseCode::ServFail)));
        let good = host.upstream("127.0.0.4:53", |request| Some(addresses(request, 1)));
        let list = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        // Nobody listens at .9: the kernel says so at once.
        host.forwarder.set_upstreams(&list(&["127.0.0.9:53", "127.0.0.3:53", "127.0.0.4:53"]));
        let begun = Instant::now();
        assert_eq!(told(&host.ask("Example.com.", true).await), found(&["192.0.2.0"]));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!((helpless.load(Ordering::SeqCst), good.load(Ordering::SeqCst)), (1, 1));
        // One that is silent costs its time once; then it is asked last.
        host.forwarder.set_upstreams(&list(&["127.0.0.2:53", "127.0.0.4:53"]));
        assert_eq!(told(&host.ask("a.example.", false).await), found(&["192.0.2.0"]));
        let begun = Instant::now();
        assert_eq!(told(&host.ask("b.example.", false).await), found(&["192.0.2.0"]));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(silent.load(Ordering::SeqCst), 1);
        // That nobody can help is an answer too.
        host.forwarder.set_upstreams(&list(&["127.0.0.3:53"]));
        assert_eq!(told(&host.ask("c.example.", false).await), failed());
    });
}

#[test]
fn root_an_alias_is_followed_to_the_rest_of_the_world() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        host.upstream("127.0.0.2:53", |request| {
            assert_eq!(request.queries[0].name.to_string(), "far.example.");
            Some(addresses(request, 2))
        });
        assert_eq!(told(&host.ask("far.n.svc.cluster.local.", false).await), failed());
        host.forwarder.set_upstreams(&["127.0.0.2:53".parse().unwrap()]);
        let answer = host.ask("far.n.svc.cluster.local.", false).await;
        assert_eq!(told(&answer), found(&["far.example.", "192.0.2.0", "192.0.2.1"]));
        assert_eq!(answer.queries[0].name.to_string(), "far.n.svc.cluster.local.");
    });
}

#[test]
fn root_what_an_upstream_cuts_is_asked_again_by_tcp() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        host.upstream("127.0.0.2:53", |request| {
            let mut reply = reply(request, ResponseCode::NoError);
            reply.metadata.truncation = true;
            Some(reply)
        });
        let listener = host.namespace.listen("127.0.0.2:53".parse().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            loop {
                let mut stream = listener.accept().await.unwrap().0;
                let mut request = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut request).await.unwrap();
                let reply = addresses(Message::from_vec(&request).unwrap(), 60).to_vec().unwrap();
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        host.forwarder.set_upstreams(&["127.0.0.2:53".parse().unwrap()]);
        // Too long for a client without EDNS: it comes back by TCP, as the upstream made us do.
        let short = host.ask("long.example.", false).await;
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(host.ask("long.example.", true).await.answers.len(), 60);
        assert_eq!(host.ask_by_tcp(&["long.example."]).await[0].answers.len(), 60);
    });
}

#[test]
fn root_the_same_question_is_asked_once_at_a_time() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let asked = host.upstream("127.0.0.2:53", move |request| {
            tokio::task::block_in_place(|| _ = gate.lock().unwrap().recv());
            Some(addresses(request, 1))
        });
        host.forwarder.set_upstreams(&["127.0.0.2:53".parse().unwrap()]);
        let all = async { tokio::join!(host.ask("a.example.", false), host.ask("A.example.", false)) };
        let open = async {
            while asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            // Time for the second question to be asked, if it were.
            tokio::time::sleep(Duration::from_millis(100)).await;
            go.send(()).unwrap();
            drop(go);
        };
        let ((first, second), ()) = tokio::join!(all, open);
        assert_eq!(told(&first), found(&["192.0.2.0"]));
        assert_eq!(second.queries[0].name.to_string(), "A.example.", "each gets its own question back");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    });
}

/// An upstream that asks us what it is asked, from an address and port of its own, as a host's own resolver would.
#[test]
fn root_a_loop_is_found_out_refused_and_never_multiplied() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        let (near, count) = (host.udp("127.0.0.2:53"), Arc::new(AtomicUsize::new(0)));
        let (counter, ours) = (Arc::clone(&count), host.address);
        let namespace = host.namespace.try_clone().unwrap();
        let near = Arc::new(near);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, client) = near.recv_from(&mut buffer).await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let far = namespace.udp("127.0.0.2:0".parse().unwrap()).unwrap();
                far.set_nonblocking(true).unwrap();
                let (far, near) = (tokio::net::UdpSocket::from_std(far).unwrap(), Arc::clone(&near));
                let message = buffer[..length].to_vec();
                tokio::spawn(async move {
                    far.send_to(&message, ours).await.unwrap();
                    let mut buffer = vec![0; 4096];
                    let length = far.recv(&mut buffer).await.unwrap();
                    near.send_to(&buffer[..length], client).await.unwrap();
                });
            }
        });
        host.forwarder.set_upstreams(&["127.0.0.2:53".parse().unwrap()]);
        let begun = Instant::now();
        assert_eq!(told(&host.ask("a.example.", false).await), failed());
        // Found out, not timed out.
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        // The question and the probe, once each.
        assert!(count.load(Ordering::SeqCst) <= 2, "{count:?}");
        for name in ["b.example.", "c.example."] {
            assert_eq!(told(&host.ask(name, false).await), failed());
        }
        assert!(count.load(Ordering::SeqCst) <= 2, "refused from now on: {count:?}");
        // Another nameserver: all is well again.
        host.upstream("127.0.0.4:53", |request| Some(addresses(request, 1)));
        host.forwarder.set_upstreams(&["127.0.0.4:53".parse().unwrap()]);
        assert_eq!(told(&host.ask("b.example.", false).await), found(&["192.0.2.0"]));
        // Ourselves as our own upstream.
        host.forwarder.set_upstreams(&[host.address]);
        assert_eq!(told(&host.ask("d.example.", false).await), failed());
    });
}

/// Printed, not asserted: machines differ. `cargo test --release -p dns --test server -- --ignored --nocapture`
#[test]
#[ignore = "measures; run alone"]
fn root_rate_and_latency() {
    if !is_root() {
        return;
    }
    runtime().block_on(async {
        let host = Host::new().await;
        let address = host.address;
        let (mut took, begun) = (Vec::new(), Instant::now());
        let socket = host.namespace.udp("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.connect(address).unwrap();
        let message = query("web.n.svc.cluster.local.", true);
        tokio::task::block_in_place(|| {
            let mut buffer = [0; 1500];
            while begun.elapsed() < Duration::from_secs(3) {
                let sent = Instant::now();
                socket.send(&message).unwrap();
                socket.recv(&mut buffer).unwrap();
                took.push(sent.elapsed());
            }
        });
        took.sort();
        let at = |part: usize| took[took.len() * part / 100];
        println!("{} answers/s one after the other, p50 {:?}, p99 {:?}", took.len() / 3, at(50), at(99));
    });
}
