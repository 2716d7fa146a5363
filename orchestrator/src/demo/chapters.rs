//! The chapters of the demo. Each states what the kernel or the API shows, and fails if it is not as told.

use super::Failure;
use super::story::Story;
use super::yard::{DemoYard, fetch_in, is_ready};
use api::Object;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const TOGETHER: &str = include_str!("manifests/together.yaml");
const WEB: &str = include_str!("manifests/web.yaml");
const COUNTER: &str = include_str!("manifests/counter.yaml");
const REQUESTS: u32 = 60;
const PETS: [&str; 3] = ["counter-0", "counter-1", "counter-2"];

pub(super) async fn tell(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    begin(story, yard).await?;
    pod(story, yard).await?;
    service(story, yard).await?;
    pets(story, yard).await?;
    kill_a_pet(story, yard).await?;
    scale(story, yard).await?;
    kill_the_daemon(story, yard).await
}

async fn begin(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    story.chapter("A yard of its own");
    story.awaiting("starting the daemon");
    let begun = Instant::now();
    let pid = yard.start().await?;
    story.timed("the daemon answers", begun.elapsed());
    let info = yard.ask("info").await?;
    story.fact(format!("daemon {pid}, socket {}", yard.yard.socket.display()));
    story.fact(format!(
        "node {}, pods in {}, virtual IPs in {}, everything beneath the cgroup {}",
        text(&info["node"]),
        text(&info["podCidr"]),
        text(&info["serviceCidr"]),
        text(&info["cgroup"])
    ));
    Ok(())
}

async fn pod(story: &mut Story, yard: &DemoYard) -> Result<(), Failure> {
    story.chapter("A Pod: two containers that share localhost, IPC and a directory");
    story.awaiting("pod together");
    let begun = Instant::now();
    yard.apply(TOGETHER).await?;
    yard.pods_until("", |pods| pods.iter().any(is_ready)).await?;
    story.timed("from apply to ready, both containers", begun.elapsed());
    let map = yard.ask("namespaces").await?;
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let of_pod = map["namespaces"].as_array().into_iter().flatten().filter(|ns| {
            ns["kind"] == kind
                && ns["pods"].as_array().is_some_and(|pods| pods.iter().any(|pod| pod == "default/together"))
        });
        let told: Vec<String> = of_pod
            .map(|ns| {
                let all = ns["processes"].as_array().into_iter().flatten();
                let who: BTreeSet<&str> = all.filter_map(|process| process["container"].as_str()).collect();
                format!("{} {}", ns["inode"], who.into_iter().collect::<Vec<_>>().join(" + "))
            })
            .collect();
        story.fact(format!("{kind:3} namespace  {}", told.join("   |   ")));
    }
    // The writer may not have written yet when both run.
    let page = loop_until("the page is served", || async {
        yard.exec("together", "writer", &["fetch", "http://localhost:8080/index.html"]).await
    })
    .await?;
    story.fact(format!(
        "`writer` fetches localhost:8080, which `server` serves from the shared emptyDir: {:?}",
        page.trim()
    ));
    Ok(())
}

async fn service(story: &mut Story, yard: &DemoYard) -> Result<(), Failure> {
    story.chapter("A ReplicaSet of 3 behind a Service: one virtual IP, no proxy in the data path");
    story.awaiting("replicas of web");
    let begun = Instant::now();
    yard.apply(WEB).await?;
    yard.pods_until("app=web", |pods| pods.len() == 3 && pods.iter().all(is_ready)).await?;
    story.timed("from apply to three ready replicas", begun.elapsed());
    let vip = text(&yard.get("services", "web").await?.0["spec"]["clusterIP"]).to_owned();
    story.awaiting("asking the virtual IP");
    let spread = loop_until("all three replicas answer", || async {
        let mut spread = BTreeMap::<String, u32>::new();
        for _ in 0..REQUESTS {
            *spread.entry(yard.fetch(format!("http://{vip}/")).await?).or_default() += 1;
        }
        if spread.len() == 3 { Ok(spread) } else { Err(format!("{spread:?}").into()) }
    })
    .await?;
    story.fact(format!("{REQUESTS} requests from the host to http://{vip}/ were answered by"));
    for (name, count) in &spread {
        story.fact(format!("  {name:24} {count:3}  {}", "#".repeat(*count as usize)));
    }
    story.fact("what the kernel holds for it (nftables, netlink only):");
    for line in super::elements::behind(&yard.yard, &vip)? {
        story.fact(format!("  {line}"));
    }
    Ok(())
}

async fn pets(story: &mut Story, yard: &DemoYard) -> Result<(), Failure> {
    story.chapter("A PetSet of 3: each pet has a name and storage of its own");
    story.awaiting("pets");
    let begun = Instant::now();
    yard.apply(COUNTER).await?;
    yard.pods_until("app=counter", |pods| pods.len() == 3 && pods.iter().all(is_ready)).await?;
    story.timed("from apply to three ready pets, one after the other", begun.elapsed());
    for (visits, pet) in (1..).zip(PETS) {
        for _ in 0..visits {
            visit(yard, pet).await?;
        }
        let volume = yard.get("pvc", &format!("data-{pet}")).await?.0["spec"]["volumeName"].clone();
        let handle = yard.get_cluster("pv", text(&volume)).await?.0["spec"]["csi"]["volumeHandle"].clone();
        let home = yard.yard.volumes_dir().join(text(&handle));
        // Through the pet's own eyes: its volume may be a filesystem that is mounted nowhere else.
        let pid = pids(yard, pet).await?.first().copied().ok_or_else(|| format!("{pet} has no process"))?;
        let seen = format!("/proc/{pid}/root/data/visits");
        let kept = std::fs::read_to_string(&seen).map_err(|e| format!("read {seen}: {e}"))?;
        story.fact(format!("{pet}: {visits} visits; its volume, {}, holds {}", home.display(), kept.trim()));
    }
    Ok(())
}

async fn kill_a_pet(story: &mut Story, yard: &DemoYard) -> Result<(), Failure> {
    story.chapter("SIGKILL the processes of pet counter-1");
    let pids = pids(yard, "counter-1").await?;
    let before = restarts(&yard.get("pods", "counter-1").await?);
    story.awaiting("counter-1 comes back");
    let begun = Instant::now();
    for pid in &pids {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
            .map_err(|e| format!("kill {pid}: {e}"))?;
    }
    yard.pods_until("app=counter", |pods| {
        pods.iter().any(|pod| pod.name() == "counter-1" && restarts(pod) > before && is_ready(pod))
    })
    .await?;
    story.timed(&format!("killed {pids:?}; back under its name and claim, ready"), begun.elapsed());
    let count = visit(yard, "counter-1").await?;
    if count != 3 {
        return Err(format!("counter-1 was visited twice before and says {count}").into());
    }
    story.fact("its third visit is counted 3: the count is intact");
    Ok(())
}

async fn scale(story: &mut Story, yard: &DemoYard) -> Result<(), Failure> {
    story.chapter("Scale the pets 3 → 1 → 3");
    for replicas in [1_usize, 3] {
        story.awaiting("scaling");
        let begun = Instant::now();
        let (mut order, mut known) = (Vec::new(), names(&yard.list("pods", "app=counter").await?));
        yard.client.scale(&super::yard::key("petset", "counter")?, replicas as u32).await?;
        yard.pods_until("app=counter", |pods| {
            let now = names(pods);
            order.extend(known.difference(&now).map(|name| format!("{name} left")));
            order.extend(now.difference(&known).map(|name| format!("{name} returned")));
            known = now;
            pods.len() == replicas && pods.iter().all(is_ready)
        })
        .await?;
        story.timed(&format!("to {replicas}: {}", order.join(", ")), begun.elapsed());
    }
    for (expected, pet) in [2, 4, 4].into_iter().zip(PETS) {
        let count = visit(yard, pet).await?;
        if count != expected {
            return Err(format!("{pet} says {count} visits instead of {expected}").into());
        }
    }
    story.fact("each has its data: one visit more than before, for every pet");
    Ok(())
}

async fn kill_the_daemon(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    story.chapter("SIGKILL the daemon, and start it again");
    let vip = text(&yard.get("services", "web").await?.0["spec"]["clusterIP"]).to_owned();
    let before = all_pids(yard).await?;
    let (stop, served, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let asking = {
        let (stop, served, refused) = (stop.clone(), served.clone(), refused.clone());
        let host = yard.yard.host_netns();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let counter =
                    if fetch_in(&host, &format!("http://{vip}/")).is_ok() { &served } else { &refused };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    story.awaiting("the daemon is dead");
    yard.kill_daemon()?;
    let asked = served.load(Ordering::Relaxed);
    loop_until("requests are answered without a daemon", || async {
        let more = served.load(Ordering::Relaxed) - asked;
        if more >= 20 { Ok(()) } else { Err(format!("{more} answers").into()) }
    })
    .await?;
    let begun = Instant::now();
    let pid = yard.start().await?;
    yard.pods_until("", |pods| pods.len() == 7 && pods.iter().all(is_ready)).await?;
    story.timed(&format!("daemon {pid} answers and has adopted 7 pods"), begun.elapsed());
    let after = all_pids(yard).await?;
    stop.store(true, Ordering::Relaxed);
    asking.join().map_err(|_| "the asking thread panicked")?;
    if before != after {
        return Err(format!("container processes changed from {before:?} to {after:?}").into());
    }
    story.fact(format!("the same {} container processes as before, none restarted", before.len()));
    let (served, refused) = (served.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    if refused > 0 {
        return Err(
            format!("{refused} of {} requests to the virtual IP failed meanwhile", served + refused).into()
        );
    }
    story.fact(format!("the virtual IP answered throughout: {served} requests, none failed"));
    Ok(())
}

pub(super) fn keep(story: &mut Story, yard: &mut DemoYard) {
    yard.keep_daemon();
    story.chapter("The yard stays");
    let program = std::env::current_exe().map_or("podyard".into(), |path| path.display().to_string());
    for line in [
        format!("export PODYARD_SOCKET={}", yard.yard.socket.display()),
        String::new(),
        "three things to try:".into(),
        format!("  {program} get pods,services,petsets,pvc -o wide"),
        format!("  {program} ns map"),
        format!("  {program} ns enter together --net -- cat /proc/net/dev"),
        String::new(),
        format!("and at the end:  {program} {}", yard.arguments("purge --yes").join(" ")),
    ] {
        story.fact(line);
    }
}

pub(super) async fn clean_up(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    story.chapter("Clean up");
    story.awaiting("purging");
    let begun = Instant::now();
    yard.kill_daemon()?;
    let target = yard.yard.clone();
    let purging = tokio::task::spawn_blocking(move || node::purge::purge(&target)).await;
    let report = purging.map_err(|e| format!("purge: {e}"))??;
    if !report.errors.is_empty() {
        return Err(report.errors.join("\n").into());
    }
    story.timed(
        &format!("purged {} things: cgroups, links, pins, directories", report.removed.len()),
        begun.elapsed(),
    );
    std::fs::remove_dir_all(yard.dir()).map_err(|e| format!("remove {}: {e}", yard.dir().display()))?;
    let left = super::leftovers::of(&yard.yard, yard.dir())?;
    if !left.is_empty() {
        return Err(format!("left behind: {left:?}").into());
    }
    story.fact("nothing is left: no process, mount, link, cgroup or file of the yard's");
    Ok(())
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("")
}

fn names(pods: &[Object]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name().to_owned()).collect()
}

fn restarts(pod: &Object) -> u64 {
    pod.0["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

/// Visits a pet by its own address; the count it answers. Its program may still be about to listen.
async fn visit(yard: &DemoYard, pet: &str) -> Result<u64, Failure> {
    let address = text(&yard.get("pods", pet).await?.0["status"]["podIP"]).to_owned();
    let url = format!("http://{address}:8080/");
    let answer = loop_until(&format!("{pet} answers"), || yard.fetch(url.clone())).await?;
    let count = answer.strip_prefix(pet).and_then(|rest| rest.trim().parse().ok());
    count.ok_or_else(|| format!("{pet} answered {answer:?}").into())
}

async fn pids(yard: &DemoYard, pod: &str) -> Result<Vec<i32>, Failure> {
    let all = all_pids(yard).await?;
    Ok(all.into_iter().filter(|(name, _)| *name == format!("default/{pod}")).map(|(_, pid)| pid).collect())
}

/// Every process in every container, with its pod.
async fn all_pids(yard: &DemoYard) -> Result<BTreeSet<(String, i32)>, Failure> {
    let map = yard.ask("namespaces").await?;
    let processes = map["namespaces"].as_array().into_iter().flatten().filter(|ns| ns["kind"] == "mnt");
    let processes = processes.flat_map(|ns| ns["processes"].as_array().into_iter().flatten());
    let of_containers = processes.filter(|process| process["container"].is_string());
    Ok(of_containers
        .filter_map(|process| Some((text(&process["pod"]).to_owned(), process["pid"].as_i64()? as i32)))
        .collect())
}

/// Asks again until it works; for what has no event to wait for.
async fn loop_until<T, F: Future<Output = Result<T, Failure>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T, Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("not within 10 s: {what}: {error}").into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
