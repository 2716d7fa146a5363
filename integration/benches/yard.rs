//! The figures of `integration/README.md`: `cargo bench --package integration [-- WORD…]` runs those whose names hold a word.
//!
//! Method: a yard of its own in release mode; every time is taken by one client on one clock, from the first byte
//! of the request to the event that shows the result; medians and minima are quoted, since the machine has neighbours.

use api::{Key, Object};
use client::{Client, ListOptions, WatchOptions};
use integration::harness::{Yard, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

type Bench = fn(&tokio::runtime::Runtime);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if !integration::harness::is_root("the benchmarks") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    let benches: [(&str, Bench); 5] = [
        ("start", start_one_by_one),
        ("burst", start_at_once),
        ("memory", memory),
        ("idle", idle),
        ("service", add_a_service),
    ];
    for (name, bench) in benches {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench(&runtime);
        }
    }
}

fn pod(name: &str) -> Value {
    let container = |name: &str| json!({"name": name, "image": "podyard.local/toolbox", "command": ["sleep", "infinity"]});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": "pod"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container("one"), container("two")]},
    })
}

fn resource(name: &str) -> &'static api::Resource {
    api::resource_by_any_name(name).expect("a known kind")
}

fn is_ready(pod: &Object) -> bool {
    integration::harness::is_ready(&pod.0)
}

/// Creates pods and waits, by one watch, until all are ready; the time, and how often each object was written.
async fn create_until_ready(client: &Client, names: &[String]) -> (Duration, usize) {
    let pods = resource("pods");
    let list = client.list(pods, Some("default"), &ListOptions::default()).await.expect("list");
    let options = WatchOptions { resource_version: Some(list.resource_version), ..WatchOptions::default() };
    let mut watch = client.watch(pods, Some("default"), &options).await.expect("watch");
    let begun = Instant::now();
    let creates = names.iter().map(|name| async {
        client.create(pods, "default", &pod(name), &Default::default()).await.expect("create");
    });
    let (mut ready, mut events) = (std::collections::BTreeSet::new(), 0);
    let watching = async {
        while ready.len() < names.len() {
            let event = watch.next().await.expect("the watch goes on").expect("an event");
            events += 1;
            if is_ready(&event.object) {
                ready.insert(event.object.name().to_owned());
            }
        }
    };
    futures::join!(futures::future::join_all(creates), watching);
    (begun.elapsed(), events)
}

fn delete_all(yard: &Yard) {
    yard.ok(&["delete", "pods", "--all"]);
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    format!(
        "p50 {:.1} ms, min {:.1}, p90 {:.1}, p99 {:.1} (n = {})",
        at(0.5),
        at(0.0),
        at(0.9),
        at(0.99),
        times.len()
    )
}

fn start_one_by_one(runtime: &tokio::runtime::Runtime) {
    let Some(yard) = Yard::start(PROGRAM, "bench") else { return };
    let client = Client::new(yard.socket());
    let (mut times, mut commits) = (Vec::new(), Vec::new());
    for round in 0..53 {
        let (time, events) = runtime.block_on(create_until_ready(&client, &[format!("p{round}")]));
        delete_all(&yard);
        // The first rounds prepare the image.
        if round >= 3 {
            times.push(time);
            commits.push(events);
        }
    }
    commits.sort_unstable();
    println!("start: pod of 2 containers, apply to ready by watch: {}", quantiles(times));
    println!(
        "start: writes of the pod object until then: median {}, most {}",
        commits[commits.len() / 2],
        commits[commits.len() - 1]
    );
}

fn start_at_once(runtime: &tokio::runtime::Runtime) {
    let Some(yard) = Yard::start(PROGRAM, "bench") else { return };
    let client = Client::new(yard.socket());
    let mut times = Vec::new();
    for round in 0..6 {
        let names: Vec<String> = (0..20).map(|n| format!("b{round}-{n}")).collect();
        let (time, _) = runtime.block_on(create_until_ready(&client, &names));
        delete_all(&yard);
        if round > 0 {
            times.push(time);
        }
    }
    println!("burst: 20 pods of 2 containers at once, all ready: {}", quantiles(times));
}

/// A field of /proc/PID/smaps_rollup or status, in kB.
fn kilobytes(pid: i32, file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The shims of a yard: every process in its shim cgroups.
fn shims(yard: &Yard) -> Vec<i32> {
    let mut all = std::collections::BTreeSet::new();
    let roots = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().map(|entry| entry.path());
    for root in roots.chain(["/sys/fs/cgroup".into()]) {
        let dir = root.join(format!("podyard-{}/shims", yard.name()));
        for shim in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let procs = std::fs::read_to_string(shim.path().join("cgroup.procs")).unwrap_or_default();
            all.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    all.into_iter().collect()
}

fn memory(runtime: &tokio::runtime::Runtime) {
    let Some(yard) = Yard::start(PROGRAM, "bench") else { return };
    let client = Client::new(yard.socket());
    let names: Vec<String> = (0..10).map(|n| format!("m{n}")).collect();
    runtime.block_on(create_until_ready(&client, &names));
    let pss: Vec<u64> = shims(&yard).iter().map(|pid| kilobytes(*pid, "smaps_rollup", "Pss")).collect();
    println!("memory: {} shims at 10 pods, PSS each (kB): {pss:?}", pss.len());
    let pid = yard.daemon_pid();
    println!(
        "memory: daemon RSS {:.1} MB (anonymous {:.1}, file {:.1}) at 10 pods",
        kilobytes(pid, "status", "VmRSS") as f64 / 1024.0,
        kilobytes(pid, "status", "RssAnon") as f64 / 1024.0,
        kilobytes(pid, "status", "RssFile") as f64 / 1024.0,
    );
}

/// Bytes written, and context switches by thread. Source: proc(5), /proc/PID/io and task/TID/status.
fn effort(pid: i32) -> (u64, std::collections::BTreeMap<std::ffi::OsString, u64>) {
    let number = |text: &str, field: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    };
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("the daemon's io");
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads").flatten();
    let switches = threads.map(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let both =
            number(&status, "voluntary_ctxt_switches:") + number(&status, "nonvoluntary_ctxt_switches:");
        (thread.file_name(), both)
    });
    (number(&io, "write_bytes:") + number(&io, "wchar:"), switches.collect())
}

fn idle(runtime: &tokio::runtime::Runtime) {
    let Some(yard) = Yard::start(PROGRAM, "bench") else { return };
    let client = Client::new(yard.socket());
    let names: Vec<String> = (0..10).map(|n| format!("i{n}")).collect();
    runtime.block_on(create_until_ready(&client, &names));
    let pid = yard.daemon_pid();
    let quiet = |over: Duration| {
        let before = effort(pid);
        std::thread::sleep(over); // The measurement itself: nothing is waited for.
        let after = effort(pid);
        // A thread that has ended counts no more; one that is new counts from nothing.
        let since = |(thread, count): (&std::ffi::OsString, &u64)| count - before.1.get(thread).unwrap_or(&0);
        (after.0 - before.0, after.1.iter().map(since).sum::<u64>())
    };
    until("the start-up is over", || if quiet(Duration::from_secs(5)).1 <= 2 { Ok(()) } else { Err("busy") });
    let (bytes, switches) = quiet(Duration::from_secs(120));
    println!(
        "idle: 10 pods, 120 s: {bytes} bytes written, {:.1} context switches a minute",
        switches as f64 / 2.0
    );
}

/// One attempt to connect. tokio's clock ticks in milliseconds, which is longer than what is measured here.
fn connects_within_100_us(address: std::net::SocketAddrV4) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
    if connect(&socket, &address).is_ok() {
        return true;
    }
    let limit = Timespec { tv_sec: 0, tv_nsec: 100_000 };
    let mut wait = [PollFd::new(&socket, PollFlags::OUT)];
    let ready = poll(&mut wait, Some(&limit)).expect("poll");
    ready > 0 && matches!(sockopt::socket_error(&socket), Ok(Ok(())))
}

fn add_a_service(runtime: &tokio::runtime::Runtime) {
    let Some(yard) = Yard::start(PROGRAM, "bench") else { return };
    let client = Client::new(yard.socket());
    let server = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "podyard.local/toolbox", "command": ["serve", "--port", "8080"]}]},
    });
    runtime.block_on(async {
        client.create(resource("pods"), "default", &server, &Default::default()).await.expect("create");
    });
    let address = yard.ready("server")["status"]["podIP"].as_str().expect("an address").to_owned();
    let slice = |n: usize| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("s{n}"), "labels": {"kubernetes.io/service-name": format!("s{n}")}},
            "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        })
    };
    let service = |n: usize, ip: Option<String>| {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}")},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        });
        if let Some(ip) = ip {
            object["spec"]["clusterIP"] = ip.into();
        }
        object
    };
    runtime.block_on(async {
        for n in 0..1_000 {
            client
                .create(resource("endpointslices"), "default", &slice(n), &Default::default())
                .await
                .expect("create");
            client
                .create(resource("services"), "default", &service(n, None), &Default::default())
                .await
                .expect("create");
        }
    });
    let host = yard.run_dir().join("netns/host");
    let mut times = Vec::new();
    let taken: Vec<Value> =
        yard.list(&["services"]).iter().map(|service| service["spec"]["clusterIP"].clone()).collect();
    let free = (1..=254).map(|last| format!("10.96.200.{last}")).filter(|ip| !taken.contains(&json!(ip)));
    for (n, ip) in (1_000..1_050).zip(free) {
        runtime.block_on(async {
            client
                .create(resource("endpointslices"), "default", &slice(n), &Default::default())
                .await
                .expect("create");
        });
        let namespace = netns::Namespace::open(&host).expect("the host's namespace");
        let object = service(n, Some(ip.clone()));
        let socket = yard.socket();
        // One thread in the host's namespace sends the request and then tries until a connection is made.
        let time = namespace.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
            runtime.block_on(async {
                let client = Client::new(socket);
                let begun = Instant::now();
                client
                    .create(resource("services"), "default", &object, &Default::default())
                    .await
                    .expect("create");
                let created = begun.elapsed();
                let address = std::net::SocketAddrV4::new(ip.parse().expect("an address"), 80);
                while !connects_within_100_us(address) {}
                (begun.elapsed(), created)
            })
        });
        times.push(time.expect("enter the host's namespace"));
    }
    println!(
        "service: at 1,000 Services, write to first connection: {}",
        quantiles(times.iter().map(|t| t.0).collect())
    );
    println!(
        "service: of that, the API's answer (durable): {}",
        quantiles(times.iter().map(|t| t.1).collect())
    );
    let key = Key { resource: resource("pods"), namespace: "default".into(), name: "server".into() };
    runtime.block_on(async { client.delete(&key, &Default::default()).await.expect("delete") });
}
