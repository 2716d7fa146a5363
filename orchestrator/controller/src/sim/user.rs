//! Simulated people: what they ask for, and how they change their minds.

use api::{Key, Object, Part, resource_for_kind};
use rand::Rng;
use registry::{DeleteOptions, PatchKind, Propagation, WriteOptions};
use serde_json::{Value, json};
use store::Store;

use super::agent::outcome;
use super::now;
use super::world::World;
use crate::kinds::{CLAIMS, NODES as NODE_KIND, PODS, REPLICASETS, SERVICES, STATEFULSETS};

/// Images: one of them never becomes ready.
const IMAGES: [&str; 4] = ["app:1", "app:2", "app:3", "broken:1"];
/// Namespaces, the second of which comes and goes.
const NAMESPACES: [&str; 2] = ["default", "shop"];

impl World {
    /// What is there from the start.
    pub fn set_up(&mut self) {
        for node in 0..self.nodes {
            let name = self.node_name(node);
            let mut labels = json!({"kubernetes.io/hostname": name});
            if node > 0 {
                labels[api::node::MANAGED_LABEL] = "true".into();
            }
            self.create(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
                "spec": {"podCIDR": format!("10.{}.0.0/26", node + 1)},
            }));
            let status = json!({"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "50"}});
            let key = Key::new(*NODE_KIND, "", name);
            self.patch(&key, json!({"status": status}), Part::Status);
        }
        for (name, reclaim, default) in [("host", "Delete", "true"), ("keep", "Retain", "false")] {
            self.create(json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {"name": name,
                    "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
                "provisioner": "podyard.io/host", "reclaimPolicy": reclaim, "allowVolumeExpansion": true,
            }));
        }
        self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACES[1]}}));
        for namespace in NAMESPACES {
            self.apply_set(namespace, "cattle");
            self.apply_pets(namespace, "pets");
            self.apply_service(namespace, "front");
        }
    }

    /// One change of mind.
    pub fn act(&mut self) {
        let namespace = NAMESPACES[usize::from(self.rng.random_ratio(1, 3))];
        let cattle = Key::new(*REPLICASETS, namespace, "cattle");
        let pets = Key::new(*STATEFULSETS, namespace, "pets");
        match self.rng.random_range(0..40) {
            34.. => self.act_on_pets(&pets),
            0..=3 => {
                let replicas = self.rng.random_range(0..7);
                self.patch(&cattle, json!({"spec": {"replicas": replicas}}), Part::Main);
            }
            4..=7 => {
                let replicas = self.rng.random_range(0..5);
                self.patch(&pets, json!({"spec": {"replicas": replicas}}), Part::Main);
            }
            8 | 9 => {
                let image = IMAGES[self.rng.random_range(0..IMAGES.len())];
                self.set_image(&pets, image);
            }
            10 => {
                let image = IMAGES[self.rng.random_range(0..IMAGES.len())];
                self.set_image(&cattle, image);
            }
            11..=13 => self.delete_some_pod(),
            14 => {
                let key = if self.rng.random_bool(0.5) { cattle } else { pets };
                let ways = [Propagation::Background, Propagation::Foreground, Propagation::Orphan];
                let way = ways[self.rng.random_range(0..ways.len())];
                self.delete(&key, Some(way));
            }
            15 | 16 => {
                self.create(
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACES[1]}}),
                );
                self.apply_set(namespace, "cattle");
                self.apply_pets(namespace, "pets");
                self.apply_service(namespace, "front");
            }
            17 => {
                let partition = self.rng.random_range(0..3);
                let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
                self.patch(&pets, json!({"spec": {"updateStrategy": strategy}}), Part::Main);
            }
            18 => self.relabel_some_pod(),
            19 => self.delete_some_claim(),
            20 if self.rng.random_ratio(1, 2) => {
                self.delete(&Key::core("namespaces", "", NAMESPACES[1]), None);
            }
            21 => self.apply_stray(namespace),
            22 => {
                let is_cordoned = self.rng.random_bool(0.3);
                let node = self.rng.random_range(0..self.nodes);
                self.patch(&self.node_key(node), json!({"spec": {"unschedulable": is_cordoned}}), Part::Main);
            }
            23..=27 => self.act_on_machine(),
            28..=30 => {
                if let Some(claim) = self.some(&CLAIMS) {
                    self.apply_guest(&claim);
                }
            }
            31 => self.apply_hermit(namespace),
            32 => self.taint_some_node(),
            _ => {
                let key = Key::new(*SERVICES, namespace, "front");
                let selector = if self.rng.random_bool(0.5) { "cattle" } else { "pets" };
                self.patch(&key, json!({"spec": {"selector": {"app": selector}}}), Part::Main);
            }
        }
    }

    /// The end of all experiments: what is broken is mended.
    pub fn mend(&mut self) {
        for namespace in NAMESPACES {
            for key in
                [Key::new(*REPLICASETS, namespace, "cattle"), Key::new(*STATEFULSETS, namespace, "pets")]
            {
                self.set_image(&key, "app:9");
            }
            self.mend_pets(&Key::new(*STATEFULSETS, namespace, "pets"));
        }
        for node in 0..self.nodes {
            self.patch(&self.node_key(node), json!({"spec": {"unschedulable": false}}), Part::Main);
            self.taint(node, false);
        }
        // A ReplicaSet's new template is for new pods, and strays are nobody's: broken ones go by hand.
        let (_, records) = self.registry.store().list(*PODS, None);
        for pod in records.iter().map(store::Record::object) {
            let owner = pod.controller_owner().map(|owner| owner.kind);
            // A guest has the claim that a pet waits for.
            let is_guest = pod.name().starts_with("guest");
            if is_guest || owner.is_none_or(|kind| kind != STATEFULSETS.kind) && is_broken(&pod) {
                self.delete(&pod.key(), None);
            }
        }
    }

    fn apply_set(&mut self, namespace: &str, name: &str) {
        let replicas = self.rng.random_range(1..6);
        self.create(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": template(name, IMAGES[0])},
        }));
    }

    fn apply_pets(&mut self, namespace: &str, name: &str) {
        let random = |chance, world: &mut World| world.rng.random_bool(chance);
        let policy = if random(0.3, self) { "Parallel" } else { "OrderedReady" };
        let when = |is: bool| if is { "Delete" } else { "Retain" };
        let (deleted, scaled) = (when(random(0.3, self)), when(random(0.3, self)));
        let class = if random(0.4, self) { json!("keep") } else { Value::Null };
        let min_ready = if random(0.2, self) { 5 } else { 0 };
        let start = if random(0.2, self) { 3 } else { 0 };
        let history = self.rng.random_range(0..4);
        let mut claim = json!({
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        if !class.is_null() {
            claim["spec"]["storageClassName"] = class;
        }
        let replicas = self.rng.random_range(1..5);
        let mut template = template(name, IMAGES[0]);
        template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        self.create(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "replicas": replicas,
                "serviceName": "front",
                "podManagementPolicy": policy,
                "minReadySeconds": min_ready,
                "revisionHistoryLimit": history,
                "ordinals": {"start": start},
                "selector": {"matchLabels": {"app": name}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
                "template": template,
                "volumeClaimTemplates": [claim],
            },
        }));
    }

    fn apply_service(&mut self, namespace: &str, name: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"app": "cattle"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }));
    }

    /// A pod by hand, which some set may adopt.
    fn apply_stray(&mut self, namespace: &str) {
        let template = template("cattle", IMAGES[1]);
        let name = format!("stray-{}", self.rng.random_range(0..3));
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": "cattle"}},
            "spec": template["spec"],
        }));
    }

    /// A pod by hand that wants a claim that is a pet's.
    pub(super) fn apply_guest(&mut self, claim: &Key) {
        let mut spec = template("guest", IMAGES[0])["spec"].clone();
        spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim.name}}]);
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("guest-of-{}", claim.name), "namespace": claim.namespace}, "spec": spec,
        }));
    }

    /// A pod by hand that stays where it is, whatever happens.
    fn apply_hermit(&mut self, namespace: &str) {
        let mut spec = template("hermit", IMAGES[0])["spec"].clone();
        spec["tolerations"] = json!([{"operator": "Exists", "effect": "NoExecute"}]);
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "hermit", "namespace": namespace}, "spec": spec,
        }));
    }

    /// Everybody leaves a node, or may come back.
    fn taint_some_node(&mut self) {
        let (node, is_tainted) = (self.rng.random_range(0..self.nodes), self.rng.random_bool(0.5));
        self.taint(node, is_tainted);
    }

    fn taint(&mut self, node: usize, is_tainted: bool) {
        let key = self.node_key(node);
        let Ok(object) = self.registry.get(&key) else { return };
        let mut taints = object.get_array("spec.taints").to_vec();
        taints.retain(|taint| taint["key"] != "mine");
        if is_tainted {
            taints.push(json!({"key": "mine", "effect": "NoExecute"}));
        }
        if taints != object.get_array("spec.taints") {
            self.patch(&key, json!({"spec": {"taints": taints}}), Part::Main);
        }
    }

    fn delete_some_pod(&mut self) {
        if let Some(key) = self.some(&PODS) {
            self.delete(&key, None);
        }
    }

    fn delete_some_claim(&mut self) {
        if let Some(key) = self.some(&CLAIMS) {
            self.delete(&key, None);
        }
    }

    fn relabel_some_pod(&mut self) {
        if let Some(key) = self.some(&PODS) {
            let app = if self.rng.random_bool(0.5) { "cattle" } else { "none" };
            self.patch(&key, json!({"metadata": {"labels": {"app": app}}}), Part::Main);
        }
    }

    pub(super) fn some(&mut self, resource: &'static api::Resource) -> Option<Key> {
        let (_, records) = self.registry.store().list(resource, None);
        if records.is_empty() {
            return None;
        }
        Some(records[self.rng.random_range(0..records.len())].key.clone())
    }

    fn set_image(&mut self, key: &Key, image: &str) {
        let Ok(object) = self.registry.get(key) else { return };
        let mut containers = object.get("spec.template.spec.containers").cloned().unwrap_or_default();
        containers[0]["image"] = image.into();
        self.patch(key, json!({"spec": {"template": {"spec": {"containers": containers}}}}), Part::Main);
    }

    fn create(&mut self, value: Value) {
        let object = Object(value);
        let Some(resource) = resource_for_kind(object.api_version(), object.kind()) else { return };
        let (key, namespace) = (object.key(), object.namespace().to_owned());
        let answer = now(self.registry.create(resource, &namespace, object.0, &WriteOptions::default()));
        self.check_manifest(&key, answer.as_ref().err());
        self.say(format_args!("user creates {key}: {}", outcome(&answer)));
    }

    pub(super) fn patch(&mut self, key: &Key, patch: Value, part: Part) {
        let options = WriteOptions::default();
        let answer = now(self.registry.patch(key, PatchKind::Merge, &patch, part, &options));
        self.check_manifest(key, answer.as_ref().err());
        self.say(format_args!("user patches {key} with {patch}: {}", outcome(&answer)));
    }

    pub(super) fn delete(&mut self, key: &Key, propagation: Option<Propagation>) {
        let propagation = propagation.or(Some(Propagation::Background));
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        let answer = now(self.registry.delete(key, &options));
        self.say(format_args!("user deletes {key} {propagation:?}: {}", outcome(&answer)));
    }

    /// Our own manifests are valid: anything else is a bug of the simulation.
    fn check_manifest(&self, key: &Key, error: Option<&api::Error>) {
        if let Some(error) = error {
            let is_bad = matches!(error.kind(), api::Kind::Invalid | api::Kind::BadRequest);
            assert!(!is_bad, "{key}: {error}");
        }
    }
}

/// Whether a pod's image never becomes ready.
pub fn is_broken(pod: &Object) -> bool {
    pod.get_str("spec.containers.0.image").is_some_and(|image| image.contains("broken"))
}

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [
            {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
    })
}
