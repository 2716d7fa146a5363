//! Endpoints: the pods behind each Service with a selector, as EndpointSlices.
//!
//! A slice holds at most a hundred endpoints that share one set of resolved ports. Slices that something else manages
//! are left alone, so a hand-made one is as good as ours.
//!
//! Source: Kubernetes documentation, "EndpointSlices"; discovery/v1 EndpointSlice.

use std::collections::{BTreeMap, BTreeSet};

use api::{Key, LabelSelector, Object, Part};
use serde_json::{Value, json};

use crate::effect::{Call, Propagation};
use crate::hash::letters;
use crate::kinds::{PODS, SLICES};
use crate::plan::Plan;
use crate::rules::View;
use crate::{node, pod};

/// Names the Service a slice belongs to.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.podyard.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Kubernetes' default for `--max-endpoints-per-slice`.
const ENDPOINTS_MAX: usize = 100;

/// The selector of a service; none if it has none, and somebody else says what is behind it.
pub fn selector(service: &Object) -> Option<LabelSelector> {
    let labels = service.get("spec.selector")?.as_object()?;
    (!labels.is_empty()).then(|| LabelSelector::from_labels(labels))
}

/// Whether a slice is ours to change.
fn is_ours(slice: &Object) -> bool {
    slice.label(MANAGED_LABEL) == Some(MANAGER)
}

/// Looks at a service.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = view.cache.get(key).filter(|service| !service.is_deleting()) else { return plan };
    let Some(selector) = selector(service) else { return plan };
    if service.get_str("spec.type") == Some("ExternalName") {
        return plan;
    }
    let pods = view.cache.list_in(*PODS, &key.namespace).map(AsRef::as_ref);
    let pods: Vec<&Object> = pods.filter(|pod: &&Object| selector.matches(pod.labels())).collect();
    let known = view.cache.list_in(*SLICES, &key.namespace).map(AsRef::as_ref);
    let old: BTreeMap<&str, &Object> = known
        .filter(|slice: &&Object| is_ours(slice) && slice.label(SERVICE_LABEL) == Some(service.name()))
        .map(|slice| (slice.name(), slice))
        .collect();

    let mut desired: BTreeMap<String, Object> = slices(service, &pods, &node::down(view.cache))
        .into_iter()
        .map(|it| (it.name().to_owned(), it))
        .collect();
    for (name, slice) in old {
        match desired.remove(name) {
            Some(_) if slice.is_deleting() => {}
            Some(new) => {
                if let Some(object) = changed(slice, &new) {
                    plan.call(Call::Update { object, part: Part::Main });
                }
            }
            None if slice.is_deleting() => {}
            None => plan.call(Call::Delete {
                key: slice.key(),
                uid: slice.uid().into(),
                propagation: Propagation::Background,
            }),
        }
    }
    for (_, object) in desired {
        plan.call(Call::Create { object });
    }
    plan
}

/// `old` as it should be; `None` if it is.
fn changed(old: &Object, new: &Object) -> Option<Object> {
    let mut slice = old.clone();
    for field in ["addressType", "endpoints", "ports"] {
        slice.0[field] = new.0[field].clone();
    }
    for field in ["labels", "ownerReferences"] {
        slice.0["metadata"][field] = new.0["metadata"][field].clone();
    }
    (slice != *old).then_some(slice)
}

/// The slices a service should have, named by position.
fn slices(service: &Object, pods: &[&Object], down: &BTreeSet<&str>) -> Vec<Object> {
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    let publish_unready = service.get_bool("spec.publishNotReadyAddresses").unwrap_or(false);
    for pod in pods {
        let Some(address) = pod.get_str("status.podIP").filter(|ip| !ip.is_empty()) else { continue };
        if pod::is_terminal(pod) || address.contains(':') {
            continue;
        }
        let is_down = pod::node(pod).is_some_and(|node| down.contains(node));
        let ports = Value::Array(ports(service, pod));
        let group = groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new()));
        group.1.push(endpoint(service, pod, address, publish_unready, is_down));
    }
    if groups.is_empty() {
        groups.insert(String::new(), (json!([]), Vec::new()));
    }
    let mut slices = Vec::new();
    for (ports, mut endpoints) in groups.into_values() {
        while !endpoints.is_empty() || slices.is_empty() {
            let rest = endpoints.split_off(endpoints.len().min(ENDPOINTS_MAX));
            slices.push(slice(service, slices.len(), &ports, endpoints));
            endpoints = rest;
        }
    }
    slices
}

fn slice(service: &Object, position: usize, ports: &Value, endpoints: Vec<Value>) -> Object {
    let mut labels = service.labels().clone();
    labels.retain(|name, _| name != HEADLESS_LABEL);
    labels.insert(SERVICE_LABEL.into(), service.name().into());
    labels.insert(MANAGED_LABEL.into(), MANAGER.into());
    if service.get_str("spec.clusterIP") == Some("None") {
        labels.insert(HEADLESS_LABEL.into(), "".into());
    }
    let base: String = service.name().chars().take(57).collect();
    Object(json!({
        "apiVersion": SLICES.api_version(),
        "kind": SLICES.kind,
        "metadata": {
            "name": format!("{base}-{}", letters(&[service.uid(), &position.to_string()], 5)),
            "namespace": service.namespace(),
            "labels": labels,
            "ownerReferences": [service.as_controller_owner()],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    }))
}

fn endpoint(service: &Object, pod: &Object, address: &str, publish_unready: bool, is_down: bool) -> Value {
    // Nobody reaches a pod on a node that is down, whatever its last word was: not even when it is the only one.
    let (serving, terminating) = (pod::is_ready(pod) && !is_down, pod.is_deleting());
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": publish_unready || (serving && !terminating),
            "serving": publish_unready || serving,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "name": pod.name(),
            "namespace": pod.namespace(),
            "uid": pod.uid(),
        },
    });
    if let Some(node) = pod::node(pod) {
        endpoint["nodeName"] = node.into();
    }
    // A pet's own name under its governing service.
    let hostname = pod.get_str("spec.hostname").filter(|name| !name.is_empty());
    if let Some(hostname) = hostname.filter(|_| pod.get_str("spec.subdomain") == Some(service.name())) {
        endpoint["hostname"] = hostname.into();
    }
    endpoint
}

/// The service's ports as this pod has them: names resolved, what it lacks left out.
fn ports(service: &Object, pod: &Object) -> Vec<Value> {
    let mut ports = Vec::new();
    for port in service.get_array("spec.ports") {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => container_port(pod, name, protocol),
            Value::Number(number) if number.as_u64() != Some(0) => number.as_u64(),
            _ => port["port"].as_u64(),
        };
        if let Some(number) = number {
            let mut resolved = json!({
                "name": port["name"].as_str().unwrap_or(""),
                "protocol": protocol,
                "port": number,
            });
            if let Some(app) = port["appProtocol"].as_str() {
                resolved["appProtocol"] = app.into();
            }
            ports.push(resolved);
        }
    }
    ports
}

fn container_port(pod: &Object, name: &str, protocol: &str) -> Option<u64> {
    // "8080" in quotes is a number all the same.
    if let Ok(number) = name.parse::<u64>() {
        return Some(number);
    }
    let containers = pod.get_array("spec.containers").iter();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let named =
        |port: &&Value| port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == protocol;
    ports.into_iter().find(named)?["containerPort"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{look, pod, ready, summary, with};

    fn plan(service: &Object, pods: &[&Object]) -> Vec<Object> {
        slices(service, pods, &BTreeSet::new())
    }

    fn service(patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "1"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        });
        with(&Object(base), patch)
    }

    fn backend(name: &str, address: &str, patch: Value) -> Object {
        let ports = json!({"spec": {"containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}});
        with(&with(&with(&pod(name, json!({})), ready(address)), ports), patch)
    }

    /// Address, and `r`eady, `s`erving, `t`erminating.
    fn told(slices: &[Object]) -> Vec<String> {
        let endpoints = slices.iter().flat_map(|slice| slice.get_array("endpoints"));
        let flag = |endpoint: &Value, name: &str| {
            if endpoint["conditions"][name] == true { &name[..1] } else { "-" }.to_owned()
        };
        endpoints
            .map(|it| {
                let flags = ["ready", "serving", "terminating"].map(|name| flag(it, name)).concat();
                format!("{} {flags}", it["addresses"][0].as_str().unwrap())
            })
            .collect()
    }

    const ENDING: &str = "1970-01-01T00:00:00Z";

    #[test]
    fn conditions_follow_the_pod() {
        let unready = json!({"status": {"conditions": []}});
        let ending = json!({"metadata": {"deletionTimestamp": ENDING}});
        let pods = [
            backend("a", "10.0.0.2", json!({})),
            backend("b", "10.0.0.3", unready.clone()),
            backend("c", "10.0.0.4", ending.clone()),
            backend("d", "10.0.0.5", with(&Object(unready), ending).0),
            backend("e", "10.0.0.6", json!({"status": {"phase": "Failed"}})),
            backend("f", "", json!({})),
        ];
        let pods: Vec<&Object> = pods.iter().collect();
        let expect = ["10.0.0.2 rs-", "10.0.0.3 ---", "10.0.0.4 -st", "10.0.0.5 --t"];
        assert_eq!(told(&plan(&service(json!({})), &pods)), expect);
        let all = service(json!({"spec": {"publishNotReadyAddresses": true}}));
        let expect = ["10.0.0.2 rs-", "10.0.0.3 rs-", "10.0.0.4 rst", "10.0.0.5 rst"];
        assert_eq!(told(&plan(&all, &pods)), expect);
    }

    #[test]
    fn named_ports_are_resolved_per_pod() {
        let other = json!({"spec": {"containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]}});
        let pods = [backend("a", "10.0.0.2", json!({})), backend("b", "10.0.0.3", other)];
        let slices = plan(&service(json!({})), &pods.iter().collect::<Vec<_>>());
        let ports: Vec<&Value> = slices.iter().map(|slice| &slice.0["ports"][0]["port"]).collect();
        assert_eq!(ports, [&json!(8080), &json!(9090)]);
        let by_number = service(json!({"spec": {"ports": [{"port": 80, "targetPort": 7}]}}));
        assert_eq!(plan(&by_number, &[&pods[0]])[0].0["ports"][0]["port"], 7);
        let unsaid = service(json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(plan(&unsaid, &[&pods[0]])[0].0["ports"][0]["port"], 80);
    }

    #[test]
    fn a_slice_holds_a_hundred() {
        let pods: Vec<Object> =
            (0..250).map(|n| backend(&format!("p{n:03}"), &format!("10.0.1.{n}"), json!({}))).collect();
        let slices = plan(&service(json!({})), &pods.iter().collect::<Vec<_>>());
        let sizes: Vec<usize> = slices.iter().map(|slice| slice.get_array("endpoints").len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!(told(&slices).len(), 250);
    }

    #[test]
    fn a_pet_has_its_hostname_under_its_own_service() {
        let pet = |subdomain: &str| {
            backend("web-0", "10.0.0.2", json!({"spec": {"hostname": "web-0", "subdomain": subdomain}}))
        };
        let hostname =
            |pod: &Object| plan(&service(json!({})), &[pod])[0].0["endpoints"][0]["hostname"].clone();
        assert_eq!(hostname(&pet("web")), "web-0");
        assert_eq!(hostname(&pet("other")), Value::Null);
    }

    #[test]
    fn nothing_behind_it_is_one_empty_slice() {
        let slices = plan(&service(json!({})), &[]);
        assert_eq!((slices.len(), slices[0].get_array("endpoints").len()), (1, 0));
        assert_eq!(slices[0].label(SERVICE_LABEL), Some("web"));
    }

    #[test]
    fn slices_are_created_updated_deleted_and_then_left_alone() {
        let pod = backend("a", "10.0.0.2", json!({}));
        let all = |slices: Vec<Object>| slices.into_iter().chain([service(json!({})), pod.clone()]);
        let look = |slices| look(super::look, &service(json!({})).key(), all(slices));
        let first = look(vec![]);
        let Call::Create { object: slice } = &first.steps[0].call else { panic!("{first:?}") };
        let stored = with(slice, json!({"metadata": {"uid": "s", "resourceVersion": "2"}}));
        assert_eq!(summary(&look(vec![stored.clone()])), [""; 0]);
        let old = with(&stored, json!({"endpoints": []}));
        let surplus = with(&old, json!({"metadata": {"name": "surplus", "uid": "t"}}));
        let update = format!("update {}", slice.name());
        assert_eq!(summary(&look(vec![old, surplus])), ["delete surplus", &update]);
    }

    #[test]
    fn a_slice_made_by_hand_is_left_alone() {
        let slice = Object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "mine", "namespace": "n", "uid": "m", "resourceVersion": "1",
                "labels": {SERVICE_LABEL: "web", MANAGED_LABEL: "me"}},
            "addressType": "IPv4", "endpoints": [],
        }));
        let with_selector = look(super::look, &service(json!({})).key(), [service(json!({})), slice.clone()]);
        assert!(!summary(&with_selector).iter().any(|call| call.ends_with("mine")));
        let without = service(json!({"spec": {"selector": null}}));
        assert!(look(super::look, &without.key(), [without.clone(), slice]).is_empty());
    }

    #[test]
    fn a_node_that_is_down_serves_nothing_not_even_through_its_last_pod() {
        let node = |health: &str| {
            Object(json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "node-0", "uid": "node-0", "resourceVersion": "1"},
                "status": {"conditions": [{"type": "Ready", "status": health}]}}))
        };
        let (stays, goes) = (json!({}), json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        let check = |health: &str, patch: &Value, expect: &str| {
            let cache = crate::testing::cache([node(health)]);
            let pod = backend("a", "10.0.0.1", patch.clone());
            assert_eq!(
                told(&slices(&service(json!({})), &[&pod], &node::down(&cache))),
                [expect],
                "{health}"
            );
        };
        check("True", &stays, "10.0.0.1 rs-");
        check("True", &goes, "10.0.0.1 -st");
        check("Unknown", &stays, "10.0.0.1 ---");
        check("False", &goes, "10.0.0.1 --t");
    }
}
