//! One pod on this host: look at what is there, and do one step.
//!
//! Nothing here decides; [`crate::plan`] does. Each step is idempotent and may be repeated after a crash at any
//! point of it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::{Key, Object};
use jiff::Timestamp;
use netns::{Namespace, PodNet};
use nix::sys::signal::Signal;
use rootfs::{Access, Image, RootPlan};
use runtime::cgroup::Cgroup;
use serde_json::Value;
use shim::protocol::{ContainerId, Create, PodState, Reply, Setup, Status, Target, Verb};
use tokio::sync::Notify;

use crate::boot::{create_dir, write_atomically};
use crate::desired::Desired;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::hold;
use crate::hook;
use crate::host::{Host, blocking, from_api, from_netns, from_rootfs, from_runtime};
use crate::observed::{Attempt, Exit, ExitReason, Observed, PreStop, Shim, State, Volumes};
use crate::plan::{Run, Step};
use crate::record::{self, Book, Record, timestamp};
use crate::shim_client::{ShimClient, from_shim, unexpected};
use crate::spec::{self, Input};
use crate::status::container_id;
use crate::volumes;
use crate::yard::PodPaths;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// What one step did to the kernel, for the journal.
#[derive(Clone, Debug)]
pub struct Effect {
    /// In words.
    pub what: String,
    /// How long that part took, where it was measured by itself.
    pub took: Option<Duration>,
}

impl From<String> for Effect {
    fn from(what: String) -> Effect {
        Effect { what, took: None }
    }
}

/// One pod on this host. Its worker alone changes it.
pub struct Pod {
    host: Arc<Host>,
    paths: PodPaths,
    book: Mutex<Book>,
    shim: tokio::sync::Mutex<Option<ShimClient>>,
    /// Rung when something happened to the pod that a look may show.
    pub bell: Arc<Notify>,
    marks: Mutex<BTreeMap<(String, u32), Marks>>,
    /// Roots from `prepare` until `create` takes them.
    roots: Mutex<BTreeMap<Run, (Image, RootPlan)>>,
}

/// What this daemon did to a run and need not survive it.
#[derive(Clone, Copy, Default, Debug)]
struct Marks {
    pre_stop: PreStop,
    term_sent: bool,
    unhealthy_since: Option<Timestamp>,
}

impl Pod {
    /// Reads what is on record of the pod with this uid.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn load(host: Arc<Host>, uid: &str) -> Result<Pod> {
        let paths = host.yard.pod(uid);
        let book = Book::load(paths.clone())?;
        if book.record().is_some() {
            host.journal.adopt(uid, &paths.trace_file());
        }
        Ok(Pod {
            host,
            paths,
            book: Mutex::new(book),
            shim: tokio::sync::Mutex::new(None),
            bell: Arc::new(Notify::new()),
            marks: Mutex::default(),
            roots: Mutex::default(),
        })
    }

    /// The record, if there is one.
    pub fn record(&self) -> Option<Record> {
        self.book().record().cloned()
    }

    /// Where its things are.
    pub fn paths(&self) -> &PodPaths {
        &self.paths
    }

    /// The node's shared parts.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// A probe gave this run up.
    pub fn mark_unhealthy(&self, container: &str, attempt: u32) {
        self.marks()
            .entry((container.to_owned(), attempt))
            .or_default()
            .unhealthy_since
            .get_or_insert(Timestamp::now());
        self.bell.notify_one();
    }

    /// Looks at what is there. Reads the shim, the cgroup and the record; changes nothing.
    ///
    /// # Errors
    /// What cannot be read; never a guess.
    pub async fn observe(&self) -> Result<Observed> {
        let directory = self.paths.dir.exists();
        let Some(record) = self.record() else { return Ok(Observed { directory, ..Observed::default() }) };
        let state = if record.shim { self.shim_state().await? } else { None };
        let cgroup = self.host.cgroup(&self.paths.cgroup())?;
        let attempts = self.attempts(state.as_ref())?;
        let shim = match (&state, record.shim) {
            (Some(state), _) => Shim::Alive { set_up: record.network && !state.namespaces.is_empty() },
            (None, true) => Shim::Dead,
            (None, false) => Shim::Absent,
        };
        Ok(Observed {
            directory,
            recorded: true,
            cgroups: cgroup.exists() && self.host.cgroup(&self.paths.shim_cgroup())?.exists(),
            populated: cgroup.populated().map_err(from_runtime)?,
            volumes: record.volumes,
            link: record.network,
            snapshots: attempts.values().flatten().any(|attempt| !attempt.deleted),
            shim,
            attempts,
        })
    }

    /// Does one step.
    ///
    /// # Errors
    /// What went wrong, under Kubernetes' word for it where it has one.
    pub async fn apply(
        self: &Arc<Self>,
        step: &Step,
        pod: &Arc<Object>,
        desired: &Desired,
    ) -> Result<Vec<Effect>> {
        match step {
            Step::Record => self.open_record(pod, desired),
            Step::Cgroups => self.make_cgroups(),
            Step::Volumes => self.prepare_volumes(pod).await,
            Step::Shim => self.start_shim().await,
            Step::Network => self.make_network(pod, desired).await,
            Step::Prepare(run) => self.prepare(run, pod).await,
            Step::Create(run) => self.create(run, pod).await,
            Step::Start(run) => self.start(run).await,
            Step::PreStop(run) => Ok(self.pre_stop(run, pod)),
            Step::TerminateContainer(run) => self.terminate(run, pod).await,
            Step::KillContainer(run) => self.kill(run).await,
            Step::Terminate => self.terminate_all(pod).await,
            Step::Kill => self.kill_all().await,
            Step::DeleteContainer(run) => self.delete(run).await,
            Step::ShutdownShim => self.shut_down_shim().await,
            Step::Fence => self.fence().await,
            Step::Bury => self.bury().await,
            Step::Detach => self.detach(desired).await,
            Step::RemoveCgroups => self.remove_cgroups(),
            Step::RemoveSnapshots => self.remove_snapshots().await,
            Step::RemoveVolumes => self.remove_volumes().await,
            Step::Unrecord => self.unrecord(desired).await,
            Step::Finish => self.finish(desired).await,
        }
    }

    /// The shim's connection, if it is alive.
    ///
    /// # Errors
    /// What is neither an answer nor a refused connection.
    pub async fn shim(&self) -> Result<Option<ShimClient>> {
        let mut slot = self.shim.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Some(client.clone()));
        }
        *slot = None;
        let (client, mut events) = match ShimClient::connect(&self.paths.dir).await {
            Ok(connected) => connected,
            // Nobody listens, or whoever did died while it answered. One that is about to listen holds the lock.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Busy) => {
                if shim::spawn::is_alive(&self.paths.dir).map_err(from_shim)? {
                    return Err(Error::with(Kind::Busy, "the shim lives and does not answer", error));
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        client.subscribe().await?;
        let bell = Arc::clone(&self.bell);
        tokio::spawn(async move {
            while events.recv().await.is_some() {
                bell.notify_one();
            }
            // It hung up: that is news too.
            bell.notify_one();
        });
        *slot = Some(client.clone());
        Ok(Some(client))
    }

    async fn shim_state(&self) -> Result<Option<PodState>> {
        // Twice: a connection may break just before the shim is seen to be dead.
        for _ in 0..2 {
            let Some(client) = self.shim().await? else { return Ok(None) };
            match client.state().await {
                Ok(state) => return Ok(Some(state)),
                Err(error) if error.kind() == Kind::Busy && client.is_closed() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn live_shim(&self) -> Result<ShimClient> {
        self.shim().await?.ok_or_else(|| Error::new(Kind::Busy, "the pod's shim is gone"))
    }

    fn attempts(&self, state: Option<&PodState>) -> Result<BTreeMap<String, Vec<Attempt>>> {
        let mut book = self.book();
        let marks = self.marks();
        let mut all = BTreeMap::new();
        for (container, runs) in book.runs().clone() {
            let mut attempts = Vec::new();
            for (number, run) in runs {
                let known = state.and_then(|state| {
                    state
                        .containers
                        .iter()
                        .find(|known| known.container.name == container && known.container.attempt == number)
                });
                let state = match known.map(|known| (&known.status, known)) {
                    Some((Status::Exited(exit), _)) => State::Exited(record::exit_of(exit)),
                    Some((Status::Running, known)) => State::Running {
                        pid: known.process.as_ref().map_or(0, |process| process.pid),
                        started_at: known.started_at_ns.map_or(Timestamp::UNIX_EPOCH, timestamp),
                    },
                    Some((Status::Created, _)) => State::Created,
                    Some((Status::Creating, _)) => State::Recorded,
                    None => match book.exit(&container, number)? {
                        Some(exit) => State::Exited(exit),
                        None => State::Recorded,
                    },
                };
                let mark = marks.get(&(container.clone(), number)).copied().unwrap_or_default();
                attempts.push(Attempt {
                    number,
                    state,
                    pre_stop: mark.pre_stop,
                    term_sent: mark.term_sent,
                    unhealthy_since: mark.unhealthy_since,
                    deleted: run.deleted,
                    image_id: run.image_id,
                });
            }
            all.insert(container, attempts);
        }
        Ok(all)
    }

    fn open_record(&self, pod: &Object, desired: &Desired) -> Result<Vec<Effect>> {
        let mut book = self.book();
        book.open(Record {
            namespace: desired.namespace.clone(),
            name: desired.name.clone(),
            uid: desired.uid.clone(),
            node: self.host.node.clone(),
            pod_ip: desired.pod_ip,
            ..Record::default()
        })?;
        // Runs of another boot, which only the API remembers: they count, and are not repeated where they must not.
        for status in pod.get_array("status.containerStatuses") {
            let (Some(name), Some(id)) = (status["name"].as_str(), status["containerID"].as_str()) else {
                continue;
            };
            let number = status["restartCount"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            if book.runs().contains_key(name) || id != container_id(&desired.uid, name, number) {
                continue;
            }
            let run = record::Run {
                image_id: status["imageID"].as_str().unwrap_or("").to_owned(),
                started: true,
                deleted: true,
                ended: Some(ended(status)),
                ..record::Run::default()
            };
            book.write_run(name, number, run)?;
        }
        let files = self.paths.files_dir();
        write_atomically(&files.join("hosts"), files::hosts(pod).as_bytes())?;
        write_atomically(&files.join("hostname"), format!("{}\n", crate::env::hostname(pod)).as_bytes())?;
        let resolv = files::resolv_conf(pod, &self.host.nameservers, &self.host.resolv());
        write_atomically(&files.join("resolv.conf"), resolv.as_bytes())?;
        for file in ["hosts", "hostname", "resolv.conf"] {
            make_readable(&files.join(file))?;
        }
        Ok(vec![
            format!("mkdir({}); write pod.json, hosts, hostname, resolv.conf", self.paths.dir.display())
                .into(),
        ])
    }

    fn make_cgroups(&self) -> Result<Vec<Effect>> {
        let paths = [self.paths.cgroup(), self.paths.shim_cgroup()];
        paths
            .into_iter()
            .map(|path| {
                Cgroup::create_in(&self.host.hierarchies, &path).map_err(from_runtime)?;
                Ok(format!("mkdir(cgroup {path})").into())
            })
            .collect()
    }

    async fn prepare_volumes(&self, pod: &Object) -> Result<Vec<Effect>> {
        self.book().change(|record| record.volumes = Volumes::Partial)?;
        let held = hold::wanted(&self.host, pod).await?;
        self.book().change(|record| record.held.clone_from(&held))?;
        hold::hold(&self.host, pod, &held).await?;
        let mut effects: Vec<Effect> =
            held.iter().map(|held| format!("hold claim {} ({})", held.claim, held.uid).into()).collect();
        let prepared = volumes::prepare(&self.host, pod, &self.paths).await?;
        effects.extend(prepared.into_iter().map(Effect::from));
        self.book().change(|record| record.volumes = Volumes::Ready)?;
        Ok(effects)
    }

    async fn start_shim(&self) -> Result<Vec<Effect>> {
        self.book().change(|record| record.shim = true)?;
        if self.shim().await?.is_none() {
            let host = Arc::clone(&self.host);
            let paths = self.paths.clone();
            blocking(move || {
                let request = shim::spawn::SpawnRequest {
                    program: &host.program,
                    pod_dir: &paths.dir,
                    pod_uid: paths.uid(),
                    cgroup: &paths.shim_cgroup(),
                };
                shim::spawn::spawn(&request).map_err(from_shim)
            })
            .await?;
        }
        let client = self.live_shim().await?;
        Ok(vec![
            format!(
                "clone3(CLONE_INTO_CGROUP {}): shim pid {}",
                self.paths.shim_cgroup(),
                client.process().pid
            )
            .into(),
        ])
    }

    async fn make_network(&self, pod: &Object, desired: &Desired) -> Result<Vec<Effect>> {
        let Some(address) = desired.pod_ip else {
            return Err(Error::new(Kind::Busy, "the pod has no address yet").reason("ContainerCreating"));
        };
        let client = self.live_shim().await?;
        let set_up = !client.state().await?.namespaces.is_empty();
        let kept = if set_up { self.network_namespace(&client).await? } else { None };
        self.book().change(|record| {
            record.network = true;
            record.pod_ip = Some(address);
        })?;
        let wish = PodNet {
            link: self.paths.link(),
            owner: self.paths.uid().to_owned(),
            address,
            mtu: self.host.network.net().mtu,
            group: 0,
        };
        let network = Arc::clone(&self.host.network);
        let (namespace, mut effects) = blocking(move || {
            let begun = Instant::now();
            let mut effects = Vec::new();
            let namespace = match kept {
                Some(namespace) => namespace,
                None => Namespace::create().map_err(from_netns)?,
            };
            let inode = namespace.inode().map_err(from_netns)?;
            effects.push(Effect {
                what: format!("unshare(CLONE_NEWNET): net:[{inode}]"),
                took: Some(begun.elapsed()),
            });
            let (_, steps) = network.attach(&wish, &namespace).map_err(from_netns)?;
            effects.extend(steps.into_iter().map(|step| Effect { what: step.effect, took: Some(step.took) }));
            Ok((namespace, effects))
        })
        .await?;
        let share_pid = pod.get_bool("spec.shareProcessNamespace") == Some(true);
        let setup = Setup {
            hostname: crate::env::hostname(pod),
            share_pid,
            pause_cgroup: if share_pid { self.paths.container_cgroup("pause", 0) } else { String::new() },
            ..Setup::default()
        };
        let begun = Instant::now();
        match client.call(Verb::Setup(setup), vec![OwnedFd::from(namespace)]).await? {
            (Reply::State(state), _) => {
                let names: Vec<String> =
                    state.namespaces.iter().map(|ns| format!("{}:[{}]", ns.kind, ns.inode)).collect();
                let what = format!("shim: unshare(CLONE_NEWUTS|CLONE_NEWIPC), holds {}", names.join(" "));
                effects.push(Effect { what, took: Some(begun.elapsed()) });
                Ok(effects)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The network namespace that the shim holds.
    async fn network_namespace(&self, client: &ShimClient) -> Result<Option<Namespace>> {
        let (reply, fds) = client.call(Verb::Namespaces, vec![]).await?;
        let Reply::Namespaces(names) = reply else { return Err(unexpected(&reply)) };
        let found = names.iter().zip(fds).find(|(name, _)| name.kind == "net");
        found.map(|(_, fd)| Namespace::from_fd(fd).map_err(from_netns)).transpose()
    }

    async fn image(&self, container: &Value) -> Result<Image> {
        let reference = container["image"].as_str().unwrap_or("").to_owned();
        if reference.is_empty() || reference.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let text = format!("couldn't parse image name {reference:?}: invalid reference format");
            return Err(Error::new(Kind::Invalid, text).reason("InvalidImageName"));
        }
        let never = container["imagePullPolicy"] == "Never";
        let host = Arc::clone(&self.host);
        blocking(move || {
            rootfs::image::ensure(&host.yard.images_dir(), &reference, &host.toolbox).map_err(|error| {
                let missing =
                    error.kind() == rootfs::Kind::NotFound && !rootfs::image::is_built_in(&reference);
                let reason = match (missing, never) {
                    (true, true) => "ErrImageNeverPull",
                    (true, false) => "ErrImagePull",
                    (false, _) => "CreateContainerError",
                };
                from_rootfs(error).reason(reason)
            })
        })
        .await
    }

    /// The image, and the writable layer over it. The second time it is the same.
    async fn root(&self, run: &Run, container: &Value) -> Result<(Image, RootPlan)> {
        let image = self.image(container).await?;
        let read_only = container["securityContext"]["readOnlyRootFilesystem"] == true;
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let key = self.paths.snapshot(&run.container, run.attempt);
        let plan = self.host.snapshots.prepare(&key, &image, access);
        let plan = plan.map_err(|error| from_rootfs(error).reason("CreateContainerError"))?;
        Ok((image, plan))
    }

    async fn prepare(&self, run: &Run, pod: &Object) -> Result<Vec<Effect>> {
        let container = container(pod, &run.container)?;
        // Before its layer is made: the name by which a collector finds it.
        let begun = record::Run::default();
        let known = self.book().runs().get(&run.container).and_then(|runs| runs.get(&run.attempt)).cloned();
        self.book().write_run(&run.container, run.attempt, known.unwrap_or(begun))?;
        let (image, plan) = self.root(run, container).await?;
        self.change_run(run, |known| known.image_id.clone_from(&image.id))?;
        let log = self.log_path(pod, run);
        if let Some(dir) = log.parent() {
            create_dir(dir, 0o755)?;
            let pod_dir = self.host.yard.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
            if !self.host.yard.owns(&pod_dir) {
                self.host.yard.write_mark(&pod_dir)?;
            }
        }
        let lower: usize = plan.layers.iter().map(|layer| layer.lower.len()).sum();
        let key = self.paths.snapshot(&run.container, run.attempt);
        let image_id = image.id.clone();
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), (image, plan));
        let what =
            format!("image {image_id}: {lower} read-only layers; mkdir upper and work of snapshot {key}");
        Ok(vec![what.into()])
    }

    async fn create(&self, run: &Run, pod: &Object) -> Result<Vec<Effect>> {
        let wish = container(pod, &run.container)?;
        let prepared = self.roots.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
        let (image, root) = match prepared {
            Some(prepared) => prepared,
            None => self.root(run, wish).await?,
        };
        let cgroup = self.paths.container_cgroup(&run.container, run.attempt);
        let address = self.host.address.to_string();
        let spec = spec::spec(&Input {
            pod,
            container: wish,
            image: &image.config,
            host_ip: &address,
            services: &self.host.links.of(pod),
            cgroup: &cgroup,
            bounding: self.host.bounding,
        })?;
        let spec = serde_json::to_value(&spec)
            .map_err(|error| Error::with(Kind::Internal, "encode runtime spec", error))?;
        let create = Create {
            container: id(run),
            spec,
            root,
            volumes: volumes::mounts(&self.host, pod, wish, &self.paths).await?,
            cgroup,
            log: self.log_path(pod, run),
            deadline_ms: 0,
        };
        let refused = |error: Error| error.reason("CreateContainerError");
        match self.live_shim().await?.call(Verb::Create(Box::new(create)), vec![]).await.map_err(refused)? {
            (Reply::Created { process, steps }, _) => {
                let mut effects: Vec<Effect> = steps
                    .into_iter()
                    .map(|step| Effect { what: step.what, took: Some(Duration::from_micros(step.micros)) })
                    .collect();
                effects.push(format!("pid {} waits for start", process.pid).into());
                Ok(effects)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn start(&self, run: &Run) -> Result<Vec<Effect>> {
        // From here on it counts as a run, whatever this daemon sees of it.
        self.change_run(run, |known| known.started = true)?;
        let refused = |error: Error| error.reason("RunContainerError");
        self.live_shim().await?.call(Verb::Start(id(run)), vec![]).await.map_err(refused)?;
        Ok(vec![format!("execve in {}", self.paths.container_cgroup(&run.container, run.attempt)).into()])
    }

    /// Lets the hook before the end run by itself; its end rings the bell.
    fn pre_stop(self: &Arc<Self>, run: &Run, object: &Arc<Object>) -> Vec<Effect> {
        self.mark_pre_stop(run, PreStop::Called);
        let (pod, object, of) = (Arc::clone(self), Arc::clone(object), run.clone());
        tokio::spawn(async move {
            hook::pre_stop(&pod, &object, &of).await;
            pod.mark_pre_stop(&of, PreStop::Over);
            pod.bell.notify_one();
        });
        vec![format!("preStop hook of {}", id(run)).into()]
    }

    fn mark_pre_stop(&self, run: &Run, to: PreStop) {
        let mut marks = self.marks();
        let mark = marks.entry((run.container.clone(), run.attempt)).or_default();
        if mark.pre_stop != PreStop::CutOff {
            mark.pre_stop = to;
        }
    }

    /// Whether the hook after the start of a run was called.
    pub fn post_started(&self, run: &Run) -> bool {
        let book = self.book();
        let known = book.runs().get(&run.container).and_then(|runs| runs.get(&run.attempt));
        known.is_some_and(|known| known.post_started)
    }

    /// The hook after the start of a run was called, and need not be again.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn mark_post_started(&self, run: &Run) -> Result<()> {
        self.change_run(run, |known| known.post_started = true)
    }

    async fn terminate(&self, run: &Run, pod: &Object) -> Result<Vec<Effect>> {
        let client = self.live_shim().await?;
        let created = client.state().await?.containers.into_iter().any(|known| {
            known.container == id(run) && matches!(known.status, Status::Created | Status::Creating)
        });
        // One that waits to be started has no handler to end it.
        let (target, signal) = if created {
            (Target::Cgroup(id(run)), SIGKILL)
        } else {
            (Target::Container(id(run)), stop_signal(pod, run))
        };
        client.call(Verb::Kill { target, signal }, vec![]).await?;
        let mut marks = self.marks();
        let mark = marks.entry((run.container.clone(), run.attempt)).or_default();
        mark.term_sent = true;
        if mark.pre_stop == PreStop::Called {
            mark.pre_stop = PreStop::CutOff;
        }
        drop(marks);
        Ok(vec![format!("pidfd_send_signal({}, {signal})", id(run)).into()])
    }

    async fn kill(&self, run: &Run) -> Result<Vec<Effect>> {
        let kill = Verb::Kill { target: Target::Cgroup(id(run)), signal: SIGKILL };
        self.live_shim().await?.call(kill, vec![]).await?;
        Ok(vec![
            format!("cgroup.kill of {}", self.paths.container_cgroup(&run.container, run.attempt)).into(),
        ])
    }

    /// The runs that have not ended, as the shim sees them.
    async fn living(&self) -> Result<Vec<Run>> {
        let state = self.live_shim().await?.state().await?;
        let living = state.containers.into_iter().filter(|known| !matches!(known.status, Status::Exited(_)));
        Ok(living
            .map(|known| Run { container: known.container.name, attempt: known.container.attempt })
            .collect())
    }

    async fn terminate_all(&self, pod: &Object) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        for run in self.living().await? {
            effects.extend(self.terminate(&run, pod).await?);
        }
        Ok(effects)
    }

    async fn kill_all(&self) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        for run in self.living().await? {
            effects.extend(self.kill(&run).await?);
        }
        Ok(effects)
    }

    async fn delete(&self, run: &Run) -> Result<Vec<Effect>> {
        if let Some(client) = self.shim().await? {
            client.call(Verb::Delete(id(run)), vec![]).await?;
        }
        let path = self.paths.container_cgroup(&run.container, run.attempt);
        self.host.cgroup(&path)?.remove().map_err(from_runtime)?;
        let key = self.paths.snapshot(&run.container, run.attempt);
        let snapshots = self.host.snapshots.clone();
        let removed = key.clone();
        blocking(move || snapshots.remove(&removed).map_err(from_rootfs)).await?;
        let ended = self.book().exit(&run.container, run.attempt)?.is_some();
        if ended {
            self.change_run(run, |known| known.deleted = true)?;
        } else {
            // It never ran: the next one may have its number.
            self.book().forget_run(&run.container, run.attempt)?;
        }
        self.marks().remove(&(run.container.clone(), run.attempt));
        Ok(vec![format!("rmdir(cgroup {path}); remove snapshot {key}").into()])
    }

    async fn shut_down_shim(&self) -> Result<Vec<Effect>> {
        if let Some(client) = self.shim().await? {
            match client.call(Verb::Shutdown, vec![]).await {
                Ok(_) => {}
                // It hung up: that was the wish.
                Err(error) if client.is_closed() => tracing::debug!(%error, "shutdown of shim"),
                Err(error) => return Err(error),
            }
        }
        *self.shim.lock().await = None;
        Ok(vec!["shim exits; its namespaces have no holder".to_owned().into()])
    }

    async fn fence(&self) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        for path in [self.paths.shim_cgroup(), self.paths.cgroup()] {
            self.host.fence(&path).await?;
            effects.push(format!("cgroup {path}: populated 0").into());
        }
        *self.shim.lock().await = None;
        Ok(effects)
    }

    async fn bury(&self) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        let mut book = self.book();
        for (container, runs) in book.runs().clone() {
            for (number, run) in runs {
                if !run.started || book.exit(&container, number)?.is_some() {
                    continue;
                }
                effects.push(format!("{container}.{number}: ContainerStatusUnknown").into());
                let ended = Some(Exit::unknown(None, Timestamp::now()));
                book.write_run(&container, number, record::Run { ended, ..run })?;
            }
        }
        crate::boot::remove_file(&self.paths.shim_socket())?;
        book.change(|record| record.shim = false)?;
        effects.push("the shim is gone".to_owned().into());
        Ok(effects)
    }

    async fn detach(&self, desired: &Desired) -> Result<Vec<Effect>> {
        let address = self.record().and_then(|record| record.pod_ip).or(desired.pod_ip);
        let link = self.paths.link();
        let attachment =
            netns::Attachment { link: link.clone(), owner: Some(self.paths.uid().to_owned()), address };
        self.host.detacher.detach(attachment).await?;
        self.book().change(|record| record.network = false)?;
        Ok(vec![format!("RTM_DELLINK({link}), RTM_DELROUTE({address:?})").into()])
    }

    fn remove_cgroups(&self) -> Result<Vec<Effect>> {
        let paths = [self.paths.cgroup(), self.paths.shim_cgroup()];
        let mut outcome = Ok(());
        for path in &paths {
            outcome = outcome.and(self.host.cgroup(path)?.remove().map_err(from_runtime));
        }
        outcome?;
        Ok(paths.into_iter().map(|path| format!("rmdir(cgroup {path})").into()).collect())
    }

    async fn remove_snapshots(&self) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        let runs = self.book().runs().clone();
        for (container, runs) in runs {
            for (number, _) in runs.into_iter().filter(|(_, run)| !run.deleted) {
                let run = Run { container: container.clone(), attempt: number };
                let key = self.paths.snapshot(&container, number);
                let snapshots = self.host.snapshots.clone();
                let removed = key.clone();
                blocking(move || snapshots.remove(&removed).map_err(from_rootfs)).await?;
                self.change_run(&run, |known| known.deleted = true)?;
                effects.push(format!("remove snapshot {key}").into());
            }
        }
        Ok(effects)
    }

    async fn remove_volumes(&self) -> Result<Vec<Effect>> {
        let Some(record) = self.record() else { return Ok(vec![]) };
        self.book().change(|record| record.volumes = Volumes::Partial)?;
        let mut effects = Vec::new();
        for held in &record.held {
            hold::let_go(&self.host, &record.namespace, &record.uid, held).await?;
            effects.push(format!("let claim {} go", held.claim).into());
        }
        let paths = self.paths.clone();
        blocking(move || volumes::remove(&paths)).await?;
        effects.push("unmount tmpfs volumes; remove emptyDirs".to_owned().into());
        self.book().change(|record| {
            record.held.clear();
            record.volumes = Volumes::None;
        })?;
        Ok(effects)
    }

    async fn unrecord(&self, desired: &Desired) -> Result<Vec<Effect>> {
        let logs = self.host.yard.pod_log_dir(&desired.namespace, &desired.name, &desired.uid);
        if self.host.yard.owns(&logs) {
            crate::boot::remove_tree(&logs)?;
        }
        self.book().remove()?;
        Ok(vec![format!("rmdir({})", self.paths.dir.display()).into()])
    }

    async fn finish(&self, desired: &Desired) -> Result<Vec<Effect>> {
        let key = Key::core("pods", &*desired.namespace, &*desired.name);
        match self.host.upstream.removed(key, desired.uid.clone()).await {
            Err(error) if error.kind() == api::Kind::NotFound => {}
            other => other.map_err(from_api)?,
        }
        Ok(vec![format!("delete pod {} ({}), grace period 0", desired.display_name(), desired.uid).into()])
    }

    fn change_run(&self, run: &Run, change: impl FnOnce(&mut record::Run)) -> Result<()> {
        let mut book = self.book();
        let known = book.runs().get(&run.container).and_then(|runs| runs.get(&run.attempt)).cloned();
        let mut known = known.unwrap_or_default();
        change(&mut known);
        book.write_run(&run.container, run.attempt, known)
    }

    fn log_path(&self, pod: &Object, run: &Run) -> std::path::PathBuf {
        let name = (pod.namespace(), pod.name(), pod.uid());
        self.host.yard.container_log(name, &run.container, run.attempt)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is whole before the lock is released.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, BTreeMap<(String, u32), Marks>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shim's name of a run.
pub fn id(run: &Run) -> ContainerId {
    ContainerId { name: run.container.clone(), attempt: run.attempt }
}

/// The entry of a container in its pod's spec.
///
/// # Errors
/// `NotFound`.
pub fn container<'a>(pod: &'a Object, name: &str) -> Result<&'a Value> {
    pod.get_array("spec.containers")
        .iter()
        .chain(pod.get_array("spec.initContainers"))
        .find(|container| container["name"] == name)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("container {name}")))
}

/// What asks a container to end: `lifecycle.stopSignal`, or SIGTERM.
fn stop_signal(pod: &Object, run: &Run) -> i32 {
    let wish =
        container(pod, &run.container).ok().and_then(|entry| entry["lifecycle"]["stopSignal"].as_str());
    wish.and_then(|name| name.parse::<Signal>().ok()).map_or(SIGTERM, |signal| signal as i32)
}

/// How a run of another boot ended, as far as its status tells.
fn ended(status: &Value) -> Exit {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let state = &status["state"];
    let terminated = state.get("terminated").or_else(|| status["lastState"].get("terminated"));
    // A run that was going on ended with its boot.
    let Some(terminated) = terminated.filter(|_| state.get("running").is_none()) else {
        return Exit::unknown(time(&state["running"]["startedAt"]), Timestamp::now());
    };
    let code = terminated["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(137);
    let reason = match terminated["reason"].as_str() {
        Some("Completed") => ExitReason::Completed,
        Some("OOMKilled") => ExitReason::OomKilled,
        Some("ContainerStatusUnknown") => ExitReason::ContainerStatusUnknown,
        _ => ExitReason::Error,
    };
    Exit {
        code,
        signal: terminated["signal"].as_i64().and_then(|signal| i32::try_from(signal).ok()).unwrap_or(0),
        reason,
        started_at: time(&terminated["startedAt"]),
        finished_at: time(&terminated["finishedAt"]).unwrap_or_else(Timestamp::now),
    }
}

/// Whoever runs in the container may read it, whatever our umask.
fn make_readable(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
        .map_err(|error| Error::io(format!("chmod 644 {}", path.display()), error))
}
