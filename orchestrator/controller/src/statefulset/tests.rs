use super::claims::SIZE;
use super::*;
use crate::testing::{look, owned, pod as bare, ready, summary, with};

fn set(replicas: u64, patch: Value) -> Object {
    let base = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "1", "generation": 2},
        "spec": {
            "replicas": replicas, "serviceName": "front", "podManagementPolicy": "OrderedReady",
            "selector": {"matchLabels": {"app": "web"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        },
    });
    with(&Object(base), patch)
}

fn claim(ordinal: u64, patch: Value) -> Object {
    let base = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": format!("data-web-{ordinal}"), "namespace": "n", "uid": format!("c{ordinal}"),
            "resourceVersion": "1"},
    });
    with(&Object(base), patch)
}

/// The revision of the set's template, as it is made after `before` others.
fn revision(set: &Object, before: &[Object]) -> Object {
    let plan = look(super::look, &set.key(), before.iter().cloned().chain([set.clone()]));
    let revision = match plan.steps.first().map(|step| &step.call) {
        Some(Call::Create { object }) if object.kind() == "ControllerRevision" => object,
        other => panic!("{other:?}"),
    };
    let uid = format!("uid-{}", revision.name());
    with(revision, json!({"metadata": {"uid": uid, "resourceVersion": "1"}}))
}

/// The pet of an ordinal, well and of the set's own template.
fn pet(set: &Object, ordinal: u64) -> Object {
    let pod = bare(&format!("web-{ordinal}"), ready(&format!("10.0.0.{}", ordinal + 2)));
    let revision = revision(set, &[]);
    let volumes =
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-web-{ordinal}")}}]);
    let patch =
        json!({"metadata": {"labels": {REVISION_LABEL: revision.name()}}, "spec": {"volumes": volumes}});
    owned(with(&pod, patch), set)
}

/// The plan for a set whose revisions, if none is among the others, are made.
fn plan_of(set: &Object, others: &[Object]) -> Plan {
    let has_history = others.iter().any(|it| it.kind() == "ControllerRevision");
    let made = (!has_history && !set.is_deleting()).then(|| revision(set, &[]));
    look(super::look, &set.key(), others.iter().cloned().chain([set.clone()]).chain(made))
}

#[track_caller]
fn check(set: &Object, others: &[Object], expect: &[&str]) -> Plan {
    let plan = plan_of(set, others);
    assert_eq!(summary(&plan), expect);
    plan
}

/// The set with another template.
fn changed(set: &Object) -> Object {
    with(set, json!({"spec": {"template": {"spec": {"containers": [{"name": "new"}]}}}}))
}

fn created(plan: &Plan) -> &Object {
    let Call::Create { object } = &plan.steps[0].call else { panic!("{plan:?}") };
    object
}

fn updated(plan: &Plan) -> &Object {
    let Call::Update { object, .. } = &plan.steps[0].call else { panic!("{plan:?}") };
    object
}

/// What people are told.
fn events(plan: &Plan) -> Vec<(String, String)> {
    let notes = plan.steps.iter().filter_map(|step| step.note.as_ref()).chain(&plan.notes);
    let events = notes.map(|note| note.event(crate::testing::now()));
    let text = |event: &Object, path: &str| event.get_str(path).unwrap_or_default().to_owned();
    events.map(|event| (text(&event, "reason"), text(&event, "message"))).collect()
}

const ENDING: &str = "1970-01-01T00:00:00Z";

#[test]
fn the_claim_is_created_then_the_pod() {
    let set = set(2, json!({}));
    check(&set, &[], &["create data-web-0"]);
    check(&set, &[claim(0, json!({}))], &["create web-0"]);
}

#[test]
fn a_pet_has_its_name_labels_hostname_and_claims() {
    let plan = plan_of(&set(1, json!({})), &[claim(0, json!({}))]);
    let pod = created(&plan);
    assert_eq!(pod.label(POD_NAME_LABEL), Some("web-0"));
    assert_eq!(pod.label(POD_INDEX_LABEL), Some("0"));
    assert_eq!(pod.label(REVISION_LABEL), Some(revision(&set(1, json!({})), &[]).name()));
    assert_eq!((pod.get_str("spec.hostname"), pod.get_str("spec.subdomain")), (Some("web-0"), Some("front")));
    assert_eq!(pod::claims(pod).collect::<Vec<_>>(), ["data-web-0"]);
    assert_eq!(pod.controller_owner().unwrap().uid, "u");
}

#[test]
fn a_pod_of_the_name_that_is_not_ours_is_never_doubled() {
    let set = set(1, json!({}));
    let foreign = bare("web-0", json!({"metadata": {"labels": {"app": "other"}}}));
    let before = with(&set, json!({"metadata": {"uid": "before"}}));
    let of_another = owned(bare("web-0", json!({"metadata": {"deletionTimestamp": ENDING}})), &before);
    for pod in [foreign, of_another] {
        let plan = plan_of(&set, &[claim(0, json!({})), pod]);
        assert!(!summary(&plan).iter().any(|call| call.starts_with("create")), "{plan:?}");
        assert_eq!(plan.notes.len(), 1, "it is told");
    }
}

#[test]
fn a_pod_of_the_name_that_nobody_manages_is_adopted() {
    check(&set(1, json!({})), &[bare("web-0", json!({}))], &["update web-0"]);
    check(&set(1, json!({})), &[bare("web-0", json!({"status": {"phase": "Failed"}}))], &["update web-0"]);
}

#[test]
fn a_claim_that_is_going_is_waited_for() {
    let going = claim(0, json!({"metadata": {"deletionTimestamp": ENDING}}));
    let set = set(1, json!({}));
    // It is told before it is too late to see it, too: while the pet runs on it.
    for pods in [vec![], vec![pet(&set, 0)]] {
        let plan = check(&set, &[std::slice::from_ref(&going), &pods[..]].concat(), &["status web"]);
        assert_eq!(events(&plan).len(), 1);
        assert_eq!(events(&plan)[0].0, "ClaimLost");
    }
}

#[test]
fn claims_are_kept_unless_the_set_says_otherwise() {
    let keeping = set(0, json!({}));
    check(&keeping, &[claim(0, json!({})), pet(&keeping, 0)], &["delete web-0"]);
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}});
    let leaving = set(0, policy.clone());
    let pod = pet(&leaving, 0);
    check(&leaving, &[claim(0, json!({})), pod.clone()], &["update data-web-0"]);
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": pod.uid()});
    let following = claim(0, json!({"metadata": {"ownerReferences": [owner]}}));
    check(&leaving, &[following.clone(), pod.clone()], &["delete web-0"]);
    // Scaled up again in time: the claim stays. Too late: it goes, and a new one comes after it.
    let back = set(1, policy);
    let pod = with(&pod, json!({"metadata": {"labels": {REVISION_LABEL: revision(&back, &[]).name()}}}));
    check(&back, &[following.clone(), pod], &["update data-web-0"]);
    check(&back, &[following], &["status web"]);
}

#[test]
fn claims_belong_to_the_set_if_they_shall_go_with_it() {
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
    let set = set(1, policy);
    check(&set, &[claim(0, json!({})), pet(&set, 0)], &["update data-web-0"]);
    let plan = plan_of(&set, &[]);
    let object = created(&plan);
    assert_eq!(object.owner_references()[0].uid, "u");
    let keeping = self::set(1, json!({}));
    let owned = with(object, json!({"metadata": {"uid": "c0", "resourceVersion": "1"}}));
    check(&keeping, &[owned, pet(&keeping, 0)], &["update data-web-0"]);
}

#[test]
fn the_first_petsets_switch_holds_what_follows() {
    let set = set(2, json!({}));
    let held = with(&pet(&set, 0), json!({"metadata": {"annotations": {INITIALIZED: "false"}}}));
    check(&set, &[claim(0, json!({})), held], &["status web"]);
}

#[test]
fn each_template_is_a_revision_named_by_what_it_holds() {
    let set =
        with(&set(1, json!({})), json!({"metadata": {"annotations": {"kubernetes.io/change-cause": "why"}}}));
    let first = revision(&set, &[]);
    assert_eq!((first.get_i64("revision"), first.controller_owner().unwrap().uid.as_str()), (Some(1), "u"));
    assert_eq!(first.name(), format!("web-{}", first.label("controller.kubernetes.io/hash").unwrap()));
    // kubectl finds it by the set's selector, shows why, and sends its data to go back.
    assert_eq!(
        (first.label("app"), first.annotation("kubernetes.io/change-cause")),
        (Some("web"), Some("why"))
    );
    assert_eq!(first.get_str("data.spec.template.$patch"), Some("replace"));
    assert_eq!(first.get_str("data.spec.template.spec.containers.0.name"), Some("c"));
    let second = revision(&changed(&set), std::slice::from_ref(&first));
    assert_eq!(second.get_i64("revision"), Some(2));
    assert_ne!(first.name(), second.name());
}

#[test]
fn going_back_to_a_template_makes_its_revision_the_newest() {
    let set = set(1, json!({}));
    let first = revision(&set, &[]);
    let second = revision(&changed(&set), std::slice::from_ref(&first));
    let plan = check(&set, &[first.clone(), second], &[&format!("update {}", first.name())]);
    assert_eq!(updated(&plan).get_i64("revision"), Some(3));
}

#[test]
fn a_revision_of_another_content_under_the_name_counts_as_a_collision() {
    let set = set(1, json!({}));
    let taken = revision(&set, &[]);
    let foreign = with(&taken, json!({"metadata": {"ownerReferences": null, "labels": {"app": "other"}}}));
    let plan = check(&set, std::slice::from_ref(&foreign), &["status web"]);
    assert_eq!(updated(&plan).get_i64("status.collisionCount"), Some(1));
    let again = with(&set, json!({"status": {"collisionCount": 1}}));
    assert_ne!(revision(&again, &[foreign]).name(), taken.name());
}

#[test]
fn revisions_that_a_set_of_the_name_left_are_adopted() {
    let set = set(1, json!({}));
    let left = with(&revision(&set, &[]), json!({"metadata": {"ownerReferences": null}}));
    let update = format!("update {}", left.name());
    let plan = check(&set, &[left], &[&update]);
    assert_eq!(updated(&plan).controller_owner().unwrap().uid, "u");
}

#[test]
fn revisions_beyond_the_limit_go_the_oldest_first_unless_a_pod_is_of_them() {
    let set = set(0, json!({"spec": {"revisionHistoryLimit": 1}}));
    let numbered = |name: &str, number: i64| {
        let old =
            with(&revision(&set, &[]), json!({"metadata": {"name": name, "uid": name}, "revision": number}));
        with(&old, json!({"data": {"spec": {"template": {"spec": {"x": number}}}}}))
    };
    let newest = with(&revision(&set, &[]), json!({"revision": 9}));
    let history = [numbered("web-a", 1), numbered("web-b", 2), numbered("web-c", 3), newest];
    check(&set, &history, &["delete web-a", "delete web-b", "status web"]);
    let of_a = with(&bare("web-0", json!({})), json!({"metadata": {"labels": {REVISION_LABEL: "web-a"}}}));
    let of_a = with(&of_a, json!({"metadata": {"deletionTimestamp": ENDING}}));
    let all: Vec<Object> = history.iter().cloned().chain([owned(of_a, &set)]).collect();
    check(&set, &all, &["delete web-b", "status web"]);
}

#[test]
fn those_below_a_partition_are_made_from_the_current_revision() {
    let partition = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 1}}}});
    let first = set(2, partition);
    let current = revision(&first, &[]);
    let new = with(&changed(&first), json!({"status": {"currentRevision": current.name()}}));
    let update = revision(&new, std::slice::from_ref(&current));
    let world = [claim(0, json!({})), claim(1, json!({})), pet(&first, 1), current.clone(), update.clone()];
    let plan = check(&new, &world, &["create web-0"]);
    let pod = created(&plan);
    assert_eq!(pod.get_str("spec.containers.0.name"), Some("c"));
    assert_eq!(pod.label(REVISION_LABEL), Some(current.name()));
    // A current revision that is lost cannot be gone back to.
    let plan = check(&new, &[claim(0, json!({})), claim(1, json!({})), update.clone()], &["create web-0"]);
    assert_eq!(created(&plan).label(REVISION_LABEL), Some(update.name()));
}

#[test]
fn revisions_meet_when_the_roll_out_is_complete() {
    let first = set(1, json!({}));
    let current = revision(&first, &[]);
    for strategy in ["RollingUpdate", "OnDelete", "Recreate"] {
        let change = json!({"spec": {"updateStrategy": {"type": strategy}},
            "status": {"currentRevision": current.name()}});
        let new = with(&changed(&first), change);
        let update = revision(&new, std::slice::from_ref(&current));
        let status = |pod: Object| {
            let plan =
                check(&new, &[claim(0, json!({})), current.clone(), update.clone(), pod], &["status web"]);
            updated(&plan).0["status"].clone()
        };
        let pod = with(&pet(&first, 0), json!({"metadata": {"labels": {REVISION_LABEL: update.name()}}}));
        let done = status(pod.clone());
        assert_eq!(done["currentRevision"], update.name());
        assert_eq!(done["updateRevision"], update.name());
        assert_eq!((&done["readyReplicas"], &done["updatedReplicas"]), (&json!(1), &json!(1)));
        let waiting = status(with(&pod, json!({"status": {"conditions": []}})));
        assert_eq!(waiting["currentRevision"], current.name());
        assert_eq!(waiting["updatedReplicas"], 1);
        assert_eq!(waiting.get("currentReplicas"), None);
    }
}

#[test]
fn available_are_those_that_are_ready_for_long_enough() {
    let status = |since: &str| {
        let set = set(1, json!({"spec": {"minReadySeconds": 10}}));
        let since = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]}});
        let plan = check(&set, &[claim(0, json!({})), with(&pet(&set, 0), since)], &["status web"]);
        (updated(&plan).0["status"]["availableReplicas"].clone(), plan.wake.map(|wake| wake.as_second()))
    };
    assert_eq!(status("1970-01-01T00:00:00Z"), (json!(1), None));
    // NOW is 1970-01-12T13:46:40Z.
    assert_eq!(status("1970-01-12T13:46:38Z"), (json!(0), Some(crate::testing::NOW + 8)));
}

#[test]
fn max_unavailable_is_a_number_or_a_share_rounded_down_and_at_least_one() {
    let check = |value: Option<Value>, replicas: u64, expect: u64| {
        assert_eq!(max_unavailable(value.as_ref(), replicas), expect, "{value:?} of {replicas}");
    };
    check(None, 5, 1);
    check(Some(json!(3)), 5, 3);
    check(Some(json!("50%")), 5, 2);
    check(Some(json!("10%")), 5, 1);
    check(Some(json!("100%")), 5, 5);
    check(Some(json!("50%")), 0, 1);
}

#[test]
fn an_unready_pod_of_an_old_revision_counts_as_broken_after_a_while() {
    let first = set(2, json!({}));
    let current = revision(&first, &[]);
    let new = with(&changed(&first), json!({"status": {"currentRevision": current.name()}}));
    let update = revision(&new, std::slice::from_ref(&current));
    let going = with(&pet(&first, 1), json!({"metadata": {"deletionTimestamp": ENDING}}));
    let plan = |since: &str| {
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": since}]}});
        let pods = [with(&pet(&first, 0), unready), going.clone()];
        plan_of(&new, &[&[claim(0, json!({})), current.clone(), update.clone()][..], &pods].concat())
    };
    assert_eq!(summary(&plan("1970-01-12T13:46:29Z")), ["delete web-0"]);
    let waiting = plan("1970-01-12T13:46:39Z");
    assert_eq!(summary(&waiting), ["status web"]);
    assert_eq!(waiting.wake.map(|wake| wake.as_second()), Some(crate::testing::NOW + 9));
}

#[test]
fn a_claim_that_is_smaller_than_its_template_grows_once_it_is_bound() {
    let size = |text: &str| json!({"resources": {"requests": {"storage": text}}});
    let template = json!([{"metadata": {"name": "data"}, "spec": size("2Gi")}]);
    let large = set(1, json!({"spec": {"volumeClaimTemplates": template}}));
    let claim = |is: &str, phase: &str| claim(0, json!({"spec": size(is), "status": {"phase": phase}}));
    let class = |allows: bool| {
        Object(
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "allowVolumeExpansion": allows,
            "metadata": {"name": "host", "uid": "class", "resourceVersion": "1"}}),
        )
    };
    let of_class = |allows: bool| {
        let claim = with(&claim("1Gi", "Bound"), json!({"spec": {"storageClassName": "host"}}));
        [claim, pet(&large, 0), class(allows)]
    };
    let plan = check(&large, &of_class(true), &["status web", "update data-web-0"]);
    let Call::Update { object, .. } = &plan.steps[1].call else { panic!() };
    assert_eq!(object.get_str(SIZE), Some("2Gi"));
    // A class that does not let it is told of, and holds up nobody.
    let refused = check(&large, &of_class(false), &["status web"]);
    assert_eq!(events(&refused)[0].0, "ClaimGrowthFailed");
    check(&large, &[claim("1Gi", "Pending"), pet(&large, 0)], &["status web"]);
    check(&large, &[claim("2Gi", "Bound"), pet(&large, 0)], &["status web"]);
    check(&large, &[claim("2048Mi", "Bound"), pet(&large, 0)], &["status web"]);
    check(&large, &[claim("3Gi", "Bound"), pet(&large, 0)], &["status web"]);
    let gone = with(&large, json!({"spec": {"replicas": 0}}));
    check(&gone, &[claim("1Gi", "Bound")], &["status web"]);
}

#[test]
fn a_new_claim_template_is_a_new_revision_and_its_claims_come_with_the_next_start() {
    let first = set(1, json!({}));
    let current = revision(&first, &[]);
    let templates = |names: &[&str]| {
        let all: Vec<Value> =
            names.iter().map(|name| json!({"metadata": {"name": name}, "spec": {}})).collect();
        json!({"spec": {"volumeClaimTemplates": all}})
    };
    let new = with(
        &with(&first, templates(&["data", "log"])),
        json!({"status": {"currentRevision": current.name()}}),
    );
    let update = revision(&new, std::slice::from_ref(&current));
    assert_ne!(current.name(), update.name());
    let history = [current.clone(), update.clone(), claim(0, json!({}))];
    let world = |more: &[Object]| [&history[..], more].concat();
    check(&new, &world(&[pet(&first, 0)]), &["delete web-0"]);
    check(&new, &world(&[]), &["create log-web-0"]);
    let log = with(&claim(0, json!({})), json!({"metadata": {"name": "log-web-0", "uid": "l0"}}));
    let plan = check(&new, &world(&[log]), &["create web-0"]);
    assert_eq!(pod::claims(created(&plan)).collect::<Vec<_>>(), ["data-web-0", "log-web-0"]);
    // Below a partition it is as it was.
    let held = with(&new, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 1}}}}));
    let plan = check(&held, &world(&[]), &["create web-0"]);
    assert_eq!(pod::claims(created(&plan)).collect::<Vec<_>>(), ["data-web-0"]);
}

#[test]
fn claims_of_a_template_that_was_removed_stay_and_are_let_go() {
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
    let set = set(1, policy);
    let without = with(&set, json!({"spec": {"volumeClaimTemplates": []}}));
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u"});
    let owned = claim(0, json!({"metadata": {"ownerReferences": [owner]}}));
    check(&without, &[owned], &["update data-web-0"]);
    check(&without, &[claim(0, json!({}))], &["create web-0"]);
}

#[test]
fn a_claim_that_is_missing_under_a_waiting_pet_is_made_again_and_told_of() {
    let set = set(1, json!({}));
    let waiting = with(&pet(&set, 0), json!({"status": {"phase": "Pending", "conditions": []}}));
    let plan = check(&set, &[waiting], &["create data-web-0"]);
    assert_eq!(events(&plan)[0].0, "ClaimLost");
    // One that never was is no news.
    assert_eq!(events(&plan_of(&set, &[]))[0].0, "SuccessfulCreate");
}

#[test]
fn a_lost_claim_of_a_pet_that_does_not_run_is_replaced_once_the_store_has_said_so() {
    let set = set(1, json!({}));
    let lost = claim(0, json!({"spec": {"volumeName": "pvc-x"}, "status": {"phase": "Lost"}}));
    let waiting = with(&pet(&set, 0), json!({"status": {"phase": "Pending", "conditions": []}}));
    let running = with(&pet(&set, 0), json!({"status": {"conditions": []}}));
    let volume = |uid: &str| {
        Object(json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "pvc-x", "uid": "v", "resourceVersion": "1"}, "spec": {"claimRef": {"uid": uid}}}))
    };
    for pods in [&[][..], &[waiting]] {
        let world = |more: &[Object]| [std::slice::from_ref(&lost), pods, more].concat();
        check(&set, &world(&[]), &["read pvc-x"]);
        check(&set, &world(&[volume("c0")]), &["status web"]);
        check(&set, &world(&[volume("another")]), &["delete data-web-0"]);
        let mut cache = crate::testing::cache(world(&[set.clone(), revision(&set, &[])]));
        cache.mark_absent(&Key::new(*crate::kinds::VOLUMES, "", "pvc-x"));
        let assumed = crate::scheduler::Assumed::new();
        let view = View { cache: &cache, assumed: &assumed, now: crate::testing::now() };
        let plan = super::look(&view, &set.key());
        assert_eq!(summary(&plan), ["delete data-web-0"]);
        let (reason, message) = &events(&plan)[0];
        assert_eq!(reason, "ClaimLost");
        assert!(message.contains("pet web-0") && message.contains("is new"), "{message}");
    }
    check(&set, &[lost, running], &["status web"]);
}

#[test]
fn reserved_ordinals_are_read_from_the_annotation() {
    let set = with(&set(2, json!({})), json!({"metadata": {"annotations": {RESERVED_ORDINALS: "1, 2"}}}));
    check(&set, &[claim(0, json!({})), pet(&set, 0)], &["create data-web-3"]);
    // Retention sees one that is reserved as one that is not wanted.
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}});
    let set = with(&set, policy);
    let pets = [
        claim(0, json!({})),
        pet(&set, 0),
        claim(1, json!({})),
        pet(&set, 1),
        claim(3, json!({})),
        pet(&set, 3),
    ];
    check(&set, &pets, &["update data-web-1"]);
}

#[test]
fn ordinals_are_read_strictly() {
    let set = set(1, json!({}));
    let check = |name: &str, expect: Option<u64>| assert_eq!(ordinal(&set, name), expect, "{name}");
    check("web-0", Some(0));
    check("web-10", Some(10));
    for odd in ["web-01", "web-", "web", "web-a", "web-+1", "web-0-0", "other-0", "web--1"] {
        check(odd, None);
    }
}

#[test]
fn a_claim_may_be_of_any_set_its_name_ends_with() {
    assert_eq!(
        sets_of_claim("my-data-web-front-3").collect::<Vec<_>>(),
        ["data-web-front", "web-front", "front"]
    );
    assert_eq!(sets_of_claim("data").count(), 0);
}
