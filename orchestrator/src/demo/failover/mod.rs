//! `podyard demo failover`: a pet loses its node twice, and serves on elsewhere, with its disk, never twice.

mod board;
mod caller;
mod watcher;

use super::Failure;
use super::story::Story;
use super::yard::{DemoYard, is_ready};
use api::Object;
use board::{Board, condition};
use caller::{Caller, Record};
use std::time::{Duration, Instant};
use watcher::{Seen, Watcher};

const LEDGER: &str = include_str!("../manifests/ledger.yaml");
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PET: &str = "ledger-0";

/// A node that is silent for so long is taken for lost: two heartbeats, the shortest that `podyard up` takes.
const GRACE: &str = "2s";

/// Answers after a failure that show the pet at work again.
const ANSWERS: u64 = 50;

/// How long one failover may take before the demo fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the table is drawn and the conditions looked at.
const FRAME: Duration = Duration::from_millis(20);

pub(super) async fn tell(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    begin(story, yard).await?;
    let url = pet(story, yard).await?;
    let caller = Caller::start(yard.yard.host_netns(), url);
    let watcher = Watcher::start(yard.yard.cgroup_parent.clone(), "counter");
    story.hide();
    let board = Board::new(NODES.len() + 1);
    let told = tell_failures(story, yard, &board, &caller).await;
    board.end();
    let (record, seen) = (caller.end()?, watcher.end());
    told?;
    verdict(story, &record, &seen)
}

async fn begin(story: &mut Story, yard: &mut DemoYard) -> Result<(), Failure> {
    story.chapter("Three nodes beside the daemon's own: agents, network namespaces, cgroups of their own");
    story.awaiting("starting the daemon");
    yard.daemon_flags(&["--node-grace-period", GRACE]);
    yard.start().await?;
    story.awaiting("adding nodes");
    for name in NODES {
        let begun = Instant::now();
        yard.podyard(&["node", "add", name]).await?;
        story.timed(&format!("podyard node add {name}: ready"), begun.elapsed());
    }
    Ok(())
}

async fn pet(story: &mut Story, yard: &DemoYard) -> Result<String, Failure> {
    story.chapter("A pet that counts its visits on its own disk, behind a virtual IP");
    story.awaiting("pet ledger-0");
    let begun = Instant::now();
    yard.apply(LEDGER).await?;
    let pods = yard.pods_until("app=ledger", |pods| pods.len() == 1 && pods.iter().all(is_ready)).await?;
    story.timed(&format!("{PET} serves on {}", node_of(&pods)), begun.elapsed());
    let service = yard.get("services", "ledger").await?;
    let address = service.get_str("spec.clusterIP").unwrap_or("").to_owned();
    story.fact(format!(
        "a client on the host asks http://{address}/ without pause; each answer is a count on disk"
    ));
    Ok(format!("http://{address}/"))
}

async fn tell_failures(
    story: &mut Story,
    yard: &DemoYard,
    board: &Board,
    caller: &Caller,
) -> Result<(), Failure> {
    answered(yard, board, caller, ANSWERS).await?;
    fail(story, yard, board, caller, "kill", "power off: agent, shims and pods of the node die at once")
        .await?;
    let silent =
        format!("the node lives and its pet too, but nobody hears it; lost after {GRACE} of silence");
    fail(story, yard, board, caller, "cut", &silent).await?;
    board.print(&story.title("Heal: the lost nodes come back, empty"));
    for name in NODES {
        let begun = Instant::now();
        yard.podyard(&["node", "heal", name]).await?;
        loop {
            let nodes = draw(yard, board, caller).await?.0;
            if nodes.iter().any(|node| node.name() == name && condition(node, "Ready") == "True") {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{name} is not ready {PATIENCE:?} after it was healed").into());
            }
            tokio::time::sleep(FRAME).await;
        }
    }
    board.print("   all nodes are ready");
    Ok(())
}

/// Loses the pet's node in one way, and tells what came of it.
async fn fail(
    story: &mut Story,
    yard: &DemoYard,
    board: &Board,
    caller: &Caller,
    verb: &str,
    meaning: &str,
) -> Result<(), Failure> {
    let before = yard.get("pods", PET).await?;
    let node = before.get_str("spec.nodeName").unwrap_or("").to_owned();
    board.print(&story.title(&format!("podyard node {verb} {node}")));
    board.print(&format!("   {meaning}"));
    caller.begin_gap();
    let begun = Instant::now();
    yard.podyard(&["node", verb, &node]).await?;
    let after = loop {
        let (_, pods) = draw(yard, board, caller).await?;
        let moved = pods.iter().find(|pod| pod.name() == PET && pod.uid() != before.uid() && is_ready(pod));
        if let Some(pod) = moved {
            break pod.clone();
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{PET} does not serve {PATIENCE:?} after node {verb} {node}").into());
        }
        tokio::time::sleep(FRAME).await;
    };
    answered(yard, board, caller, ANSWERS).await?;
    let record = caller.record();
    let (gap, last, first) = record.gap.ok_or("the caller measured nothing")?;
    board.print(&format!(
        "   {PET} moved from {node} to {}; downtime as the client saw it: {:.0} ms",
        after.get_str("spec.nodeName").unwrap_or("?"),
        gap.as_secs_f64() * 1e3
    ));
    board.print(&format!(
        "   the last count before was {last}, the first after is {first}: nothing acknowledged is lost"
    ));
    for line in proof(yard).await? {
        board.print(&format!("   {line}"));
    }
    Ok(())
}

/// The proof that the old one is gone, as its claim keeps it.
async fn proof(yard: &DemoYard) -> Result<Vec<String>, Failure> {
    let claim = yard.get("pvc", &format!("data-{PET}")).await?;
    let fenced = claim.annotation("podyard.io/fenced").ok_or("the claim has no proof of the fence")?;
    let fenced: serde_json::Value = serde_json::from_str(fenced)?;
    let fields = fenced.as_object().ok_or("the proof is not an object")?;
    let told: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            format!("{name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
        .collect();
    Ok(vec![
        format!("proof: {}", told.join(", ")),
        format!(
            "claim data-{PET}: holder {}, epoch {}",
            claim.annotation("podyard.io/holder").unwrap_or("-"),
            claim.annotation("podyard.io/epoch").unwrap_or("-")
        ),
    ])
}

/// Waits for so many more answers.
async fn answered(yard: &DemoYard, board: &Board, caller: &Caller, more: u64) -> Result<(), Failure> {
    let (begun, known) = (Instant::now(), caller.record().answered);
    while caller.record().answered < known + more {
        draw(yard, board, caller).await?;
        if begun.elapsed() > PATIENCE {
            return Err(format!("the virtual IP does not answer: {:?}", caller.record()).into());
        }
        tokio::time::sleep(FRAME).await;
    }
    Ok(())
}

async fn draw(
    yard: &DemoYard,
    board: &Board,
    caller: &Caller,
) -> Result<(Vec<Object>, Vec<Object>), Failure> {
    let nodes = yard.list_cluster("nodes").await?;
    let pods = yard.list("pods", "app=ledger").await?;
    board.show(&nodes, &pods, &caller.record());
    Ok((nodes, pods))
}

fn verdict(story: &mut Story, record: &Record, seen: &Seen) -> Result<(), Failure> {
    story.chapter("What the witnesses say");
    if let Some(lost) = &record.lost {
        return Err(format!("data was lost: {lost}").into());
    }
    story.fact(format!(
        "the client: {} answers, each count higher than the one before; {} requests had none",
        record.answered, record.missed
    ));
    if seen.most > 1 {
        return Err(format!("two incarnations ran at one time: {seen:?}").into());
    }
    story.fact(format!(
        "a watcher of /proc: {} looks, {} incarnations, never more than {} at a time",
        seen.looks,
        seen.incarnations.len(),
        seen.most
    ));
    Ok(())
}

fn node_of(pods: &[Object]) -> &str {
    pods.first().and_then(|pod| pod.get_str("spec.nodeName")).unwrap_or("?")
}
