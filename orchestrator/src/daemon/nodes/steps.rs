//! The steps of [`super::plan`], carried out; and what is told of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{Error, Key, Kind, Object, Part};
use node::host::{blocking, from_runtime};
use node::{Cidr, Yard, network};
use registry::WriteOptions;
use store::Store;
use tokio::time::Instant;
use tracing::{info, warn};

use super::agent::{self, Agent};
use super::condition::{self, Known, Ready};
use super::fence::{self, Fenced};
use super::plan::{Seen, Step, Wish, plan};
use super::{Next, Nodes, State, to_api};
use crate::node_parts::upstream;

/// A node whose processes are all gone comes up again after this, as a machine takes its time to boot.
const REBOOT: Duration = Duration::from_secs(3);
/// An agent that lives longer than this is started at once when it ends.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// Longest pause between starts.
const REST_MAX: Duration = Duration::from_secs(30);
/// Length of the blocks that nodes get.
const BLOCK: u8 = 24;
/// Times a write is decided again because somebody else was faster.
const ATTEMPTS_MAX: u32 = 8;
const COMPONENT: &str = "podyard-node-manager";

impl<S: Store> Nodes<S> {
    /// Looks at one node and does what there is to do.
    pub(super) async fn look(&self, name: &str, state: &mut State) -> Result<Next, Error> {
        let key = Key::core("nodes", "", name);
        let node = self.registry.store().get(&key).map(|record| record.object());
        let node = node.filter(is_ours);
        if !node::yard::is_node_name(name) {
            return self.refuse_name(node.as_ref()).await;
        }
        let cidr = node.as_ref().map(agent::pod_cidr).transpose().map_err(|error| to_api(&error))?.flatten();
        if let (Some(node), Some(cidr)) = (&node, cidr) {
            self.check_addresses(node, cidr)?;
        }
        // A node that is to go needs no addresses.
        let yard = self.yard.of_node(name, cidr.unwrap_or(self.yard.pod_cidr));
        self.look_at_agent(&yard, state).await.map_err(|error| to_api(&error))?;
        let wish = Wish {
            is: node.as_ref().is_some_and(|node| !node.is_deleting()),
            power: node.as_ref().is_some_and(|node| !api::node::is_off(node)),
            cut: node.as_ref().is_some_and(api::node::is_cut),
            finalizer: node.as_ref().is_some_and(|node| node.finalizers().contains(&api::node::FINALIZER)),
            cidr: cidr.is_some(),
        };
        let seen = self.seen(&yard, wish, state).map_err(|error| to_api(&error))?;
        for step in plan(wish, seen) {
            if step == Step::Remove {
                self.remove(&yard, node.as_ref(), state).await?;
                return Ok(Next::Gone);
            }
            self.take(step, &yard, node.as_ref(), state).await?;
        }
        // Of an adopted agent's node too. It ends with the node.
        if let Some(cidr) = cidr
            && state.agent.is_some()
            && state.watch.is_empty()
        {
            let (whole, name) = (self.yard.clone(), yard.node.clone());
            state.watch.spawn(async move { network::watch_node(&whole, &name, cidr).await });
        }
        match &node {
            Some(node) => self.judge(node, wish, state).await,
            None => Ok(Next::Await { deadline: None, listen: false }),
        }
    }

    /// What cannot be a part of paths and cgroup names was never made, and is not looked for.
    async fn refuse_name(&self, node: Option<&Object>) -> Result<Next, Error> {
        match node {
            Some(node) if !node.is_deleting() => {
                let why = "at most 63 of a-z, 0-9 and -, neither first nor last; and not \"host\"";
                Err(Error::new(Kind::Invalid, format!("metadata.name: {:?}: {why}", node.name())))
            }
            Some(node) => self.set_finalizer(node.name(), false).await.map(|()| Next::Gone),
            None => Ok(Next::Gone),
        }
    }

    /// Finds the agent of a daemon before us, once; notes the end of the one there was.
    async fn look_at_agent(&self, yard: &Yard, state: &mut State) -> node::Result<()> {
        if !state.looked {
            state.agent = Agent::find(yard)?;
            state.looked = true;
            if let Some(agent) = &state.agent {
                info!(node = yard.node, pid = agent.process.pid, "the agent is adopted");
            }
        }
        let Some(agent) = &state.agent else { return Ok(()) };
        if !agent.has_ended()? {
            return agent::bound_log(&yard.agent_log(), 0);
        }
        // Who kills a whole node kills its agent among others: which of them is gone first says nothing.
        let cgroup = fence::cgroup(&self.hierarchies, &yard.cgroup_parent)?;
        blocking(move || fence::await_the_dying(&cgroup)).await?;
        let lived = agent.started.map_or(LONG_LIFE, |started| started.elapsed());
        state.short_lives = if lived >= LONG_LIFE { 0 } else { state.short_lives + 1 };
        let rest = match state.short_lives {
            0 | 1 => Duration::ZERO,
            many => (Duration::from_millis(100) * (1 << many.min(10))).min(REST_MAX),
        };
        info!(
            node = yard.node,
            pid = agent.process.pid,
            lived_ms = lived.as_millis() as u64,
            "the agent has ended"
        );
        state.rest_until = Some(Instant::now() + rest);
        state.agent = None;
        state.made = false;
        Ok(())
    }

    fn seen(&self, yard: &Yard, wish: Wish, state: &State) -> node::Result<Seen> {
        let agent = state.agent.is_some();
        // While its agent lives and nothing else is wished there is nothing to ask the kernel.
        if agent && wish.is && wish.power {
            return Ok(Seen { agent, populated: true, ..Seen::default() });
        }
        let cgroup = |path: &str| fence::cgroup(&self.hierarchies, path);
        Ok(Seen {
            agent,
            populated: cgroup(&yard.cgroup_parent)?.populated().map_err(from_runtime)?,
            killed: fence::killed(yard)?.is_some(),
            shims: !cgroup(&yard.shims_cgroup())?.children().map_err(from_runtime)?.is_empty(),
            died: state.died,
            rested: state.rest_until.is_none_or(|until| Instant::now() >= until),
        })
    }

    async fn take(
        &self,
        step: Step,
        yard: &Yard,
        node: Option<&Object>,
        state: &mut State,
    ) -> Result<(), Error> {
        let internal = |error: node::Error| to_api(&error);
        match step {
            Step::Finalizer => self.set_finalizer(&yard.node, true).await,
            Step::Address => self.give_address(&yard.node).await,
            Step::Places if state.made => Ok(()),
            Step::Places => {
                let yard = yard.clone();
                let (name, gateway) = (yard.node.clone(), yard.pod_cidr.nth(1));
                let make = move || yard.make_places().and_then(|()| agent::ensure_token(&yard));
                let token = blocking(make).await.map_err(internal)?;
                if let Some(gateway) = gateway {
                    self.fabric.admit(&name, gateway, &token);
                }
                Ok(())
            }
            Step::Network if state.made => Ok(()),
            Step::Network => {
                let made = network::ensure_node(&self.yard, &yard.node, yard.pod_cidr).await;
                let (_, steps) = made.map_err(internal)?;
                for step in steps {
                    tracing::debug!(
                        node = yard.node,
                        effect = step.effect,
                        micros = step.took.as_micros() as u64
                    );
                }
                state.made = true;
                state.cut = None;
                Ok(())
            }
            Step::Cut | Step::Heal => {
                self.set_cut(&yard.node, step == Step::Cut, state).await.map_err(internal)
            }
            Step::Kill => {
                // People and controllers need not wait for the last process: what was ordered is certain.
                let condition = async {
                    match node.filter(|node| api::node::is_off(node)) {
                        Some(node) => self.write_ready(node, Ready::False("its power is off")).await,
                        None => Ok(()),
                    }
                };
                let (killed, written) = tokio::join!(self.kill(yard), condition);
                let (killed, took) = killed.map_err(internal)?;
                self.fabric.forget(&yard.node);
                state.agent = None;
                state.made = false;
                info!(
                    node = yard.node,
                    processes = killed.processes,
                    micros = took.as_micros() as u64,
                    "killed"
                );
                written
            }
            Step::Died => {
                warn!(node = yard.node, "nothing of the node runs any more");
                state.died = true;
                state.rest_until = Some(Instant::now() + REBOOT);
                Ok(())
            }
            Step::Sweep => {
                let pods = fence::pods_of(&self.registry, &yard.node).len();
                let (yard, hierarchies) = (yard.clone(), Arc::clone(&self.hierarchies));
                let sweep = move || {
                    // Pods that are still in the store are taken on again by the agent.
                    if pods == 0 {
                        for error in node::purge::wipe(&yard).errors {
                            warn!(node = yard.node, error, "remove what dead pods left");
                        }
                    }
                    fence::clear(&hierarchies, &yard)
                };
                blocking(sweep).await.map_err(internal)
            }
            Step::StopAgent => {
                let cgroup = fence::cgroup(&self.hierarchies, &yard.agent_cgroup()).map_err(internal)?;
                let stop = move || {
                    cgroup.kill().map_err(from_runtime)?;
                    cgroup.wait_empty(Duration::from_secs(5)).map_err(from_runtime)
                };
                match blocking(stop).await.map_err(internal)? {
                    true => Ok(()),
                    false => Err(Error::new(
                        Kind::Busy,
                        format!("the last agent of node {} does not die", yard.node),
                    )),
                }
            }
            Step::Start => {
                let begun = Instant::now();
                let (whole, yard, binary) = (self.yard.clone(), yard.clone(), self.binary.clone());
                let name = yard.node.clone();
                let started =
                    blocking(move || Agent::start(&whole, &yard, &binary)).await.map_err(internal)?;
                let micros = begun.elapsed().as_micros() as u64;
                info!(node = name, pid = started.process.pid, micros, "the agent is started");
                state.agent = Some(started);
                state.died = false;
                state.rest_until = None;
                Ok(())
            }
            Step::Fence => {
                let fenced = self.fence_locked(&yard.node, state).await?;
                self.tell_of_fence(node.cloned(), fenced).await;
                Ok(())
            }
            Step::Remove => Ok(()),
        }
    }

    /// The Ready condition, and when to look again.
    async fn judge(&self, node: &Object, wish: Wish, state: &mut State) -> Result<Next, Error> {
        if !wish.is || !wish.cidr {
            return Ok(Next::Await { deadline: None, listen: false });
        }
        let since = state.agent.as_ref().and_then(|agent| agent.started).unwrap_or(self.born);
        // A beat of the agent before this one says nothing.
        let seen = self.liveness.seen(node.name()).filter(|seen| *seen >= since && state.agent.is_some());
        let known = Known { off: !wish.power, died: state.died, seen, since, grace: self.grace };
        let now = Instant::now();
        let ready = known.ready(now);
        self.write_ready(node, ready).await?;
        state.told = None;
        let silence = matches!(ready, Ready::True | Ready::AsIs).then(|| known.deadline());
        let start = state.rest_until.filter(|_| wish.power && state.agent.is_none());
        Ok(Next::Await {
            deadline: [silence, start].into_iter().flatten().min(),
            listen: matches!(ready, Ready::Unknown | Ready::AsIs) && wish.power,
        })
    }

    /// Writes the Ready condition if it says anything new.
    async fn write_ready(&self, node: &Object, ready: Ready) -> Result<(), Error> {
        let change = |node: &Object| condition::apply(node, ready, self.registry.now());
        self.write(node.name(), Part::Status, change).await
    }

    async fn set_finalizer(&self, name: &str, wanted: bool) -> Result<(), Error> {
        let change = |node: &Object| {
            let mut finalizers: Vec<&str> = node.finalizers();
            if finalizers.contains(&api::node::FINALIZER) == wanted {
                return None;
            }
            finalizers.retain(|it| *it != api::node::FINALIZER);
            if wanted {
                finalizers.push(api::node::FINALIZER);
            }
            let mut next = node.clone();
            match finalizers.is_empty() {
                true => next.remove("metadata.finalizers"),
                false => next.set("metadata.finalizers", serde_json::json!(finalizers)),
            }
            Some(next)
        };
        self.write(name, Part::Main, change).await
    }

    /// Gives a node the next free block of the cluster's addresses.
    async fn give_address(&self, name: &str) -> Result<(), Error> {
        let _alone = self.addresses.lock().await;
        let (_, nodes) = self.registry.store().list(Key::core("nodes", "", "").resource, None);
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for node in nodes.iter().map(store::Record::object) {
            taken.extend(node.get_str("spec.podCIDR").map(str::to_owned));
        }
        let mut blocks: Vec<Cidr> = taken.iter().filter_map(|text| text.parse().ok()).collect();
        blocks.extend([self.yard.pod_cidr, self.yard.service_cidr]);
        let free = next_block(self.yard.cluster_cidr, &blocks).ok_or_else(|| {
            Error::new(Kind::Conflict, format!("every /{BLOCK} of {} is taken", self.yard.cluster_cidr))
        })?;
        let change = |node: &Object| {
            let mut next = node.clone();
            next.set("spec.podCIDR", free.to_string());
            next.set("spec.podCIDRs", serde_json::json!([free.to_string()]));
            node.get_str("spec.podCIDR").is_none_or(str::is_empty).then_some(next)
        };
        self.write(name, Part::Main, change).await
    }

    /// Refuses a block that is not the cluster's, or that an older node has.
    fn check_addresses(&self, node: &Object, cidr: Cidr) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::new(Kind::Invalid, format!("spec.podCIDR: {cidr} {why}")));
        if node.is_deleting() {
            return Ok(());
        }
        if !self.yard.cluster_cidr.contains_all(cidr) {
            return invalid(format!("is not part of the cluster's {}", self.yard.cluster_cidr));
        }
        if cidr.overlaps(self.yard.service_cidr) || cidr.overlaps(self.yard.pod_cidr) {
            return invalid("overlaps the addresses of services or of the first node".into());
        }
        let (_, nodes) = self.registry.store().list(Key::core("nodes", "", "").resource, None);
        let age = |node: &Object| (node.creation_timestamp(), node.name().to_owned());
        for other in nodes.iter().map(store::Record::object).filter(|other| age(other) < age(node)) {
            if let Ok(Some(theirs)) = agent::pod_cidr(&other)
                && theirs.overlaps(cidr)
            {
                return invalid(format!("overlaps node {}'s {theirs}", other.name()));
            }
        }
        Ok(())
    }

    /// Changes a node's object until nobody comes between.
    async fn write(
        &self,
        name: &str,
        part: Part,
        change: impl Fn(&Object) -> Option<Object>,
    ) -> Result<(), Error> {
        let key = Key::core("nodes", "", name);
        let options = WriteOptions { field_manager: COMPONENT.into(), ..WriteOptions::default() };
        let mut conflict = None;
        for _ in 0..ATTEMPTS_MAX {
            let node = match self.registry.get(&key) {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                other => other?,
            };
            let Some(next) = change(&node) else { return Ok(()) };
            match self.registry.update(&key, next.0, part, &options).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) if error.kind() == Kind::Conflict => conflict = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(conflict.unwrap_or_else(|| Error::modified(&key)))
    }

    async fn set_cut(&self, name: &str, cut: bool, state: &mut State) -> node::Result<()> {
        if state.cut == Some(cut) {
            return Ok(());
        }
        let outcome = match cut {
            true => network::cut(&self.yard, name).await?,
            false => network::heal(&self.yard, name).await?,
        };
        if outcome == netns::Outcome::Changed {
            info!(node = name, "{}", if cut { "cut" } else { "healed" });
        }
        state.cut = Some(cut);
        Ok(())
    }

    async fn kill(&self, yard: &Yard) -> node::Result<(fence::Killed, Duration)> {
        let (yard, hierarchies) = (yard.clone(), Arc::clone(&self.hierarchies));
        let now = api::time::micros(self.registry.now());
        let begun = Instant::now();
        let killed = blocking(move || fence::kill(&hierarchies, &yard, &now)).await?;
        Ok((killed, begun.elapsed()))
    }

    /// The fence itself, under the node's lock.
    pub(super) async fn fence_locked(&self, name: &str, state: &mut State) -> Result<Fenced, Error> {
        // Nothing ever ran under a name that no node can have.
        if !node::yard::is_node_name(name) {
            let nothing = fence::Killed { time: String::new(), processes: 0, waited_micros: Some(0) };
            let yard = Yard { node: name.into(), ..self.yard.clone() };
            return fence::release(&self.registry, &yard, &nothing).await;
        }
        let yard = self.yard.of_node(name, self.yard.pod_cidr);
        let (killed, took) = self.kill(&yard).await.map_err(|error| to_api(&error))?;
        self.fabric.forget(&yard.node);
        state.agent = None;
        state.made = false;
        state.rest_until = None;
        let mut fenced = fence::release(&self.registry, &yard, &killed).await?;
        fenced.kill_micros = took.as_micros();
        Ok(fenced)
    }

    /// Removes everything of a node on which nothing runs, then its object.
    async fn remove(&self, yard: &Yard, node: Option<&Object>, state: &mut State) -> Result<(), Error> {
        let internal = |error: node::Error| to_api(&error);
        network::remove_node(&self.yard, &yard.node).await.map_err(internal)?;
        let gone = yard.clone();
        blocking(move || node::purge::remove_places(&gone)).await.map_err(internal)?;
        self.liveness.forget(&yard.node);
        self.fabric.forget(&yard.node);
        *state = State::default();
        info!(node = yard.node, "the node is removed");
        match node {
            Some(_) => self.set_finalizer(&yard.node, false).await,
            None => Ok(()),
        }
    }

    /// Tells people what was fenced, with the proof.
    pub(super) async fn tell_of_fence(&self, node: Option<Object>, fenced: Fenced) {
        let Fenced { claims, pods, kill_micros, claims_micros, pods_micros } = fenced;
        if claims.is_empty() && pods.is_empty() {
            return;
        }
        if let Some(node) = node {
            let text = format!(
                "nothing of it runs: {} claims released, {} pods removed ({kill_micros} µs to kill and see it empty, \
                 {claims_micros} µs for claims, {pods_micros} µs for pods)",
                claims.len(),
                pods.len(),
            );
            self.event(node, true, "Fenced", text).await;
        }
        for pod in pods {
            let of_pod = claims.iter().filter(|(_, proof)| proof.holder == pod.uid());
            let released: Vec<String> =
                of_pod.map(|(claim, proof)| format!("claim {}: {}", claim.name(), proof.summary())).collect();
            let node = pod.get_str("spec.nodeName").unwrap_or("");
            let text = match released.is_empty() {
                true => format!("nothing of it runs: node {node} is fenced"),
                false => format!("nothing of it runs: node {node} is fenced; {}", released.join("; ")),
            };
            self.event(pod, true, "Fenced", text).await;
        }
        for (claim, proof) in claims {
            self.event(claim, true, "Fenced", format!("released: {}", proof.summary())).await;
        }
    }

    /// Tells people what keeps a node from being as wished; once, until it changes.
    pub(super) async fn complain(&self, name: &str, state: &mut State, error: &Error) {
        warn!(node = name, error = %error.message, "tend the node");
        if state.told.as_deref() == Some(&error.message) {
            return;
        }
        state.told = Some(error.message.clone());
        if let Ok(node) = self.registry.get(&Key::core("nodes", "", name)) {
            self.event(node, false, "NodeFailed", error.message.clone()).await;
        }
    }

    async fn event(&self, about: Object, normal: bool, reason: &'static str, message: String) {
        let event = node::host::Event { about: Arc::new(about), normal, reason, message };
        if let Err(error) = upstream::write_event(&*self.registry, &event, &self.yard.node).await {
            warn!(reason, error = %error.message, "write an Event");
        }
    }
}

/// Whether this node is, or was until its finalizer goes, made by a manager.
pub(super) fn is_ours(node: &Object) -> bool {
    api::node::is_managed(node) || node.finalizers().contains(&api::node::FINALIZER)
}

/// The first block of the cluster's addresses that overlaps none of those.
fn next_block(cluster: Cidr, taken: &[Cidr]) -> Option<Cidr> {
    let prefix = BLOCK.max(cluster.prefix());
    let size = 1_u32.checked_shl(32 - u32::from(prefix))?;
    let blocks = (0..).map_while(|n: u32| cluster.nth(n.checked_mul(size)?));
    let mut blocks = blocks.filter_map(|network| Cidr::new(network, prefix).ok());
    blocks.find(|block| !taken.iter().any(|other| other.overlaps(*block)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_given_in_order() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let next = |cluster: &str, taken: &[&str]| {
            let taken: Vec<Cidr> = taken.iter().map(|text| cidr(text)).collect();
            next_block(cidr(cluster), &taken).map(|block| block.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(next("10.244.0.0/16", &["10.244.0.0/24"]), some("10.244.1.0/24"));
        assert_eq!(next("10.244.0.0/16", &["10.244.0.0/24", "10.244.1.128/25"]), some("10.244.2.0/24"));
        assert_eq!(next("10.244.0.0/23", &["10.244.0.0/24", "10.244.1.0/24"]), None);
        assert_eq!(next("10.0.0.0/25", &[]), some("10.0.0.0/25"));
    }
}
