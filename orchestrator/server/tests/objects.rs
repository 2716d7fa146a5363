//! The verbs on objects, through a real socket.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

mod harness;

use api::Kind;
use client::{DeleteOptions, EventKind, ListOptions, PatchKind, Request, WatchOptions, WriteOptions};
use harness::{key, pod, pods, yard};
use serde_json::{Value, json};

#[tokio::test]
async fn an_object_lives_and_dies() {
    let yard = yard().await;
    let client = &yard.client;
    let made = client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    assert!(!made.object.uid().is_empty() && made.object.resource_version().is_some());
    assert_eq!(client.get(&key("a")).await.unwrap(), made.object);
    let again = client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap_err();
    assert_eq!(
        (again.kind(), again.to_string()),
        (Some(Kind::AlreadyExists), "pods \"a\" already exists".into())
    );
    assert!(
        client.delete(&key("a"), &DeleteOptions::default()).await.unwrap().is_none(),
        "unbound pods go at once"
    );
    assert!(client.get(&key("a")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_stale_update_conflicts() {
    let yard = yard().await;
    let client = &yard.client;
    let made = client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    let mut changed = made.object.0.clone();
    changed["metadata"]["labels"]["x"] = "y".into();
    client.update(&key("a"), None, &changed, &WriteOptions::default()).await.unwrap();
    let stale = client.update(&key("a"), None, &changed, &WriteOptions::default()).await;
    changed["metadata"]["labels"]["x"] = "z".into();
    let conflict = client.update(&key("a"), None, &changed, &WriteOptions::default()).await.unwrap_err();
    assert_eq!(conflict.kind(), Some(Kind::Conflict), "{stale:?}");
}

#[tokio::test]
async fn patches() {
    let yard = yard().await;
    let client = &yard.client;
    client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    let options = WriteOptions::default();
    let merge = json!({"metadata": {"labels": {"b": "c", "app": null}}});
    let merged = client.patch(&key("a"), None, PatchKind::Merge, &merge, &options).await.unwrap().object;
    assert_eq!(Value::from(merged.labels().clone()), json!({"b": "c"}));
    let operations = json!([{"op": "replace", "path": "/metadata/labels/b", "value": "d"}]);
    let patched = client.patch(&key("a"), None, PatchKind::Json, &operations, &options).await.unwrap().object;
    assert_eq!(patched.label("b"), Some("d"));
    let status = json!({"status": {"phase": "Running"}});
    let running =
        client.patch(&key("a"), Some("status"), PatchKind::Merge, &status, &options).await.unwrap().object;
    assert_eq!(running.get_str("status.phase"), Some("Running"));
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    client.patch(&key("a"), None, PatchKind::Merge, &merge, &dry).await.unwrap();
    assert_eq!(client.get(&key("a")).await.unwrap().label("b"), Some("d"), "a dry run stores nothing");
    let mut odd = Request::new(hyper::Method::PATCH, "/api/v1/namespaces/default/pods/a").json(&merge);
    odd.content_type = "application/x-odd";
    assert_eq!(client.request(odd).await.unwrap_err().kind(), Some(Kind::Unsupported));
}

#[tokio::test]
async fn lists_are_selected_and_paged() {
    let yard = yard().await;
    let client = &yard.client;
    for name in ["a", "b", "c"] {
        client.create(pods(), "default", &pod(name), &WriteOptions::default()).await.unwrap();
    }
    let names =
        |list: &client::List| list.items.iter().map(|item| item.name().to_string()).collect::<Vec<_>>();
    let selected = ListOptions { labels: Some("app in (a, c)".into()), ..ListOptions::default() };
    assert_eq!(names(&client.list(pods(), None, &selected).await.unwrap()), ["a", "c"]);
    let named = ListOptions { fields: Some("metadata.name=b".into()), ..ListOptions::default() };
    assert_eq!(names(&client.list(pods(), Some("default"), &named).await.unwrap()), ["b"]);
    let page = ListOptions { limit: Some(2), ..ListOptions::default() };
    let first = client.list(pods(), Some("default"), &page).await.unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    let next = ListOptions { continue_from: first.continue_from, ..page };
    assert_eq!(names(&client.list(pods(), Some("default"), &next).await.unwrap()), ["c"]);
    let wrong = ListOptions { labels: Some("a=b=c".into()), ..ListOptions::default() };
    assert_eq!(client.list(pods(), None, &wrong).await.unwrap_err().kind(), Some(Kind::BadRequest));
}

#[tokio::test]
async fn a_watch_tells_everything_once() {
    let yard = yard().await;
    let client = &yard.client;
    client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    let list = client.list(pods(), Some("default"), &ListOptions::default()).await.unwrap();
    let since = WatchOptions { resource_version: Some(list.resource_version), ..WatchOptions::default() };
    let mut watch = client.watch(pods(), Some("default"), &since).await.unwrap();
    client.create(pods(), "default", &pod("b"), &WriteOptions::default()).await.unwrap();
    let patch = json!({"metadata": {"labels": {"x": "y"}}});
    client.patch(&key("b"), None, PatchKind::Merge, &patch, &WriteOptions::default()).await.unwrap();
    client.delete(&key("b"), &DeleteOptions::default()).await.unwrap();
    for expect in [EventKind::Added, EventKind::Modified, EventKind::Deleted] {
        let event = watch.next().await.unwrap().unwrap();
        assert_eq!((event.kind, event.object.name()), (expect, "b"));
    }
    // From the beginning: what is there comes first.
    let mut all = client.watch(pods(), None, &WatchOptions::default()).await.unwrap();
    let event = all.next().await.unwrap().unwrap();
    assert_eq!((event.kind, event.object.name()), (EventKind::Added, "a"));
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let yard = yard().await;
    let path = "/api/v1/pods?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&sendInitialEvents=true";
    yard.client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    let text = yard.client.request(Request::get(path)).await.unwrap().body;
    let events: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "BOOKMARK", "BOOKMARK"]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let ahead = WatchOptions { resource_version: Some("999999".into()), ..WatchOptions::default() };
    let Err(gone) = yard.client.watch(pods(), None, &ahead).await else { panic!("watched the future") };
    assert_eq!(gone.kind(), Some(Kind::Gone));
}

#[tokio::test]
async fn dropping_a_watch_changes_nothing_and_frees_it() {
    let yard = yard().await;
    let before = store::Store::revision(yard.registry.store());
    let watch = yard.client.watch(pods(), None, &WatchOptions::default()).await.unwrap();
    drop(watch);
    assert_eq!(store::Store::revision(yard.registry.store()), before);
}

#[tokio::test]
async fn unknown_fields_are_refused_by_name() {
    let yard = yard().await;
    let mut wrong = pod("a");
    wrong["spec"]["containerz"] = json!([]);
    wrong["spec"]["containers"][0]["imagine"] = "x".into();
    let error = yard
        .client
        .create(pods(), "default", &wrong, &WriteOptions::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("spec.containerz") && error.contains("spec.containers[0].imagine"), "{error}");
    assert!(yard.client.get(&key("a")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn pet_sets_are_stateful_sets() {
    let yard = yard().await;
    let pets = api::resource_by_any_name("petset").unwrap();
    let sets = api::resource_by_any_name("sts").unwrap();
    let set = json!({
        "apiVersion": "apps/v1alpha1", "kind": "PetSet", "metadata": {"name": "db"},
        "spec": {"serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "main", "image": "podyard.local/host"}]}}},
    });
    let made = yard.client.create(pets, "default", &set, &WriteOptions::default()).await.unwrap().object;
    assert_eq!(made.kind(), "PetSet");
    let stored = api::Key::new(sets, "default", "db");
    assert_eq!(yard.client.get(&stored).await.unwrap().kind(), "StatefulSet");
    let listed = yard.client.list(pets, Some("default"), &ListOptions::default()).await.unwrap();
    assert_eq!(listed.items[0].kind(), "PetSet");
    let scaled = yard.client.scale(&stored, 3).await.unwrap().object;
    assert_eq!((scaled.kind(), scaled.get_i64("spec.replicas")), ("Scale", Some(3)));
    assert_eq!(yard.client.get(&stored).await.unwrap().get_i64("spec.replicas"), Some(3));
}

#[tokio::test]
async fn paths_without_anything_answer_with_a_status() {
    let yard = yard().await;
    for (path, kind) in [
        ("/nope", Kind::NotFound),
        ("/api/v1/cars", Kind::NotFound),
        ("/api/v1/namespaces/default/pods/a/nope", Kind::NotFound),
        ("/api/v1/namespaces/default/pods/a", Kind::NotFound),
    ] {
        assert_eq!(yard.client.request(Request::get(path)).await.unwrap_err().kind(), Some(kind), "{path}");
    }
    let put = Request::new(hyper::Method::PUT, "/api/v1/pods").json(&json!({}));
    assert_eq!(yard.client.request(put).await.unwrap_err().kind(), Some(Kind::MethodNotAllowed));
    for path in ["/version/", "/api", "/apis/", "/apis/apps", "/api/v1/", "/apis/apps/v1", "/podyard/v1/info"]
    {
        yard.client.request_json(Request::get(path)).await.unwrap();
    }
    assert_eq!(&yard.client.request(Request::get("/readyz")).await.unwrap().body[..], b"ok");
}

#[tokio::test]
async fn kubectl_gets_tables() {
    let yard = yard().await;
    yard.client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    let mut request = Request::get("/api/v1/namespaces/default/pods?limit=500");
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    request.headers = vec![(hyper::header::ACCEPT, accept.to_string())];
    let (table, _) = yard.client.request_json(request).await.unwrap();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
}

#[tokio::test]
async fn a_body_too_large_is_refused() {
    let yard = yard().await;
    let huge = json!({"metadata": {"annotations": {"a": "x".repeat(4 << 20)}}});
    let error = yard.client.create(pods(), "default", &huge, &WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), Some(Kind::BadRequest));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let yard = yard().await;
    for name in ["a", "b"] {
        yard.client.create(pods(), "default", &pod(name), &WriteOptions::default()).await.unwrap();
    }
    let request =
        Request::new(hyper::Method::DELETE, "/api/v1/namespaces/default/pods?labelSelector=app%3Da");
    yard.client.request(request).await.unwrap();
    let left = yard.client.list(pods(), None, &ListOptions::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
    assert_eq!(left.items[0].name(), "b");
}
